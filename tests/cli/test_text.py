"""Names of files and classes reach the eye unchanged, whatever is in them."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import pytest

from ifdd.text import cell, figure_label, one_line, printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("clip [dQw4w9WgXcQ].mp4", "clip [dQw4w9WgXcQ].mp4"),
        ("a\nb\tc\r.mp4", r"a\nb\tc\r.mp4"),
        (os.fsdecode(b"caf\xe9 \xff.mp4"), r"caf\xe9 \xff.mp4"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("gpj\u202e.mp4", r"gpj\u202e.mp4"),
        ("a\u2028b\x85c", r"a\u2028b\x85c"),
        ("\ud800", r"\ud800"),
        ("👩\u200d💻 :smile: 笑い\u00a0é\\n", "👩\u200d💻 :smile: 笑い\u00a0é\\n"),
        (Path("x") / "y", "x/y"),
    ],
)
def test_printable(name: str | Path, shown: str) -> None:
    assert printable(name) == shown
    printable(name).encode()


def test_errors_are_one_line() -> None:
    assert one_line(ValueError("a\n b\x1b[2J" + os.fsdecode(b"\xff"))) == r"a b\x1b[2J\xff"
    assert one_line(KeyError()) == "KeyError"


@pytest.mark.parametrize(
    "name", ["[bold]", "[/", "[/b]", "take[", "a\\", "\\[x]", ":smile:", "clip [dQw4].mp4", "$x$", "[link=y]"]
)
def test_tables_show_what_the_name_is(name: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column(cell(name, "bold"))
    table.add_row(cell(name))
    console = Console(file=io.StringIO(), width=60)
    console.print(table)
    console.print(cell(name))
    assert console.file.getvalue().count(name) == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["$x$", "$\\frac$", "a_b^c$", "\\$", "\\$5 $6$", "笑い", "😀.mp4", "{}%s#"])
def test_figures_show_what_the_name_is(name: str) -> None:
    from matplotlib.figure import Figure

    label = figure_label(name)
    figure = Figure(figsize=(3, 1))
    text = figure.text(0, 0.5, label)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph is one
        figure.savefig(io.BytesIO(), format="png")
    drawn, formula = text._preprocess_math(label)  # type: ignore[attr-defined]
    assert formula is False
    assert drawn in (name, name.encode("ascii", "backslashreplace").decode())
