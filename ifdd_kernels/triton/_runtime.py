"""How kernels are launched: configuration, device, compilers that trace, precision of float32 products."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ifdd_kernels.triton import _tuning, interpreted
from ifdd_kernels.triton._tuning import Config, Grid

INTERPRET = interpreted()

#: Triton 3.6 and 3.7 need more registers for the same tiles: some that suit 3.9 spill (docs/triton.md).
OLDER_COMPILER = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 8)

Arguments = Mapping[str, Any]


def dot_precision(dtype: torch.dtype) -> str:
    """``input_precision`` of ``tl.dot`` for operands of a dtype.

    float32 products use TF32 only where PyTorch's own would (``torch.set_float32_matmul_precision``,
    ``torch.backends.cuda.matmul.allow_tf32``); otherwise three TF32 products, which tensor cores run and
    which err like float32. 16-bit operands are exact in any of them.
    """
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


@dataclass(frozen=True)
class Launch:
    """One launch seen by :func:`captured_launches`: what to compile, in every configuration."""

    kernel: Kernel
    arguments: Arguments
    configs: Sequence[Config]
    grid: Grid


class Kernel:
    """A ``@triton.jit`` function with its configurations.

    Args:
        function: the kernel. It must give the same result when it runs twice, because tuning runs it
            again: it writes its outputs and accumulates into none.
        configs: (arguments) -> the configurations that suit them, the default first. Few: each is compiled
            and timed once per key and device.
        key: names of the sizes that stay the same while the batch varies: they are kept exactly where the
            best configuration is looked up, all others roughly (:func:`_tuning.launch_key`).
        interpreter: (arguments) -> the tiles for the interpreter, whose cost follows the number of program
            instances: few and large. The default configuration if not given.
    """

    def __init__(
        self,
        function: Any,
        configs: Callable[[Arguments], Sequence[Config]],
        key: Sequence[str] = (),
        interpreter: Callable[[Arguments], Mapping[str, int]] | None = None,
    ) -> None:
        self.function = function
        self.name: str = function.__name__
        self.configs = configs
        self.key = frozenset(key)
        #: Names of the arguments that are compile-time constants.
        self.constants = frozenset(
            n for n, of in function.fn.__annotations__.items() if "constexpr" in str(of)
        )
        self.interpreter = interpreter

    def __call__(self, grid: Grid, **arguments: Any) -> None:
        """Launches the kernel on the device of its first tensor; ``grid`` sees arguments and tiles."""
        if _captured is not None:
            _captured.append(Launch(self, arguments, self.configs(arguments), grid))
            return
        forced = None if _forced is None else _forced(self, self.configs(arguments))
        if INTERPRET:
            if forced is not None:
                tiles = forced.tiles
            elif self.interpreter is not None:
                tiles = self.interpreter(arguments)
            else:
                tiles = self.configs(arguments)[0].tiles
            self.function[grid({**arguments, **tiles})](**arguments, **tiles)
            return
        tensor = next(value for value in arguments.values() if isinstance(value, Tensor))
        if _is_traced(tensor):
            # A compiler that traces sees a plain launch only through wrap_triton, which takes no maxnreg.
            config = forced or _tuning.choose_traced(self, grid, arguments, tensor.device)
            self._launch(torch.library.wrap_triton(self.function), grid, arguments, config)
            return

        def launch(config: Config) -> None:
            self._launch(self.function, grid, arguments, config)

        with _on(tensor.device):
            launch(forced or _tuning.choose(self, grid, arguments, tensor.device, launch))

    def _launch(self, function: Any, grid: Grid, arguments: Arguments, config: Config) -> None:
        values = {**arguments, **config.tiles}
        function[grid(values)](**values, **config.options)


def _is_traced(tensor: Tensor) -> bool:
    """Whether a compiler traces: its tensors have no memory, unlike those of other subclasses."""
    return type(tensor).__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device: make it the tensor's."""
    if device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)


_captured: list[Launch] | None = None
_captured_for: int | None = None


@contextlib.contextmanager
def captured_launches(architecture: int | None = None) -> Iterator[list[Launch]]:
    """Kernels are noted instead of launched inside: with fake tensors, what an op would compile.

    ``architecture``, 80 for sm_80, stands in for the device's, see :func:`architecture`.
    """
    global _captured, _captured_for
    _captured, _captured_for = [], architecture
    try:
        yield _captured
    finally:
        _captured, _captured_for = None, None


_forced: Callable[[Kernel, Sequence[Config]], Config | None] | None = None


@contextlib.contextmanager
def forced_configuration(choose: Callable[[Kernel, Sequence[Config]], Config | None]) -> Iterator[None]:
    """Kernels launched inside run in the configuration that ``choose`` picks of theirs.

    Nothing is timed, looked up or kept for it, and the interpreter takes its tiles too. None leaves a kernel
    to the usual choice. A configuration that the device cannot run raises what Triton raises.
    """
    global _forced
    before, _forced = _forced, choose
    try:
        yield
    finally:
        _forced = before


def architecture() -> int:
    """Compute capability to choose configurations for, 90 for 9.0; 90 without a device."""
    if _captured_for is not None:
        return _captured_for
    if not torch.cuda.is_available():
        return 90
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def contiguous_channels(x: Tensor) -> Tensor:
    """x if its last axis is dense, else a contiguous copy: kernels take any other strides."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def next_power_of_2(value: int) -> int:
    """The least power of two that is not below a value."""
    result: int = triton.next_power_of_2(value)
    return result


def cdiv(value: int, by: int) -> int:
    """value / by, rounded up."""
    return -(-value // by)
