"""List files as tables: which character separates the columns, quotes, comments and the header."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ifdd.text import printable

from .errors import DatasetError
from .labels import Label
from .textfile import at, read_text

ParseLabel = Callable[[str], "Label | None"]

SEPARATORS = ("\t", ",", ";", "|")
"""Those of files with quotes, in the order in which they are preferred; white space comes after them."""

_LABEL_WORDS = (
    "label",
    "labels",
    "label_id",
    "label_idx",
    "label_index",
    "class",
    "class_id",
    "class_idx",
    "class_label",
    "class_name",
    "emotion",
    "emotion_label",
    "emotion_id",
    "expression",
    "category",
    "target",
    "gt",
    "y",
    "annotation",
)
_PATH_WORDS = (
    "path",
    "video_path",
    "file_path",
    "filepath",
    "frames_path",
    "frame_path",
    "video_name",
    "videoname",
    "file_name",
    "filename",
    "clip_name",
    "video",
    "clip",
    "file",
    "frames",
    "frames_dir",
    "frame_dir",
    "folder",
    "dir",
    "name",
    "video_id",
    "clip_id",
    "vid",
    "id",
)


class Row(NamedTuple):
    """One line: where it stands, its columns, and the text it was split from."""

    where: str
    fields: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Table:
    """The lines of a list.

    Attributes:
        separator: between columns; a blank for any white space (then nothing is quoted but whole names).
        rows: without blank lines, comments and the header.
        header: names of the columns in lower case, None where the file has none.
        comments: how many lines that begin with # were left out.
    """

    separator: str
    rows: tuple[Row, ...]
    header: tuple[str, ...] | None
    comments: int

    def label_column(self, chosen: str | None, path: Path) -> int:
        """Place of the label among the columns: the one chosen by name or number, the one that the header
        calls so, or the last.

        Raises:
            DatasetError: no such column.
        """
        return self._column(chosen, _LABEL_WORDS, -1, "label_column", path)

    def path_column(self, chosen: str | None, label: int, path: Path) -> int:
        """Place of the path, found likewise, or the first that is not the label's.

        Raises:
            DatasetError: no such column.
        """
        return self._column(chosen, _PATH_WORDS, 1 if label == 0 else 0, "path_column", path)

    def _column(
        self, chosen: str | None, words: Sequence[str], otherwise: int, option: str, path: Path
    ) -> int:
        if chosen is not None and self.header is not None and chosen.strip().lower() in self.header:
            return self.header.index(chosen.strip().lower())
        if chosen is not None:
            width = max((len(row.fields) for row in self.rows), default=0)
            if re.fullmatch(r"-?[0-9]{1,4}", chosen) and 1 <= abs(int(chosen)) <= width:
                return int(chosen) - 1 if int(chosen) > 0 else int(chosen)
            columns = f"columns {', '.join(self.header)}" if self.header else f"{width} columns and no header"
            raise DatasetError(f"{printable(path)}: --{option} {chosen}: the list has {columns}")
        for word in words:
            if self.header is not None and word in self.header:
                return self.header.index(word)
        return otherwise


def read_table(
    path: Path,
    separators: Sequence[str],
    parse: ParseLabel,
    label_column: str | None = None,
    phrases: Sequence[str] = (),
) -> Table:
    """Splits a list into columns.

    Of the separators that are allowed, the one is taken that gives most lines a label where one is expected,
    so that a comma in a name does not make a table of a list that is separated by spaces.

    Args:
        path: the list.
        separators: some of `SEPARATORS` and " " (white space), the preferred ones first.
        parse: distinguishes a label from other text.
        label_column: name or number of the label's column, if the user chose one.
        phrases: labels of several words, which white space does not separate.

    Raises:
        DatasetError: the list cannot be read, is empty, or quotes are left open.
    """
    text = read_text(path)
    best: tuple[float, Table] | None = None
    problem: DatasetError | None = None
    for separator in separators:
        try:
            comments, rows = _split(path, text, separator, phrases)
        except DatasetError as error:
            problem = problem or error
            continue
        if not rows:
            raise DatasetError(f"{printable(path)}: the list is empty")
        rows = _without_empty_columns(rows)
        if separator != " " and all(len(row.fields) < 2 for row in rows):
            continue
        header = _header(rows, parse, label_column)
        table = Table(separator, tuple(rows[1:] if header else rows), header, comments)
        score = _share_of_labels(table, parse, label_column, path)
        if best is None or score > best[0]:
            best = (score, table)
    if best is None or (best[0] == 0 and problem is not None):
        raise problem or DatasetError(
            f"{at(path, 1)}: expected a path and a label, separated by {_in_words(separators)}; "
            f"got {text.lstrip().partition(chr(10))[0][:80]!r}"
        )
    if not best[1].rows:
        raise DatasetError(f"{printable(path)}: the list is empty but for its header")
    return best[1]


def _split(path: Path, text: str, separator: str, phrases: Sequence[str]) -> tuple[int, list[Row]]:
    """Number of comments, and the rows with something in them."""
    if separator == " ":
        lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1)]
        comments = sum(line.startswith("#") for _, line in lines)
        return comments, [
            Row(at(path, number), _words(line, phrases), line)
            for number, line in lines
            if line and not line.startswith("#")
        ]
    source = _Source(text)
    # strict: a quote that is never closed is an error, and not a name of many lines.
    reader = csv.reader(source, delimiter=separator, skipinitialspace=True, strict=True)
    rows: list[Row] = []
    while True:
        first = source.start_row()
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise DatasetError(f"{at(path, first)}: {_csv_problem(error)}") from None
        if fields is None:
            return source.comments, rows
        if any(field.strip() for field in fields):
            columns = tuple(field.strip(" \t\r") for field in fields)
            rows.append(Row(at(path, first), columns, source.text(first)))


def _without_empty_columns(rows: list[Row]) -> list[Row]:
    """Spreadsheets end every line with the separators of columns that were used once."""
    empty = min(len(row.fields) - len(_stripped(row.fields)) for row in rows)
    return [row._replace(fields=row.fields[: len(row.fields) - empty]) for row in rows] if empty else rows


def _stripped(fields: tuple[str, ...]) -> tuple[str, ...]:
    while fields and not fields[-1]:
        fields = fields[:-1]
    return fields


def _words(line: str, phrases: Sequence[str]) -> tuple[str, ...]:
    for phrase in phrases:
        head = line[: -len(phrase)]
        if line.lower().endswith(phrase.lower()) and head[-1:].isspace():
            return (*head.split(), phrase)
    return tuple(line.split())


class _Source:
    """Lines for a CSV reader, which takes several where a quoted name holds a line end; comments are emptied,
    but not what looks like one inside quotes.
    """

    def __init__(self, text: str) -> None:
        self.lines = text.split("\n")
        self.comments = 0
        self._next = 0
        self._at_start = True

    def start_row(self) -> int:
        """Number of the next line, which begins a row."""
        self._at_start = True
        return self._next + 1

    def text(self, first: int) -> str:
        """The lines of the row that began at `first` and has just been read."""
        return "\n".join(self.lines[first - 1 : self._next]).strip()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._next >= len(self.lines):
            raise StopIteration
        line = self.lines[self._next]
        self._next += 1
        comment = self._at_start and line.lstrip().startswith("#")
        # The line in which Excel states the separator.
        excel = self._next == 1 and re.fullmatch(r"sep=.\s*", line, re.IGNORECASE) is not None
        self.comments += comment
        self._at_start = False
        return "\n" if comment or excel else line + "\n"


def _csv_problem(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end of data" in text:
        return "a quote that opens here is never closed"
    if "expected after" in text:
        return "text after a closing quote"
    return text


def _header(rows: Sequence[Row], parse: ParseLabel, label_column: str | None) -> tuple[str, ...] | None:
    """The names of the columns, if the first line has any."""
    names = tuple(re.sub(r"[^\w]+", "_", field.lower()).strip("_") for field in rows[0].fields)
    plain = tuple(field.lower() for field in rows[0].fields)
    if label_column is not None and label_column.strip().lower() in plain:
        return plain
    if any(parse(field) for field in rows[0].fields):
        return None
    if any(name in _LABEL_WORDS for name in names):
        return tuple(
            name if name in (*_LABEL_WORDS, *_PATH_WORDS) else text
            for name, text in zip(names, plain, strict=True)
        )
    # Of numbers everywhere else, one cannot be misspelt as a word: that is a name for the column. Among class
    # names it may be a misspelt one, and stays a line like others.
    labels = [parse(row.fields[-1]) for row in rows[1:]]
    numbers = bool(labels) and len(plain) > 1 and all(label and not label.named for label in labels)
    return plain if numbers and label_column is None else None


def _share_of_labels(table: Table, parse: ParseLabel, chosen: str | None, path: Path) -> float:
    try:
        column = table.label_column(chosen, path)
    except DatasetError:
        return 0.0
    width = len(table.header) if table.header else 0
    good = 0
    for row in table.rows:
        # A name with separators in it makes a row too long; a label counts from the end then.
        place = column - width if width and column >= 0 and len(row.fields) > width else column
        inside = len(row.fields) >= 2 and -len(row.fields) <= place < len(row.fields)
        good += inside and parse(row.fields[place]) is not None
    return good / max(len(table.rows), 1)


def _in_words(separators: Sequence[str]) -> str:
    words = {"\t": "a tab", ",": "a comma", ";": "a semicolon", "|": "a bar", " ": "a space"}
    named = [words[separator] for separator in separators]
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} or {named[-1]}"
