"""ONNX files in ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ifdd import create_model
from ifdd.checkpoint import Checkpoint, save_checkpoint
from ifdd.export import OUTPUTS, export_checkpoint, metadata_of

from .conftest import CLASSES, clips_for, thin

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
Make = Callable[..., Checkpoint]


def test_a_network_of_one_block_gives_its_numbers(make: Make, tmp_path: Path) -> None:
    assert_file_gives_numbers(thin(make(split="topk", stages=(3,))), tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "options",
    [
        {"split": "topk"},
        {"split": "interpolate"},
        {"split": "even_odd", "lifting": "conv"},
        {"split": "even_odd", "embedding": "s3d", "clip_frames": 32},
        {"split": "interpolate", "index_sampling": "aligned", "clip_frames": 32},
        {"lifting": "predict_first", "self_conditioned": True, "image_size": 64},
        {"lifting": "none", "split": "topk", "topk_order_prior": True},
    ],
)
def test_every_network_gives_its_numbers(make: Make, tmp_path: Path, options: dict[str, Any]) -> None:
    assert_file_gives_numbers(make(**options), tmp_path)


def assert_file_gives_numbers(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Of any batch, by standard operators alone, with the metadata and no path of this machine."""
    exported = export_checkpoint(checkpoint, tmp_path / "net.onnx", "onnx")
    assert exported.files == (tmp_path / "net.onnx",)
    assert b"model.py" not in (tmp_path / "net.onnx").read_bytes(), "paths of this machine"
    graph = onnx.load(tmp_path / "net.onnx")
    assert {node.domain for node in graph.graph.node} == {""}
    assert {entry.key: entry.value for entry in graph.metadata_props}.items() >= metadata_of(
        checkpoint
    ).items()
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    assert [value.name for value in session.get_inputs()] == ["clips"]
    assert tuple(value.name for value in session.get_outputs()) == OUTPUTS
    names = session.get_modelmeta().custom_metadata_map["class_names"]
    assert json.loads(names) == list(CLASSES)
    for batch in (1, 3):
        clips = clips_for(checkpoint, batch)
        with torch.no_grad():
            wanted = checkpoint.model(clips)
        for result, value in zip(session.run(None, {"clips": clips.numpy()}), wanted, strict=True):
            assert np.abs(result - value.numpy()).max() <= 1e-5 * np.abs(value.numpy()).max()


@pytest.mark.nightly
def test_weights_that_one_file_cannot_hold_lie_beside_it(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.onnx._internal.exporter import _onnx_program

    monkeypatch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 1000)
    exported = export_checkpoint(make(split="even_odd"), tmp_path / "net.onnx", "onnx")
    assert exported.files == (tmp_path / "net.onnx", tmp_path / "net.onnx.data")


@pytest.mark.nightly
def test_the_default_network_gives_its_numbers(tmp_path: Path) -> None:
    model = create_model("ifdd_xs", num_classes=len(CLASSES))
    save_checkpoint(tmp_path / "xs.safetensors", model, CLASSES)
    exported = export_checkpoint(tmp_path / "xs.safetensors", tmp_path / "xs.onnx", "onnx")
    assert exported.difference <= 1e-5
