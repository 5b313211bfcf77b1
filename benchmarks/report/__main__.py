"""``python -m benchmarks.report FILE``: tables and plots of a result file.

Prints the summary and writes the plots to ``docs/figures``. With ``--write`` the tables go into README.md
and ``docs``, between the markers ``<!-- benchmarks: TABLE DEVICE -->`` and ``<!-- end of benchmarks -->``;
TABLE is headline, summary, accuracy, memory, deployment or the name of a case, DEVICE cpu or gpu. A table
that the file has nothing for stays as it is; ``--only deployment`` writes that one and draws nothing.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection
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
    "deployment": tables.deployment,
}


def device_kind(rows: list[Row]) -> str:
    """The word cpu or gpu: only GPUs have a driver."""
    return "gpu" if rows[-1].get("driver") else "cpu"


def render(table: str, rows: list[Row], path: str) -> str:
    """One table with its origin; empty where the rows have nothing for it."""
    make = TABLES.get(table) or tables.case_table(table)
    made = make(rows)
    return f"{made}\n\n{tables.origin(rows, path)}\n" if made else ""


def fill(text: str, rows: list[Row], path: str, only: Collection[str] | None = None) -> str:
    """A document with the tables of its markers made anew, or ``only`` these of them.

    Markers of the other device stay as they are, and those that the rows have nothing for.
    """
    kind = device_kind(rows)

    def replace(match: re.Match[str]) -> str:
        if match["device"] != kind or (only is not None and match["table"] not in only):
            return match[0]
        made = render(match["table"], rows, path)
        return f"{match[1]}{made}{match[5]}" if made else match[0]

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
    parser.add_argument("--only", help="these tables, without figures, e.g. deployment,model")
    options = parser.parse_args(arguments)
    rows = [row for row in read(options.file) if row["kind"] in ("time", "skipped")]
    if not any(row["kind"] == "time" for row in rows):
        raise SystemExit(f"{options.file}: no measurements")
    resolved = options.file.resolve()
    path = str(resolved.relative_to(ROOT)) if resolved.is_relative_to(ROOT) else options.file.name
    only = options.only.split(",") if options.only else None
    for table in only or ["summary"]:
        print(render(table, rows, path))
    if only is None:
        for figure in plots.draw(options.file, options.figures, device_kind(rows)):
            print(figure)
    if options.write:
        for document in documents():
            before = document.read_text()
            after = fill(before, rows, path, only)
            if after != before:
                document.write_text(after)
                print(document)


if __name__ == "__main__":
    main()
