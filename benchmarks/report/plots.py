"""Plots of a result file, legible at the 800 pixels of a README."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.report.tables import (
    LABELS,
    NAMES,
    OURS,
    RIVALS,
    Quantity,
    bars,
    fewest_and_most,
    quantities,
    seconds,
)
from benchmarks.suite.results import Row, read

mpl.use("Agg")
import matplotlib.pyplot as plt

WIDTH, DPI = 8.0, 100
COLOURS = {
    "original": "#7f7f7f",
    "original+compile": "#bcbd22",
    "rewrite": "#1f77b4",
    "rewrite+compile": "#17becf",
    "shifts+compile": "#9467bd",
    "ours": "#d62728",
}
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def draw(file: Path, folder: Path, kind: str) -> list[Path]:
    """All plots the file has rows for; returns their paths."""
    figures: dict[str, Callable[[Path], Any]] = {
        "speed": speed, "roofline": roofline, "breakdown": breakdown, "scaling": scaling
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(STYLE):
        for name, make in figures.items():
            figure = make(file)
            if figure is None:
                continue
            path = folder / f"benchmark_{kind}_{name}.png"
            figure.savefig(path, dpi=DPI)
            plt.close(figure)
            written.append(path)
    return written


def _ours_ms(quantity: Quantity) -> float:
    ours = quantity.ours
    assert ours is not None
    return float(ours["median_s"])


def speed(file: Path) -> Any:
    """How many times ours each rival's time is."""
    found = [q for q in bars(quantities(read(file, "time"))) if q.precision == "fp32"]
    found = fewest_and_most(found or bars(quantities(read(file, "time"))))
    if not found:
        return None
    rivals = [name for name in RIVALS if any(name in q.rows for q in found)]
    height = 0.8 / len(rivals)
    figure, axes = plt.subplots(figsize=(WIDTH, 1.0 + 0.55 * len(found)))
    for place, quantity in enumerate(found):
        for number, name in enumerate(rivals):
            factor = quantity.times_ours(name)
            if factor is not None:
                y = place + (number - (len(rivals) - 1) / 2) * height
                axes.barh(y, factor, height, color=COLOURS[name])
                axes.text(factor, y, f" {factor:.1f}", va="center", fontsize=8)
    axes.axvline(1, color=COLOURS["ours"], linewidth=1.5)
    names = [f"{NAMES[q.case]}\n{q.pass_name}, B={q.batch}: {seconds(_ours_ms(q))}" for q in found]
    axes.set_yticks(range(len(found)), names, fontsize=9)
    axes.invert_yaxis()
    # From a compiled rival's 45 to a factor of 1.2: only a logarithm shows both.
    axes.set_xscale("log")
    axes.set_xlim(left=0.7)
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100) if tick <= 1.2 * axes.get_xlim()[1]]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("time of the rival / time of this library (line: this library)")
    handles = [Patch(color=COLOURS[name]) for name in rivals]
    figure.legend(
        handles, [LABELS[name] for name in rivals], loc="outside upper center", ncols=min(3, len(rivals))
    )
    return figure


def roofline(file: Path) -> Any:
    """FLOP/s over FLOP/byte of every case, ours and the original, under the measured roofs."""
    machine = read(file, "machine")
    found = [q for q in quantities(read(file, "time")) if q.ours is not None and q.precision == "fp32"]
    if not machine or not found:
        return None
    copy, products = machine[-1]["copy"], machine[-1]["products"]
    figure, axes = plt.subplots(figsize=(WIDTH, 4.5))
    series: dict[str, tuple[list[float], list[float]]] = {"original": ([], []), "ours": ([], [])}
    for quantity in found:
        for name, row in (("original", quantity.rows.get("original")), ("ours", quantity.ours)):
            if row is not None:
                series[name][0].append(row["flops"] / row["bytes"])
                series[name][1].append(row["flops"] / row["median_s"] * 1e-9)
    for name, (x, y) in series.items():
        label = {"ours": "this library"}.get(name, name)
        axes.scatter(x, y, s=18, color=COLOURS[name], alpha=0.8, label=label)
    intensities = [value for x, _ in series.values() for value in x]
    low, high = min(intensities) / 2, max(intensities) * 2
    ridge = products["fp32"] / copy
    axes.plot(
        [low, ridge, max(high, ridge)], [low * copy * 1e-9, *[products["fp32"] * 1e-9] * 2], color="black"
    )
    axes.text(low, low * copy * 1.5e-9, f"copy {copy * 1e-9:.3g} GB/s", fontsize=9, ha="left")
    axes.text(max(high, ridge), products["fp32"] * 1.15e-9, f"product {products['fp32'] * 1e-9:.3g} GFLOP/s",
              fontsize=9, ha="right")  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="FLOP / byte that must be moved", ylabel="GFLOP/s")
    axes.legend(loc="lower right")
    return figure


def breakdown(file: Path) -> Any:
    """Time of the network by part, original and ours."""
    rows = read(file, "profile")
    if not rows:
        return None
    latest: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        latest.setdefault((row["pass"], row["contender"]), {})[row["part"]] = row
    totals: dict[str, float] = {}
    for parts in latest.values():
        for part, row in parts.items():
            totals[part] = totals.get(part, 0.0) + row["seconds"]
    order = sorted(totals, key=lambda part: -totals[part])
    shown, rest = order[:7], order[7:]
    figure, axes = plt.subplots(figsize=(WIDTH, 1.6 + 0.5 * len(latest)))
    colours = plt.get_cmap("tab10")
    for place, parts in enumerate(latest.values()):
        left = 0.0
        for number, part in enumerate([*shown, "rest"]):
            members = rest if part == "rest" else [part]
            width = sum(parts[m]["seconds"] for m in members if m in parts)
            label = part if place == 0 else None
            axes.barh(
                place, width, left=left, color="#cccccc" if part == "rest" else colours(number), label=label
            )
            left += width
        axes.text(left, place, f" {seconds(left)}", va="center", fontsize=9)
    titles = [f"{pass_name}\n{ {'ifdd': 'this library'}.get(name, name) }" for pass_name, name in latest]
    axes.set_yticks(range(len(latest)), titles, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    first = rows[-1]
    axes.set_xlabel(f"seconds, {first['batch']} clip(s), {first['precision']}, under the profiler")
    figure.legend(loc="outside upper center", ncols=4)
    return figure


def scaling(file: Path) -> Any:
    """Time over the number of clips, the number of frames and the size of the image."""
    rows = [row for row in read(file, "time") if row["precision"] in ("fp32", "bf16")]
    panels = [
        ("clips", "issm", "8 frames", "batch"),
        ("clips", "ladm", "network", "batch"),
        ("frames of tokens", "issm", None, "frames"),
        ("image side", "model", None, "image_size"),
    ]
    data = []
    for axis, case, label, field in panels:
        series = _series([r for r in rows if r["case"] == case and label in (None, r["label"])], field)
        if series:
            data.append((axis, case, series))
    if not data:
        return None
    figure, axes = plt.subplots(1, len(data), figsize=(WIDTH, 3.0), squeeze=False)
    for panel, (axis, case, series) in zip(axes[0], data, strict=True):
        panel.set(xlabel=axis, xscale="log", yscale="log")
        for name, points in series.items():
            x, y = zip(*sorted(points.items()), strict=True)
            panel.plot(
                x, [v * 1e3 for v in y], "o-", color=COLOURS[name], label=name.replace("ours", "this library")
            )
            panel.set_xticks(x, [str(v) for v in x], fontsize=8)
        panel.set_xticks([], minor=True)
        panel.set_title({"issm": "splitting", "ladm": "LADM", "model": "network"}[case], fontsize=10)
        panel.tick_params(axis="y", labelsize=8)
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
    axes[0][0].set_ylabel("ms, inference")
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2)
    return figure


def _series(rows: list[Row], field: str) -> dict[str, dict[int, float]]:
    """Seconds of inference by a field, ours and the original's; all else as in the most usual shape."""
    usual = {"batch": 1, "image_size": 224}
    series: dict[str, dict[int, float]] = {}
    for row in rows:
        fixed = {name: value for name, value in usual.items() if name != field}
        if row["pass"] != "inference" or any(row[name] != value for name, value in fixed.items()):
            continue
        if row["case"] == "model" and field == "image_size" and row["frames"] != 16:
            continue
        name = "ours" if row["contender"] in OURS else row["contender"]
        if name in ("ours", "original"):
            points = series.setdefault(name, {})
            points[row[field]] = min(row["median_s"], points.get(row[field], float("inf")))
    return series if all(len(points) > 1 for points in series.values()) else {}
