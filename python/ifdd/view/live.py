"""A sliding window over frames as they come.

The network works in a thread of its own and takes the newest window whenever it is free: what the machine
keeps up with decides how many frames lie between two windows. A window is as many crops of one face as the
network reads, so nothing is shown of a face before it was there that long.
"""

from __future__ import annotations

import importlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import torch

from ifdd.data.region import CropBox, cut_out, parse_crop
from ifdd.data.resize import resize_frame
from ifdd.faces import Box, FaceDetector, Tracker, crop
from ifdd.faces.crop import face_region
from ifdd.faces.tracks import LOOK_SECONDS, FaceChoice
from ifdd.prediction import Predictor, require_finite
from ifdd.text import printable
from ifdd.view.overlay import Caption, Painter, Span
from ifdd.view.screens import Closed, Screen
from ifdd.view.sources import Feed, LiveFrame

VIEW_SECONDS = 20.0
"""Length of the time axis below the picture."""

BUSY_SHARE = 0.5
"""The network begins no sooner again than leaves it this share of the time, while no frame is missed for it:
windows overlap by all but a few frames, and what follows, draws and writes them needs processors, too."""

FORGET_SECONDS = 3.0
"""A face that is out of sight for so long loses its frames."""

UNSEEN_SHARE = 0.05
"""From this share of frames on that lie in no window, the report calls the network too slow."""


@dataclass(frozen=True)
class LiveResult:
    """The result for one face: ``probabilities`` (K,) of the window from frame ``first`` to frame
    ``last`` (counted from 0), shown from ``start`` to ``stop`` seconds.
    """

    face: int | None
    first: int
    last: int
    start: float
    stop: float
    probabilities: np.ndarray


@dataclass
class LiveReport:
    """How a session went.

    Attributes:
        seconds: how long it took.
        frames: frames that were shown.
        dropped: frames that came too fast to be looked at.
        unseen: frames shown that lie in no window, though the network had begun.
        begun: how often the network began.
        runs: how often it finished.
        windows: windows that it read, one for each face and run.
        latencies: seconds from the arrival of a window's last frame to the picture that shows its class, in
            the last thousand runs.
        faces: which were read.
        followed: frames with something to read: a face, or the region.
    """

    seconds: float = 0.0
    frames: int = 0
    dropped: int = 0
    unseen: int = 0
    begun: int = 0
    runs: int = 0
    windows: int = 0
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    faces: set[int | None] = field(default_factory=set)
    followed: int = 0

    def lines(self) -> list[str]:
        """The report, a line each."""
        seconds = max(self.seconds, 1e-9)
        text = f"{self.frames} frames in {self.seconds:.1f} s ({self.frames / seconds:.1f} a second)"
        if not self.runs:
            why = "no window was full"
            if self.begun:
                why = "the network is too slow: it has not finished a window"
            elif not self.followed:
                why = "no face was found"
            return [f"{text}; {why}", *self._losses()]
        step = self.frames / self.runs
        rate = self.runs / seconds
        text += f"; the network ran {self.runs} times ({rate:.1f} a second, every {step:.1f} frames)"
        if None not in self.faces:
            text += f"; faces: {len(self.faces)}"
        late = np.array(self.latencies)
        middle, most = np.quantile(late, (0.5, 0.95))
        return [
            text,
            "latency from the last frame of a window to its class on the picture: "
            f"{middle:.2f} s (median), {most:.2f} s (95th percentile)",
            *self._losses(),
        ]

    def _losses(self) -> list[str]:
        lines = []
        if self.dropped:
            share = 100 * self.dropped / max(self.frames + self.dropped, 1)
            lines.append(
                f"too slow: {self.dropped} frames ({share:.0f} %) came while others waited and were dropped"
            )
        if self.unseen > UNSEEN_SHARE * self.frames:
            share = 100 * self.unseen / max(self.frames, 1)
            lines.append(
                f"the network is too slow for this rate: {self.unseen} frames ({share:.0f} %) were shown but "
                "read in no window; a smaller network or a GPU (--device cuda) keeps up"
            )
        return lines


@dataclass
class _Buffer:
    """The newest crops of one face, as many as a window spans."""

    crops: deque[np.ndarray]
    numbers: deque[int]
    seconds: deque[float]
    shown: float = 0.0


class LiveReader:
    """Follows faces in frames and reads them with the network; a context manager.

    Args:
        predictor: the network.
        detector: finds faces; None reads `region`.
        face: which faces: the largest in sight, so many of the largest, or all.
        region: what is cut out where no faces are followed, None for the whole frame.
        stride: least number of frames between two windows; None: as many as keep to :data:`BUSY_SHARE`.
        wait: let every frame wait for the network, so that none is missed; for files.
        name: of the source, in errors.

    What :meth:`add` raises:
        VideoError: the region reaches outside a frame.
        PredictionError: the network gave NaN or infinite values.
    """

    def __init__(
        self,
        predictor: Predictor,
        detector: FaceDetector | None,
        face: FaceChoice = "all",
        region: CropBox | None = None,
        stride: int | None = None,
        wait: bool = False,
        name: str = "video",
    ) -> None:
        if stride is not None and stride < 1:
            raise ValueError(f"stride must be at least 1, got {stride}")
        self.report = LiveReport()
        self.results: dict[int | None, deque[LiveResult]] = {}
        self._predictor = predictor
        self._detector = detector
        self._face = face
        self._region = region
        self._stride = stride
        self._wait = wait
        self._name = name
        self._span = predictor.config.clip_frames * predictor.policy.stride
        self._tracker = Tracker()
        self._now = self._looked = float("-inf")
        self._buffers: dict[int | None, _Buffer] = {}
        self._network = ThreadPoolExecutor(1, "ifdd-network")
        self._running: Future[tuple[list[LiveResult], float]] | None = None
        self._rested = float("-inf")  # when the network may begin again
        self._arrived = 0.0  # of the last frame of the windows that are read
        self._number = -1
        self._read_to = -1  # the last frame that was in a window
        self._begun: int | None = None  # the first that was

    def __enter__(self) -> LiveReader:
        config = self._predictor.config
        blank = np.zeros((config.clip_frames, config.image_size, config.image_size, 3), np.uint8)
        # What first calls load and prepare: a camera would not wait for it.
        try:
            self._network.submit(self._predictor.logits, [blank]).result()
            if self._detector is not None:
                importlib.import_module("scipy.optimize")  # the tracker's
        except BaseException:
            self._network.shutdown(wait=False, cancel_futures=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._network.shutdown(wait=True, cancel_futures=True)

    def add(self, frame: LiveFrame) -> list[Caption]:
        """Takes the next frame; returns what is known of the faces in it."""
        self._number += 1
        self.report.frames += 1
        boxes = self._follow(frame)
        self.report.followed += bool(boxes)
        for face, box in boxes.items():
            self._keep(face, box, frame)
        for face in [
            face for face, kept in self._buffers.items() if frame.seconds - kept.shown > FORGET_SECONDS
        ]:
            del self._buffers[face]
        self._collect(block=False)
        self._start(frame, boxes)
        if self._wait:
            self._collect(block=True)
        return [self._caption(face, box, frame) for face, box in boxes.items()]

    @property
    def waiting_for(self) -> int:
        """Frames that the fullest window still needs."""
        return self._span - max((len(kept.crops) for kept in self._buffers.values()), default=0)

    def _follow(self, frame: LiveFrame) -> dict[int | None, Box | None]:
        """The faces that count, and where they are."""
        if self._detector is None:
            return {None: None}
        # Frames of a file may share a time stamp; the tracker wants times that rise.
        self._now = max(frame.seconds, self._now + 1e-3)
        found = None
        if self._now - self._looked >= LOOK_SECONDS:
            found = self._detector.detect(frame.image[None])[0]
            self._looked = self._now
        faces = self._tracker.update(found, frame.image, self._now)
        if self._face != "all":
            most = 1 if self._face == "largest" else int(self._face)
            faces = sorted(faces, key=lambda each: -each.box.area)[:most]
        return {each.track_id: each.box for each in sorted(faces)}

    def _keep(self, face: int | None, box: Box | None, frame: LiveFrame) -> None:
        size = self._predictor.config.image_size
        if box is not None:
            image = crop(frame.image, box, size)
        else:
            whole = frame.image
            if self._region is not None:
                whole = cut_out(whole, self._region, self._name)
            image = resize_frame(whole, (size, size))
        kept = self._buffers.get(face)
        if kept is None:
            span = self._span
            kept = self._buffers[face] = _Buffer(deque(maxlen=span), deque(maxlen=span), deque(maxlen=span))
        kept.crops.append(image)
        kept.numbers.append(self._number)
        kept.seconds.append(frame.seconds)
        kept.shown = frame.seconds

    def _start(self, frame: LiveFrame, faces: dict[int | None, Box | None]) -> None:
        """Gives the network what is there, if it is free."""
        if self._running is not None or not self._due():
            return
        full = {face: self._buffers[face] for face in faces if len(self._buffers[face].crops) == self._span}
        if not full:
            return
        step = self._predictor.policy.stride
        clips = [np.stack(list(kept.crops)[::step]) for kept in full.values()]
        spans = [
            (face, kept.numbers[0], kept.numbers[-1], kept.seconds[0], kept.seconds[-1])
            for face, kept in full.items()
        ]
        if self._begun is None:
            self._begun = min(first for _, first, *_ in spans)
            self._read_to = self._begun - 1
        self.report.unseen += max(0, min(first for _, first, *_ in spans) - self._read_to - 1)
        self._read_to = self._number
        self._arrived = frame.arrived
        self.report.begun += 1
        self._running = self._network.submit(self._read, clips, spans)

    def _due(self) -> bool:
        new = self._number - self._read_to
        if self._stride is not None:
            return new >= self._stride
        return self._wait or new >= self._span or time.monotonic() >= self._rested

    def _read(
        self, clips: list[np.ndarray], spans: list[tuple[int | None, int, int, float, float]]
    ) -> tuple[list[LiveResult], float]:
        """The results, and when the network may begin again."""
        begun = time.monotonic()
        logits = require_finite(self._predictor.logits(clips), self._name)
        shares = logits.double().softmax(1).numpy()
        results = [LiveResult(*span, row) for span, row in zip(spans, shares, strict=True)]
        return results, begun + (time.monotonic() - begun) / BUSY_SHARE

    def _collect(self, block: bool) -> None:
        if self._running is None or not (block or self._running.done()):
            return
        results, self._rested = self._running.result()
        self._running = None
        self.report.runs += 1
        self.report.windows += len(results)
        self.report.latencies.append(time.monotonic() - self._arrived)
        for result in results:
            self.report.faces.add(result.face)
            history = self.results.setdefault(result.face, deque())
            history.append(result)
            while result.stop - history[0].stop > VIEW_SECONDS + 5:
                history.popleft()
        newest = results[-1].stop
        for face in [face for face, its in self.results.items() if newest - its[-1].stop > VIEW_SECONDS + 5]:
            del self.results[face]

    def _caption(self, face: int | None, box: Box | None, frame: LiveFrame) -> Caption:
        corners: tuple[float, float, float, float] | None = None
        if box is not None:
            x, y, width, height = face_region(box, frame.image.shape[1], frame.image.shape[0])
            corners = (x, y, x + width, y + height)
        elif self._region is not None:
            x, y, width, height = self._region
            corners = (x, y, x + width, y + height)
        known = self.results.get(face)
        return Caption(face, corners, known[-1].probabilities if known else None)


@contextmanager
def _one_processor_left() -> Iterator[None]:
    """Keeps one processor from the network: following, drawing and writing need it. PyTorch threads wait for
    each other at every step, so a single one that has to share its processor holds up all.
    """
    before = torch.get_num_threads()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(min(before, max(1, usable - 1)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_live(
    reader: LiveReader,
    feed: Feed,
    screens: Sequence[Screen],
    class_names: Sequence[str],
    bands: int,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Shows the frames of a feed with what the network says, until the feed ends or the viewer closes the
    window. What went on is in ``reader.report``.

    Args:
        reader: the network.
        feed: where frames come from.
        screens: where pictures go; they are closed in the end.
        class_names: of the network.
        bands: faces with a band of probabilities below the picture.
        check: called for every frame; what it raises ends the session.

    Raises:
        VideoError: the source cannot be read, or the region reaches outside its frames.
        PredictionError: the network gave NaN or infinite values.
    """
    painter: Painter | None = None
    page: tuple[int, float] | None = None
    shown: list[tuple[str, list[Span]]] = []
    recent: deque[float] = deque(maxlen=50)
    with ExitStack() as stack:
        stack.enter_context(_one_processor_left())
        for screen in screens:
            stack.callback(screen.close)
        Painter(class_names, 64, 64, bands)  # loads fonts, see LiveReader.__enter__
        stack.enter_context(reader)
        stack.enter_context(feed)
        begun = time.monotonic()
        try:
            with suppress(Closed):
                for frame in feed:
                    check()
                    captions = reader.add(frame)
                    reader.report.dropped = feed.dropped
                    recent.append(time.monotonic())
                    if painter is None:
                        painter = Painter(class_names, frame.image.shape[1], frame.image.shape[0], bands)
                    state = _state(reader, recent)
                    end = float(np.ceil(frame.seconds + 1e-9))
                    if page != (reader.report.runs, end):
                        page, shown = (reader.report.runs, end), _bands(reader, bands)
                    picture = painter.draw(
                        frame.image,
                        captions,
                        frame.seconds,
                        shown,
                        (max(0.0, end - VIEW_SECONDS), max(end, VIEW_SECONDS)),
                        state,
                        page=page,
                    )
                    stop = frame.seconds + 0.04 if frame.stop is None else frame.stop
                    for screen in screens:
                        screen.show(picture, frame.seconds, stop, {"text": state})
        finally:
            reader.report.seconds = time.monotonic() - begun


def _state(reader: LiveReader, recent: deque[float]) -> str:
    """The line in the corner of the picture."""
    report = reader.report
    seconds = max(recent[-1] - recent[0], 1e-9)
    rate = f"{(len(recent) - 1) / seconds:.0f} frames/s" if len(recent) > 1 else ""
    if not report.runs:
        waiting = reader.waiting_for
        return f"{rate}  {waiting} frames until the first result" if waiting else f"{rate}  reading"
    text = f"{rate}  latency {1000 * report.latencies[-1]:.0f} ms"
    if report.dropped:
        text += f"  dropped {report.dropped}"
    if report.unseen > UNSEEN_SHARE * report.frames:
        text += f"  too slow: {100 * report.unseen / report.frames:.0f} % not read"
    return text


def _bands(reader: LiveReader, most: int) -> list[tuple[str, list[Span]]]:
    """The faces seen last, as many as there is room for. Windows overlap: each shows the time since the one
    before it.
    """
    latest = sorted(reader.results.items(), key=lambda item: -item[1][-1].stop)[:most]
    bands = []
    for face, history in sorted(latest, key=lambda item: item[0] or 0):
        spans = []
        end = float("-inf")
        for result in list(history):
            spans.append(Span(max(result.start, end), result.stop, result.probabilities))
            end = result.stop
        bands.append(("" if face is None else str(face), spans))
    return bands


def parse_region(region: str | None) -> CropBox | None:
    """Reads ``"x,y,w,h"``; None is the whole frame.

    Raises:
        ValueError: anything else.
    """
    box = parse_crop(region)
    if box == "auto":
        raise ValueError(f"crop must be four integers x,y,w,h here, got {printable(str(region))}")
    return box
