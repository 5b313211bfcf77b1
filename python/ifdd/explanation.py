"""Figures of what a network looked at, made for a paper: one window in detail, or the windows of a video.

They are as wide as two columns of a page (7.2 inches) with letters of 6 to 9 points. All places are computed
in inches, and names that are too long for theirs are cut in the middle, so no text runs into another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from ifdd.prediction import Explanation, PredictionError
from ifdd.strips import FaceStrip
from ifdd.text import figure_fonts, figure_label
from ifdd.whole import part_of

__all__ = ["DPI", "PANELS", "draw_explanation", "draw_strip", "parse_panels"]

PANELS = ("frames", "samples", "maps", "correlation", "probabilities")
"""Panels of the figure of one window, from top to bottom."""

DPI = 300
"""Default dots per inch, what journals ask of pictures."""

STATIC = "#0072B2"
DYNAMIC = "#D55E00"
BEST = "#009E73"

_WIDTH = 7.2
_LEFT, _RIGHT = 0.12, 0.12
_INNER = _WIDTH - _LEFT - _RIGHT
_BAR = 0.09  # width of a colour bar
_BAR_ROOM = 0.52  # of a colour bar with its numbers
_NAMES = 1.35  # room for the names of the classes
_SMALL, _NORMAL, _TITLE = 6.0, 7.0, 9.0
_MOST_FRAMES = 16
_MAP_ALPHA = 0.6
_BLANK = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # keeps lines out of numbers
_THUMB = 0.55  # side of a frame in a strip
_MOST_STRIPS = 24  # faces in a figure; more would make it metres high
_COLUMNS = 2000  # moments of a strip, more than it has pixels


def parse_panels(text: str) -> tuple[str, ...]:
    """Reads ``"frames,maps"``; the panels come in the order of :data:`PANELS`.

    Args:
        text: names with commas between them.

    Returns:
        The names.

    Raises:
        ValueError: there is no such panel, or none is named.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in PANELS]
    if unknown or not names:
        got = repr(unknown[0]) if unknown else "none"
        raise ValueError(f"panels are {', '.join(PANELS)}, got {got}")
    return tuple(name for name in PANELS if name in names)


def draw_explanation(
    explanation: Explanation,
    path: str | Path,
    *,
    note: str = "",
    panels: Sequence[str] = PANELS,
    dpi: int = DPI,
) -> Path:
    """One window: its frames, where the static and dynamic samples landed, their feature maps, the
    correlation of the frames and the class probabilities.

    Args:
        explanation: from :meth:`ifdd.prediction.Predictor.explain`.
        path: image to write, .png, .pdf, .svg or .jpg; it is there whole or as it was before.
        note: a sentence shown under the title.
        panels: which of :data:`PANELS`.
        dpi: dots per inch.

    Returns:
        The path of the image.

    Raises:
        PredictionError: only the correlation is asked for, which this network does not have.
        OSError: the file cannot be written.
    """
    chosen = [panel for panel in PANELS if panel in panels]
    if explanation.correlation is None:
        chosen = [panel for panel in chosen if panel != "correlation"]
    if not chosen:
        raise PredictionError("this network learns no correlation of frames: choose other panels")
    with _fonts([explanation.name, note, *explanation.class_names]):
        figure = _explanation(explanation, note, chosen)
        return _save(figure, path, dpi)


def draw_strip(
    name: str, class_names: Sequence[str], strips: Sequence[FaceStrip], path: str | Path, *, dpi: int = DPI
) -> Path:
    """All windows of a video over its time, one band per face (of more than 24 those with the most windows):
    frames that the network saw above the probabilities of all classes.

    Args:
        name: of the video.
        class_names: of the network, K.
        strips: from :meth:`ifdd.prediction.Predictor.strips`, at least one.
        path: as in :func:`draw_explanation`.
        dpi: dots per inch.

    Returns:
        The path of the image.

    Raises:
        OSError: the file cannot be written.
    """
    with _fonts([name, *class_names]):
        return _save(_strip(name, class_names, strips), path, dpi)


@contextmanager
def _fonts(texts: Sequence[str]) -> Iterator[None]:
    logger = logging.getLogger("matplotlib.font_manager")
    before = logger.level
    logger.setLevel(logging.ERROR)  # fonts behind the first often have no bold letters, which is no news
    try:
        with matplotlib.rc_context(
            {"font.family": figure_fonts(texts), "pdf.fonttype": 42, "axes.linewidth": 0.6}
        ):
            yield
    finally:
        logger.setLevel(before)


def _save(figure: Figure, path: str | Path, dpi: int) -> Path:
    target = Path(path)
    with part_of(target) as part:
        figure.savefig(part, dpi=dpi, format=target.suffix.lstrip(".").lower() or "png")
    return target


class _Sheet:
    """A figure on which places are inches from its upper left corner."""

    def __init__(self, height: float) -> None:
        self.figure = Figure(figsize=(_WIDTH, height))
        self._height = height

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes at a place."""
        box = (left / _WIDTH, 1 - (top + height) / self._height, width / _WIDTH, height / self._height)
        axes: Axes = self.figure.add_axes(box)
        axes.tick_params(labelsize=_SMALL, length=2, width=0.6, pad=1.5)
        return axes

    def text(self, left: float, top: float, text: str, size: float = _NORMAL, **style: Any) -> None:
        """A line whose upper edge is at `top`."""
        style = {"va": "top", **style}
        self.figure.text(left / _WIDTH, 1 - top / self._height, text, fontsize=size, **style)

    def fitting(self, name: str, width: float, size: float, weight: str = "normal") -> str:
        """`name` as a label of at most `width` inches, without its middle if it is longer."""

        def fits(label: str) -> bool:
            text = self.figure.text(0, 0, label, fontsize=size, fontweight=weight)
            extent = text.get_window_extent()
            text.remove()
            return bool(extent.width <= width * self.figure.dpi)

        label = figure_label(name)
        if fits(label):
            return label
        low, high = 0, len(name) - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(_cut(name, middle)) else (low, middle - 1)
        return _cut(name, low)

    def colour_bar(self, left: float, top: float, height: float, shown: ScalarMappable, label: str) -> None:
        """A colour bar with its numbers on the right; `label` is a short line above them."""
        axes = self.axes(left, top, _BAR, height)
        axes.set_facecolor("0.5")  # maps lie on grey pictures
        bar = self.figure.colorbar(shown, cax=axes)
        bar.ax.tick_params(labelsize=_SMALL, length=2, width=0.6, pad=1.5)
        bar.locator = MaxNLocator(4)
        bar.formatter = ScalarFormatter(useOffset=False)
        bar.formatter.set_powerlimits((-2, 4))
        bar.ax.yaxis.get_offset_text().set_fontsize(_SMALL)
        bar.update_ticks()
        if label:
            self.text(left, top - 0.13, label, _SMALL)


def _cut(name: str, kept: int) -> str:
    front = (kept + 1) // 2
    return figure_label(f"{name[:front]}…{name[len(name) - (kept - front) :]}")


@dataclass(frozen=True)
class _Row:
    """A part of the figure: what it takes of the height, and what draws it at a place from the top."""

    height: float
    draw: Callable[[_Sheet, float], None]


def _explanation(explanation: Explanation, note: str, panels: Sequence[str]) -> Figure:
    rows = [_heading(explanation, note)]
    if "frames" in panels:
        rows.append(_frames(explanation))
    if "samples" in panels:
        rows.append(_samples(explanation))
    if "maps" in panels:
        rows.append(_maps(explanation))
    if "correlation" in panels or "probabilities" in panels:
        rows.append(_bottom(explanation, "correlation" in panels, "probabilities" in panels))
    return _stack(rows)


def _stack(rows: Sequence[_Row]) -> Figure:
    sheet = _Sheet(sum(row.height for row in rows))
    top = 0.0
    for row in rows:
        row.draw(sheet, top)
        top += row.height
    return sheet.figure


def _heading(explanation: Explanation, note: str) -> _Row:
    best = int(explanation.probabilities.argmax())
    span = f"{explanation.start_seconds:.2f} s to {explanation.stop_seconds:.2f} s"
    who = "Window " if explanation.face is None else f"Face {explanation.face}, window "

    def draw(sheet: _Sheet, top: float) -> None:
        name = sheet.fitting(explanation.name, _INNER, _TITLE, "bold")
        sheet.text(_LEFT, top + 0.1, name, _TITLE, fontweight="bold")
        label = sheet.fitting(explanation.class_names[best], 2.2, _NORMAL)
        sheet.text(
            _LEFT,
            top + 0.3,
            f"{who}{explanation.window}, {span}: {label} has probability "
            f"{100 * explanation.probabilities[best]:.1f} % in this window alone",
        )
        if note:
            sheet.text(_LEFT, top + 0.44, sheet.fitting(note, _INNER, _NORMAL))

    return _Row(0.66 if note else 0.52, draw)


def _frames(explanation: Explanation) -> _Row:
    frames = explanation.frames
    shown = np.unique(np.linspace(0, len(frames) - 1, min(_MOST_FRAMES, len(frames))).round().astype(int))
    side = min(_INNER / len(shown), 0.8)
    of_all = "" if len(shown) == len(frames) else f", {len(shown)} of {len(frames)}"

    def draw(sheet: _Sheet, top: float) -> None:
        sheet.text(_LEFT, top, f"Frames as the network saw them{of_all} (seconds of the video)")
        for column, frame in enumerate(shown):
            left = _LEFT + column * side
            axes = _picture(sheet, left + 0.01, top + 0.27, side - 0.02, frames[frame])
            axes.set_title(f"{explanation.frame_seconds[frame]:.2f}", fontsize=_SMALL, pad=1.5)

    return _Row(0.27 + side + 0.12, draw)


def _picture(sheet: _Sheet, left: float, top: float, side: float, image: np.ndarray, **style: Any) -> Axes:
    axes = sheet.axes(left, top, side, side)
    axes.imshow(image, aspect="auto", **style)
    axes.set_xticks([])
    axes.set_yticks([])
    return axes


def _seconds(explanation: Explanation, positions: np.ndarray) -> np.ndarray:
    """Frames of the window, fractions too -> seconds of the video."""
    times = explanation.frame_seconds
    seconds: np.ndarray = np.interp(positions, np.arange(len(times)), times)
    return seconds


def _samples(explanation: Explanation) -> _Row:
    def draw(sheet: _Sheet, top: float) -> None:
        sheet.text(_LEFT, top, f"Where the samples were taken: {explanation.split}")
        indent = 0.55
        width = _INNER - indent - 0.15
        axes = sheet.axes(_LEFT + indent, top + 0.2, width, 0.62)
        axes.vlines(
            _seconds(explanation, explanation.token_frames), -0.8, 1.8, color="0.85", linewidth=0.6, zorder=0
        )
        start, stop = explanation.start_seconds, explanation.stop_seconds
        stop = max(stop, start + 1e-3)
        for positions, level, colour, marker in (
            (explanation.static_frames, 1, STATIC, "^"),
            (explanation.dynamic_frames, 0, DYNAMIC, "v"),
        ):
            seconds = _seconds(explanation, positions)
            axes.scatter(
                seconds,
                np.full(len(seconds), level),
                s=22,
                color=colour,
                marker=marker,
                zorder=3,
                clip_on=False,
            )
            # Samples may fall together; then they share one label.
            for place, numbers in _joined(seconds, 0.22 * (stop - start) / width):
                axes.annotate(
                    ",".join(map(str, numbers)),
                    (place, level),
                    xytext=(0, 4.5),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    fontsize=_SMALL,
                    color=colour,
                    bbox=_BLANK,
                )
        axes.set_yticks([1, 0], ["static", "dynamic"])
        axes.tick_params(axis="y", length=0, pad=6)  # a sample may lie on the edge: its mark needs room
        for label, colour in zip(axes.get_yticklabels(), (STATIC, DYNAMIC), strict=True):
            label.set_color(colour)
        axes.set_ylim(-0.8, 1.8)
        axes.set_xlim(start, stop)
        _time_ticks(axes, start, stop)
        axes.set_xlabel(
            "seconds of the video; grey lines: the frames of the network's feature sequence",
            fontsize=_SMALL,
            labelpad=1.5,
        )
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)

    return _Row(0.2 + 0.62 + 0.42, draw)


def _joined(places: np.ndarray, nearest: float) -> list[tuple[float, list[int]]]:
    """Labels, numbered from 1, that stand at least `nearest` apart: nearer ones are joined."""
    groups: list[tuple[list[float], list[int]]] = []
    for index in np.argsort(places, kind="stable"):
        place = float(places[index])
        # A label grows with its numbers.
        if groups and place - float(np.mean(groups[-1][0])) < nearest * (1 + 0.4 * len(groups[-1][1])):
            groups[-1][0].append(place)
            groups[-1][1].append(int(index) + 1)
        else:
            groups.append(([place], [int(index) + 1]))
    return [(float(np.mean(group)), sorted(numbers)) for group, numbers in groups]


def _time_ticks(axes: Axes, start: float, stop: float) -> None:
    ticks = np.asarray(MaxNLocator(8, steps=(1, 2, 5, 10)).tick_values(start, stop))
    axes.set_xticks(ticks[(ticks >= start) & (ticks <= stop)])
    axes.xaxis.set_major_formatter(ScalarFormatter(useOffset=False))


def _maps(explanation: Explanation) -> _Row:
    half = (_INNER - 0.2) / 2
    count = max(len(explanation.static_maps), len(explanation.dynamic_maps))
    side = (half - _BAR_ROOM) / count

    def draw(sheet: _Sheet, top: float) -> None:
        for group, maps, positions, colour, left in (
            ("static", explanation.static_maps, explanation.static_frames, STATIC, _LEFT),
            ("dynamic", explanation.dynamic_maps, explanation.dynamic_frames, DYNAMIC, _LEFT + half + 0.2),
        ):
            title = f"{group.capitalize()} group: norm over the channels after lifting"
            sheet.text(left, top, title, color=colour)
            _group(sheet, explanation, maps, positions, colour, (left, top + 0.3, side))

    return _Row(0.3 + side + 0.14, draw)


def _group(
    sheet: _Sheet,
    explanation: Explanation,
    maps: np.ndarray,
    positions: np.ndarray,
    colour: str,
    place: tuple[float, float, float],
) -> None:
    left, top, side = place
    frames = explanation.frames
    height, width = frames.shape[1:3]
    low, high = float(maps.min()), float(maps.max())
    norm = Normalize(low, high if high > low else low + 1)
    for column, (heat, position) in enumerate(zip(maps, positions, strict=True)):
        nearest = int(np.clip(np.rint(position), 0, len(frames) - 1))
        axes = _picture(
            sheet,
            left + column * side,
            top,
            side - 0.03,
            frames[nearest].mean(-1),
            cmap="gray",
            vmin=0,
            vmax=255,
        )
        image = axes.imshow(
            heat,
            cmap="magma",
            norm=norm,
            alpha=_MAP_ALPHA,
            aspect="auto",
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            interpolation="bilinear",
        )
        seconds = float(_seconds(explanation, position))
        axes.set_title(f"{column + 1}: {seconds:.2f} s", fontsize=_SMALL, pad=2)
        for spine in axes.spines.values():
            spine.set_color(colour)
            spine.set_linewidth(1)
    sheet.colour_bar(left + len(maps) * side + 0.05, top, side - 0.03, image, "")


def _bottom(explanation: Explanation, correlation: bool, probabilities: bool) -> _Row:
    height = max(1.75 if correlation else 0.0, 0.16 * len(explanation.class_names) if probabilities else 0.0)

    def draw(sheet: _Sheet, top: float) -> None:
        left = _LEFT
        if correlation:
            _correlation(sheet, explanation, left, top)
            left += 3.0
        if probabilities:
            _probabilities(sheet, explanation, left, top, height)

    return _Row(0.2 + height + 0.42, draw)


def _correlation(sheet: _Sheet, explanation: Explanation, left: float, top: float) -> None:
    side, indent = 1.75, 0.52
    sheet.text(left, top, "Correlation of the frames, unnormalised")
    axes = sheet.axes(left + indent, top + 0.2, side, side)
    assert explanation.correlation is not None, "left out where there is none"
    image = axes.imshow(explanation.correlation, cmap="cividis", aspect="auto")
    seconds = _seconds(explanation, explanation.token_frames)
    ticks = range(0, len(seconds), 2)
    labels = [f"{seconds[tick]:.2f}" for tick in ticks]
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    axes.set_xlabel("seconds of the video", fontsize=_SMALL, labelpad=1.5)
    bar = sheet.axes(left + indent + side + 0.06, top + 0.2, _BAR, side)
    sheet.figure.colorbar(image, cax=bar)
    bar.tick_params(labelsize=_SMALL, length=2, width=0.6, pad=1.5)
    bar.yaxis.get_offset_text().set_visible(False)


def _probabilities(sheet: _Sheet, explanation: Explanation, left: float, top: float, height: float) -> None:
    values = explanation.probabilities
    best = int(values.argmax())
    places = np.arange(len(values))
    sheet.text(left, top, "Class probabilities of this window")
    axes = sheet.axes(left + _NAMES, top + 0.2, _WIDTH - _RIGHT - 0.1 - left - _NAMES, height)
    axes.barh(places, values, color=[BEST if place == best else "0.7" for place in places], height=0.75)
    axes.axvline(1 / len(values), color="black", linestyle=":", linewidth=0.7)
    for place, value in enumerate(values):
        inside = value > 0.8  # no room beside the bar then
        axes.annotate(
            f"{100 * value:.1f} %",
            (value, place),
            xytext=(-3 if inside else 3, 0),
            textcoords="offset points",
            va="center",
            ha="right" if inside else "left",
            color="white" if inside else "black",
            fontsize=_SMALL,
            bbox=None if inside else _BLANK,
        )
    names = [sheet.fitting(name, _NAMES - 0.08, _SMALL) for name in explanation.class_names]
    axes.set_yticks(places, names)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_xlabel("probability in this window (softmax); dotted: chance", fontsize=_SMALL, labelpad=1.5)
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)


def _strip(name: str, class_names: Sequence[str], strips: Sequence[FaceStrip]) -> Figure:
    longest = sorted(range(len(strips)), key=lambda index: -len(strips[index].starts))[:_MOST_STRIPS]
    more = len(strips) - len(longest)
    strips = [strips[index] for index in sorted(longest)]

    def heading(sheet: _Sheet, top: float) -> None:
        sheet.text(_LEFT, top + 0.1, sheet.fitting(name, _INNER, _TITLE, "bold"), _TITLE, fontweight="bold")
        text = "Probabilities of every window, and some of the frames as the network saw them"
        if more:
            text += f"; {more} more face{'s' * (more > 1)} not shown"
        sheet.text(_LEFT, top + 0.3, text)

    start = min(strip.starts[0] for strip in strips)
    stop = max(max(strip.stops[-1] for strip in strips), start + 1e-3)
    rows = [_Row(0.52, heading)]
    rows += [_band(class_names, strip, start, stop, last=strip is strips[-1]) for strip in strips]
    return _stack(rows)


def _band(class_names: Sequence[str], strip: FaceStrip, start: float, stop: float, last: bool) -> _Row:
    """One face: pictures and probabilities over the time that all bands share."""
    height = max(0.13 * len(class_names), 0.4)
    width = _INNER - _NAMES - _BAR_ROOM
    left = _LEFT + _NAMES

    def draw(sheet: _Sheet, top: float) -> None:
        best = int(strip.mean.argmax())
        label = sheet.fitting(class_names[best], 2.2, _NORMAL)
        plural = "s" * (len(strip.starts) > 1)
        who = "Whole frame" if strip.face is None else f"Face {strip.face}"
        sheet.text(
            _LEFT,
            top,
            f"{who}: {label}, probability {100 * strip.mean[best]:.1f} % over all "
            f"{len(strip.starts)} window{plural} (softmax of the mean logits)",
        )
        free = left
        for seconds, image in strip.pictures:
            middle = left + width * (seconds - start) / (stop - start)
            place = min(max(middle - _THUMB / 2, left), left + width - _THUMB)
            if place >= free - 1e-9:
                _picture(sheet, place, top + 0.18, _THUMB - 0.02, image)
                free = place + _THUMB
        axes = sheet.axes(left, top + 0.18 + _THUMB, width, height)
        norm = Normalize(0, 1)
        axes.imshow(
            _over_time(strip, start, stop),
            cmap="cividis",
            norm=norm,
            aspect="auto",
            interpolation="nearest",
            extent=(start, stop, len(class_names) - 0.5, -0.5),
        )
        names = [sheet.fitting(name, _NAMES - 0.08, _SMALL) for name in class_names]
        axes.set_yticks(range(len(class_names)), names)
        _time_ticks(axes, start, stop)
        if last:
            axes.set_xlabel("seconds of the video", fontsize=_SMALL, labelpad=1.5)
        sheet.colour_bar(
            left + width + 0.06, top + 0.18 + _THUMB, height, ScalarMappable(norm, "cividis"), "probability"
        )

    return _Row(0.18 + _THUMB + height + (0.42 if last else 0.3), draw)


def _over_time(strip: FaceStrip, start: float, stop: float) -> np.ndarray:
    """(K, columns): the probabilities of the latest window at every time, NaN where there is none."""
    edges = np.linspace(start, stop, _COLUMNS + 1)
    times = (edges[:-1] + edges[1:]) / 2
    window = np.searchsorted(strip.starts, times, side="right") - 1
    shown: np.ndarray = strip.probabilities[window.clip(0)].T.copy()
    shown[:, (window < 0) | (times >= strip.stops[window.clip(0)])] = np.nan
    return shown
