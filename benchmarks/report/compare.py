"""``python -m benchmarks.report.compare OLD NEW``: what became slower beyond noise, or faster, or is gone.

Two things must agree before something counts as slower: its median and its ratio to the original timed in
the same rounds. A machine that is slower today slows both sides of a ratio and is not reported.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.suite.results import KEY, Row, latest, read

LEAST_CHANGE = 0.05
"""Smaller changes are never reported."""
SPREADS = 1.5
"""A change must exceed this many times the larger distance of the quartiles in either run."""


@dataclass(frozen=True)
class Change:
    """One measurement in both runs."""

    name: str
    old: Row
    new: Row

    @property
    def factor(self) -> float:
        """New time over old time."""
        return float(self.new["median_s"] / self.old["median_s"])

    @property
    def relative_factor(self) -> float:
        """The same for the ratio to the original, where both runs have it; the original has only its time."""
        if self.new["contender"] == "original" or "speedup" not in self.old or "speedup" not in self.new:
            return self.factor
        return float(self.old["speedup"] / self.new["speedup"])

    @property
    def noise(self) -> float:
        """Change that the spread of the readings explains."""
        return max(LEAST_CHANGE, SPREADS * max(_spread(row) for row in (self.old, self.new)))

    @property
    def verdict(self) -> str:
        """One of slower, faster, same."""
        factors = (self.factor, self.relative_factor)
        if min(factors) > 1 + self.noise:
            return "slower"
        return "faster" if max(factors) < 1 / (1 + self.noise) else "same"

    def __str__(self) -> str:
        old, new = (_milliseconds(row["median_s"]) for row in (self.old, self.new))
        return (
            f"{self.verdict:7s} {self.name}: {old} -> {new} ms (x{self.factor:.2f}, beside the original "
            f"x{self.relative_factor:.2f}, noise {self.noise:.0%})"
        )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def _spread(row: Row) -> float:
    """Distance of the quartiles, of the time or of the ratio, whichever is less, relative to its median."""
    spreads = [(row["high_s"] - row["low_s"]) / row["median_s"]]
    if "speedup" in row and row["contender"] != "original":
        spreads.append((row["speedup_high"] - row["speedup_low"]) / row["speedup"])
    return float(min(spreads))


def changes(old: Path, new: Path) -> Iterator[Change]:
    """Every measurement that both files have."""
    before, after = (latest(read(path, "time")) for path in (old, new))
    for key, row in after.items():
        if key in before:
            name = " ".join(
                str(part) for part, field in zip(key, KEY, strict=True) if field != "mode" and part
            )
            yield Change(name, before[key], row)


def missing(old: Path, new: Path) -> list[str]:
    """The rows that only the old file has."""
    before, after = (latest(read(path, "time")) for path in (old, new))
    return [" ".join(map(str, key)) for key in before if key not in after]


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 1 if something became slower."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report.compare", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--all", action="store_true", help="list what did not change, too")
    options = parser.parse_args(arguments)
    found = list(changes(options.old, options.new))
    if not found:
        print("the files have no measurement in common")
        return 2
    for change in sorted(found, key=lambda c: -c.factor):
        if options.all or change.verdict != "same":
            print(change)
    gone = missing(options.old, options.new)
    for name in gone:
        print(f"gone    {name}")
    counts = {v: sum(c.verdict == v for c in found) for v in ("slower", "faster", "same")}
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + f", {len(gone)} gone")
    return 1 if counts["slower"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
