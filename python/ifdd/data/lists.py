"""Reading the lists of the benchmarks, which video has which label; those of other projects are in
`ifdd.data.foreign_lists`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ifdd.text import printable

from .errors import DatasetError
from .foreign_lists import Entry, ListFormat, read_list
from .labels import (
    DFEW_CLASSES,
    FERV39K_CLASSES,
    MAFW_CLASSES,
    FirstLabel,
    Label,
    indexes,
    parse_label,
    unknown_label,
)
from .textfile import decoded, read_lines

__all__ = [
    "DFEW_CLASSES",
    "FERV39K_CLASSES",
    "MAFW_CLASSES",
    "DFEWList",
    "Entry",
    "ListFormat",
    "hold_out",
    "read_dfew",
    "read_dfew_votes",
    "read_ferv39k",
    "read_list",
    "read_mafw",
]


class DFEWList(NamedTuple):
    """The clips of a DFEW list.

    Attributes:
        entries: one per clip, in the order of the file.
        dropped: how many lines without a single emotion (label 0) were left out.
    """

    entries: list[Entry]
    dropped: int


def read_dfew(path: Path, first_label: FirstLabel = "auto") -> DFEWList:
    """`set_k.csv`: `video_name,label`, with a header or without; names are numbers, labels count from
    `first_label` in the order of `DFEW_CLASSES`. Counted from 1, as is official, 0 means "no single emotion".

    Args:
        path: the list.
        first_label: number of the first class: 0, 1, or "auto".

    Returns:
        `DFEWList`, labels from 0.

    Raises:
        DatasetError: an unreadable line, or ("auto") labels that look as if they counted from 0.
    """
    entries: list[Entry] = []
    first = 1 if first_label == "auto" else first_label
    dropped = 0
    for number, (where, line) in enumerate(read_lines(path)):
        fields = [field.strip("\"'") for field in re.split(r"[,;\s]+", decoded(line, where).strip())]
        if number == 0 and not any(_number(field) for field in fields):
            continue
        label = _number(fields[-1])
        if len(fields) != 2 or label is None:
            raise DatasetError(f"{where}: expected `video_name,label`, got {decoded(line, where)[:80]!r}")
        if first == 1 and label.value == 0:
            dropped += 1
            continue
        entries.append(Entry(fields[0], indexes([(where, label)], DFEW_CLASSES, first)[0]))
    _refuse_empty(path, entries)
    if first_label == "auto" and dropped and all(entry.label < len(DFEW_CLASSES) - 1 for entry in entries):
        raise DatasetError(
            f"{printable(path)}: labels 0 to 6 and none of 7: if they count from 0, say so with "
            "--first_label 0; if 0 means no single emotion, with --first_label 1"
        )
    return DFEWList(entries, dropped)


def read_dfew_votes(path: Path) -> dict[int, tuple[float, ...]]:
    """Reads `annotation.csv` at `path`: the shares of the ten annotators' votes for `DFEW_CLASSES`, by clip.

    Raises:
        DatasetError: columns missing, a line that is not numbers, or a clip without votes.
    """
    lines = [
        (where, [field.strip().strip('"') for field in re.split(r"[,;\t]", decoded(line, where))])
        for where, line in read_lines(path)
    ]
    header = lines[0][1] if lines else []
    wanted = [f"{number}{name.lower()}" for number, name in enumerate(DFEW_CLASSES, 1)]
    missing = [name for name in (*wanted, "order") if name not in header]
    if missing:
        raise DatasetError(f"{printable(path)}: columns {missing} are missing, the header is {header}")
    columns = [header.index(name) for name in wanted]
    order = header.index("order")
    votes: dict[int, tuple[float, ...]] = {}
    for where, fields in lines[1:]:
        try:
            counts = [float(fields[column]) for column in columns]
            number = int(fields[order])
        except (IndexError, ValueError):
            raise DatasetError(
                f"{where}: expected numbers in {len(header)} columns, got {','.join(fields)[:80]!r}"
            ) from None
        total = sum(counts)
        if not 0 < total < float("inf") or min(counts) < 0:
            raise DatasetError(f"{where}: clip {number} has no votes")
        votes[number] = tuple(count / total for count in counts)
    return votes


def read_ferv39k(path: Path) -> list[Entry]:
    """Reads `train_All.csv` or `test_All.csv` at `path`: `Crime/Angry/0063 Angry`, no header; labels in the
    order of `FERV39K_CLASSES`.

    Raises:
        DatasetError: an unreadable line or an unknown emotion.
    """
    entries = []
    for where, line in read_lines(path):
        text = decoded(line, where).strip()
        fields = re.split(r"[\s,;]+(?=[^\s,;]+$)", text)
        if len(fields) != 2:
            raise DatasetError(f"{where}: expected `scene/emotion/number emotion`, got {text[:80]!r}")
        entries.append(Entry(fields[0], _emotion(fields[1], FERV39K_CLASSES, where)))
    _refuse_empty(path, entries)
    return entries


def read_mafw(path: Path) -> list[Entry]:
    """Reads `train.txt` or `test.txt` at `path`: `03747.mp4 anger`, or separated by tabs with captions
    behind, which are ignored; labels in the order of `MAFW_CLASSES`.

    Raises:
        DatasetError: an unreadable line or an unknown emotion.
    """
    entries = []
    for where, line in read_lines(path):
        fields = line.split(b"\t") if b"\t" in line else line.split()
        if len(fields) < 2:
            raise DatasetError(f"{where}: expected `name emotion`, got {line[:80]!r}")
        name, emotion = (decoded(field, where).strip() for field in fields[:2])
        entries.append(Entry(name, _emotion(emotion, MAFW_CLASSES, where)))
    _refuse_empty(path, entries)
    return entries


def hold_out(labels: Sequence[int], part: float, seed: int) -> tuple[list[int], list[int]]:
    """Divides a training set into (training, validation) indexes, both ascending.

    `part` of all videos, rounded half up, is held out, less where classes have a single one; the classes
    share that number in proportion to their videos, by largest remainders (of equal ones the first class).
    Every class with two videos or more gives at least one, also where that makes more than `part`, and never
    all. The draw depends on the labels and the seed only.

    Args:
        labels: one per video.
        part: of all videos, from 0 to below 1.
        seed: of the draw.

    Returns:
        Indexes into `labels` of the training and of the validation videos.

    Raises:
        ValueError: `part` is not between 0 and 1.
    """
    if not 0 <= part < 1:
        raise ValueError(f"validation must be at least 0 and below 1, got {part}")
    held: list[int] = []
    if part > 0:
        generator = np.random.default_rng(seed)
        all_labels = np.asarray(labels)
        classes, sizes = np.unique(all_labels, return_counts=True)
        for label, count in zip(classes, _shares(sizes, part), strict=True):
            members = generator.permutation(np.flatnonzero(all_labels == label))
            held.extend(members[:count].tolist())
    chosen = set(held)
    return [index for index in range(len(labels)) if index not in chosen], sorted(held)


def _shares(sizes: np.ndarray, part: float) -> list[int]:
    """How many videos of each class make `part` of all."""
    exact = sizes * part
    counts = np.clip(np.floor(exact).astype(int), np.minimum(1, sizes - 1), sizes - 1)
    left = math.floor(sizes.sum() * part + 0.5) - int(counts.sum())
    remainders = np.where(counts < np.minimum(exact, sizes - 1), exact - counts, 0.0)
    for place in np.argsort(-remainders, kind="stable")[: max(0, left)]:
        counts[place] += bool(remainders[place] > 0)
    return [int(count) for count in counts]


def _number(text: str) -> Label | None:
    return parse_label(text, ())


def _emotion(text: str, class_names: Sequence[str], where: str) -> int:
    label = parse_label(text, class_names)
    if label is None or not label.named:
        raise unknown_label(where, text, class_names)
    return label.value


def _refuse_empty(path: Path, entries: Sequence[Entry]) -> None:
    if not entries:
        raise DatasetError(f"{printable(path)}: the list is empty")
