"""Figures of trainings and tests: training curves, confusion matrix, per-class recall.

What a network looked at in a video is drawn by :mod:`ifdd.explanation`.

Drawn without a display and without matplotlib's global state. Colours are those of Okabe and Ito and
matplotlib's cividis, which people with any colour vision can tell apart; marks differ in shape as well as in
colour.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ifdd.text import figure_label
from ifdd.training.metrics import Scores

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DPI = 130
"""Default dots per inch of a figure."""


def read_history(logs: str | Path) -> dict[str, list[tuple[int, float]]]:
    """The curves in ``logs/version_*/metrics.csv``: name -> (epoch, value) in order of epochs.

    A resumed training writes a new version; if two versions have the same epoch, the later one counts.

    Raises:
        ValueError: no such file, or nothing in it.
    """
    files = sorted(
        Path(logs).glob("version_*/metrics.csv"), key=lambda f: int(f.parent.name.rpartition("_")[2])
    )
    curves: dict[str, dict[int, float]] = {}
    for file in files:
        with file.open(newline="") as stream:
            for row in csv.DictReader(stream):
                for name, value in row.items():
                    if value and name not in ("epoch", "step"):
                        curves.setdefault(name, {})[int(row["epoch"])] = float(value)
    if not curves:
        raise ValueError(f"{logs}: no training curves (version_*/metrics.csv) in this folder")
    return {name: sorted(points.items()) for name, points in curves.items()}


def training_curves(runs: Mapping[str, str | Path], path: str | Path) -> Path:
    """Loss, held-out UAR and learning rate over the epochs, one line per run.

    Args:
        runs: label -> the ``logs`` folder of a run.
        path: image to write.
    """
    curves = (
        ("train/loss", "training loss", False),
        ("val/uar", "UAR on held-out training clips", False),
        ("lr", "learning rate", True),
    )
    histories = {label: read_history(logs) for label, logs in runs.items()}
    # A training without a held-out part has no curve of its UAR.
    panels = [curve for curve in curves if any(history.get(curve[0]) for history in histories.values())]
    figure = Figure(figsize=(4.3 * len(panels), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for number, (label, history) in enumerate(histories.items()):
        for axis, (curve, _, _) in zip(axes, panels, strict=True):
            points = history.get(curve, [])
            axis.plot(
                [epoch for epoch, _ in points],
                [value for _, value in points],
                color=COLOURS[number % len(COLOURS)],
                marker="os^Dv"[number % 5],
                markersize=4,
                label=figure_label(label),
            )
    for axis, (name, title, logarithmic) in zip(axes, panels, strict=True):
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        if logarithmic:
            axis.set_yscale("log")
        if name == "val/uar":
            axis.set_ylim(0, 1)
    if len(runs) > 1:
        axes[0].legend(fontsize=9)
    return _save(figure, path)


def confusion_matrix(scores: Scores, path: str | Path, title: str = "") -> Path:
    """Confusion matrix with counts and the share of each true class (rows) as shade."""
    counts = scores.confusion.numpy()
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    k = len(scores.class_names)
    side = 2.6 + 0.62 * k
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(share, cmap="cividis", vmin=0, vmax=1)
    for row in range(k):
        for column in range(k):
            value = share[row, column]
            axis.text(
                column,
                row,
                f"{100 * value:.0f}%\n{counts[row, column]}",
                ha="center",
                va="center",
                fontsize=8,
                color="black" if value > 0.55 else "white",
            )
    names = [figure_label(name) for name in scores.class_names]
    axis.set_xticks(range(k), names, rotation=40, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(k), names)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    head = f"{figure_label(title)}\n" if title else ""
    of = f" of {k - len(scores.missing)} of {k} classes" if scores.missing else ""
    axis.set_title(f"{head}WAR {100 * scores.war:.1f} %, UAR {100 * scores.uar:.1f} %{of}", fontsize=11)
    figure.colorbar(image, ax=axis, shrink=0.8, label="share of the true class")
    return _save(figure, path)


def recall_bars(results: Mapping[str, Scores], path: str | Path) -> Path:
    """Recall of each class, one bar per model, UAR in the legend."""
    names = next(iter(results.values())).class_names
    figure = Figure(figsize=(2.5 + 1.2 * len(names), 4.2), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(results)
    for number, (label, scores) in enumerate(results.items()):
        heights = [np.nan if r is None else r for r in scores.recall]
        places = np.arange(len(names)) - 0.4 + width * (number + 0.5)
        axis.bar(
            places,
            heights,
            width * 0.92,
            color=COLOURS[number % len(COLOURS)],
            hatch=("", "//", "..")[number % 3],
            edgecolor="white",
            label=f"{figure_label(label)}: UAR {100 * scores.uar:.1f} %",
        )
    axis.axhline(1 / len(names), color="black", linestyle=":", linewidth=1)
    axis.annotate(
        "chance",
        (1, 1 / len(names)),
        (4, 0),
        xycoords=axis.get_yaxis_transform(),
        textcoords="offset points",
        va="center",
        fontsize=9,
    )
    axis.set_xticks(range(len(names)), [figure_label(name) for name in names])
    axis.set_ylim(0, 1.0)
    axis.set_ylabel("recall")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(results), fontsize=9, frameon=False)
    return _save(figure, path)


def _save(figure: Figure, path: str | Path, dpi: int = DPI) -> Path:
    target = Path(path)
    figure.savefig(target, dpi=dpi)
    return target


def format_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain text columns, the first left-aligned, for reports that go to a file."""
    table = [list(headings), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in table) for i in range(len(headings))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
