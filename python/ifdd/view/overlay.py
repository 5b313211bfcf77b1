"""Draws on the frames of a video: boxes with their classes, and probabilities over time below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ifdd.text import drawn_text

COLOURS = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
    (240, 228, 66),
    (136, 34, 85),
    (68, 170, 153),
    (153, 153, 51),
    (187, 187, 187),
)
"""Of the classes, in order and then from the beginning again; from the palettes of Okabe and Ito and of Tol,
for any colour vision."""

LEAST_WIDTH = 480
"""Narrower pictures are enlarged by a whole number, or nobody could read what is written on them."""

MOST_BANDS = 4
"""Faces with a band of their own below the picture."""

_BACKGROUND = (24, 24, 24)
_TEXT = (235, 235, 235)
_FAINT = (110, 110, 110)


class Span(NamedTuple):
    """Probabilities (K,) that hold from `start` to `stop` seconds."""

    start: float
    stop: float
    probabilities: np.ndarray


@dataclass(frozen=True)
class Caption:
    """A face in one frame: its number (None: no faces are followed), the region (x0, y0, x1, y1) in pixels of
    the frame (None: all of it) and the probabilities (K,), None while there are none yet.
    """

    face: int | None
    box: tuple[float, float, float, float] | None
    probabilities: np.ndarray | None


class Painter:
    """Draws on frames of one size.

    Args:
        class_names: K names.
        width: of the frames.
        height: of the frames.
        bands: faces that get a band of probabilities below the picture.

    Attributes:
        size: (width, height) of the finished picture, both even, as video codecs want them.
    """

    def __init__(self, class_names: Sequence[str], width: int, height: int, bands: int = 1) -> None:
        self._names = tuple(class_names)
        self._frame = (width, height)
        self._factor = -(-LEAST_WIDTH // width) if width < LEAST_WIDTH else 1
        self._picture = (width * self._factor, height * self._factor)
        self._letters = max(12, min(self._picture) // 30)
        self._line = round(1.5 * self._letters)
        self._bands = min(bands, MOST_BANDS)
        self._legend, legend_lines = self._place_legend()
        self._panel = (legend_lines + 1) * self._line + self._bands * 2 * self._line + self._line // 2
        self.size = (
            self._picture[0] + self._picture[0] % 2,
            self._picture[1] + self._panel + (self._picture[1] + self._panel) % 2,
        )
        self._page: tuple[object, Image.Image] | None = None

    def draw(
        self,
        image: np.ndarray,
        captions: Sequence[Caption],
        now: float,
        bands: Sequence[tuple[str, Sequence[Span]]],
        view: tuple[float, float],
        status: str = "",
        *,
        page: object = None,
    ) -> np.ndarray:
        """The finished picture.

        Args:
            image: uint8 RGB (H, W, 3); of another size than the first frame it is fitted in.
            captions: the faces in it.
            now: its seconds, where the mark on the time axis stands.
            bands: the title of each band and what it shows.
            view: seconds at the left and right end of the time axis.
            status: a line drawn in the upper left corner.
            page: pictures with the same value show the same bands, which are then drawn once; None: they may
                differ.

        Returns:
            uint8 RGB, as high and wide as :attr:`size` says.
        """
        canvas = Image.new("RGB", self.size, (0, 0, 0))
        canvas.paste(Image.fromarray(image).resize(self._picture, Image.Resampling.BICUBIC), (0, 0))
        draw = ImageDraw.Draw(canvas)
        scale = (self._picture[0] / image.shape[1], self._picture[1] / image.shape[0])
        for caption in captions:
            self._draw_face(draw, caption, scale)
        if status:
            self._label(draw, 2, 2, status, (0, 0, 0))
        if page is None or self._page is None or self._page[0] != page:
            self._page = (page, self._draw_panel(bands, view))
        canvas.paste(self._page[1], (0, self._picture[1]))
        left, right = self._axis()
        if view[1] > view[0] and view[0] <= now <= view[1]:
            x = left + (right - left) * (now - view[0]) / (view[1] - view[0])
            top = self._picture[1] + self._panel - self._line - self._bands * 2 * self._line
            draw.line([(x, top), (x, self._picture[1] + self._panel - self._line)], (255, 255, 255), 2)
        pixels: np.ndarray = np.asarray(canvas)
        return pixels

    def _draw_face(self, draw: ImageDraw.ImageDraw, caption: Caption, scale: tuple[float, float]) -> None:
        values = caption.probabilities
        best = None if values is None else int(values.argmax())
        colour = (160, 160, 160) if best is None else _colour(best)
        text = "" if caption.face is None else f"{caption.face}  "
        if values is None or best is None:
            text += "..."
        else:
            text += f"{self._names[best]}  {100 * values[best]:.0f} %"
        x, y = 2.0, float(self._picture[1] - self._line - 2)
        if caption.box is not None:
            x0, y0, x1, y1 = (
                value * scale[axis] for value, axis in zip(caption.box, (0, 1, 0, 1), strict=True)
            )
            x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
            draw.rectangle((x0, y0, x1, y1), outline=colour, width=max(2, self._letters // 6))
            x = x0
            # Above the box, or inside where there is no room.
            y = y0 - self._line if y0 >= self._line else y0
        self._label(draw, x, y, text, colour)

    def _label(
        self, draw: ImageDraw.ImageDraw, x: float, y: float, text: str, colour: tuple[int, int, int]
    ) -> None:
        room = self._picture[0] - 4
        shown, font, width = _fitting(text, self._letters, room)
        x = min(max(x, 0), max(0, self._picture[0] - width - 6))
        y = min(max(y, 0), self._picture[1] - self._line)
        draw.rectangle((x, y, x + width + 6, y + self._line), fill=colour)
        light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
        ink = (0, 0, 0) if light > 110 else (255, 255, 255)
        draw.text((x + 3, y + self._line / 2), shown, ink, font, anchor="lm")

    def _axis(self) -> tuple[int, int]:
        return 3 * self._letters, self._picture[0] - 2 * self._letters

    def _place_legend(self) -> tuple[list[tuple[int, int, str]], int]:
        """(x, line, name) of every class, and the number of lines."""
        places = []
        x, line = self._letters, 0
        for name in self._names:
            shown, _, width = _fitting(name, self._letters, self._picture[0] // 2)
            width += 2 * self._letters + 4
            if x + width > self._picture[0] and x > self._letters:
                x, line = self._letters, line + 1
            places.append((x, line, shown))
            x += width
        return places, line + 1

    def _draw_panel(
        self, bands: Sequence[tuple[str, Sequence[Span]]], view: tuple[float, float]
    ) -> Image.Image:
        panel = Image.new("RGB", (self.size[0], self.size[1] - self._picture[1]), _BACKGROUND)
        draw = ImageDraw.Draw(panel)
        lines = 1 + max(line for _, line, _ in self._legend)
        for number, (x, line, name) in enumerate(self._legend):
            middle = line * self._line + self._line / 2 + 2
            half = self._letters // 3
            draw.rectangle((x, middle - half, x + 2 * half, middle + half), fill=_colour(number))
            draw.text((x + 2 * half + 4, middle), name, _TEXT, _fitting(name, self._letters, 10**6)[1], "lm")
        left, right = self._axis()
        top = lines * self._line + self._line // 2
        for title, spans in [*bands, *[("", ())] * self._bands][: self._bands]:
            self._draw_band(draw, spans, view, (left, top, right, top + 2 * self._line - 3))
            draw.text((3, top + self._line - 2), title, _TEXT, _fitting(title, self._letters, 10**6)[1], "lm")
            top += 2 * self._line
        self._draw_ticks(draw, view, (left, right), lines * self._line + self._line // 2, top)
        return panel

    def _draw_band(
        self,
        draw: ImageDraw.ImageDraw,
        spans: Sequence[Span],
        view: tuple[float, float],
        box: tuple[int, int, int, int],
    ) -> None:
        """Of every window a column of its probabilities, one on the other."""
        left, top, right, bottom = box
        draw.rectangle((left, top, right, bottom - 1), fill=(45, 45, 45))
        scale = (right - left) / max(view[1] - view[0], 1e-9)
        for span in spans:
            if span.stop <= view[0] or span.start >= view[1]:
                continue
            x0 = left + max(0.0, span.start - view[0]) * scale
            x1 = left + (min(span.stop, view[1]) - view[0]) * scale
            edges = bottom - (bottom - top) * np.concatenate([[0.0], np.cumsum(span.probabilities)])
            for number in range(len(self._names)):
                corner = round(x0), round(float(edges[number + 1]))
                other = round(x1) - 1, round(float(edges[number])) - 1
                if other[0] >= corner[0] and other[1] >= corner[1]:
                    draw.rectangle((*corner, *other), _colour(number))

    def _draw_ticks(
        self,
        draw: ImageDraw.ImageDraw,
        view: tuple[float, float],
        ends: tuple[int, int],
        top: int,
        bottom: int,
    ) -> None:
        left, right = ends
        length = view[1] - view[0]
        most = max(2, (right - left) // (6 * self._letters))
        step = next(
            (step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60) if length / step <= most), length
        )
        tick = float(np.ceil(view[0] / step - 1e-9)) * step + 0.0  # no -0
        while tick <= view[1] + 1e-9 and length > 0:
            x = left + (right - left) * (tick - view[0]) / length
            draw.line([(x, top), (x, bottom)], _FAINT, 1)
            text = f"{tick:g} s" if step >= 1 else f"{tick:.1f} s"
            shown, font, _ = _fitting(text, self._letters - 1, 10**6)
            draw.text((x, bottom + self._line / 2 - 1), shown, _TEXT, font, "mm")
            tick += step


def _colour(number: int) -> tuple[int, int, int]:
    return COLOURS[number % len(COLOURS)]


@lru_cache(maxsize=256)
def _fitting(text: str, size: int, room: int) -> tuple[str, ImageFont.FreeTypeFont, int]:
    """`text` without its end where there is no room for it, its font and its width."""
    shown, file = drawn_text(text)
    font = ImageFont.truetype(file, size)
    if font.getlength(shown) > room:
        while shown and font.getlength(f"{shown}...") > room:
            shown = shown[:-1]
        shown += "..."
    return shown, font, round(font.getlength(shown))
