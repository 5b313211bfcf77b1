from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from ifdd.checkpoint import CheckpointError, load_checkpoint
from ifdd.figures import read_history, training_curves
from ifdd.training.config import TrainingConfig
from ifdd.training.data import OneFrame, RecognitionData, make_dataset
from ifdd.training.module import Recogniser, TrainingError
from ifdd.training.run import FitResult, build_model, evaluate, export, fit
from ifdd.training.storage import load_training_checkpoint
from ifdd_kernels.testing import thread_count

Make = Callable[..., TrainingConfig]


class Rates(pl.Callback):
    """The rate and weight decay of every step, as the optimiser has them."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float, float]] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index) -> None:  # type: ignore[no-untyped-def]
        for group in trainer.optimizers[0].param_groups:
            self.seen.append((trainer.current_epoch, group["lr"], group["weight_decay"]))


@dataclass
class Trained:
    """A training that has ended."""

    config: TrainingConfig
    rates: Rates
    result: FitResult
    folder: Path


@pytest.fixture(scope="module")
def training(tiny_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    config, rates = tiny_config(warmup="original", warmup_epochs=2), Rates()
    folder = tmp_path_factory.mktemp("run") / "fit"
    with thread_count(1):
        return Trained(config, rates, fit(config, folder, callbacks=(rates,)), folder)


@pytest.fixture
def trained(training: Trained) -> Path:
    """Its folder."""
    return training.folder


def test_a_training_writes_what_it_promises(training: Trained) -> None:
    config, rates, result, trained = training.config, training.rates, training.result, training.folder
    schedule = config.optim.schedule(7)
    assert [epoch for epoch, _, _ in rates.seen] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for epoch, rate, decay in rates.seen:
        assert rate == schedule(epoch)
        assert decay == 1e-3

    checkpoint = load_checkpoint(result.checkpoint)
    assert checkpoint.class_names == ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")
    assert checkpoint.extra["dataset"] == "synthetic"
    assert checkpoint.extra["epoch"] == result.epoch
    assert (checkpoint.extra["stride"], checkpoint.extra["short"]) == (1, "repeat_last")
    best = load_training_checkpoint(trained / "best.ckpt")
    assert best["epoch"] == result.epoch
    for name, value in checkpoint.model.state_dict().items():
        assert torch.equal(value, best["state_dict"][f"model.{name}"])

    history = read_history(trained / "logs")
    assert [epoch for epoch, _ in history["train/loss"]] == [0, 1, 2]
    assert [rate for _, rate in history["lr"]] == pytest.approx([schedule(e) for e in range(3)], rel=1e-5)
    scores = dict(history["val/uar"])
    assert scores[result.epoch] == pytest.approx(max(scores.values()))
    assert result.validation is not None
    assert result.validation["uar"] == pytest.approx(scores[result.epoch], abs=1e-6)
    assert list((trained / "tensorboard").glob("events*"))
    assert (
        training_curves({"a": trained / "logs", "b": trained / "logs"}, trained / "c.png").stat().st_size
        > 5000
    )


def test_a_test_of_that_training_counts_every_clip_once(tiny_config: Make, trained: Path) -> None:
    config = tiny_config()
    checkpoint = load_checkpoint(trained / "model.safetensors")
    scores = evaluate(checkpoint, config)
    clips = make_dataset(config.data, "test", checkpoint.config, config.seed)
    confusion = torch.zeros(7, 7, dtype=torch.int64)
    with torch.no_grad():
        for index in range(len(clips)):
            clip, label = clips[index]
            confusion[label, int(checkpoint.model(clip[None]).logits.argmax())] += 1
    assert torch.equal(scores.confusion, confusion)


def test_a_started_folder_is_not_overwritten(tiny_config: Make, trained: Path) -> None:
    with pytest.raises(ValueError, match="already holds a training"):
        fit(tiny_config(), trained)


def test_a_resume_refuses_other_settings(tiny_config: Make, trained: Path) -> None:
    with pytest.raises(ValueError, match=r"other settings: optim\.mixup was 0\.8, now 0\.3$"):
        fit(tiny_config(warmup="original", warmup_epochs=2, mixup=0.3), trained, resume=True)


def test_there_must_be_something_to_resume(tiny_config: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to resume"):
        fit(tiny_config(), tmp_path, resume=True)


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_good_checkpoint(
    tiny_config: Make, tmp_path: Path
) -> None:
    class Poison(pl.Callback):
        def on_train_epoch_start(self, trainer, module) -> None:  # type: ignore[no-untyped-def]
            if trainer.current_epoch == 1:
                module.model.head.classifier.bias.data[2] = math.nan

    config = tiny_config()
    config = replace(config, data=replace(config.data, validation=0.0))
    with pytest.raises(
        TrainingError, match="training loss became nan in epoch 2 of 3; the checkpoint of epoch 1 is kept"
    ):
        fit(config, tmp_path, callbacks=(Poison(),))
    kept = load_training_checkpoint(tmp_path / "last.ckpt")
    assert kept["epoch"] == 0
    assert all(torch.isfinite(v).all() for v in kept["state_dict"].values())


def test_the_last_epoch_is_exported_on_request_or_without_a_held_out_part(
    tiny_config: Make, tmp_path: Path
) -> None:
    assert fit(tiny_config(epochs=2, select="last"), tmp_path / "a").epoch == 1
    config = tiny_config(epochs=1)
    result = fit(replace(config, data=replace(config.data, validation=0.0)), tmp_path / "b")
    assert (result.epoch, result.validation) == (0, None)
    assert not (tmp_path / "b" / "best.ckpt").exists()


def test_broken_weights_are_not_exported(tiny_config: Make, trained: Path, tmp_path: Path) -> None:
    content = load_training_checkpoint(trained / "last.ckpt")
    content["state_dict"]["model.head.classifier.weight"][0, 0] = math.inf
    torch.save(content, tmp_path / "broken.ckpt")
    with pytest.raises(TrainingError, match=r"NaN or infinite .*head\.classifier\.weight"):
        export(tmp_path / "broken.ckpt", tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()


def test_starting_weights_are_taken_and_the_classifier_only_for_the_same_classes(
    tiny_config: Make, trained: Path
) -> None:
    start = trained / "model.safetensors"
    saved = load_checkpoint(start)
    config = replace(tiny_config(), init=str(start))
    same = build_model(config, saved.class_names).state_dict()
    assert all(torch.equal(same[name], value) for name, value in saved.model.state_dict().items())
    torch.manual_seed(1)
    reordered = build_model(config, tuple(reversed(saved.class_names))).state_dict()
    for name, value in saved.model.state_dict().items():
        assert (
            torch.equal(reordered[name], value) != name.startswith("head.classifier.weight") or "bias" in name
        )
    assert build_model(config, ("x", "y")).head.classifier.weight.shape[0] == 2
    with pytest.raises(CheckpointError, match="do not fit the model"):
        build_model(replace(config, model={**config.model, "depths": [1, 2, 1, 1]}), saved.class_names)


def test_a_checkpoint_of_other_classes_is_refused(tiny_config: Make, trained: Path) -> None:
    saved = load_checkpoint(trained / "model.safetensors")
    names = list(saved.class_names)
    names[0], names[1] = names[1], names[0]
    with pytest.raises(ValueError, match="are not those of data set synthetic"):
        evaluate(replace(saved, class_names=tuple(names)), tiny_config())


def test_nan_weights_give_an_error_and_no_score(tiny_config: Make, trained: Path) -> None:
    saved = load_checkpoint(trained / "model.safetensors")
    saved.model.head.classifier.bias.data[0] = math.nan
    with pytest.raises(TrainingError, match="NaN or infinite logits"):
        evaluate(saved, tiny_config())


def test_one_frame_clips_do_not_move_and_differ_between_epochs(tiny_config: Make) -> None:
    config = tiny_config()
    config = replace(config, data=replace(config.data, one_frame=True))
    data = RecognitionData(config)
    clips = data.dataset("train")
    assert isinstance(clips, OneFrame)
    clip, label = clips[4]
    original, expected = clips.clips[4]
    assert label == expected
    assert torch.equal(clip, clip[:, :1].expand_as(clip))
    assert any(torch.equal(clip[:, 0], original[:, t]) for t in range(original.shape[1]))
    clips.set_epoch(1)
    assert not torch.equal(clips[4][0], clip)


def test_held_out_clips_are_not_training_clips(tiny_config: Make) -> None:
    data = RecognitionData(tiny_config())
    train, held = data.dataset("train"), data.dataset("validation")
    assert len(held) == 7
    assert not any(torch.equal(train[i][0], held[i][0]) for i in range(7))
    empty = RecognitionData(replace(tiny_config(), data=replace(tiny_config().data, validation=0.0)))
    assert empty.val_dataloader() == []


def test_the_step_trains_on_mixed_soft_targets(tiny_config: Make) -> None:
    config = tiny_config()
    module = Recogniser(build_model(config, tuple("abcdefg")), config, tuple("abcdefg"))
    seen: list[torch.Tensor] = []
    module.criterion.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    batch = torch.rand(4, 3, 8, 32, 32), torch.tensor([0, 1, 2, 3])
    module.trainer = SimpleNamespace(current_epoch=0, optimizers=[module.configure_optimizers()])  # type: ignore[assignment]
    for index in (0, 0, 1):
        module.on_train_batch_start(batch, index)
        module.training_step(batch, index).backward()
    assert seen[0].shape == (4, 7)
    torch.testing.assert_close(seen[0].sum(1), torch.ones(4))
    assert ((seen[0] > 0.05).sum(1) == 2).all(), "every clip is mixed with another one"
    assert torch.equal(seen[0], seen[1]), "equal step, equal draw"
    assert not torch.equal(seen[0], seen[2])
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in module.parameters())
