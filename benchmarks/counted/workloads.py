"""The workloads that are counted: a training step and an inference of the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.counted.trace import Counter, Trace
from benchmarks.fake_gpu.machine import fake_gpu, on_the_host
from ifdd import IFDD, create_model
from ifdd.training.averaging import Average
from ifdd.training.config import DataConfig, OptimConfig, TrainingConfig
from ifdd.training.module import Recogniser
from ifdd_kernels import use_backend

WORKLOADS = ("training", "inference")
PRECISIONS = ("fp32", "bf16", "bf16-weights")
"""float32 throughout; autocast to bfloat16 of float32 weights; weights and clips in bfloat16."""

BACKENDS = ("native", "triton", "reference")
"""native: what ``auto`` chooses where CUDA C++ kernels are built, so Triton where an op has none."""


class Observer(Protocol):
    """What looks at every op of a workload, and is told what comes next."""

    phase: str

    def running(self) -> AbstractContextManager[object]:
        """Looks at what runs inside."""
        ...

    def mark(self, name: str) -> None:
        """A moment of interest."""
        ...


@dataclass(frozen=True)
class Workload:
    """One row of the results."""

    workload: str = "training"
    batch: int = 16
    frames: int = 16
    precision: str = "bf16"
    backend: str = "native"
    network: str = "ifdd_xs"
    #: Decay of the average of the weights; None: they are not averaged.
    ema_decay: float | None = None
    #: Norm that gradients are clipped at; None: they are not.
    gradient_clip: float | None = None
    #: Of the network's configuration, for tests of small ones.
    overrides: dict[str, Any] = field(default_factory=dict)

    def trace(self) -> Trace:
        """Counts it on a fake H200."""
        counter = Counter()
        self.run(counter)
        return counter.trace

    def run(self, observer: Observer) -> None:
        """Runs it on a fake H200, seen by an observer."""
        with fake_gpu(), use_backend("auto" if self.backend == "native" else self.backend):
            network = create_model(self.network, clip_frames=self.frames, **self.overrides).cuda()
            if self.precision == "bf16-weights":
                network.bfloat16()
            if self.workload == "training":
                self._train(network, observer)
            else:
                self._infer(network.eval(), observer)

    def _clips(self, network: IFDD) -> Tensor:
        size, dtype = network.config.image_size, next(network.parameters()).dtype
        return torch.empty(self.batch, 3, self.frames, size, size, device="cuda", dtype=dtype)

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast("cuda", torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def _infer(self, network: IFDD, observer: Observer) -> None:
        clips = self._clips(network)
        # Predictions are made in inference mode, in which fake tensors cannot be.
        with torch.no_grad(), observer.running(), self._autocast():
            observer.phase = "forward"
            network(clips)

    def _train(self, network: IFDD, observer: Observer) -> None:
        """The second step: the optimiser has its state."""
        # Only MixUp: a step mixes one way or the other, and that is drawn.
        optim = OptimConfig(cutmix=0.0, gradient_clip=self.gradient_clip)
        mixed: Any = "bf16-mixed" if self.precision == "bf16" else "32"
        config = TrainingConfig(DataConfig(name="synthetic"), optim, precision=mixed)
        names = tuple(map(str, range(network.config.num_classes)))
        module = Recogniser(network, config, names).train().cuda()  # Lightning notes the device
        optimizer = module.configure_optimizers()
        parameters = list(network.parameters())
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        average = None if self.ema_decay is None else Average(module, self.ema_decay)
        if average is not None:
            # A tensor of the host whose value decides: fake ones have none.
            del average.n_averaged
            average.n_averaged = 0  # type: ignore[assignment]
            average.update_parameters(module)
        clips = self._clips(network)
        labels = torch.empty(self.batch, dtype=torch.int64, device="cuda")
        with observer.running(), _drawn_on_the_host():
            observer.phase = "mixing"
            clips, targets = module.mix(clips, labels)
            observer.mark("forward begins")
            with self._autocast():
                observer.phase = "forward"
                output = network(clips)
                observer.phase = "loss"
                loss = module.criterion(output, targets).total
            del output
            observer.mark("forward ends")
            observer.phase = "backward"
            loss.backward()
            observer.phase = "optimiser"
            if self.gradient_clip is not None:
                nn.utils.clip_grad_norm_(parameters, self.gradient_clip)
            optimizer.step()
            optimizer.zero_grad()
            if average is not None:
                average.update_parameters(module)


@contextmanager
def _drawn_on_the_host() -> Iterator[None]:
    """Inside, the few numbers that decide how a batch is mixed have values."""

    def number(function: Any) -> Any:
        def drawn(*args: Any, **options: Any) -> float:
            return on_the_host(lambda: function(*args, **options).item())

        return mock.patch.object(torch, function.__name__, drawn)

    with number(torch.rand), number(torch.randint):
        yield
