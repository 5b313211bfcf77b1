"""A training step asks the device for nothing, and runs on the kernels of the device it is on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.loops import evaluation_loop, fit_loop
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ifdd.data.transforms import BatchMix
from ifdd.losses import soft_target_cross_entropy
from ifdd.training import run
from ifdd.training.config import TrainingConfig
from ifdd.training.module import Recogniser
from ifdd.training.windows import collate_clips, collate_windows

Make = Callable[..., TrainingConfig]
META = torch.device("meta")

#: What a GPU must have finished before the host knows what comes of it.
WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten._unique2.default,
}


class NoWaiting(TorchDispatchMode):
    """Fails where the host would wait for the device, whose part the meta device plays.

    Copies from the host count as well, unless they were asked for without waiting (``non_blocking``).
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in pytree.tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        devices = {t.device for t in tensors}
        if META in devices:
            self.seen += 1
            assert func not in WAITING, f"{func} waits for the device"
            if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default) and len(devices) > 1:
                free = result.device == META and (kwargs or {}).get("non_blocking", False)
                assert free, f"{func} copies between host and device"
        return result


class NoDevice(CPUAccelerator):
    """Lightning's CPU, for parameters that are elsewhere."""

    def setup_device(self, device: torch.device) -> None:
        assert device == META


class EnoughError(Exception):
    """Ends a training."""


class Watch(pl.Callback):
    """Watches whole steps: from the batch on the device to the weights, their average and the logs."""

    def __init__(self, steps: int) -> None:
        self.steps, self.mode, self.stack = steps, NoWaiting(), ExitStack()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.stack.enter_context(self.mode)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.stack.close()
        assert batch[0].device == META
        assert next(pl_module.parameters()).device == META
        if batch_idx + 1 == self.steps:
            raise EnoughError


@pytest.mark.parametrize(
    "optim",
    [
        {},
        {"ema_decay": 0.9, "gradient_clip": 1.0},
        {"mixup": 0.0, "lifting_reduction": "mean", "accumulate": 2},
    ],
)
def test_a_step_never_waits_for_the_device(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optim: dict[str, Any]
) -> None:
    """The training as it is, on a device that has no numbers to give.

    But for the look at the loss, once in many steps: `test_divergence.py` counts them.
    """
    monkeypatch.setattr(Recogniser, "_check_loss", lambda self: None)
    trainer = pl.Trainer

    def on_meta(**settings: Any) -> pl.Trainer:
        strategy = SingleDeviceStrategy(device=META, accelerator=NoDevice())
        return trainer(**{**settings, "accelerator": "auto", "devices": "auto", "strategy": strategy})

    monkeypatch.setattr(trainer, "_teardown", lambda self: None)  # would bring the weights back to the host
    monkeypatch.setattr(pl, "Trainer", on_meta)
    for loop in (fit_loop, evaluation_loop):  # they count batches on the device, before the first step
        monkeypatch.setattr(loop, "has_len_all_ranks", lambda *_: True)
    watch = Watch(3)
    config = tiny_config(**optim)
    config = replace(config, data=replace(config.data, validation=0.0))
    with watch.stack, pytest.raises(EnoughError):
        run.fit(config, tmp_path, callbacks=(watch,))
    assert watch.mode.seen > 1000, "the step was not watched"


def _losses(config: TrainingConfig, module: Recogniser, optimizer: Any, steps: int) -> list[float]:
    clips = torch.rand(4, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1))
    found = []
    for _ in range(steps):
        torch.manual_seed(2)
        parts = module.criterion(module.model(clips), torch.tensor([0, 1, 2, 3]))
        optimizer.zero_grad()
        parts.total.backward()
        optimizer.step()
        found.append(float(parts.total.detach()))
    return found


def _module(config: TrainingConfig) -> Recogniser:
    torch.manual_seed(4)
    names = tuple("abcd")
    return Recogniser(run.build_model(config, names), config, names)


def _as_on_a_gpu(module: Recogniser, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The optimiser that parameters on a GPU get; its kernels run on a CPU, too."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Parameter, "is_cuda", True, raising=False)
        return module.configure_optimizers()


@pytest.mark.parametrize("to_gpu", [True, False])
def test_a_training_goes_on_with_the_kernels_of_another_device(
    tiny_config: Make, monkeypatch: pytest.MonkeyPatch, to_gpu: bool
) -> None:
    config = tiny_config()
    whole = _module(config)
    expected = _losses(config, whole, whole.configure_optimizers(), 4)

    first = _module(config)
    makers = [lambda m: m.configure_optimizers(), lambda m: _as_on_a_gpu(m, monkeypatch)]
    begin, go_on = makers if to_gpu else makers[::-1]
    optimizer = begin(first)
    losses = _losses(config, first, optimizer, 2)

    second = _module(config)
    second.load_state_dict(first.state_dict())
    resumed = go_on(second)
    resumed.load_state_dict(optimizer.state_dict())
    assert [bool(group["fused"]) for group in (*optimizer.param_groups, *resumed.param_groups)] == [
        not to_gpu, to_gpu
    ]  # fmt: skip
    losses += _losses(config, second, resumed, 2)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert losses[0] != losses[-1]
    assert {float(state["step"]) for state in resumed.state.values()} == {4.0}


def test_what_lightning_would_refuse_is_not_fused(tiny_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for precision, clip, fused in (
        ("32", 1.0, True),
        ("bf16-mixed", None, True),
        ("bf16-mixed", 1.0, True),
        ("16-mixed", 1.0, None),
    ):
        config = replace(tiny_config(gradient_clip=clip), precision=precision)  # type: ignore[arg-type]
        assert _as_on_a_gpu(_module(config), monkeypatch).defaults["fused"] is fused
    assert _module(tiny_config()).configure_optimizers().defaults["fused"] is None


@pytest.mark.parametrize("label", [-1, -100, 4])
def test_labels_are_checked_where_they_are_made(label: int) -> None:
    items = [(torch.rand(3, 2, 4, 4), 0), (torch.rand(3, 2, 4, 4), label)]
    for collate in (collate_clips, collate_windows):
        with pytest.raises(ValueError, match=rf"labels must lie in 0\.\.3, got \[0, {label}\]"):
            collate(items, classes=4)
    labels = torch.tensor([0, label])
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.3"):
        BatchMix(4)(torch.rand(2, 3, 1, 4, 4), labels)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.3"):
        soft_target_cross_entropy(torch.randn(2, 4), labels)


def test_collating_keeps_clips_and_labels() -> None:
    clips = torch.rand(3, 3, 2, 4, 4)
    joined, labels = collate_clips([(clip, number) for number, clip in enumerate(clips)], classes=3)
    assert torch.equal(joined, clips)
    assert labels.tolist() == [0, 1, 2]
    soft = torch.rand(3, 5)
    assert torch.equal(collate_clips(list(zip(clips, soft, strict=True)), classes=5)[1], soft)
