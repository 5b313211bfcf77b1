"""A whole training and a whole test."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import nn

from ifdd.checkpoint import Checkpoint, load_checkpoint, load_pretrained, save_checkpoint
from ifdd.config import IFDDConfig
from ifdd.model import IFDD
from ifdd.training.averaging import MovingAverage
from ifdd.training.config import TrainingConfig
from ifdd.training.data import RecognitionData, sampling_policy
from ifdd.training.metrics import Scores
from ifdd.training.module import Recogniser, TrainingError
from ifdd.training.storage import AtomicCheckpointIO, load_training_checkpoint, remove_partial_files

LAST = "last.ckpt"
BEST = "best.ckpt"
EXPORTED = "model.safetensors"


@dataclass(frozen=True)
class FitResult:
    """``checkpoint``: the exported weights; ``epoch``: whose they are; ``validation``: their scores."""

    checkpoint: Path
    epoch: int
    validation: dict[str, float] | None


def fit(
    config: TrainingConfig,
    out: str | Path,
    *,
    resume: bool = False,
    progress: bool = False,
    callbacks: tuple[Callback, ...] = (),
) -> FitResult:
    """Trains a network and exports its best weights.

    ``out`` receives ``config.yaml``, ``last.ckpt`` and ``best.ckpt`` (training state, written at the end of
    each epoch), ``logs/`` (CSV), ``tensorboard/`` and, at the end, ``model.safetensors``. The best epoch is
    the one of highest UAR on the part of the training set held out by ``config.data.validation``; without
    such a part, or with ``select="last"``, the last one is exported. With ``ema_decay`` the averaged weights
    are the ones evaluated and exported.

    Args:
        config: data, recipe and network.
        out: folder of the run, made if missing.
        resume: go on from ``last.ckpt``; on a CPU the end is bit for bit that of an uninterrupted training.
        progress: show a progress bar.
        callbacks: further Lightning callbacks.

    Raises:
        ValueError: ``out`` holds a training and ``resume`` is off; nothing to resume; the settings of the
            training to resume differ.
        TrainingError: the loss became NaN or infinite.
    """
    out = Path(out)
    last = out / LAST
    if last.exists() and not resume:
        raise ValueError(f"{out} already holds a training: give another folder, or resume it")
    if resume:
        _check_same_training(config, last)
    out.mkdir(parents=True, exist_ok=True)
    remove_partial_files(out)
    (out / "config.yaml").write_text(yaml.safe_dump(config.to_options(), sort_keys=False))

    pl.seed_everything(config.seed, verbose=False)
    data = RecognitionData(config, skipped=out / "skipped.csv")
    model = build_model(config, data.class_names)
    module = Recogniser(model, config, data.class_names)
    monitored = config.data.validation > 0
    trainer = _trainer(
        config, _loggers(out), [*_callbacks(config, out, monitored, progress), *callbacks], progress
    )
    trainer.fit(module, datamodule=data, ckpt_path=str(last) if resume else None, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    chosen = BEST if monitored and config.optim.select == "best" else LAST
    return export(out / chosen, out / EXPORTED)


def build_model(config: TrainingConfig, class_names: tuple[str, ...]) -> IFDD:
    """A network with as many outputs as there are classes, started from ``config.init`` if given.

    Raises:
        ifdd.checkpoint.CheckpointError: ``config.init`` cannot be read or does not fit the network.
    """
    network = IFDDConfig.from_dict({**config.model, "num_classes": len(class_names)})
    model = IFDD(network)
    if config.init is None:
        return model
    fresh_head = {name: value.clone() for name, value in model.head.state_dict().items()}
    report = load_pretrained(model, config.init, reset_head=True, part=config.init_part)
    if report.kind != "checkpoint" or load_checkpoint(config.init).class_names != class_names:
        # The file's class order is unknown or another one: its classifier would be wrong from the start.
        model.head.load_state_dict(fresh_head)
    return model


def export(training_checkpoint: Path, target: Path) -> FitResult:
    """Writes the network of a training checkpoint, with its class list, as safetensors."""
    content = load_training_checkpoint(training_checkpoint)
    config = TrainingConfig.from_dict(content["ifdd"]["config"])
    names = tuple(content["ifdd"]["class_names"])
    model = IFDD(IFDDConfig.from_dict({**config.model, "num_classes": len(names)}))
    prefix = "model."
    weights = {
        key[len(prefix) :]: value for key, value in content["state_dict"].items() if key.startswith(prefix)
    }
    model.load_state_dict(weights)
    broken = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise TrainingError(f"{training_checkpoint}: weights are NaN or infinite (first: {broken[0]})")
    validation = content["ifdd"].get("validation")
    extra = {
        "dataset": config.data.name,
        "fold": config.data.fold,
        **asdict(sampling_policy(config.data)),
        "epoch": content["epoch"],
        "validation": validation,
    }
    save_checkpoint(target, model, names, extra)
    return FitResult(target, content["epoch"], validation)


def evaluate(checkpoint: Checkpoint, config: TrainingConfig, *, progress: bool = False) -> Scores:
    """Scores of a checkpoint on the test set that ``config.data`` names.

    Raises:
        ValueError: the checkpoint knows other classes than the data set.
    """
    data = RecognitionData(config, network=checkpoint.config)
    data.require_classes(tuple(checkpoint.class_names))
    module = Recogniser(cast(nn.Module, checkpoint.model), config, tuple(checkpoint.class_names))
    bars: list[Callback] = [RichProgressBar()] if progress else []
    trainer = _trainer(config, [], bars, progress)
    trainer.test(module, dataloaders=data.test_dataloader(), verbose=False)
    if module.scores is None:
        raise TrainingError("the test was interrupted before it counted a clip")
    return module.scores


def _check_same_training(config: TrainingConfig, last: Path) -> None:
    if not last.is_file():
        raise ValueError(f"nothing to resume: {last} does not exist")
    before = TrainingConfig.from_dict(load_training_checkpoint(last)["ifdd"]["config"])
    changed = config.differences(before)
    if changed:
        raise ValueError(f"cannot resume {last.parent} with other settings: {', '.join(changed)}")


def _loggers(out: Path) -> list[Logger]:
    return [CSVLogger(out, name="logs"), TensorBoardLogger(out, name="tensorboard", version="")]


def _callbacks(config: TrainingConfig, out: Path, monitored: bool, progress: bool) -> list[Callback]:
    # Saving at the training epoch's end, after validation: a checkpoint written during validation would hold
    # an epoch that is not over. "last" comes after "best", so that it knows the best score so far.
    callbacks: list[Callback] = []
    if monitored:
        callbacks.append(
            ModelCheckpoint(
                dirpath=out,
                filename=Path(BEST).stem,
                monitor="val/uar",
                mode="max",
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            )
        )
    callbacks.append(
        ModelCheckpoint(
            dirpath=out, filename=Path(LAST).stem, save_on_train_epoch_end=True, enable_version_counter=False
        )
    )
    if config.optim.ema_decay is not None:
        callbacks.append(MovingAverage(config.optim.ema_decay))
    if progress:
        callbacks.append(RichProgressBar())
    return callbacks


def _trainer(
    config: TrainingConfig, loggers: list[Logger], callbacks: list[Callback], progress: bool
) -> pl.Trainer:
    settings: dict[str, Any] = {
        "accelerator": {"auto": "auto", "cpu": "cpu", "cuda": "gpu"}[config.device],
        "devices": 1,
        "precision": "32-true" if config.precision == "32" else config.precision,
        "max_epochs": config.optim.epochs,
        "accumulate_grad_batches": config.optim.accumulate,
        "gradient_clip_val": config.optim.gradient_clip,
        # cuDNN's choice of algorithm by timing would make two equal trainings differ.
        "benchmark": False,
        "reload_dataloaders_every_n_epochs": 1,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "enable_model_summary": False,
        "enable_progress_bar": progress,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "logger": loggers or False,
        "callbacks": callbacks,
        "plugins": [AtomicCheckpointIO()],
    }
    return pl.Trainer(**settings)
