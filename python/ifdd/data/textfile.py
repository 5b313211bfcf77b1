"""The text of list files, from any program.

Lines are split as bytes and decoded field by field where a list has fields in no single encoding; a name that
is not UTF-8 keeps its bytes (as Python keeps those of file names), so that it still finds its file.
"""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import NamedTuple

from ifdd.text import printable

from .errors import DatasetError, reason

MAX_BYTES = 256 << 20
"""Larger files are not lists: a video given by mistake is not read into memory."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class Line(NamedTuple):
    """A line that is not blank: `file, line n` for messages, and its bytes without the line end."""

    where: str
    content: bytes


def read_bytes(path: Path) -> bytes:
    """The content of a list as UTF-8 without a byte order mark and with line ends `\\n`; bytes of other 8-bit
    encodings are kept.

    Raises:
        DatasetError: the file cannot be read, is not text, or is far too large for a list.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DatasetError(f"{printable(path)}: too large for a list ({size >> 20} MiB)")
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{printable(path)}: cannot read the list ({reason(error)})") from None
    return plain(path, content)


def plain(path: str | Path, content: bytes) -> bytes:
    """`content`, which is that of `path`, by the rule of :func:`read_bytes`.

    Raises:
        DatasetError: it is not text.
    """
    content = _as_utf8(path, content)
    if b"\0" in content:
        kind = "an Excel workbook or another archive" if content.startswith(b"PK") else "no text file"
        raise DatasetError(f"{printable(path)}: {kind}: a list is a text or CSV file")
    content = content.replace(b"\r\n", b"\n")
    # Alone, "\r" ends a line only in files of old Macintosh programs, which have no other line ends.
    return content if b"\n" in content else content.replace(b"\r", b"\n")


def read_text(path: Path) -> str:
    """The content of a list, decoded; bytes that are not UTF-8 become surrogates, as in `os.fsdecode`."""
    return read_bytes(path).decode("utf-8", "surrogateescape")


def read_lines(path: Path) -> list[Line]:
    """The lines that are not blank."""
    # Not splitlines: bytes of a foreign encoding would be taken for line ends.
    lines = enumerate(read_bytes(path).split(b"\n"), 1)
    return [Line(at(path, number), line.rstrip(b"\r")) for number, line in lines if line.strip()]


def decoded(field: bytes, where: str) -> str:
    """A field that must be UTF-8.

    Raises:
        DatasetError: it is not.
    """
    try:
        return field.decode("utf-8")
    except UnicodeDecodeError:
        raise DatasetError(f"{where}: not UTF-8: {field[:80]!r}") from None


def at(path: Path, number: int) -> str:
    """`file, line n`."""
    return f"{printable(path)}, line {number}"


def _as_utf8(path: str | Path, content: bytes) -> bytes:
    found = [(mark, encoding) for mark, encoding in _MARKS if content.startswith(mark)]
    mark, encoding = found[0] if found else (b"", _unmarked(content))
    if encoding == "utf-8":
        return content.removeprefix(mark)
    try:
        return content[len(mark) :].decode(encoding).encode("utf-8")
    except UnicodeError:
        raise DatasetError(
            f"{printable(path)}: damaged text ({encoding.upper()} by its first bytes)"
        ) from None


def _unmarked(content: bytes) -> str:
    """The encoding of text without a byte order mark: in UTF-16 every other byte of names is zero."""
    head = content[:4096]
    even, odd = head[0::2].count(0), head[1::2].count(0)
    half = len(head) // 2
    if half and odd > 0.4 * half and even == 0:
        return "utf-16-le"
    if half and even > 0.4 * half and odd == 0:
        return "utf-16-be"
    return "utf-8"
