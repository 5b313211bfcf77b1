"""Which frames of a video make a clip: pure functions from the number of frames to frame indexes.

Every sampler returns int64 indexes of shape (W, frames): W windows of `frames` frames each, all valid for a
video of `length` frames. Names and their origin:

=========== ===============================================================================================
random      one window at a random place (training)
centre      the window in the middle
consecutive all whole windows side by side; a rest at the end is dropped
segments    one frame from each of `frames` equal segments (TSN): its middle, or a random one when training
uniform     `frames` frames from the first to the last, evenly spread
dense       `views` windows, evenly spread from the beginning to the end
=========== ===============================================================================================

A window of `frames` frames at `stride` covers frames * stride frames of the video. A video with fewer is
first stretched to that length, see `SHORT_POLICIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

__all__ = [
    "SAMPLERS",
    "SHORT_POLICIES",
    "Sampling",
    "SamplingPolicy",
    "Short",
    "repeat_each",
    "repeat_last",
]

Short = Literal["repeat_last", "repeat_each"]
"""A name in `SHORT_POLICIES`."""


def repeat_last(length: int, window: int) -> np.ndarray:
    """0, 1, ..., length-1, then the last frame until there are `window` (the original's rule for DFEW).

    Args:
        length: frames of the video, fewer than `window`.
        window: frames wanted.

    Returns:
        (window,) int64: places in the video, ascending.
    """
    return np.minimum(np.arange(window, dtype=np.int64), length - 1)


def repeat_each(length: int, window: int) -> np.ndarray:
    """Every frame window // length times in a row, the last window % length frames once more (the original's
    rule for FERV39k and MAFW), so that the whole video plays more slowly.

    Args:
        length: frames of the video, fewer than `window`.
        window: frames wanted.

    Returns:
        (window,) int64: places in the video, ascending.
    """
    times = np.full(length, window // length, dtype=np.int64)
    times[length - window % length :] += 1
    return np.repeat(np.arange(length, dtype=np.int64), times)


SHORT_POLICIES: dict[Short, Callable[[int, int], np.ndarray]] = {
    "repeat_last": repeat_last,
    "repeat_each": repeat_each,
}
"""How a video of `length` < `window` frames is stretched to `window`; `(length, window) -> indexes
(window,)`."""


@dataclass(frozen=True)
class SamplingPolicy:
    """How a data set's videos become windows; a checkpoint keeps that of its training for predictions.

    Args:
        stride: step between the frames of a window.
        short: one of `SHORT_POLICIES`, for videos shorter than frames * stride.

    Raises:
        ValueError: an unknown name, or a stride that is not an integer of at least 1.
    """

    stride: int = 1
    short: Short = "repeat_last"

    def __post_init__(self) -> None:
        if self.short not in tuple(SHORT_POLICIES):
            raise ValueError(f"short must be one of {sorted(SHORT_POLICIES)}, got {self.short!r}")
        _check_positive("stride", self.stride)

    @classmethod
    def of_checkpoint(cls, extra: Mapping[str, Any]) -> SamplingPolicy:
        """The fields of a policy among a checkpoint's extra values; the default for each that is absent."""
        return cls(**{name: extra[name] for name in ("stride", "short") if extra.get(name) is not None})


@dataclass(frozen=True)
class Sampling:
    """A way of taking frames.

    Args:
        name: one of `SAMPLERS`.
        frames: frames of a window, T.
        stride: step between them.
        short: one of `SHORT_POLICIES`, for videos shorter than frames * stride.
        views: number of windows of the sampler "dense".

    Raises:
        ValueError: unknown names or numbers below 1.
    """

    name: str = "centre"
    frames: int = 16
    stride: int = 1
    short: Short = "repeat_last"
    views: int = 2

    def __post_init__(self) -> None:
        if self.name not in SAMPLERS:
            raise ValueError(f"sampling must be one of {sorted(SAMPLERS)}, got {self.name!r}")
        SamplingPolicy(self.stride, self.short)
        _check_positive("frames", self.frames)
        _check_positive("views", self.views)

    @property
    def window(self) -> int:
        """Frames of the video that one window covers."""
        return self.frames * self.stride

    @property
    def single(self) -> bool:
        """Whether every video gives exactly one window."""
        return self.name not in ("consecutive", "dense")

    def training(self) -> Sampling:
        """The same frames and stride, drawn at random: "segments" and "random" have a random form, and every
        kind of window trains on random ones; "uniform" stays what it is.
        """
        return self if self.name in ("segments", "uniform") else replace(self, name="random")

    def indices(self, length: int, generator: np.random.Generator | None = None) -> np.ndarray:
        """Frame indexes (W, frames) int64 for a video of `length` frames.

        Args:
            length: number of frames, at least 1.
            generator: source of randomness; "random" needs it, "segments" uses it if given, the others ignore
                it.

        Raises:
            ValueError: an empty video, or "random" without a generator.
        """
        if length < 1:
            raise ValueError(f"a video needs at least 1 frame to sample from, got {length}")
        return SAMPLERS[self.name](length, self, generator)


def _check_positive(field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"{field} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{field} must be at least 1, got {value}")


class Sampler(Protocol):
    """`(length, sampling, generator) -> (W, frames)` int64."""

    def __call__(
        self, length: int, sampling: Sampling, generator: np.random.Generator | None
    ) -> np.ndarray: ...


def _timeline(length: int, sampling: Sampling) -> np.ndarray:
    """The frames of the video in order, stretched if they are too few for one window."""
    if length >= sampling.window:
        return np.arange(length, dtype=np.int64)
    return SHORT_POLICIES[sampling.short](length, sampling.window)


def _windows(timeline: np.ndarray, starts: np.ndarray, sampling: Sampling) -> np.ndarray:
    offsets = np.arange(sampling.frames, dtype=np.int64) * sampling.stride
    return timeline[starts[:, None] + offsets]


def _random(length: int, sampling: Sampling, generator: np.random.Generator | None) -> np.ndarray:
    if generator is None:
        raise ValueError("the sampler 'random' needs a generator")
    timeline = _timeline(length, sampling)
    starts = generator.integers(len(timeline) - sampling.window + 1, size=1)
    return _windows(timeline, starts, sampling)


def _centre(length: int, sampling: Sampling, generator: np.random.Generator | None) -> np.ndarray:
    timeline = _timeline(length, sampling)
    return _windows(timeline, np.array([(len(timeline) - sampling.window) // 2]), sampling)


def _consecutive(length: int, sampling: Sampling, generator: np.random.Generator | None) -> np.ndarray:
    timeline = _timeline(length, sampling)
    count = len(timeline) // sampling.window
    return _windows(timeline, np.arange(count) * sampling.window, sampling)


def _dense(length: int, sampling: Sampling, generator: np.random.Generator | None) -> np.ndarray:
    timeline = _timeline(length, sampling)
    room = len(timeline) - sampling.window
    starts = np.rint(np.linspace(0, room, sampling.views)) if sampling.views > 1 else np.array([room // 2])
    return _windows(timeline, starts.astype(np.int64), sampling)


def _segments(length: int, sampling: Sampling, generator: np.random.Generator | None) -> np.ndarray:
    count = sampling.frames
    within = np.full(count, 0.5) if generator is None else generator.random(count)
    places = np.floor((np.arange(count) + within) * (length / count)).astype(np.int64)
    return np.minimum(places, length - 1)[None]


def _uniform(length: int, sampling: Sampling, generator: np.random.Generator | None) -> np.ndarray:
    return np.rint(np.linspace(0, length - 1, sampling.frames)).astype(np.int64)[None]


SAMPLERS: dict[str, Sampler] = {
    "random": _random,
    "centre": _centre,
    "consecutive": _consecutive,
    "segments": _segments,
    "uniform": _uniform,
    "dense": _dense,
}
"""The samplers by name."""
