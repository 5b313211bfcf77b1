"""Reading the list files of the benchmarks and of other projects: which video has which label.

Files are split as bytes and only names and labels are decoded: some lists carry captions in no single
encoding.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from .errors import DatasetError

DFEW_CLASSES = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")
"""Labels 1..7 of DFEW."""

FERV39K_CLASSES = ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
"""The alphabetical order, which the original implementation uses for FERV39k. Other projects use DFEW's."""

MAFW_CLASSES = (
    "anger",
    "disgust",
    "fear",
    "happiness",
    "neutral",
    "sadness",
    "surprise",
    "contempt",
    "anxiety",
    "helplessness",
    "disappointment",
)

ListFormat = Literal["auto", "folder_label", "folder_count_label", "csv"]


class Entry(NamedTuple):
    """One line of a list: the video as it is named there, and its label, an index into the class names."""

    name: str
    label: int


class DFEWList(NamedTuple):
    """The clips of a DFEW list, and how many lines without a single emotion (label 0) were left out."""

    entries: list[Entry]
    dropped: int


def read_dfew(path: Path, first_label: int = 1) -> DFEWList:
    """`set_k.csv`: `video_name,label`, with a header or without; names are numbers, labels count from
    `first_label` in the order of `DFEW_CLASSES`. With first_label = 1, label 0 means "no single emotion".

    Raises:
        DatasetError: an unreadable line, or labels that look as if they counted from 0.
    """
    entries: list[Entry] = []
    dropped = 0
    for where, line in _lines(path):
        fields = re.split(r"[,;\s]+", _text(line, where).strip())
        if not entries and not dropped and not _is_integer(fields[-1]):
            continue
        if len(fields) != 2 or not _is_integer(fields[1]):
            raise DatasetError(f"{where}: expected `video_name,label`, got {line[:80]!r}")
        if first_label == 1 and int(fields[1]) == 0:
            dropped += 1
            continue
        entries.append(Entry(fields[0], _label(fields[1], DFEW_CLASSES, first_label, where)))
    _refuse_empty(path, entries)
    if dropped and all(entry.label < len(DFEW_CLASSES) - 1 for entry in entries):
        raise DatasetError(f"{path}: labels 0 to 6 and none of 7: if they count from 0, pass first_label=0")
    return DFEWList(entries, dropped)


def read_dfew_votes(path: Path) -> dict[int, tuple[float, ...]]:
    """`annotation.csv`: the share of the ten annotators' votes for each of `DFEW_CLASSES`, by clip number.

    Raises:
        DatasetError: columns missing, a line that is not numbers, or a clip without votes.
    """
    lines = _lines(path)
    header = [field.strip() for field in _text(lines[0][1], lines[0][0]).split(",")] if lines else []
    wanted = [f"{number}{name.lower()}" for number, name in enumerate(DFEW_CLASSES, 1)]
    missing = [name for name in (*wanted, "order") if name not in header]
    if missing:
        raise DatasetError(f"{path}: columns {missing} are missing, the header is {header}")
    columns = [header.index(name) for name in wanted]
    order = header.index("order")
    votes: dict[int, tuple[float, ...]] = {}
    for where, line in lines[1:]:
        fields = _text(line, where).split(",")
        try:
            counts = [float(fields[column]) for column in columns]
            number = int(fields[order])
        except (IndexError, ValueError):
            raise DatasetError(
                f"{where}: expected numbers in {len(header)} columns, got {line[:80]!r}"
            ) from None
        total = sum(counts)
        if total <= 0 or min(counts) < 0:
            raise DatasetError(f"{where}: clip {number} has no votes")
        votes[number] = tuple(count / total for count in counts)
    return votes


def read_ferv39k(path: Path) -> list[Entry]:
    """`train_All.csv`, `test_All.csv`: `Crime/Angry/0063 Angry`, no header; labels in the order of
    `FERV39K_CLASSES`.

    Raises:
        DatasetError: an unreadable line or an unknown emotion.
    """
    entries = []
    for where, line in _lines(path):
        fields = _text(line, where).rsplit(None, 1)
        if len(fields) != 2:
            raise DatasetError(f"{where}: expected `scene/emotion/number emotion`, got {line[:80]!r}")
        entries.append(Entry(fields[0].strip(), _label(fields[1], FERV39K_CLASSES, None, where)))
    _refuse_empty(path, entries)
    return entries


def read_mafw(path: Path) -> list[Entry]:
    """`train.txt`, `test.txt`: `03747.mp4 anger`, or separated by tabs with captions behind, which are
    ignored; labels in the order of `MAFW_CLASSES`.

    Raises:
        DatasetError: an unreadable line or an unknown emotion.
    """
    entries = []
    for where, line in _lines(path):
        fields = line.split(b"\t") if b"\t" in line else line.split()
        if len(fields) < 2:
            raise DatasetError(f"{where}: expected `name emotion`, got {line[:80]!r}")
        name, emotion = (_text(field, where).strip() for field in fields[:2])
        entries.append(Entry(name, _label(emotion, MAFW_CLASSES, None, where)))
    _refuse_empty(path, entries)
    return entries


def read_list(
    path: Path, class_names: Sequence[str], format: ListFormat = "auto", first_label: int = 0
) -> list[Entry]:
    """The list files of other projects.

    Formats: "folder_label" `<frames_dir> <label>` (MAE-DFER and its relatives), "folder_count_label"
    `<frames_dir> <num_frames> <label>` (Former-DFER, DFER-CLIP, MMA-DFER), "csv" `video_name,label` with a
    header or without (S2D). A label is a number counting from `first_label`, or a class name.
    "auto" takes "csv" if the first line has a comma, and "folder_count_label" if every line ends in two
    integers.

    Raises:
        DatasetError: an unreadable line or a label outside the class names.
    """
    lines = [(where, _text(line, where).strip()) for where, line in _lines(path)]
    if not lines:
        raise DatasetError(f"{path}: the list is empty")
    if format == "auto":
        if "," in lines[0][1]:
            format = "csv"
        else:
            counted = all(re.search(r"\S\s+\d+\s+\d+$", line) for _, line in lines)
            format = "folder_count_label" if counted else "folder_label"
    if format == "csv":
        parts = [(where, [field.strip() for field in line.rsplit(",", 1)]) for where, line in lines]
        if parts[0][1][-1].lower() == "label":
            del parts[0]
    elif format == "folder_label":
        parts = [(where, line.rsplit(None, 1)) for where, line in lines]
    elif format == "folder_count_label":
        parts = [(where, line.rsplit(None, 2)) for where, line in lines]
    else:
        raise ValueError(f"format must be auto, folder_label, folder_count_label or csv, got {format!r}")
    entries = []
    for where, fields in parts:
        if len(fields) != (3 if format == "folder_count_label" else 2):
            raise DatasetError(f"{where}: expected {format.replace('_', ', ')}, got {fields}")
        entries.append(Entry(fields[0], _label(fields[-1], class_names, first_label, where)))
    _refuse_empty(path, entries)
    return entries


def hold_out(labels: Sequence[int], part: float, seed: int) -> tuple[list[int], list[int]]:
    """Divides a training set into (training, validation) indexes, both ascending.

    Of every class, `part` of its videos, rounded, is held out: at least one if it has two, and never all. The
    draw depends on the labels and the seed only.

    Raises:
        ValueError: `part` is not between 0 and 1.
    """
    if not 0 <= part < 1:
        raise ValueError(f"validation must be at least 0 and below 1, got {part}")
    held: list[int] = []
    if part > 0:
        generator = np.random.default_rng(seed)
        all_labels = np.asarray(labels)
        for label in np.unique(all_labels):
            members = generator.permutation(np.flatnonzero(all_labels == label))
            count = min(max(round(len(members) * part), 1), len(members) - 1)
            held.extend(members[:count].tolist())
    chosen = set(held)
    return [index for index in range(len(labels)) if index not in chosen], sorted(held)


def _lines(path: Path) -> list[tuple[str, bytes]]:
    """The lines that are not blank, each with `file, line n` for messages."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: cannot read the list ({error.strerror})") from None
    content = content.removeprefix(b"\xef\xbb\xbf")
    # Not str.splitlines: bytes of a foreign encoding would be taken for line ends.
    lines = [
        (f"{path}, line {number}", line.rstrip(b"\r")) for number, line in enumerate(content.split(b"\n"), 1)
    ]
    return [(where, line) for where, line in lines if line.strip()]


def _text(field: bytes, where: str) -> str:
    try:
        return field.decode("utf-8")
    except UnicodeDecodeError:
        raise DatasetError(f"{where}: not UTF-8: {field[:80]!r}") from None


def _is_integer(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+", text) is not None


def _label(text: str, class_names: Sequence[str], first_label: int | None, where: str) -> int:
    """Index of a label given as a number (unless first_label is None) or as a class name in any case."""
    if first_label is not None and _is_integer(text):
        label = int(text) - first_label
        if 0 <= label < len(class_names):
            return label
        last = first_label + len(class_names) - 1
        raise DatasetError(f"{where}: label {text} is not in {first_label}..{last}")
    lowered = [name.lower() for name in class_names]
    if text.lower() in lowered:
        return lowered.index(text.lower())
    raise DatasetError(f"{where}: label {text!r} is none of {', '.join(class_names)}")


def _refuse_empty(path: Path, entries: Sequence[Entry]) -> None:
    if not entries:
        raise DatasetError(f"{path}: the list is empty")
