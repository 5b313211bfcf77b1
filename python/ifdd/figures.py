"""Figures: training curves, confusion matrix, per-class recall, and what a network looked at in a clip.

Drawn without a display and without matplotlib's global state. Colours are those of Okabe and Ito and
matplotlib's cividis and magma, which people with any colour vision can tell apart; marks differ in shape as
well as in colour.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec
from matplotlib.ticker import MaxNLocator

from ifdd.prediction import Explanation
from ifdd.text import figure_label
from ifdd.training.metrics import Scores

STATIC = "#0072B2"
DYNAMIC = "#D55E00"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DPI = 130
"""Default dots per inch of a figure."""


def read_history(logs: str | Path) -> dict[str, list[tuple[int, float]]]:
    """The curves in ``logs/version_*/metrics.csv``: name -> (epoch, value) in order of epochs.

    A resumed training writes a new version; where two versions tell of one epoch the later one holds.

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
    axis.set_title(f"{head}WAR {100 * scores.war:.1f} %, UAR {100 * scores.uar:.1f} %", fontsize=11)
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


def explain(explanation: Explanation, path: str | Path, note: str = "", dpi: int = DPI) -> Path:
    """One window: its frames, where the static and dynamic samples landed, their heat maps, the correlation
    of the frames and the class probabilities.

    Args:
        explanation: from :meth:`ifdd.prediction.Predictor.explain`.
        path: image to write.
        note: a sentence shown under the title.
        dpi: dots per inch.
    """
    figure = Figure(figsize=(15, 10.4))
    # The empty rows hold titles and labels.
    rows = figure.add_gridspec(
        7,
        1,
        height_ratios=(1.15, 0.45, 1.1, 0.95, 2.1, 0.55, 3.2),
        left=0.07,
        right=0.975,
        top=0.895,
        bottom=0.06,
        hspace=0,
    )
    best = int(explanation.probabilities.argmax())
    label = figure_label(explanation.class_names[best])
    share = f"{100 * explanation.probabilities[best]:.1f} % in window {explanation.window}"
    figure.suptitle(
        f"{figure_label(explanation.name)}: {label} ({share})", fontsize=16, fontweight="bold", y=0.975
    )
    seconds = f"{explanation.start_seconds:.2f} s to {explanation.stop_seconds:.2f} s"
    span = f"{seconds}, {len(explanation.frames)} frames"
    figure.text(
        0.5,
        0.928,
        f"window {explanation.window}: {span}{'. ' if note else ''}{figure_label(note)}",
        ha="center",
        fontsize=11,
    )

    _film_strip(figure, rows[0], explanation)
    _time_axis(figure.add_subplot(rows[2]), explanation)
    maps = GridSpecFromSubplotSpec(1, 2, rows[4], wspace=0.06)
    _heat_maps(figure, maps[0], explanation, "static", STATIC)
    _heat_maps(figure, maps[1], explanation, "dynamic", DYNAMIC)
    bottom = GridSpecFromSubplotSpec(1, 2, rows[6], width_ratios=(1, 1.25), wspace=0.3)
    _correlation(figure, figure.add_subplot(bottom[0]), explanation)
    _probabilities(figure.add_subplot(bottom[1]), explanation)
    return _save(figure, path, dpi)


def _film_strip(figure: Figure, place: Any, explanation: Explanation) -> None:
    frames = explanation.frames
    shown = np.unique(np.linspace(0, len(frames) - 1, min(16, len(frames))).round().astype(int))
    grid = GridSpecFromSubplotSpec(1, len(shown), place, wspace=0.04)
    for column, frame in enumerate(shown):
        axis = figure.add_subplot(grid[column])
        axis.imshow(frames[frame])
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title(str(frame), fontsize=9, pad=2)
        if column == 0:
            axis.set_ylabel("frame", fontsize=10)


def _time_axis(axis: Axes, explanation: Explanation) -> None:
    """Where on the frames of the window each group was sampled, numbered in order."""
    tokens = explanation.token_frames
    groups: tuple[tuple[np.ndarray, int, str, str], ...] = (
        (explanation.static_frames, 1, STATIC, "^"),
        (explanation.dynamic_frames, 0, DYNAMIC, "v"),
    )
    axis.vlines(tokens, -0.5, 1.5, color="0.85", linewidth=1, zorder=0)
    for positions, level, colour, marker in groups:
        axis.scatter(positions, np.full(len(positions), level), s=90, color=colour, marker=marker, zorder=3)
        for order, position in enumerate(positions):
            # Samples may fall together: neighbours get their number above and below in turn.
            axis.annotate(
                str(order + 1),
                (position, level),
                xytext=(0, 9 if order % 2 == 0 else -9),
                textcoords="offset points",
                ha="center",
                va="bottom" if order % 2 == 0 else "top",
                fontsize=9,
                color=colour,
            )
    axis.set_yticks([1, 0], ["static", "dynamic"])
    for label, colour in zip(axis.get_yticklabels(), (STATIC, DYNAMIC), strict=True):
        label.set_color(colour)
        label.set_fontweight("bold")
    axis.set_ylim(-0.75, 1.75)
    axis.set_xlim(-0.5, len(explanation.frames) - 0.5)
    axis.set_xticks(range(0, len(explanation.frames), max(1, len(explanation.frames) // 16)))
    axis.set_xlabel(
        "frame of the window (grey lines: the frames of the network's feature sequence)", fontsize=10
    )
    axis.set_title(f"Where the samples were taken: {explanation.split}", fontsize=11, loc="left")
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _heat_maps(figure: Figure, place: Any, explanation: Explanation, group: str, colour: str) -> None:
    maps = explanation.static_maps if group == "static" else explanation.dynamic_maps
    positions = explanation.static_frames if group == "static" else explanation.dynamic_frames
    frames = explanation.frames
    height, width = frames.shape[1:3]
    grid = GridSpecFromSubplotSpec(1, len(maps), place, wspace=0.05)
    low, high = float(maps.min()), float(maps.max())
    for column, (heat, position) in enumerate(zip(maps, positions, strict=True)):
        axis = figure.add_subplot(grid[column])
        nearest = int(np.clip(np.rint(position), 0, len(frames) - 1))
        axis.imshow(frames[nearest].mean(-1), cmap="gray", vmin=0, vmax=255)
        axis.imshow(
            heat,
            cmap="magma",
            vmin=low,
            vmax=high if high > low else low + 1,
            alpha=0.55,
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            interpolation="bilinear",
        )
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title(f"{column + 1}: frame {position:.1f}", fontsize=9, pad=3)
        for spine in axis.spines.values():
            spine.set_color(colour)
            spine.set_linewidth(2)
        if column == 0:
            axis.text(
                0,
                1.17,
                f"{group.capitalize()} features after lifting, norm over the channels (dark {low:.3g}, "
                f"bright {high:.3g})",
                transform=axis.transAxes,
                fontsize=11,
                color=colour,
                fontweight="bold",
            )


def _correlation(figure: Figure, axis: Axes, explanation: Explanation) -> None:
    if explanation.correlation is None:
        axis.set_axis_off()
        axis.text(0.5, 0.5, "this split has no learned correlation", ha="center", fontsize=11)
        return
    image = axis.imshow(explanation.correlation, cmap="cividis")
    ticks = range(len(explanation.token_frames))
    labels = [f"{frame:.0f}" for frame in explanation.token_frames]
    axis.set_xticks(ticks, labels)
    axis.set_yticks(ticks, labels)
    axis.set_xlabel("frame")
    axis.set_ylabel("frame")
    axis.set_title("Correlation of the frames (unnormalised)", fontsize=11)
    figure.colorbar(image, ax=axis, shrink=0.9, label="inner product of the tokens / channels")


def _probabilities(axis: Axes, explanation: Explanation) -> None:
    values = explanation.probabilities
    best = int(values.argmax())
    places = np.arange(len(values))
    axis.barh(places, values, color=[COLOURS[2] if i == best else "0.7" for i in range(len(values))])
    for place, value in enumerate(values):
        inside = value > 0.85  # no room beside the bar then
        axis.text(
            value + (-0.012 if inside else 0.012),
            place,
            f"{100 * value:.1f} %",
            va="center",
            ha="right" if inside else "left",
            color="white" if inside else "black",
            fontsize=10,
        )
    axis.set_yticks(places, [figure_label(name) for name in explanation.class_names], fontsize=10)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xticks(np.linspace(0, 1, 6))
    axis.set_xlabel("probability")
    axis.set_title("Class probabilities of this window", fontsize=11)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


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
