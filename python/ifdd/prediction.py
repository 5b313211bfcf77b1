"""Expressions of single videos: class probabilities of the windows, and what the network looked at."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ifdd.checkpoint import Checkpoint, load_checkpoint
from ifdd.config import IFDDConfig
from ifdd.data.face import parse_crop
from ifdd.data.resize import frames_to_clip
from ifdd.data.sampling import SamplingPolicy
from ifdd.data.video import VideoError
from ifdd.faces.detector import load_detector
from ifdd.faces.tracks import parse_face
from ifdd.graphs import Captured, capture
from ifdd.lookahead import Ended, Lookahead
from ifdd.model import IFDD, IFDDFeatures, IFDDOutput
from ifdd.outcomes import Begun, Outcome, VideoFailure, VideoPrediction, WindowPrediction, WindowResult
from ifdd.streaming import Footage, Lasting, Reading, Tail, Window, Windows, read_windows
from ifdd.strips import FaceStrip, StripBuilder
from ifdd.text import printable
from ifdd.training.config import Precision
from ifdd_kernels import split_frames

__all__ = [
    "DEFAULT_WORKERS",
    "Explanation",
    "PredictionError",
    "Predictor",
    "VideoFailure",
    "VideoPrediction",
    "WindowPrediction",
]

DEFAULT_WORKERS = min(4, os.cpu_count() or 1)
"""Threads that read videos while the network works."""

_ROOM_BYTES = 256 << 20
_AUTOCAST: dict[str, torch.dtype | None] = {
    "32": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}
_SPLIT_NAMES = {
    "interpolate": "learned fractional indexes (ISSM)",
    "topk": "frames chosen by correlation (hard top-k)",
    "even_odd": "even and odd frames (fixed)",
}


class PredictionError(ValueError):
    """An input or a network that gives no trustworthy number; the message is one line."""


@dataclass(frozen=True)
class Explanation:
    """The data of one window's figure, NumPy arrays: K frames sampled per group, T inside the network.

    Attributes:
        name: of the video.
        window: number of the window, from 0.
        start_seconds, stop_seconds: the window's place in the video.
        frames: uint8 (T_in, S, S, 3).
        frame_seconds: (T_in,): when each frame of the window is shown.
        class_names: one per probability.
        probabilities: (classes,).
        split: `interpolate`, `topk` or `even_odd`.
        token_frames: (T,): which of the window's frames each frame in the network is centred on.
        static_frames, dynamic_frames: (K,): where on the window's frames each sample was taken.
        static_maps, dynamic_maps: (K, h, w): norm over the channels of the group after lifting.
        correlation: (T, T), or None where the split has none.
        face: number of the track, or None where no faces are followed.
    """

    name: str
    window: int
    face: int | None
    start_seconds: float
    stop_seconds: float
    frames: np.ndarray
    frame_seconds: np.ndarray
    class_names: tuple[str, ...]
    probabilities: np.ndarray
    split: str
    token_frames: np.ndarray
    static_frames: np.ndarray
    dynamic_frames: np.ndarray
    static_maps: np.ndarray
    dynamic_maps: np.ndarray
    correlation: np.ndarray | None


class Predictor:
    """Runs a checkpoint on videos.

    A result does not depend on the videos read before and after it, but for rounding: the number of windows
    in a batch decides how sums are rounded (some 1e-6 of a logit in float32). The same videos in the same
    order with the same `batch` give the same bits.

    Args:
        checkpoint: loaded, or the path of one written by :func:`ifdd.checkpoint.save_checkpoint`.
        device: where the network runs.
        batch: windows per forward pass.
        precision: ``"32"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        cuda_graph: replay the network as a CUDA graph where there are `batch` windows; others run without.
            The first such batch captures it: threads may share the predictor only after that.

    Raises:
        PredictionError: the checkpoint's weights are NaN or infinite, or it names no usable sampling policy.
        ValueError: `batch`, `precision` or `cuda_graph` is not usable.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | str | os.PathLike[str],
        device: str = "cpu",
        batch: int = 8,
        precision: Precision = "32",
        cuda_graph: bool = False,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        if precision not in _AUTOCAST:
            raise ValueError(f"precision must be one of {sorted(_AUTOCAST)}, got {precision!r}")
        if cuda_graph and torch.device(device).type != "cuda":
            raise ValueError(f"cuda_graph must be off on a CPU: CUDA graphs need a GPU; device is {device}")
        loaded = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)
        for name, weight in loaded.model.state_dict().items():
            if weight.is_floating_point() and not torch.isfinite(weight).all():
                raise PredictionError(f"checkpoint: weight {name} holds NaN or infinite values")
        self.model: IFDD = loaded.model.to(device).eval()
        self.config: IFDDConfig = loaded.config
        self.class_names = tuple(loaded.class_names)
        crop = loaded.extra.get("crop")
        #: What `--crop` cut out of the training videos; None for whole frames, or where nothing is known.
        self.trained_crop = crop if isinstance(crop, str) else None
        try:
            self.policy = SamplingPolicy.of_checkpoint(loaded.extra)
        except ValueError as error:
            raise PredictionError(f"checkpoint: {error}") from error
        self.device = device
        self.batch = batch
        self.precision = precision
        self.cuda_graph = cuda_graph
        self._captured: Captured | None = None

    def predict(
        self,
        path: str | os.PathLike[str],
        crop: str | Sequence[int] | None = None,
        windows: Windows = "all",
        *,
        tail: Tail = "overlap",
        strict: bool = False,
        face: str | int | None = None,
    ) -> VideoPrediction:
        """Probabilities of a video file or a folder of frames, of any length.

        Args:
            path: the video.
            crop: one region for all frames: ``"x,y,w,h"``, ``"auto"`` to find a face, or None for the whole
                frame.
            windows: ``"all"`` windows, or only the ``"centre"`` one. A video shorter than a window is
                stretched as in the checkpoint's training, or repeats its last frame.
            tail: frames at the end that fill no window: ``"overlap"`` reads them in a last window that begins
                in the one before, ``"drop"`` leaves them out.
            strict: refuse a damaged video; otherwise what can be read of it counts, and ``footage.damage``
                says so.
            face: follow faces (in place of `crop`) and predict each: ``"largest"``, ``"all"``, or so many of
                the largest. See :attr:`VideoPrediction.faces`.

        Raises:
            ifdd.data.video.VideoError: the video cannot be read, or no face is found.
            ifdd.faces.DetectorError: the extra `face` is not installed.
            PredictionError: the network gave NaN or infinite values.
        """
        (result,) = self.predict_many([path], crop, windows, tail=tail, strict=strict, face=face, workers=1)
        if isinstance(result, VideoFailure):
            raise result.error
        return result

    def predict_many(
        self,
        paths: Sequence[str | os.PathLike[str]],
        crop: str | Sequence[int] | None = None,
        windows: Windows = "all",
        *,
        tail: Tail = "overlap",
        strict: bool = False,
        face: str | int | None = None,
        workers: int = DEFAULT_WORKERS,
    ) -> Iterator[VideoPrediction | VideoFailure]:
        """The predictions of many videos in the order of `paths`, as they come; a video that fails does not
        end the others. Windows of several videos share a batch.

        Args:
            paths: the videos.
            crop: as in :meth:`predict`.
            windows: as in :meth:`predict`.
            tail: as in :meth:`predict`.
            strict: as in :meth:`predict`.
            face: as in :meth:`predict`.
            workers: threads that read videos beside the network; 0 reads them between its batches.
        """
        reading = self.reading(crop, windows, tail=tail, strict=strict, face=face)
        for result in self.stream([Begun(path) for path in paths], reading, workers=workers):
            if not isinstance(result, WindowResult):
                yield result

    def reading(
        self,
        crop: str | Sequence[int] | None = None,
        windows: Windows = "all",
        *,
        tail: Tail = "overlap",
        strict: bool = False,
        face: str | int | None = None,
    ) -> Reading:
        """How this network reads videos; arguments as in :meth:`predict`.

        Raises:
            ValueError: an argument is not usable.
            ifdd.faces.DetectorError: `face` without the extra `face`.
        """
        parse_crop(crop)
        chosen = parse_face(face)
        return Reading(
            self.config.clip_frames,
            self.config.image_size,
            self.policy,
            windows,
            tail,
            crop,
            strict,
            chosen,
            None if chosen is None else load_detector(self.device),
        )

    def stream(
        self,
        videos: Sequence[Begun],
        reading: Reading,
        *,
        workers: int = DEFAULT_WORKERS,
        offset: int = 0,
    ) -> Iterator[Outcome]:
        """Every window as soon as it is known, in order, and after the last of a video its prediction. With
        `reading.strict` the windows of a video come when all of it has proved to be sound.

        Args:
            videos: what to read.
            reading: from :meth:`reading`.
            workers: as in :meth:`predict_many`.
            offset: windows that an earlier run has read. Batches are then filled as in a run that was not
                interrupted, which makes the results the same bit for bit.
        """
        outcomes = self._stream(videos, reading, workers, offset)
        return _hold_back(outcomes) if reading.strict else outcomes

    def _stream(
        self, videos: Sequence[Begun], reading: Reading, workers: int, offset: int
    ) -> Iterator[Outcome]:
        window_bytes = 3 * reading.frames * reading.size**2
        room = max(self.batch, min(8 * self.batch, _ROOM_BYTES // window_bytes))
        sources = [
            partial(read_windows, video.path, reading, len(video.windows))
            if video.error is None
            else partial(_refused, video.error)
            for video in videos
        ]
        batch = _Batch(self, offset)
        with Lookahead(sources, workers, room, ahead=2 * self.batch + workers) as lookahead:
            for number, video in enumerate(videos):
                state = _State(os.fspath(video.path), list(video.windows), len(video.windows))
                with closing(lookahead.items(number)) as items:
                    for item in items:
                        yield from batch.add(state, item)
                        if state.failed:
                            break
            yield from batch.flush()

    def explain(
        self,
        path: str | os.PathLike[str],
        window: int = 0,
        crop: str | Sequence[int] | None = None,
        *,
        tail: Tail = "overlap",
        strict: bool = False,
        face: str | int | None = None,
    ) -> Explanation:
        """The inner quantities of window ``window`` (from 0) of a video; windows are those of
        :meth:`predict`.

        Raises:
            ifdd.data.video.VideoError: the video cannot be read.
            PredictionError: there is no such window, or the network gave NaN or infinite values.
        """
        shown = self._find_window(path, window, self.reading(crop, tail=tail, strict=strict, face=face))
        return self.explain_window(shown, Path(path).name)

    def explain_window(self, window: Window, name: str) -> Explanation:
        """The inner quantities of a window, of the video `name`.

        Raises:
            PredictionError: the network gave NaN or infinite values.
        """
        with torch.inference_mode(), self._arithmetic():
            features = self.model.features(self._clips([window.frames]))
        logits = require_finite(features.output.logits.float().cpu(), name)
        return Explanation(
            name=name,
            window=window.number,
            face=window.face,
            start_seconds=window.start_seconds,
            stop_seconds=window.stop_seconds,
            frames=window.frames,
            frame_seconds=window.frame_seconds,
            class_names=self.class_names,
            probabilities=logits[0].double().softmax(0).numpy(),
            split=_SPLIT_NAMES[self.config.split],
            token_frames=self._window_frames(torch.arange(features.static.shape[1] * 2, dtype=torch.float64)),
            static_frames=self._window_frames(self._positions(features)[0]),
            dynamic_frames=self._window_frames(self._positions(features)[1]),
            static_maps=features.static[0].float().norm(dim=-1).cpu().numpy(),
            dynamic_maps=features.dynamic[0].float().norm(dim=-1).cpu().numpy(),
            correlation=None
            if features.correlation is None
            else features.correlation[0].float().cpu().numpy(),
        )

    def read(
        self, path: str | os.PathLike[str], reading: Reading
    ) -> Generator[tuple[Window, Tensor], None, Footage]:
        """The windows of a video with their logits (K,) float32; returns what was read of it.

        Raises:
            ifdd.data.video.VideoError: the video cannot be read.
            PredictionError: the network gave NaN or infinite values.
        """
        windows = Lasting(read_windows(path, reading))
        coming = iter(windows)
        while waiting := list(islice(coming, self.batch)):
            logits = require_finite(self.logits([window.frames for window in waiting]), path)
            yield from zip(waiting, logits, strict=True)
        return windows.result

    def strips(
        self,
        path: str | os.PathLike[str],
        crop: str | Sequence[int] | None = None,
        *,
        tail: Tail = "overlap",
        strict: bool = False,
        face: str | int | None = None,
    ) -> tuple[tuple[FaceStrip, ...], Footage]:
        """All windows of a video with some of their frames, face by face in the order of their numbers, and
        what was read of it; arguments as in :meth:`predict`.

        Raises:
            ifdd.data.video.VideoError: the video cannot be read.
            PredictionError: the network gave NaN or infinite values.
        """
        strips: dict[int | None, StripBuilder] = {}
        windows = Lasting(self.read(path, self.reading(crop, tail=tail, strict=strict, face=face)))
        for window, logits in windows:
            strips.setdefault(window.face, StripBuilder(window.face)).add(window, logits)
        faces = tuple(strips[number].result() for number in sorted(strips, key=lambda number: number or 0))
        return faces, windows.result

    def _find_window(self, path: str | os.PathLike[str], number: int, reading: Reading) -> Window:
        if number < 0:
            raise PredictionError(f"{printable(path)}: window {number} does not exist, they count from 0")
        try:
            return next(read_windows(path, reading, skip=number))
        except StopIteration as ended:
            count = ended.value.windows
        raise PredictionError(
            f"{printable(path)}: window {number} does not exist, the video has windows 0 to {count - 1}"
        )

    def logits(self, frames: Sequence[np.ndarray]) -> Tensor:
        """Logits (b, K) float32 on the CPU of clips uint8 (T, S, S, 3)."""
        with torch.inference_mode(), self._arithmetic():
            logits: Tensor = self._network(self._clips(frames)).logits
        return logits.float().cpu()

    def _network(self, clips: Tensor) -> IFDDOutput:
        if self.cuda_graph and self._captured is None and len(clips) == self.batch:
            self._captured = capture(self.model, clips)
        found: IFDDOutput = (self._captured or self.model)(clips)
        return found

    def _clips(self, frames: Sequence[np.ndarray]) -> Tensor:
        """(b, 3, T, S, S) float32 in [0, 1] on the device."""
        return torch.stack([frames_to_clip(clip) for clip in frames]).to(self.device)

    def _arithmetic(self) -> torch.autocast:
        dtype = _AUTOCAST[self.precision]
        return torch.autocast(torch.device(self.device).type, dtype=dtype, enabled=dtype is not None)

    def _positions(self, features: IFDDFeatures) -> tuple[Tensor, Tensor]:
        """Where both groups were sampled: the sampler itself, applied to the ramp 0, 1, ..., T - 1."""
        frames = features.static.shape[1] * 2
        ramp = torch.arange(frames, dtype=torch.float64).reshape(1, frames, 1, 1)
        static, dynamic = split_frames(
            ramp,
            _on_cpu(features.static_index[:1]),
            _on_cpu(features.dynamic_index[:1]),
            aligned=self.config.index_sampling == "aligned",
        )
        return static.flatten(), dynamic.flatten()

    def _window_frames(self, positions: Tensor) -> np.ndarray:
        """Frames of the network -> frames of the window: the centre of what the embedding's stride joined."""
        frames = self.config.clip_frames
        step = frames / self.config.embedded_grid[0]
        # The convolution's windows are centred on every second frame; at 32 frames pairs are averaged.
        shift = 1.0 if self.config.embedding == "conv" and frames == 32 else 0.0
        return (positions * step + shift).numpy()


def _on_cpu(index: Tensor) -> Tensor:
    return index.cpu().double() if index.is_floating_point() else index.cpu()


def require_finite(logits: Tensor, path: str | os.PathLike[str]) -> Tensor:
    """The logits of a video as they are.

    Raises:
        PredictionError: they are NaN or infinite.
    """
    if not torch.isfinite(logits).all():
        raise _not_finite(path)
    return logits


def _not_finite(path: str | os.PathLike[str]) -> PredictionError:
    return PredictionError(
        f"{printable(path)}: the network gave NaN or infinite values, so there is no prediction"
    )


@dataclass
class _State:
    """A video of which windows are in the batch."""

    path: str
    windows: list[WindowPrediction]
    read: int
    failed: bool = False


class _Batch:
    """Collects windows, and runs the network when there are enough."""

    def __init__(self, predictor: Predictor, offset: int) -> None:
        self._predictor = predictor
        self._free = offset % predictor.batch
        self._waiting: list[tuple[_State, Window | Ended[Footage]]] = []
        self._windows: list[np.ndarray] = []

    def add(self, state: _State, item: Window | Ended[Footage]) -> Iterator[Outcome]:
        """One more; yields what is then known."""
        self._waiting.append((state, item))
        if isinstance(item, Window):
            state.read += 1
            self._windows.append(item.frames)
        if not self._windows or self._free + len(self._windows) == self._predictor.batch:
            yield from self.flush()

    def flush(self) -> Iterator[Outcome]:
        """All that waits."""
        rows: Iterator[Tensor] = iter(())
        if self._windows:
            # Placeholders for windows of an earlier run: the shape of a batch decides how sums are rounded.
            clips = [np.zeros_like(self._windows[0])] * self._free + self._windows
            rows = iter(self._predictor.logits(clips)[self._free :])
            self._free = (self._free + len(self._windows)) % self._predictor.batch
        waiting, self._waiting, self._windows = self._waiting, [], []
        for state, item in waiting:
            row = next(rows) if isinstance(item, Window) else None
            if not state.failed:
                yield self._result(state, item, row)

    def _result(self, state: _State, item: Window | Ended[Footage], row: Tensor | None) -> Outcome:
        if isinstance(item, Window):
            assert row is not None
            if not torch.isfinite(row).all():
                state.failed = True
                return VideoFailure(state.path, _not_finite(state.path), state.read)
            window = WindowPrediction.of_logits(
                item.start_seconds, item.stop_seconds, row.tolist(), item.face, item.box
            )
            state.windows.append(window)
            return WindowResult(state.path, item.number, window, item.part)
        if item.result is None:
            assert item.error is not None
            return VideoFailure(state.path, item.error, state.read)
        if item.result.windows < len(state.windows):
            changed = VideoError(
                f"{printable(state.path)}: has {item.result.windows} windows now and had at least "
                f"{len(state.windows)}: the file has changed"
            )
            return VideoFailure(state.path, changed, state.read)
        return VideoPrediction.of_windows(state.path, self._predictor.class_names, state.windows, item.result)


def _hold_back(outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """Windows of a video only after it has succeeded."""
    held: list[WindowResult] = []
    for outcome in outcomes:
        if isinstance(outcome, WindowResult):
            held.append(outcome)
            continue
        if isinstance(outcome, VideoPrediction):
            yield from held
        held.clear()
        yield outcome


def _refused(error: Exception) -> Generator[Window, None, Footage]:
    """Reads nothing."""
    yield from ()
    raise error
