"""The curves of one training: loss, scores on the held-out clips and learning rate of each epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ifdd.whole import part_of

COLUMNS = {
    "train/loss": "training_loss",
    "train/classification": "classification_loss",
    "train/lifting": "lifting_loss",
    "val/war": "held_out_war",
    "val/uar": "held_out_uar",
    "lr": "learning_rate",
}
"""Name of a logged value -> its column in ``metrics.csv``."""

Row = Mapping[str, float]
"""Values of an epoch by column; ``epoch`` counts from 1."""

_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"  # of Okabe and Ito, for any colour vision


def draw_curves(rows: Sequence[Row], path: str | Path, *, dpi: int = 110) -> Path:
    """Draws the training so far; the file is there whole or as it was before.

    Args:
        rows: epochs in order; columns that an epoch lacks have no point there.
        path: the image to write, .png, .pdf or .svg.
        dpi: dots per inch of a .png.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    figure = Figure(figsize=(11.5, 3.4), dpi=dpi)
    figure.subplots_adjust(left=0.06, right=0.985, bottom=0.16, top=0.88, wspace=0.24)
    loss, scores, rate = figure.subplots(1, 3)
    _plot(loss, rows, [("training_loss", "training loss", _BLUE, "o")])
    _plot(
        scores,
        rows,
        [("held_out_war", "WAR", _BLUE, "o"), ("held_out_uar", "UAR", _ORANGE, "s")],
        percent=True,
    )
    _plot(rate, rows, [("learning_rate", "learning rate", _GREEN, "o")])
    loss.set_title("training loss")
    scores.set_title("held-out clips, %")
    rate.set_title("learning rate")
    if rate.lines:
        rate.set_yscale("log")
    if scores.lines:
        scores.set_ylim(-3, 103)
        scores.legend(fontsize=9)
    else:
        scores.text(0.5, 0.5, "no clips held out", ha="center", va="center", transform=scores.transAxes)
    with part_of(path) as part:
        figure.savefig(part, format=path.suffix.lstrip(".").lower() or "png")
    return path


def _plot(
    axis: Axes, rows: Sequence[Row], curves: Sequence[tuple[str, str, str, str]], percent: bool = False
) -> None:
    for column, label, colour, mark in curves:
        points = [(row["epoch"], row[column] * (100 if percent else 1)) for row in rows if column in row]
        if points:
            epochs, values = zip(*points, strict=True)
            # A mark for every epoch is a smear in a long training.
            axis.plot(
                epochs,
                values,
                color=colour,
                marker=mark if len(points) <= 60 else "",
                markersize=4,
                label=label,
            )
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
