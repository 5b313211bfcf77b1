"""Tiny checkpoints and tiny encoded videos for the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
import torch

from ifdd import IFDD, IFDDConfig
from ifdd.checkpoint import save_checkpoint
from ifdd.cli import main

TINY: dict[str, Any] = {
    "backbone": "mvit_nano",
    "embed_dim": 8,
    "depths": (1, 1, 1, 1),
    "image_size": 32,
    "clip_frames": 8,
    "split_pool": 2,
}
CLASSES = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def ifdd(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs the command line in this process."""

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


def make_checkpoint(path: Path, classes: tuple[str, ...] = CLASSES, **overrides: Any) -> Path:
    torch.manual_seed(2)
    model = IFDD(IFDDConfig(num_classes=len(classes), **{**TINY, **overrides}))
    with torch.no_grad():
        # A fresh head is nearly silent; distinct logits make wrong averages visible.
        model.head.classifier.weight.normal_(std=3.0)
    save_checkpoint(path, model, classes, {"stride": 1})
    return path


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes."""
    resource = pytest.importorskip("resource")  # Windows has none
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


def write_video(path: Path, frames: int = 20, size: int = 48, fps: int = 10) -> Path:
    rng = np.random.default_rng(frames)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            image = np.full((size, size, 3), 12 * (number % 20), np.uint8)
            image[:16, :16] = rng.integers(0, 255, (16, 16, 3))
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames at 10 frames per second: two windows of 8 and a rest of 4."""
    return write_video(tmp_path_factory.mktemp("videos") / "face.mp4")
