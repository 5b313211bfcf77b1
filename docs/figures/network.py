"""Draws network_light.svg and network_dark.svg: IFDD from clip to probabilities, and where its ops are.

Run from the repository root: python docs/figures/network.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Arc, Circle, FancyArrowPatch, FancyBboxPatch, Polygon

from ifdd import IFDDConfig

FOLDER = Path(__file__).parent
WIDTH, HEIGHT = 100.0, 68.0
INCHES = 10.0
#: Top edge of the panels.
PANEL = 38.0

Point = tuple[float, float]


@dataclass(frozen=True)
class Theme:
    """Colours of one theme; the background stays transparent."""

    text: str
    faint: str
    line: str
    box: str
    op: str
    op_text: str
    static: str
    dynamic: str
    panel: str


LIGHT = Theme(
    "#1f2328", "#59636e", "#59636e", "#eef1f4", "#0a58ca", "#ffffff", "#0f766e", "#b45309", "#f8f9fb"
)
DARK = Theme(
    "#f0f6fc", "#9aa4af", "#9aa4af", "#262c36", "#79b8ff", "#0d1117", "#4fd1c5", "#f0a04b", "#161b22"
)


class Drawing:
    """The few shapes the picture is made of, in units of a hundredth of its width."""

    def __init__(self, theme: Theme) -> None:
        self.theme = theme
        self.figure = Figure(figsize=(INCHES, INCHES * HEIGHT / WIDTH))
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
        self.axes.set_axis_off()

    def text(
        self,
        at: Point,
        words: str,
        *,
        size: float = 9,
        colour: str = "",
        ha: str = "center",
        bold: bool = False,
    ) -> None:
        """Words at their centre, or at the edge that `ha` names."""
        self.axes.text(
            *at, words, fontsize=size, color=colour or self.theme.text, ha=ha, va="center",
            fontweight="bold" if bold else "normal", linespacing=1.25,
        )  # fmt: skip

    def box(
        self, centre: Point, size: Point, words: str = "", *, fill: str = "", edge: str = "",
        colour: str = "", font: float = 9, rounding: float = 0.7,
    ) -> None:  # fmt: skip
        """A rounded box with words in it."""
        (x, y), (width, height) = centre, size
        self.axes.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - height / 2), width, height, linewidth=1,
                boxstyle=f"round,pad=0,rounding_size={rounding}",
                facecolor=fill or self.theme.box, edgecolor=edge or self.theme.line,
            )
        )  # fmt: skip
        self.text(centre, words, size=font, colour=colour)

    def op(self, centre: Point, words: str, width: float, inside: str = "") -> None:
        """An op of this library; `inside` names what it consists of."""
        theme, (x, y), height = self.theme, centre, 5.6 if inside else 3.7
        self.box(centre, (width, height), fill=theme.op, edge=theme.op, rounding=1.8)
        self.text((x, y + 1.0) if inside else centre, words, colour=theme.op_text)
        self.text((x, y - 1.25), inside, size=7.5, colour=theme.op_text)

    def arrow(self, points: Sequence[Point], colour: str = "") -> None:
        """A line through points with a head at its end."""
        colour = colour or self.theme.line
        *start, last = points
        if len(start) > 1:
            self.lines(start, colour)
        self.axes.add_patch(
            FancyArrowPatch(
                start[-1], last, arrowstyle="-|>", mutation_scale=9, color=colour, linewidth=1.3,
                shrinkA=0, shrinkB=0,
            )
        )  # fmt: skip

    def lines(self, points: Sequence[Point], colour: str = "") -> None:
        """A line through points."""
        self.axes.plot(*zip(*points, strict=True), color=colour or self.theme.line, linewidth=1.3)

    def sign(self, centre: Point, sign: str, colour: str) -> None:
        """Where two branches meet."""
        self.axes.add_patch(
            Circle(centre, 1.25, facecolor=self.theme.panel, edgecolor=colour, linewidth=1.3, zorder=3)
        )
        self.text(centre, sign, size=10, colour=colour, bold=True)

    def panel(self, left: float, bottom: float, width: float, height: float, title: str) -> None:
        """The background of a part of the picture."""
        self.axes.add_patch(
            FancyBboxPatch(
                (left, bottom), width, height, boxstyle="round,pad=0,rounding_size=1.2",
                facecolor=self.theme.panel, edgecolor=self.theme.line, linewidth=0.8,
            )
        )  # fmt: skip
        self.text((left + 1.8, bottom + height - 2.4), title, ha="left", bold=True)

    def zoom(self, above: tuple[float, float], top: float, below: tuple[float, float], bottom: float) -> None:
        """That a panel shows what is inside of something above it."""
        corners = [(above[0], top), (above[1], top), (below[1], bottom), (below[0], bottom)]
        self.axes.add_patch(Polygon(corners, closed=True, facecolor=self.theme.line, alpha=0.13, linewidth=0))

    def face(self, centre: Point, smile: float) -> None:
        """A frame of the clip; `smile` from -1 to 1."""
        x, y = centre
        self.box(centre, (5.6, 5.6), rounding=0.4, fill=self.theme.panel)
        self.axes.add_patch(Circle((x, y), 2.1, facecolor="none", edgecolor=self.theme.text, linewidth=1))
        for side in (-0.75, 0.75):
            self.axes.add_patch(Circle((x + side, y + 0.55), 0.22, color=self.theme.text))
        depth = 1.5 * abs(smile) + 0.05
        start, stop = (200, 340) if smile > 0 else (20, 160)
        mouth = (x, y - 0.55 if smile > 0 else y - 1.25)
        self.axes.add_patch(
            Arc(mouth, 2.1, depth, theta1=start, theta2=stop, color=self.theme.text, linewidth=1.1)
        )


def network(drawing: Drawing) -> None:
    """The row at the top: the whole network. Sizes are those of the configuration."""
    theme, config, y = drawing.theme, IFDDConfig(), 53.2

    def label(x: float, above: str, below: str) -> None:
        drawing.text((x, y + 7.4), above, bold=True)
        drawing.text((x, y - 7.4), below, size=8.5, colour=theme.faint)

    for number, smile in enumerate((-0.25, 0.2, 0.6, 1.0)):
        drawing.face((4.2 + 1.4 * number, y + 1.6 - 1.1 * number), smile)
    label(6.3, "clip", f"{config.clip_frames} frames\n{config.image_size} × {config.image_size}")
    drawing.arrow([(12.2, y), (15.2, y)])
    drawing.box((20.0, y), (9.6, 5), "convolution")
    label(20.0, "embedding", "8 frames\nof tokens")
    drawing.arrow([(24.8, y), (27.6, y)])

    first = left = 27.6
    grid, centres = config.image_size // 4, []
    for stage, (depth, height) in enumerate(zip(config.stage_depths, (10.4, 8.2, 6.2, 4.4), strict=True)):
        for block in range(depth):
            drawing.box((left + 1.95 * block + 0.95, y), (1.6, height), rounding=0.3)
        centre, right = left + 0.975 * depth, left + 1.95 * depth - 0.15
        centres.append(centre)
        drawing.text(
            (centre, y - 7.4), f"{grid}²\n{config.stage_channels[stage]}", size=8.5, colour=theme.faint
        )
        grid //= 2
        left = right + 2.6
        drawing.arrow([(right, y), (left, y)])
    drawing.text((first + (right - first) / 2, y + 7.4), "MViTv2: ten blocks in four stages", bold=True)
    pyramid = left + 4.3
    drawing.box((pyramid, y), (8.6, 5), "merge")
    label(pyramid, "pyramid", "8 × 7 × 7\ntokens of 768")
    drawing.arrow([(centres[2], y - 3.1), (centres[2], y - 4.6), (pyramid, y - 4.6), (pyramid, y - 2.5)])

    core = pyramid + 16.6
    drawing.arrow([(pyramid + 4.3, y), (core - 8.5, y)])
    drawing.box((core, y), (17, 9))
    drawing.text((core, y + 2.6), "static", colour=theme.static, bold=True)
    drawing.text((core, y - 2.6), "dynamic", colour=theme.dynamic, bold=True)
    drawing.arrow([(core - 4.6, y - 1.3), (core - 4.6, y + 2.6)], theme.dynamic)
    drawing.arrow([(core + 4.6, y + 1.3), (core + 4.6, y - 2.6)], theme.static)
    drawing.text((core - 6.3, y + 1.9), "+", colour=theme.static, bold=True, size=11)
    drawing.text((core + 6.3, y - 1.9), "−", colour=theme.dynamic, bold=True, size=11)
    label(core, "split (ISSM) and lift (LADM)", "two groups of\n4 frames each")
    head = core + 15.6
    drawing.arrow([(core + 8.5, y), (head - 3.3, y)], theme.dynamic)
    drawing.box((head, y), (6.6, 5), "linear")
    label(head, "head", f"scores of\n{config.num_classes} classes")
    drawing.zoom((first, right), y - 9.6, (1, 47.5), PANEL)
    drawing.zoom((core - 8.5, core + 8.5), y - 9.6, (50.5, 99), PANEL)


def block(drawing: Drawing) -> None:
    """The panel at the left: a block of the backbone."""
    theme = drawing.theme
    drawing.panel(1, 1, 46.5, PANEL - 1, "one block of MViTv2")
    plain: Point = (5.2, 3.7)
    enter, total, leave = 3.4, 40.4, 45.6
    shortcut, first, second, mlp = 31.2, 25.2, 19.4, 9.2

    drawing.arrow([(1.8, first), (4.6, first)])
    drawing.arrow([(enter, first), (enter, shortcut), (15.4, shortcut)])
    drawing.op((23.4, shortcut), "max_pool_tokens", 16)
    drawing.text((36.2, shortcut + 1.6), "shortcut", size=8.5, colour=theme.faint)
    drawing.arrow([(31.4, shortcut), (total, shortcut), (total, first + 1.25)])
    drawing.box((7.2, first), plain, "norm")
    drawing.arrow([(9.8, first), (12.0, first)])
    drawing.op((15.4, first), "linear", 6.8)
    drawing.arrow([(18.8, first), (22.6, first)])
    drawing.text((20.5, first + 1.5), "q k v", size=8.5, colour=theme.faint)
    drawing.op((28.6, first), "pool_tokens", 12)
    drawing.arrow([(28.6, first - 1.85), (28.6, second + 1.85)])
    drawing.op((26.6, second), "pooled_attention", 16)
    drawing.arrow([(18.6, second), (16.0, second)])
    drawing.op((12.6, second), "linear", 6.8)
    drawing.arrow([(12.6, second - 1.85), (12.6, second - 3.6), (total, second - 3.6), (total, first - 1.25)])
    drawing.sign((total, first), "+", theme.line)

    turn = second - 5.6
    drawing.arrow(
        [(total + 1.25, first), (leave, first), (leave, turn), (enter, turn), (enter, mlp), (4.6, mlp)]
    )
    drawing.box((7.2, mlp), plain, "norm")
    drawing.arrow([(9.8, mlp), (12.0, mlp)])
    drawing.op((15.4, mlp), "linear", 6.8)
    drawing.arrow([(18.8, mlp), (21.6, mlp)])
    drawing.op((27.6, mlp), "gelu_linear", 12)
    drawing.arrow([(33.6, mlp), (total - 1.25, mlp)])
    drawing.arrow([(enter, mlp), (enter, mlp - 4.6), (total, mlp - 4.6), (total, mlp - 1.25)])
    drawing.sign((total, mlp), "+", theme.line)
    drawing.arrow([(total + 1.25, mlp), (46.9, mlp)])


def lifting(drawing: Drawing) -> None:
    """The panel at the right: split and lifting."""
    theme = drawing.theme
    drawing.panel(50.5, 1, 48.5, PANEL - 1, "split and lifting")
    static, middle, dynamic = 25.2, 18.2, 11.2

    drawing.axes.add_patch(
        FancyBboxPatch(
            (53.2, 7.8), 15.2, 21.2, boxstyle="round,pad=0,rounding_size=1", facecolor="none",
            edgecolor=theme.op, linewidth=1, linestyle=(0, (4, 2.5)),
        )
    )  # fmt: skip
    drawing.text((60.8, 30.5), "static_dynamic_split", size=8.5, colour=theme.op)
    drawing.arrow([(51.2, 25.4), (54.4, 25.4)])
    drawing.op((60.8, 25.4), "split_index", 12.8, "tokens, correlation")
    drawing.arrow([(60.8, 22.6), (60.8, 13.1)])
    drawing.text((60.2, 18.9), "positions", size=8.5, colour=theme.faint, ha="right")
    drawing.text((60.2, 16.9), "in time", size=8.5, colour=theme.faint, ha="right")
    drawing.arrow([(52.2, 25.4), (52.2, dynamic), (54.4, dynamic)])
    drawing.op((60.8, dynamic), "split_frames", 12.8)

    update, predict = 77.0, 91.2
    drawing.lines([(67.2, dynamic + 1.1), (69.4, dynamic + 1.1), (69.4, static)], theme.static)
    drawing.arrow([(69.4, static), (96.6, static), (96.6, 29.3)], theme.static)
    drawing.arrow([(67.2, dynamic), (96.6, dynamic), (96.6, 7.1)], theme.dynamic)
    drawing.text((72.6, static + 1.5), "static", size=8.5, colour=theme.static, bold=True)
    drawing.text((72.6, dynamic - 1.6), "dynamic", size=8.5, colour=theme.dynamic, bold=True)
    drawing.arrow([(update, dynamic), (update, middle - 2.8)], theme.dynamic)
    drawing.arrow([(update, middle + 2.8), (update, static - 1.25)], theme.dynamic)
    drawing.op((update, middle), "lifting_update", 13.4, "lifting_attention")
    drawing.sign((update, static), "+", theme.static)
    drawing.arrow([(predict, static), (predict, middle + 2.8)], theme.static)
    drawing.arrow([(predict, middle - 2.8), (predict, dynamic + 1.25)], theme.static)
    drawing.op((predict, middle), "lifting_predict", 13.4, "lifting_attention")
    drawing.sign((predict, dynamic), "−", theme.dynamic)

    drawing.op((90.2, 31.2), "lifting_residual", 14.6)
    drawing.arrow([(82.9, 31.2), (80.9, 31.2)], theme.static)
    drawing.op((74.6, 31.2), "lifting_loss", 12.6)
    drawing.text((74.6, 34.5), "in training", size=8.5, colour=theme.faint)
    drawing.box((87.8, 5.2), (19.6, 3.7), "self-attention, MLP, sum")
    drawing.arrow([(78.0, 5.2), (73.4, 5.2)], theme.dynamic)
    drawing.text((69.8, 5.2), "to the head", size=8.5, colour=theme.faint)


def draw(theme: Theme) -> Figure:
    """The whole picture."""
    drawing = Drawing(theme)
    drawing.op((4.4, 65.6), "op", 5)
    drawing.text((8.0, 65.6), "an op of ifdd_kernels", ha="left", size=8.5, colour=theme.faint)
    drawing.text((44.5, 65.6), "below the stages: tokens of a frame, channels", size=8.5, colour=theme.faint)
    network(drawing)
    block(drawing)
    lifting(drawing)
    return drawing.figure


def main() -> None:
    """Writes both files; the same bytes every time."""
    with mpl.rc_context({"svg.hashsalt": "ifdd", "font.family": "DejaVu Sans"}):
        for name, theme in (("light", LIGHT), ("dark", DARK)):
            draw(theme).savefig(FOLDER / f"network_{name}.svg", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
