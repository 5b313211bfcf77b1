"""Draws on the frames of a video: boxes with their classes, and probabilities over time below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ifdd.data.resize import resize_frame
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
_EMPTY = (45, 45, 45)

Colour = tuple[int, int, int]


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
        self._bands_top = legend_lines * self._line + self._line // 2
        self._bands_bottom = self._bands_top + self._bands * 2 * self._line
        self._page: tuple[object, np.ndarray] | None = None
        self._written: tuple[object, np.ndarray] | None = None

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
        width, height = self._picture
        canvas = np.zeros((self.size[1], self.size[0], 3), np.uint8)
        picture = canvas[:height, :width]
        picture[:] = resize_frame(image, (height, width))
        scale = (width / image.shape[1], height / image.shape[0])
        taken = self._draw_label(picture, 2, 2, (status,), (0, 0, 0)) if status else (0, 0)
        for caption in captions:
            self._draw_face(picture, caption, scale, taken)
        if page is None or self._page is None or self._page[0] != page:
            self._page = (page, self._draw_panel(bands, view))
        panel = canvas[height:]
        panel[:] = self._page[1]
        left, right = self._axis()
        if view[1] > view[0] and view[0] <= now <= view[1]:
            x = round(left + (right - left) * (now - view[0]) / (view[1] - view[0]))
            _fill(panel, (x, self._bands_top, x + 2, self._bands_bottom), (255, 255, 255))
        return canvas

    def _draw_face(
        self, picture: np.ndarray, caption: Caption, scale: tuple[float, float], taken: tuple[int, int]
    ) -> None:
        """`taken` are the right and the lower end of what is written in the upper left corner."""
        values = caption.probabilities
        best = None if values is None else int(values.argmax())
        colour = (160, 160, 160) if best is None else _colour(best)
        number = () if caption.face is None else (str(caption.face),)
        known = (
            ("...",) if values is None or best is None else (self._names[best], f"{100 * values[best]:.0f} %")
        )
        x, y = 2, self._picture[1] - self._line - 2
        if caption.box is not None:
            x, y0, x1, y1 = (
                round(value * scale[axis]) for value, axis in zip(caption.box, (0, 1, 0, 1), strict=True)
            )
            x1, y1, thick = max(x1, x + 1), max(y1, y0 + 1), max(2, self._letters // 6)
            for side in (
                (x, y0, x1, y0 + thick),
                (x, y1 - thick, x1, y1),
                (x, y0, x + thick, y1),
                (x1 - thick, y0, x1, y1),
            ):
                _fill(picture, side, colour)
            # Above the box, or inside where there is no room.
            y = y0 - self._line if y0 >= self._line else y0
            if x < taken[0] and y < taken[1]:
                y = taken[1]
        self._draw_label(picture, x, y, (*number, *known), colour)

    def _draw_label(
        self, picture: np.ndarray, x: int, y: int, parts: tuple[str, ...], colour: Colour
    ) -> tuple[int, int]:
        """Returns its right and its lower end."""
        height, width = picture.shape[:2]
        room = width - 8 if len(parts) == 1 else width // 2
        label = _label(parts, self._letters, self._line, room, colour)[:height, :width]
        x = min(max(x, 0), width - label.shape[1])
        y = min(max(y, 0), height - label.shape[0])
        right, bottom = x + label.shape[1], y + label.shape[0]
        picture[y:bottom, x:right] = label
        return right, bottom

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
    ) -> np.ndarray:
        shown = [*bands, *[("", ())] * self._bands][: self._bands]
        left, right = self._axis()
        ticks = _ticks(view, max(2, (right - left) // (6 * self._letters)))
        scale = (right - left) / max(view[1] - view[0], 1e-9)
        places = [(left + round(scale * (at - view[0])), text) for at, text in ticks]
        panel: np.ndarray = self._write_panel(tuple(title for title, _ in shown), tuple(places)).copy()
        for number, (_, spans) in enumerate(shown):
            top = self._bands_top + number * 2 * self._line
            _draw_band(panel[top : top + 2 * self._line - 3, left:right], spans, view)
        for x, _ in places:
            _fill(panel, (x, self._bands_top, x + 1, self._bands_bottom), _FAINT)
        return panel

    def _write_panel(self, titles: tuple[str, ...], ticks: tuple[tuple[int, str], ...]) -> np.ndarray:
        """All that is written: it stays while the time axis does."""
        if self._written is not None and self._written[0] == (titles, ticks):
            return self._written[1]
        panel = Image.new("RGB", (self.size[0], self.size[1] - self._picture[1]), _BACKGROUND)
        draw = ImageDraw.Draw(panel)
        for number, (x, line, name) in enumerate(self._legend):
            middle = line * self._line + self._line / 2 + 2
            half = self._letters // 3
            draw.rectangle((x, middle - half, x + 2 * half, middle + half), fill=_colour(number))
            draw.text((x + 2 * half + 4, middle), name, _TEXT, _fitting(name, self._letters, 10**6)[1], "lm")
        for number, title in enumerate(titles):
            middle = self._bands_top + (2 * number + 1) * self._line - 2
            draw.text((3, middle), title, _TEXT, _fitting(title, self._letters, 10**6)[1], "lm")
        for x, text in ticks:
            font = _fitting(text, self._letters - 1, 10**6)[1]
            draw.text((x, self._bands_bottom + self._line / 2 - 1), text, _TEXT, font, "mm")
        pixels: np.ndarray = np.asarray(panel)
        self._written = ((titles, ticks), pixels)
        return pixels


def _draw_band(pixels: np.ndarray, spans: Sequence[Span], view: tuple[float, float]) -> None:
    """Of every window a column of its probabilities, one on the other, into pixels (h, w, 3)."""
    height, width = pixels.shape[:2]
    pixels[:] = _EMPTY
    if not spans:
        return
    ends = np.array([(span.start, span.stop) for span in spans]).clip(*view) - view[0]
    columns = np.rint(ends * (width / max(view[1] - view[0], 1e-9))).astype(int)
    owners = np.full(width, -1)
    for number, (begin, end) in enumerate(columns.tolist()):
        owners[begin:end] = number
    drawn, places = np.unique(owners, return_inverse=True)
    shares = np.array([spans[number].probabilities for number in drawn.tolist()])
    tops = np.rint(np.cumsum(shares, axis=1) * height).astype(int)
    # Of each row, counted from below, the class whose part of the column it lies in.
    rows = np.arange(height - 1, -1, -1)[:, None]
    classes = np.zeros((height, len(drawn)), np.uint8)
    for top in tops[:, :-1].T:
        classes += rows >= top
    colours = np.array([_colour(number) for number in range(shares.shape[1])], np.uint8)[classes]
    colours[:, drawn < 0] = _EMPTY
    pixels[:] = colours[:, places]


def _ticks(view: tuple[float, float], most: int) -> list[tuple[float, str]]:
    """At most about so many moments of the time axis, and what is written there."""
    length = view[1] - view[0]
    if length <= 0:
        return []
    step = next((step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60) if length / step <= most), length)
    first = math.ceil(view[0] / step - 1e-9)
    last = math.floor(view[1] / step + 1e-9)
    return [
        (number * step, f"{number * step:g} s" if step >= 1 else f"{number * step:.1f} s")
        for number in range(first, last + 1)
    ]


def _fill(pixels: np.ndarray, box: tuple[int, int, int, int], colour: Colour) -> None:
    """The part of the rectangle x0, y0, x1, y1 (exclusive) that lies inside of pixels (h, w, 3)."""
    x0, y0, x1, y1 = (max(side, 0) for side in box)
    pixels[y0:y1, x0:x1] = colour


def _colour(number: int) -> tuple[int, int, int]:
    return COLOURS[number % len(COLOURS)]


@lru_cache(maxsize=64)
def _label(parts: tuple[str, ...], size: int, line: int, room: int, colour: Colour) -> np.ndarray:
    """The parts, each at most `room` wide, on a ground of this colour in a line so high: uint8 (line, w, 3).

    Each is drawn by itself: in one text, a name that is written from right to left would draw the numbers
    around it to its other side.
    """
    fitted = [_fitting(part, size, room) for part in parts]
    gap = size // 2
    width = sum(width for *_, width in fitted) + gap * (len(parts) - 1)
    image = Image.new("RGB", (width + 7, line + 1), colour)
    light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    ink = (0, 0, 0) if light > 110 else (255, 255, 255)
    draw, x = ImageDraw.Draw(image), 3
    for shown, font, width in fitted:
        draw.text((x, line / 2), shown, ink, font, anchor="lm")
        x += width + gap
    return np.asarray(image)


@lru_cache(maxsize=256)
def _fitting(text: str, size: int, room: int) -> tuple[str, ImageFont.FreeTypeFont, int]:
    """`text` without its end where there is no room for it, its font and its width."""
    shown, file = drawn_text(text)
    font = _font(file, size)
    if font.getlength(shown) > room:
        while shown and font.getlength(f"{shown}...") > room:
            shown = shown[:-1]
        shown += "..."
    return shown, font, round(font.getlength(shown))


_font = lru_cache(maxsize=32)(ImageFont.truetype)
