"""Expressions of single videos: class probabilities of the windows, and what the network looked at."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ifdd.checkpoint import Checkpoint, load_checkpoint
from ifdd.config import IFDDConfig
from ifdd.data.resize import frames_to_clip
from ifdd.data.sampling import Sampling, SamplingPolicy
from ifdd.data.video import VideoFrames, read_video
from ifdd.model import IFDD, IFDDFeatures
from ifdd_kernels import split_frames

Windows = Literal["all", "centre"]

_SAMPLERS: dict[str, str] = {"all": "consecutive", "centre": "centre"}
_SPLIT_NAMES = {
    "interpolate": "learned fractional indexes (ISSM)",
    "topk": "frames chosen by correlation (hard top-k)",
    "even_odd": "even and odd frames (fixed)",
}


class PredictionError(ValueError):
    """An input or a network that gives no trustworthy number; the message is one line."""


@dataclass(frozen=True)
class WindowPrediction:
    """One window: [``start_seconds``, ``stop_seconds``) of the video and its class probabilities (K,)."""

    start_seconds: float
    stop_seconds: float
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class VideoPrediction:
    """A whole video. ``probabilities`` (K,) is the softmax of the mean of the windows' logits."""

    path: str
    class_names: tuple[str, ...]
    windows: tuple[WindowPrediction, ...]
    probabilities: tuple[float, ...]

    @property
    def label(self) -> str:
        """Name of the most probable class."""
        return self.class_names[int(np.argmax(self.probabilities))]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return {
            "path": self.path,
            "label": self.label,
            "probabilities": dict(zip(self.class_names, self.probabilities, strict=True)),
            "windows": [
                {
                    "start_seconds": window.start_seconds,
                    "stop_seconds": window.stop_seconds,
                    "probabilities": dict(zip(self.class_names, window.probabilities, strict=True)),
                }
                for window in self.windows
            ],
        }


@dataclass(frozen=True)
class Explanation:
    """What a figure of one window needs; K sampled frames per group, T frames inside the network.

    ``frames`` uint8 (T_in, S, S, 3); ``probabilities`` (classes,); ``static_frames``, ``dynamic_frames``
    (K,): where on the window's frames each sample was taken; ``token_frames`` (T,): which frame each frame
    inside the network is centred on; ``static_maps``, ``dynamic_maps`` (K, h, w): norm over the channels of
    the group after lifting; ``correlation`` (T, T) or None.
    """

    name: str
    window: int
    start_seconds: float
    stop_seconds: float
    frames: np.ndarray
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

    Args:
        checkpoint: loaded, or the path of one written by :func:`ifdd.checkpoint.save_checkpoint`.
        device: where the network runs.
        batch: windows per forward pass.

    Raises:
        PredictionError: the checkpoint's weights are NaN or infinite, or it names no usable sampling policy.
    """

    def __init__(
        self, checkpoint: Checkpoint | str | os.PathLike[str], device: str = "cpu", batch: int = 8
    ) -> None:
        loaded = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)
        for name, weight in loaded.model.state_dict().items():
            if weight.is_floating_point() and not torch.isfinite(weight).all():
                raise PredictionError(f"checkpoint: weight {name} holds NaN or infinite values")
        self.model: IFDD = loaded.model.to(device).eval()
        self.config: IFDDConfig = loaded.config
        self.class_names = tuple(loaded.class_names)
        try:
            self.policy = SamplingPolicy.of_checkpoint(loaded.extra)
        except ValueError as error:
            raise PredictionError(f"checkpoint: {error}") from error
        self.device = device
        self.batch = batch

    def predict(
        self, path: str | os.PathLike[str], crop: str | Sequence[int] | None = None, windows: Windows = "all"
    ) -> VideoPrediction:
        """Probabilities of a video file or a folder of frames.

        Args:
            path: the video.
            crop: the face: ``"x,y,w,h"``, ``"auto"`` to find it, or None for the whole frame.
            windows: ``"all"`` consecutive windows, or only the ``"centre"`` one. A video shorter than a
                window is stretched as in the checkpoint's training, or repeats its last frame.

        Raises:
            ifdd.data.video.VideoError: the video cannot be read.
            PredictionError: the network gave NaN or infinite values.
        """
        video, indices = self._read(path, crop, windows)
        logits = torch.cat([self._logits(clips, video.path) for clips in self._clips(video, indices)])
        each = logits.double().softmax(1)
        whole = logits.double().mean(0).softmax(0)
        spans = [self._seconds(video, row) for row in indices]
        return VideoPrediction(
            str(path),
            self.class_names,
            tuple(
                WindowPrediction(*span, tuple(row.tolist())) for span, row in zip(spans, each, strict=True)
            ),
            tuple(whole.tolist()),
        )

    def explain(
        self, path: str | os.PathLike[str], window: int = 0, crop: str | Sequence[int] | None = None
    ) -> Explanation:
        """The inner quantities of window ``window`` (from 0) of a video.

        Raises:
            ifdd.data.video.VideoError: the video cannot be read.
            PredictionError: there is no such window, or the network gave NaN or infinite values.
        """
        video, indices = self._read(path, crop, "all")
        if not 0 <= window < len(indices):
            raise PredictionError(
                f"{path}: window {window} does not exist, the video has windows 0 to {len(indices) - 1}"
            )
        row = indices[window : window + 1]
        clip = next(self._clips(video, row))
        with torch.inference_mode():
            features = self.model.features(clip)
        logits = _finite(features.output.logits.float().cpu(), video.path)
        start, stop = self._seconds(video, row[0])
        return Explanation(
            name=Path(path).name,
            window=window,
            start_seconds=start,
            stop_seconds=stop,
            frames=video.frames[row[0]],
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

    def _read(
        self, path: str | os.PathLike[str], crop: str | Sequence[int] | None, windows: Windows
    ) -> tuple[VideoFrames, np.ndarray]:
        if windows not in _SAMPLERS:
            raise ValueError(f"windows must be one of {sorted(_SAMPLERS)}, got {windows!r}")
        video = read_video(path, crop, size=self.config.image_size)
        sampling = Sampling(
            _SAMPLERS[windows], self.config.clip_frames, self.policy.stride, self.policy.short
        )
        return video, sampling.indices(len(video.frames))

    def _clips(self, video: VideoFrames, indices: np.ndarray) -> Iterator[Tensor]:
        """Batches (b, 3, T, S, S) float32 in [0, 1] on the device."""
        for first in range(0, len(indices), self.batch):
            clips = [frames_to_clip(video.frames[row]) for row in indices[first : first + self.batch]]
            yield torch.stack(clips).to(self.device)

    @torch.inference_mode()
    def _logits(self, clips: Tensor, path: Path) -> Tensor:
        return _finite(self.model(clips).logits.float().cpu(), path)

    def _seconds(self, video: VideoFrames, row: np.ndarray) -> tuple[float, float]:
        return float(row.min()) / video.fps, float(row.max() + 1) / video.fps

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


def _finite(logits: Tensor, path: Path) -> Tensor:
    if not torch.isfinite(logits).all():
        raise PredictionError(f"{path}: the network gave NaN or infinite values, so there is no prediction")
    return logits
