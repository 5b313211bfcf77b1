"""A video with what the network says drawn into it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from ifdd.data.face import CropBox, parse_crop
from ifdd.data.video import STILL, locate_face, open_video
from ifdd.prediction import Predictor
from ifdd.streaming import Window
from ifdd.view.film import Film, film_format
from ifdd.view.overlay import MOST_BANDS, Caption, Painter, Span

PAGE_SECONDS = 30.0
"""The time axis below the picture shows that much at most, then the next page."""


@dataclass(frozen=True)
class FaceWindow:
    """One window that the network read: `face` (None where none is followed), `start` and `stop` seconds,
    ``probabilities`` (K,), ``times`` (T,) of its frames, and what was cut out of each: ``boxes`` float32
    (T, 4) of x0, y0, x1, y1 in pixels, None for the whole frame.
    """

    face: int | None
    start: float
    stop: float
    probabilities: np.ndarray
    times: np.ndarray
    boxes: np.ndarray | None

    @classmethod
    def of(cls, window: Window, probabilities: np.ndarray, region: CropBox | None) -> FaceWindow:
        """From a window; `region` (x, y, width, height) was cut out where no face is followed."""
        boxes = list(window.boxes) or ([] if region is None else [region] * len(window.frame_seconds))
        corners = np.array([(x, y, x + w, y + h) for x, y, w, h in boxes], np.float32) if boxes else None
        return cls(
            window.face,
            window.start_seconds,
            window.stop_seconds,
            probabilities,
            window.frame_seconds,
            corners,
        )

    def caption(self, now: float) -> Caption:
        """The drawing for the frame at a moment."""
        box = None
        if self.boxes is not None:
            x0, y0, x1, y1 = (float(np.interp(now, self.times, self.boxes[:, side])) for side in range(4))
            box = (x0, y0, x1, y1)
        return Caption(self.face, box, self.probabilities)


@dataclass(frozen=True)
class Annotation:
    """The contents of the video: frames, windows, faces by number (none if none was followed), and
    remarks, a line each.
    """

    frames: int
    windows: int
    faces: tuple[int, ...]
    remarks: tuple[str, ...]


def annotate(
    predictor: Predictor,
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    crop: str | Sequence[int] | None = None,
    *,
    face: str | int | None = None,
    strict: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Annotation:
    """Writes the video with the regions that were cut out, their classes, and the probabilities over time.

    The video is read once for the network and once more to draw, so a frame shows the class of the window it
    lies in, the one that :meth:`Predictor.predict` gives. Memory holds one window of frames, and a few
    hundred bytes of numbers for each window behind it.

    Args:
        predictor: the network.
        path: the video.
        out: the file to write, with an ending of :data:`ifdd.view.film.FORMATS`; there whole, or as before.
        crop: as in :meth:`Predictor.predict`.
        face: as in :meth:`Predictor.predict`.
        strict: as in :meth:`Predictor.predict`.
        check: called now and then; what it raises ends the work.

    Raises:
        VideoError: the video cannot be read, or no face is found.
        PredictionError: the network gave NaN or infinite values.
        ifdd.view.film.FilmError: `out` has another ending, or there is no encoder.
    """
    film_format(Path(out))
    region = parse_crop(crop)
    if region == "auto":
        region = locate_face(path, accept_partial=not strict)
    reading = predictor.reading(region, strict=strict, face=face)
    windows = []
    for window, logits in predictor.read(path, reading):
        check()
        windows.append(FaceWindow.of(window, logits.double().softmax(0).numpy(), region))
    frames, remarks = draw_windows(predictor.class_names, windows, path, out, check, strict=strict)
    faces = sorted({window.face for window in windows if window.face is not None})
    return Annotation(frames, len(windows), tuple(faces), tuple(remarks))


def draw_windows(
    class_names: Sequence[str],
    windows: Sequence[FaceWindow],
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    check: Callable[[], None] = lambda: None,
    *,
    strict: bool = False,
) -> tuple[int, list[str]]:
    """Draws windows into their video; arguments as in :func:`annotate`. Returns the number of frames, and
    remarks.
    """
    bands = _bands(windows)
    waiting = sorted(windows, key=lambda window: window.start, reverse=True)
    shown: list[FaceWindow] = []
    end = max((window.stop for window in windows), default=0.0)
    film: Film | None = None
    painter: Painter | None = None
    with open_video(path, strict=strict) as video, ExitStack() as stack:
        for frame in video:
            check()
            image = frame.image()
            if film is None or painter is None:
                painter = Painter(class_names, image.shape[1], image.shape[0], max(1, len(bands)))
                # Pictures before it may be lost, while their sound is there.
                begin = video.first_stamp or 0.0
                film = stack.enter_context(Film(out, painter.size, video.fps, path, begin))
            now = frame.seconds
            while waiting and waiting[-1].start <= now + 1e-9:
                shown.append(waiting.pop())
            shown = [window for window in shown if window.stop > now + 1e-9]
            page = int(now // PAGE_SECONDS)
            left = page * PAGE_SECONDS
            view = (left, max(min(left + PAGE_SECONDS, end), left + 0.1))
            film.write(
                painter.draw(image, _captions(shown, now), now, bands, view, page=page),
                now,
                frame.stop_seconds,
            )
    # Only now is all of the sound copied.
    remarks = [film.remark] if film is not None and film.remark else []
    if video.damage:
        remarks.append(video.damage)
    if STILL in video.remarks:
        remarks.append(STILL)
    return video.frames_read, remarks


def _captions(shown: Iterable[FaceWindow], now: float) -> list[Caption]:
    """One for each face: of windows that overlap, the one that began last."""
    latest = {window.face: window for window in sorted(shown, key=lambda window: window.start)}
    return [latest[face].caption(now) for face in sorted(latest, key=lambda face: face or 0)]


def _bands(windows: Sequence[FaceWindow]) -> list[tuple[str, list[Span]]]:
    """The faces that are there longest."""
    ordered = sorted(windows, key=lambda window: (window.face or 0, window.start))
    groups = [(face, list(group)) for face, group in groupby(ordered, key=lambda window: window.face)]
    groups.sort(key=lambda group: -len(group[1]))
    return [
        ("" if face is None else str(face), [Span(w.start, w.stop, w.probabilities) for w in group])
        for face, group in sorted(groups[:MOST_BANDS], key=lambda group: group[0] or 0)
    ]
