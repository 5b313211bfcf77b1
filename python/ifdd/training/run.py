"""A whole training and a whole test."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.plugins.environments import (  # type: ignore[attr-defined]
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch import nn

from ifdd.checkpoint import Checkpoint, load_checkpoint, load_pretrained, save_checkpoint
from ifdd.checkpoint.training import TrainingRecord
from ifdd.config import IFDDConfig
from ifdd.model import IFDD
from ifdd.training.averaging import MovingAverage
from ifdd.training.callbacks import (
    GatheredSkips,
    History,
    LimitReached,
    ProgressBar,
    RunCheckpoint,
    RunLimits,
)
from ifdd.training.config import SettingError, TrainingConfig
from ifdd.training.data import RecognitionData
from ifdd.training.folder import BEST, EXPORTED, LAST, SETTINGS, run_folder
from ifdd.training.launch import Launch, check_batch, current_launch
from ifdd.training.metrics import Scores
from ifdd.training.module import Recogniser, TrainingError
from ifdd.training.plan import TrainingPlan, device_name
from ifdd.training.resume import check_same_data, record_to_resume
from ifdd.training.storage import AtomicCheckpointIO, remove_partial_files
from ifdd.training.watch import PeerWatch
from ifdd.whole import write_whole


@dataclass(frozen=True)
class FitResult:
    """The outcome of a training.

    Attributes:
        checkpoint: the exported weights.
        epoch: the epoch they are of.
        validation: their scores on the held-out part, if there is one.
        limit: the limit that ended the run before its last epoch, else None.
    """

    checkpoint: Path
    epoch: int
    validation: dict[str, float] | None
    limit: str | None = None


def fit(
    config: TrainingConfig,
    out: str | Path,
    *,
    resume: bool = False,
    progress: bool = False,
    callbacks: tuple[Callback, ...] = (),
    announce: Callable[[TrainingPlan], None] | None = None,
    max_time: timedelta | None = None,
    limit_steps: int | None = None,
    loggers: Sequence[Logger] = (),
) -> FitResult:
    """Trains a network and exports its best weights.

    ``out`` receives ``config.yaml``, at the end of each epoch ``last.ckpt``, ``best.ckpt`` (training state),
    ``metrics.csv`` and ``curves.png``, ``logs/`` and ``tensorboard/`` (what Lightning logs), and at the end
    ``model.safetensors``. A training that fails in its first epoch leaves no folder. The best epoch is the
    one of highest UAR, of equals the later, on the part of the training set that ``config.data.validation``
    holds out; without such a part, or with ``select="last"``, the last one is exported. With ``ema_decay``
    the averaged weights are the ones evaluated and exported.

    With several ``config.devices`` every process calls this with the same arguments. Lightning starts those
    of the first one's machine itself, by running the program again, unless torchrun or SLURM did; only the
    first rank writes. All ranks together take the batches that one process takes. Where one of them ends, all
    do. The ranks need ``out`` (to resume) and the videos under the same paths.

    Args:
        config: data, recipe and network.
        out: folder of the run, made if missing.
        resume: go on from ``last.ckpt``; on a CPU the end is bit for bit that of an uninterrupted training.
            The number of epochs may have grown: the learning rate follows the schedule of the new number from
            the next epoch on. Paths may have changed (``ifdd.training.config.CHANGEABLE``).
        progress: show a progress bar.
        callbacks: further Lightning callbacks.
        announce: receives what will be trained before the first step, and before anything is written.
        max_time: ends this run in that time; after the last whole epoch that fits into it, where one does.
        limit_steps: ends this run after so many steps; an epoch that is cut short is lost.
        loggers: further Lightning loggers.

    Returns:
        :class:`FitResult`.

    Raises:
        ValueError: ``out`` holds a training and ``resume`` is off; nothing to resume; a held-out part without
            a clip.
        ifdd.training.resume.ResumeError: the settings of the training to resume differ.
        TrainingError: the loss became NaN or infinite, or a limit ended the run before any epoch was over.
        ifdd.training.watch.ReportedError: another rank failed or died; the first rank printed why.
        KeyboardInterrupt: Ctrl-C; the epochs that were over can be resumed.
    """
    limits = RunLimits(None if max_time is None else max_time.total_seconds(), limit_steps)
    out = Path(out)
    launch = current_launch(config)
    last = out / LAST
    if last.exists() and not resume:
        raise ValueError(f"{out} already holds a training: give another folder, or resume it")
    record = record_to_resume(config, last) if resume else None

    pl.seed_everything(config.seed, verbose=False)
    data = RecognitionData(config, skipped=out / "skipped.csv", launch=launch)
    clips, digests = data.clips(), data.digests()
    check_batch(config, launch, clips["train"])
    if record is not None:
        check_same_data(record, out, data.class_names, clips, digests)
    monitored = config.data.validation > 0
    if monitored and not clips["validation"]:
        raise SettingError(
            "data.validation", f"{config.data.validation:g} holds out none of {clips['train']} training clips"
        )
    # What a resumed training started from has served its purpose, and need not be there any more.
    model = build_model(config if record is None else replace(config, init=None), data.class_names)
    module = Recogniser(model, config, data.class_names, clips, digests, launch)
    watch = PeerWatch()
    own = _callbacks(config, out, monitored, progress)
    gathered = GatheredSkips(data.skipped)
    trainer = _trainer(
        config,
        launch,
        model,
        [*_loggers(out), *loggers],
        [watch, *own, *callbacks, gathered, limits],
        progress,
    )
    if announce is not None and launch.is_first:
        announce(_plan(config, model, data, record, launch))
    with run_folder(out, kept=LAST) if launch.is_first else contextlib.nullcontext(), watch.guard():
        if launch.is_first:
            remove_partial_files(out)
            write_whole(out / SETTINGS, yaml.safe_dump(config.to_options(), sort_keys=False))
        with contextlib.suppress(LimitReached), _interruptible(trainer):
            trainer.fit(module, datamodule=data, ckpt_path=str(last) if resume else None, weights_only=True)
        if limits.reached and trainer.interrupted:
            # Lightning takes it for an error, after which neither the data nor the loggers end in peace.
            data.teardown("fit")
            for logger in trainer.loggers:
                logger.finalize("success")
        chosen = BEST if monitored and config.optim.select == "best" else LAST
        result = None
        if launch.is_first:
            if limits.reached and not last.exists():
                raise TrainingError(f"{limits.reached} ended it before an epoch was over: nothing is kept")
            exported = export(out / chosen, out / EXPORTED)
            unfinished = trainer.current_epoch < config.optim.epochs
            result = replace(exported, limit=limits.reached if unfinished else None)
        # The others wait until it is written, and return the same.
        return cast(FitResult, trainer.strategy.broadcast(result))


def _plan(
    config: TrainingConfig,
    model: IFDD,
    data: RecognitionData,
    record: TrainingRecord | None,
    launch: Launch,
) -> TrainingPlan:
    clips = data.clips()
    return TrainingPlan(
        config,
        model.config,
        data.class_names,
        clips["train"],
        clips["validation"],
        sum(parameter.numel() for parameter in model.parameters()),
        device_name(config),
        0 if record is None else record.epoch + 1,
        None if record is None else record.config.optim.epochs,
        launch,
        data.class_clips(),
    )


def build_model(config: TrainingConfig, class_names: tuple[str, ...]) -> IFDD:
    """A network with as many outputs as there are classes, started from ``config.init`` if given.

    Args:
        config: the network and its start.
        class_names: one per output, in order.

    Returns:
        The network in training mode, float32, on the CPU.

    Raises:
        ifdd.checkpoint.CheckpointError: ``config.init`` cannot be read or does not fit the network.
    """
    network = IFDDConfig.from_dict({**config.model, "num_classes": len(class_names)})
    model = IFDD(network)
    if config.init is None:
        return model
    fresh_head = {name: value.clone() for name, value in model.head.state_dict().items()}
    report = load_pretrained(model, config.init, reset_head=True, part=config.init_part)
    if report.class_names != class_names:
        # The file's class order is unknown or another one: its classifier would be wrong from the start.
        model.head.load_state_dict(fresh_head)
    return model


def export(training_checkpoint: Path, target: Path) -> FitResult:
    """Writes the network of a training checkpoint, with its class list, as safetensors.

    Args:
        training_checkpoint: ``best.ckpt`` or ``last.ckpt`` of a run.
        target: the file to write.

    Returns:
        :class:`FitResult`.

    Raises:
        TrainingError: the checkpoint is missing, or its weights are NaN or infinite.
    """
    if not training_checkpoint.is_file():
        raise TrainingError(f"{training_checkpoint} is missing: there are no weights to write")
    loaded = load_checkpoint(training_checkpoint)
    broken = [name for name, value in loaded.model.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise TrainingError(f"{training_checkpoint}: weights are NaN or infinite (first: {broken[0]})")
    save_checkpoint(target, loaded.model, loaded.class_names, loaded.extra)
    return FitResult(target, loaded.extra["epoch"], loaded.extra["validation"])


def evaluate(checkpoint: Checkpoint, config: TrainingConfig, *, progress: bool = False) -> Scores:
    """Scores of a checkpoint on the test set that ``config.data`` names.

    With several ``config.devices`` each rank reads its share of the videos, none twice, and returns the
    scores of all; see :func:`fit` for how ranks are started.

    Args:
        checkpoint: the network.
        config: data and devices.
        progress: show a progress bar.

    Returns:
        The scores and the confusion matrix.

    Raises:
        ValueError: the checkpoint knows other classes than the data set.
        TrainingError: the test ended before it counted a clip.
        ifdd.training.watch.ReportedError: another rank failed or died; the first rank printed why.
    """
    launch = current_launch(config)
    data = RecognitionData(config, network=checkpoint.config, launch=launch)
    data.require_classes(tuple(checkpoint.class_names))
    model = cast(nn.Module, checkpoint.model)
    module = Recogniser(model, config, tuple(checkpoint.class_names), launch=launch)
    watch = PeerWatch()
    bars: list[Callback] = [RichProgressBar()] if progress else []
    trainer = _trainer(config, launch, model, [], [*bars, watch], progress)
    with watch.guard(), _interruptible(trainer):
        trainer.test(module, dataloaders=data.test_dataloader(), verbose=False)
    if module.scores is None:
        raise TrainingError("the test ended before it counted a clip")
    return module.scores


@contextlib.contextmanager
def _interruptible(trainer: pl.Trainer) -> Iterator[None]:
    """Ctrl-C is a `KeyboardInterrupt`, and stays one: Lightning leaves with `SystemExit(1)` instead, and
    ignores the signal from then on.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if trainer.interrupted and stop.code == 1:
            raise KeyboardInterrupt from None
        raise
    finally:
        if (
            signal.getsignal(signal.SIGINT) is not before
            and threading.current_thread() is threading.main_thread()
        ):
            signal.signal(signal.SIGINT, before)


def _loggers(out: Path) -> list[Logger]:
    return [CSVLogger(out, name="logs"), TensorBoardLogger(out, name="tensorboard", version="")]


def _callbacks(config: TrainingConfig, out: Path, monitored: bool, progress: bool) -> list[Callback]:
    # Saving at the training epoch's end, after validation: a checkpoint written during validation would hold
    # an epoch that is not over. "last" comes after "best", so that it knows the best score so far.
    history = History(out)
    callbacks: list[Callback] = [history]
    if monitored:
        callbacks.append(RunCheckpoint(out / BEST, monitor="val/uar"))
    callbacks.append(RunCheckpoint(out / LAST, saved=history.write))
    if config.optim.ema_decay is not None:
        callbacks.append(MovingAverage(config.optim.ema_decay))
    if progress:
        callbacks.append(ProgressBar())
    return callbacks


def _trainer(
    config: TrainingConfig,
    launch: Launch,
    model: nn.Module,
    loggers: list[Logger],
    callbacks: list[Callback],
    progress: bool,
) -> pl.Trainer:
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    count = torch.cuda.device_count()
    if on_gpu and launch.devices > count:
        raise SettingError(
            "devices", f"must be at most the {count} GPUs of this machine, got {launch.devices}"
        )
    _check_graph(config, launch, on_gpu)
    normed = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules())
    if normed and launch.world_size > 1 and not on_gpu:
        raise SettingError(
            "devices",
            "must be 1 on a CPU for a network with batch norm (embedding s3d, lifting conv): only GPUs share "
            f"its statistics; got {launch.text}",
        )
    settings: dict[str, Any] = {
        "accelerator": {"auto": "auto", "cpu": "cpu", "cuda": "gpu"}[config.device],
        "devices": launch.devices,
        "num_nodes": launch.num_nodes,
        "strategy": _strategy(config, launch, on_gpu),
        "sync_batchnorm": launch.world_size > 1 and on_gpu,
        # The loaders share the clips out themselves: Lightning's sampler pads, which counts videos twice.
        "use_distributed_sampler": False,
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
        "plugins": [AtomicCheckpointIO(), _environment(launch)],
    }
    return pl.Trainer(**settings)


def _check_graph(config: TrainingConfig, launch: Launch, on_gpu: bool) -> None:
    """Refuses CUDA graphs where there are none.

    Raises:
        SettingError: on a CPU, with DDP, whose sums of gradients no graph here has, and with activation
            checkpointing, which reads the state of the random numbers inside the capture.
    """
    if not config.cuda_graph:
        return
    if not on_gpu:
        raise SettingError("cuda_graph", "must be off on a CPU: CUDA graphs need a GPU")
    if launch.world_size > 1 or config.strategy != "auto":
        raise SettingError("cuda_graph", "must be off with several processes and with --strategy ddp")
    if config.model.get("activation_checkpointing"):
        raise SettingError("cuda_graph", "must be off with --model.activation_checkpointing true")


def _strategy(config: TrainingConfig, launch: Launch, on_gpu: bool) -> Strategy | str:
    if config.strategy == "auto" and launch.world_size == 1:
        return "auto"
    # The buffers are constants, or the statistics of a synchronised batch norm. Sending them before each
    # forward pass would also be a collective in tests, where ranks have different numbers of batches.
    return DDPStrategy(process_group_backend=None if on_gpu else "gloo", broadcast_buffers=False)


def _environment(launch: Launch) -> ClusterEnvironment:
    """Said explicitly: by itself Lightning takes any process with SLURM's variables for one of several, and
    queues jobs anew from a checkpoint of its own.
    """
    if launch.starter == "torchrun":
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False) if launch.starter == "srun" else LightningEnvironment()
