"""A training with CUDA graphs, on graphs that are recorded on the CPU: no device has captured any yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ifdd.checkpoint import Checkpoint
from ifdd.prediction import Predictor
from ifdd.training import run
from ifdd.training.config import SettingError, TrainingConfig
from ifdd.training.launch import ALONE, Launch
from recorded_graphs import RecordedGraph, recorded_graphs

__all__ = ["recorded_graphs"]

Make = Callable[..., TrainingConfig]


def _weights(config: TrainingConfig, out: Path) -> dict[str, torch.Tensor]:
    return load_file(str(run.fit(config, out).checkpoint))


@pytest.mark.parametrize(
    ("optim", "precision"),
    [
        ({"ema_decay": 0.9, "gradient_clip": 1.0, "accumulate": 2, "warmup": "original"}, "bf16-mixed"),
        pytest.param({"mixup": 0.0}, "32", marks=pytest.mark.nightly),
    ],
)
def test_a_training_with_graphs_ends_at_the_same_weights(
    tiny_config: Make,
    tmp_path: Path,
    recorded_graphs: list[RecordedGraph],
    monkeypatch: pytest.MonkeyPatch,
    optim: dict[str, Any],
    precision: Any,
) -> None:
    """With a rate that changes, an average of the weights, clipped and added up gradients, and autocast."""
    monkeypatch.setattr(run, "_check_graph", lambda *_: None)
    plain = replace(tiny_config(epochs=2, **optim), precision=precision)
    expected = _weights(plain, tmp_path / "plain")
    assert not recorded_graphs
    found = _weights(replace(plain, cuda_graph=True), tmp_path / "graph")
    assert found.keys() == expected.keys()
    assert [name for name, value in found.items() if not torch.equal(value, expected[name])] == []
    steps = 2 * (21 // 7)  # epochs, and batches of 7 of 21 clips
    assert [graph.replays for graph in recorded_graphs] == [steps, steps]


def test_graphs_are_refused_where_there_are_none(tiny_config: Make, tmp_path: Path) -> None:
    config = replace(tiny_config(), cuda_graph=True)
    with pytest.raises(SettingError, match=r"^cuda_graph must be off on a CPU: CUDA graphs need a GPU$"):
        run.fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for settings, launch in ((config, Launch(devices=2)), (replace(config, strategy="ddp"), ALONE)):
        with pytest.raises(SettingError, match="must be off with several processes and with --strategy ddp"):
            run._check_graph(settings, launch, on_gpu=True)
    run._check_graph(config, ALONE, on_gpu=True)
    recomputed = replace(config, model={**config.model, "activation_checkpointing": True})
    with pytest.raises(SettingError, match=r"must be off with --model\.activation_checkpointing true"):
        run._check_graph(recomputed, ALONE, on_gpu=True)


def test_a_training_may_go_on_without_graphs(tiny_config: Make) -> None:
    config = tiny_config()
    with_graph = replace(config, cuda_graph=True)
    assert with_graph.differences(config) == {}
    assert "cuda_graph" not in with_graph.to_options()


def test_a_predictor_replays_full_batches(tiny_config: Make, recorded_graphs: list[RecordedGraph]) -> None:
    model = run.build_model(tiny_config(), tuple("abc"))
    checkpoint = Checkpoint(model, model.config, ("a", "b", "c"), {}, "ifdd")
    with pytest.raises(ValueError, match="cuda_graph must be off on a CPU"):
        Predictor(checkpoint, cuda_graph=True)
    predictor = Predictor(checkpoint, batch=2)
    predictor.cuda_graph = True
    size, frames = model.config.image_size, model.config.clip_frames
    clips = list(torch.randint(256, (3, frames, size, size, 3), dtype=torch.uint8).numpy())
    found = [predictor.logits(part) for part in (clips[:1], clips[:2], clips[1:], clips[2:])]
    predictor.cuda_graph, predictor._captured = False, None
    expected = [predictor.logits(part) for part in (clips[:1], clips[:2], clips[1:], clips[2:])]
    assert all(map(torch.equal, found, expected))
    assert [graph.replays for graph in recorded_graphs] == [2, 0]
