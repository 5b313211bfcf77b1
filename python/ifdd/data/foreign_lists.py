"""The list files of other projects, and your own: a path and a label per line, in any columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from ifdd.text import printable

from .errors import DatasetError
from .labels import FirstLabel, Label, indexes, numbering, parse_label, unknown_label
from .tables import SEPARATORS, Row, Table, read_table

ListFormat = Literal["auto", "folder_label", "folder_count_label", "csv"]

_AUDIO = (".wav", ".mp3", ".flac", ".m4a", ".aac", ".ogg", ".opus", ".wma")
_SEPARATORS = {
    "auto": (*SEPARATORS, " "),
    "csv": SEPARATORS,
    "folder_label": (" ",),
    "folder_count_label": (" ",),
}
_EXPECTED = {
    "auto": "a path and a label, separated by a space or a comma",
    "csv": "a path and a label in columns",
    "folder_label": "a path and a label",
    "folder_count_label": "a path, a number of frames and a label",
}


class Entry(NamedTuple):
    """One line of a list.

    Attributes:
        name: the video as it is named there.
        label: an index into the class names.
        readings: other ways to read the name, for lines that can be read in several (`a/clip 2 0`: the folder
            `a/clip` of two frames, or the folder `a/clip 2`). The first that exists is taken.
    """

    name: str
    label: int
    readings: tuple[str, ...] = ()


class Listing(NamedTuple):
    """The lines of a list, where each stands (`file, line n`), what is worth knowing, a line each, and the
    number of the first class where labels are numbers.
    """

    entries: list[Entry]
    places: list[str]
    remarks: list[str]
    first: int = 0


def read_list(
    path: Path,
    class_names: Sequence[str],
    format: ListFormat = "auto",
    first_label: FirstLabel = "auto",
    *,
    path_column: str | None = None,
    label_column: str | None = None,
) -> list[Entry]:
    """The videos of a list file, with their labels.

    Args:
        path: the list.
        class_names: the classes in order; labels are these names or numbers.
        format: of the lines; "auto" finds it out.
        first_label: number of the first class: 0, 1, or "auto".
        path_column: name of the column with the videos, for tables whose header has another one.
        label_column: likewise of the labels.

    Returns:
        One `Entry` per video, in the order of the file.

    Raises:
        DatasetError: an unreadable line, an unknown class, or numbers that could count from 0 or from 1.
    """
    return read_listing(
        path, class_names, format, first_label, path_column=path_column, label_column=label_column
    ).entries


def read_listing(
    path: Path,
    class_names: Sequence[str],
    format: ListFormat = "auto",
    first_label: FirstLabel = "auto",
    *,
    path_column: str | None = None,
    label_column: str | None = None,
    companions: Sequence[Path] = (),
    faults: list[str] | None = None,
) -> Listing:
    """Reads a list of any of these forms, with a header line or without:

    - `<path> <label>` (MAE-DFER and its relatives), separated by white space; names may hold blanks;
    - `<path> <number of frames> <label>` (Former-DFER, DFER-CLIP, MMA-DFER);
    - `<frames> <sound> <label>` (audio-visual projects): the sound is left aside;
    - CSV with commas, semicolons, tabs or bars, names in quotes or not (S2D, pandas, Excel).

    UTF-8 and UTF-16, any line ends; blank lines and lines that begin with # are left out. A label is a class
    name or a number.

    Args:
        path: the list.
        class_names: names in label order.
        format: "auto" for any of the above; "csv" for separated columns, "folder_label" and
            "folder_count_label" for white space, where a list could be taken for another form.
        first_label: 0 or 1, the number of the first class; "auto": 0 if it occurs, 1 if it does not but K,
            the number of classes, does.
        path_column: name in the header, or number (1 is the first, -1 the last); by default the column that
            the header calls so (`path`, `video_name`, ...), or the first.
        label_column: likewise; by default the one called `label`, `emotion` or so, or the last.
        companions: lists of the same data set, whose numbers tell "auto" more.
        faults: receives every line that cannot be used, which is left out then; by default the first one
            is an error.

    Raises:
        DatasetError: an unreadable line, a label that is none of the classes (named with its line), or
            numbers that may count from 0 as well as from 1.
        ValueError: an unknown format or first label.
    """
    if format not in get_args(ListFormat):
        raise ValueError(f"format must be one of {', '.join(get_args(ListFormat))}, got {format!r}")
    if first_label not in get_args(FirstLabel):
        raise ValueError(f"first_label must be 0, 1 or 'auto', got {first_label!r}")
    columns = {"path_column": path_column, "label_column": label_column}
    remarks: list[str] = []
    parts = _split(path, class_names, format, remarks, faults, **columns)
    if first_label == "auto":
        numbers = [part.label.value for part in parts if not part.label.named]
        for other in companions:
            numbers += _numbers(other, class_names, format, **columns) if numbers else []
        first = numbering(printable(path), numbers, len(class_names))
        if first == 1:
            remarks.append(
                f"{printable(path)}: labels count from 1: 1 is {class_names[0]}, {len(class_names)} is "
                f"{class_names[-1]}"
            )
    else:
        first = first_label
    entries, places = [], []
    for part in parts:
        try:
            label = indexes([(part.where, part.label)], class_names, first)[0]
        except DatasetError as error:
            _note(error, faults)
            continue
        entries.append(Entry(part.name, label, part.readings))
        places.append(part.where)
    return Listing(entries, places, remarks, first)


class _Part(NamedTuple):
    where: str
    name: str
    readings: tuple[str, ...]
    label: Label


def _split(
    path: Path,
    class_names: Sequence[str],
    format: ListFormat,
    remarks: list[str],
    faults: list[str] | None,
    *,
    path_column: str | None,
    label_column: str | None,
) -> list[_Part]:
    phrases = sorted((name for name in class_names if " " in name), key=len, reverse=True)
    parse = partial(parse_label, class_names=class_names)
    table = read_table(path, _SEPARATORS[format], parse, label_column, phrases)
    if table.comments:
        one = table.comments == 1
        lines = "1 line that begins with # is" if one else f"{table.comments} lines that begin with # are"
        remarks.append(f"{printable(path)}: {lines} left out")
    label_place = table.label_column(label_column, path)
    plain = label_place == -1 and path_column is None and table.header is None
    naming = _naming(table, format, remarks, path) if plain else None
    path_place = table.path_column(path_column, label_place, path)
    parts = []
    for row in table.rows:
        if naming is not None:
            names, text = naming(row)
        else:
            names, text = _by_columns(row, table, path_place, label_place)
        if text is None or not names or not names[0]:
            expected = f"{row.where}: expected {_EXPECTED[format]}; got {row.text[:80]!r}"
            _note(DatasetError(expected), faults)
            continue
        label = parse(text)
        if label is None:
            _note(unknown_label(row.where, text, class_names), faults)
            continue
        parts.append(_Part(row.where, names[0], tuple(dict.fromkeys(names[1:])), label))
    return parts


def _numbers(path: Path, class_names: Sequence[str], format: ListFormat, **columns: str | None) -> list[int]:
    try:
        parts = _split(path, class_names, format, [], None, **columns)
    except DatasetError:
        # It may not be there yet, and is complained of when it is used.
        return []
    return [part.label.value for part in parts if not part.label.named]


def _note(error: DatasetError, faults: list[str] | None) -> None:
    """Puts the fault of a line where it is collected.

    Raises:
        DatasetError: faults are not collected.
    """
    if faults is None:
        raise error
    faults.append(str(error))


Naming = Callable[[Row], "tuple[list[str], str | None]"]
"""The ways to read the name in a row, the likeliest first, and the text of its label (None: there is
none)."""


def _naming(table: Table, format: ListFormat, remarks: list[str], path: Path) -> Naming:
    """How lines without a header are read: the first column and the last, with something between or not."""
    wide = [row for row in table.rows if len(row.fields) > 2]
    counted = [row for row in wide if re.fullmatch(r"[0-9]{1,9}", row.fields[-2])]
    heard = [row for row in wide if any(_is_audio(field) for field in row.fields[:-1])]
    everywhere = len(table.rows)
    if format == "folder_count_label" or (len(counted) == everywhere and format != "folder_label"):
        return partial(_counted, separator=table.separator)
    if len(heard) == everywhere and format != "folder_label":
        remarks.append(f"{printable(path)}: lines name frames and sound: the sound is left aside")
        return partial(_heard, separator=table.separator)
    if table.separator != " " and len(wide) == everywhere:
        remarks.append(
            f"{printable(path)}: of {len(wide[0].fields)} columns, the first is taken for the path and the "
            "last for the label"
        )
        return partial(_first, separator=table.separator)
    return partial(_whole, separator=table.separator)


def _whole(row: Row, separator: str) -> tuple[list[str], str | None]:
    """All before the label is the name, with any blanks or separators in it."""
    if len(row.fields) < 2:
        return [], None
    return [_before(row, 1, separator)], row.fields[-1]


def _counted(row: Row, separator: str) -> tuple[list[str], str | None]:
    if len(row.fields) < 3 or not re.fullmatch(r"[0-9]{1,9}", row.fields[-2]):
        return [], None
    return [_before(row, 2, separator), _before(row, 1, separator)], row.fields[-1]


def _heard(row: Row, separator: str) -> tuple[list[str], str | None]:
    place = next(index for index, field in enumerate(row.fields) if _is_audio(field))
    if place == 0:
        return [(" " if separator == " " else separator).join(row.fields[1:-1])], row.fields[-1]
    return [_before(row, len(row.fields) - place, separator), _before(row, 1, separator)], row.fields[-1]


def _first(row: Row, separator: str) -> tuple[list[str], str | None]:
    return [row.fields[0], _before(row, 1, separator)], row.fields[-1]


def _by_columns(row: Row, table: Table, path_place: int, label_place: int) -> tuple[list[str], str | None]:
    """Name and label of chosen columns; a row that is longer than the header has separators in its name."""
    fields = row.fields
    surplus = len(fields) - len(table.header) if table.header else 0
    if surplus > 0 and path_place >= 0:
        joined = (" " if table.separator == " " else table.separator).join(
            fields[path_place : path_place + surplus + 1]
        )
        fields = (*fields[:path_place], joined, *fields[path_place + surplus + 1 :])
    try:
        name = _unquoted(fields[path_place])
        # Columns come without the blanks around them.
        spaced = [name.replace(table.separator, f"{table.separator} ")] if surplus > 0 else []
        return [name, *spaced], fields[label_place]
    except IndexError:
        return [], None


def _before(row: Row, behind: int, separator: str) -> str:
    """The text of a row before its last `behind` columns."""
    if len(row.fields) == behind + 1 and separator != " ":
        return row.fields[0]
    if separator != " ":
        return row.text.rsplit(separator, behind)[0].strip()
    text = row.text
    for field in reversed(row.fields[-behind:]):
        text = text[: len(text) - len(field)].rstrip()
    return _unquoted(text)


def _unquoted(name: str) -> str:
    """Without quotes around the whole name, which lists that are separated by blanks have for names with
    blanks.
    """
    return name[1:-1] if len(name) > 2 and name[0] == name[-1] and name[0] in "\"'" else name


def _is_audio(field: str) -> bool:
    return field.lower().endswith(_AUDIO)
