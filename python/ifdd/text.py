"""Showing names as they are: a file system and a class list allow any character, a terminal, a table and a
figure each give some of them a meaning.

For tables use :func:`cell`, for everything printed as plain text :func:`printable`, for figures
:func:`figure_label`. Files of results keep names exactly, see :mod:`ifdd.results`.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_BOXES = "Last Resort High-Efficiency"  # matplotlib's font that has a box for every character
# They turn the direction of the text around them, so that a name could show as another one.
_DIRECTIONS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def counted(number: int, what: str) -> str:
    """A number and what it counts: ``1 video``, ``2 videos``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def printable(name: str | os.PathLike[str]) -> str:
    r"""`name` as one line that any UTF-8 terminal shows and no terminal obeys.

    Line breaks, control characters and marks of direction become escapes (`\n`, `\x1b`), as do bytes of a
    file's name that are not UTF-8 (`\xff`). All other characters, brackets and emoji too, stay.
    """
    return "".join(_visible(character) for character in os.fspath(name))


def _visible(character: str) -> str:
    if character.isprintable() or character == " ":
        return character
    if character in _SHORT:
        return _SHORT[character]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte that is not UTF-8 (surrogateescape)
        return f"\\x{code - 0xDC00:02x}"
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp", "Cn") or character in _DIRECTIONS:
        return _escape(character)
    return character  # wide spaces, and the joiners inside emoji and Indic scripts


def one_line(message: object) -> str:
    """The text of an error as one line; an error without text is its type's name."""
    return printable(" ".join(str(message).split())) or type(message).__name__


def cell(name: str | os.PathLike[str], style: str = "") -> Text:
    """`name` for a table or a console of `rich`, which gives brackets and `:words:` in a plain string a
    meaning.
    """
    from rich.text import Text

    return Text(printable(name), style=style)


def figure_label(name: str | os.PathLike[str]) -> str:
    r"""`name` for a text of matplotlib: dollars start no formula, and characters that the figure's fonts lack
    become escapes (`\u7b11`) in place of empty boxes.
    """
    from matplotlib.font_manager import FontProperties

    text = printable(name)
    if missing := _missing(text, FontProperties().get_family()):
        text = "".join(_escape(character) if character in missing else character for character in text)
    return text.replace("$", r"\$")


def figure_fonts(names: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Families for matplotlib's ``font.family``: those that are set, and behind them installed ones for the
    characters of `names` that these lack.
    """
    from matplotlib.font_manager import FontProperties, fontManager, get_font

    families = list(FontProperties().get_family())
    missing = _missing("".join(printable(name) for name in names), families)
    for entry in fontManager.ttflist if missing else ():
        if entry.name in families or entry.style != "normal" or entry.name == _BOXES:
            continue
        try:
            characters = get_font(entry.fname).get_charmap()
        except (OSError, RuntimeError):
            continue  # a font that was removed, or that FreeType cannot read
        found = {character for character in missing if ord(character) in characters}
        if found:
            families.append(entry.name)
            missing -= found
        if not missing:
            break
    return families


def drawn_text(name: str | os.PathLike[str]) -> tuple[str, str]:
    """`name` for a picture, and the file of the installed font that has most of its characters; those that it
    lacks become escapes.
    """
    from matplotlib.font_manager import FontProperties, findfont

    text = printable(name)
    lacking = {family: _missing(text, [family]) for family in figure_fonts([text])}
    family = min(lacking, key=lambda family: len(lacking[family]))
    shown = "".join(_escape(character) if character in lacking[family] else character for character in text)
    return shown, findfont(FontProperties(family=[family]))


def _missing(text: str, families: Iterable[str]) -> set[str]:
    """Characters that no font of the families has."""
    if text.isascii():
        return set()
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in families]
    return {
        character
        for character in text
        if not character.isascii() and not any(font.get_char_index(ord(character)) for font in fonts)
    }


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
