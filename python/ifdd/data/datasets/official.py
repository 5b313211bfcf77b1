"""How many clips the official lists of the benchmarks hold.

DFEW: the single-labelled sets of its five folds; FERV39k: `All_scenes`; MAFW: `single`, five folds.
"""

from __future__ import annotations

from pathlib import Path

from ifdd.text import printable

CLIPS: dict[str, dict[str, tuple[int, ...]]] = {
    "DFEW": {"train": (9356, 9356, 9357, 9358, 9361), "test": (2341, 2341, 2340, 2339, 2336)},
    "FERV39k": {"train": (31088,), "test": (7847,)},
    "MAFW": {"train": (7333, 7335, 7339, 7340, 7341), "test": (1839, 1837, 1833, 1832, 1831)},
}


def subset_remark(name: str, part: str, fold: int, listed: int, file: Path) -> list[str]:
    """A line where a list holds another number of clips than the official one: its score is not a benchmark
    result.
    """
    expected = CLIPS[name][part][fold - 1]
    if listed == expected:
        return []
    numbered = f" fold {fold}" if len(CLIPS[name][part]) > 1 else ""
    return [
        f"{printable(file)}: {listed} clips, the official {part} list of {name}{numbered} holds {expected}: "
        "scores cannot be compared with those of the benchmark"
    ]
