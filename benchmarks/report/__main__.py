"""``python -m benchmarks.report FILE``: tables and plots of a result file.

Prints the summary and writes the plots to ``docs/figures``. With ``--write`` the tables go into README.md
and ``docs``, between the markers ``<!-- benchmarks: TABLE DEVICE -->`` and ``<!-- end of benchmarks -->``;
TABLE is headline, summary, accuracy, memory or the name of a case, DEVICE cpu or gpu.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import plots, tables
from benchmarks.suite.place import ROOT
from benchmarks.suite.results import Row, read

MARKER = re.compile(
    r"(<!-- benchmarks: (?P<table>\S+) (?P<device>cpu|gpu) -->\n)(?P<body>.*?)(<!-- end of benchmarks -->)",
    re.DOTALL,
)

TABLES: dict[str, Callable[[list[Row]], str]] = {
    "headline": tables.headline,
    "summary": tables.summary,
    "accuracy": tables.accuracy,
    "memory": tables.memory,
}


def device_kind(rows: list[Row]) -> str:
    """The word cpu or gpu: only GPUs have a driver."""
    return "gpu" if rows[-1].get("driver") else "cpu"


def render(table: str, rows: list[Row], path: str) -> str:
    """One table with its origin."""
    make = TABLES.get(table) or tables.case_table(table)
    return f"{make(rows)}\n\n{tables.origin(rows, path)}\n"


def fill(text: str, rows: list[Row], path: str) -> str:
    """A document with the tables of its markers made anew; markers of the other device stay as they are."""
    kind = device_kind(rows)

    def replace(match: re.Match[str]) -> str:
        if match["device"] != kind:
            return match[0]
        return f"{match[1]}{render(match['table'], rows, path)}{match[5]}"

    return MARKER.sub(replace, text)


def documents() -> list[Path]:
    """Where markers are looked for."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--write", action="store_true", help="put the tables into README.md and docs")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "figures", help="folder of the plots")
    options = parser.parse_args(arguments)
    rows = read(options.file, "time")
    if not rows:
        raise SystemExit(f"{options.file}: no measurements")
    resolved = options.file.resolve()
    path = str(resolved.relative_to(ROOT)) if resolved.is_relative_to(ROOT) else options.file.name
    print(render("summary", rows, path))
    kind = device_kind(rows)
    for figure in plots.draw(options.file, options.figures, kind):
        print(figure)
    if options.write:
        for document in documents():
            before = document.read_text()
            after = fill(before, rows, path)
            if after != before:
                document.write_text(after)
                print(document)


if __name__ == "__main__":
    main()
