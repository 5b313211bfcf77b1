"""A GPU that is not there: fake CUDA tensors, and a PyTorch that believes in the device.

Inside :func:`fake_gpu` every tensor is fake: shapes, dtypes, strides and devices are known, values are not.
All Python that drives a GPU runs: the public functions, autograd and autocast for CUDA, the choice of a
backend, the definitions in plain PyTorch, and the host code of the Triton kernels up to each launch, which is
noted. What a kernel computes and the C++ host code of the CUDA kernels stay outside.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from benchmarks.gpu.library import expected_ops
from ifdd_kernels import _library, backends
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels._schema import NAMESPACE
from ifdd_kernels.triton._runtime import Launch, captured_launches

ROOT = Path(__file__).parents[2]
#: As in CMakeLists.txt.
ARCHITECTURES = ("80-real", "86-real", "89-real", "90a-real", "90-virtual")
H200 = (9, 0)
_sdpa = torch.nn.functional.scaled_dot_product_attention
NAME = "NVIDIA imagined"


@functools.cache
def cuda_ops() -> frozenset[str]:
    """Names of the ops that a library with CUDA kernels has, read from their sources."""
    found = frozenset(expected_ops())
    assert len(found) == 20
    return found


@functools.cache
def guard() -> Any:
    """The switch that makes a CPU build of PyTorch believe in a device (guard.cpp)."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise RuntimeError("a fake GPU needs a C++ compiler: install g++, or name one in CXX")
    folder, source = Path(torch.__file__).parent, Path(__file__).with_name("guard.cpp")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
    built = ROOT / "build" / "fake_gpu" / f"guard-{torch.__version__}-{digest}.so"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        part = built.with_suffix(f".{os.getpid()}")
        flags = ("-std=c++20", "-O0", "-shared", "-fPIC", f"-I{folder / 'include'}")
        link = (f"-L{folder / 'lib'}", "-lc10", "-ltorch_cpu")
        subprocess.run([compiler, *flags, str(source), "-o", str(part), *link], check=True)
        part.replace(built)  # several workers may build it at once
    return ctypes.CDLL(str(built)).ifdd_fake_cuda


@contextmanager
def _device_for_autograd() -> Iterator[None]:
    if torch.version.cuda is not None:  # its driver answers, or refuses
        yield
        return
    switch = guard()
    switch(ctypes.c_bool(True))
    try:
        yield
    finally:
        switch(ctypes.c_bool(False))


@dataclass
class Machine:
    """The record of a run on a fake GPU."""

    #: Calls of ops by the name they are registered under.
    calls: list[str] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)


class _HostCode(TorchDispatchMode):
    """Runs the Python of this library's ops, which a fake rule would replace, and compares it with that."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        namespace, _, name = func._schema.name.partition("::")
        if namespace != NAMESPACE:
            return func(*args, **(kwargs or {}))
        self.machine.calls.append(name)
        promised = func(*args, **(kwargs or {}))
        code = python_of(name)
        if code is None:
            return promised
        with captured_launches(architecture()) as launches, self:
            results = code(*args, **(kwargs or {}))
        self.machine.launches += launches
        if name.endswith("_triton"):
            assert launches or all(t.numel() == 0 for t in _tensors(promised)), f"{name} launches nothing"
        for place, (result, fake) in enumerate(zip(_tensors(results), _tensors(promised), strict=True)):
            told, expected = ((tuple(t.shape), t.dtype, t.device) for t in (result, fake))
            assert told == expected, f"{name}, result {place}: {told}, its fake rule says {expected}"
        return promised


def architecture() -> int:
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def _tensors(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)


def python_of(name: str) -> Any:
    """The function behind a registered op on a GPU; None for a CUDA kernel."""
    family, _, backend = name.rpartition("_")
    if backend not in ("triton", "reference"):
        if name in _library.native_ops("cuda"):
            return None
        family, backend = name, "reference"
    forward = family.removesuffix("_backward")
    operator = OPERATORS[forward]
    if backend == "triton":
        kernels = operator.backends["triton"]
        return kernels.forward if forward == family else kernels.backward
    return operator.reference if forward == family else operator.backward.reference  # type: ignore[union-attr]


def on_the_host(function: Any, *args: Any, **options: Any) -> Any:
    """Runs a function on real tensors, in the middle of fake ones."""
    with _disable_current_modes():
        return function(*args, **options)


def _attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Tensor:
    """``scaled_dot_product_attention`` by the kernel of a GPU, where there is neither mask nor dropout."""
    plain = query.is_cuda and query.dim() == 4 and not rest and not options
    if plain and query.dtype in (torch.float16, torch.bfloat16):
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]  # type: ignore[no-any-return]
    if plain and query.dtype == torch.float32:
        wanted = torch.is_grad_enabled()
        return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, wanted)[0]  # type: ignore[no-any-return]
    return _sdpa(query, key, value, *rest, **options)


def _apply(module: torch.nn.Module, function: Any, recurse: bool = True) -> torch.nn.Module:
    """``Module._apply``, which moves modules: a parameter that stays where it is stays the same object."""
    for child in module.children() if recurse else ():
        child._apply(function)  # some move more than their parameters
    for name, parameter in module._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                moved = function(parameter)
            if moved is not parameter:
                module._parameters[name] = torch.nn.Parameter(moved, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = function(buffer)
    return module


def _patches(capabilities: Sequence[tuple[int, int]], library: frozenset[str], built: tuple[str, ...]) -> Any:
    def of(index: Any = None) -> int:
        return (
            0
            if index is None
            else torch.device("cuda", index).index
            if isinstance(index, int)
            else index.index or 0
        )

    def properties(index: Any = None) -> Any:
        major, minor = capabilities[of(index)]
        sizes = {"total_memory": 139 * 2**30, "L2_cache_size": 50 * 2**20, "multi_processor_count": 132}
        return SimpleNamespace(name=NAME, major=major, minor=minor, **sizes)

    on_cpu = _library.native_ops("cpu")
    cuda: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: len(capabilities),
        "current_device": lambda: 0,
        "get_device_name": lambda index=None: NAME,
        "get_device_capability": lambda index=None: capabilities[of(index)],
        "get_device_properties": properties,
        "is_bf16_supported": lambda *_, **__: True,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
    }
    yield from (mock.patch.object(torch.cuda, name, function) for name, function in cuda.items())
    ops = {"cpu": on_cpu, "cuda": library}
    yield mock.patch.object(_library, "native_ops", lambda device="cpu": ops[device])
    yield mock.patch.object(_library, "cuda_architectures", return_value=built)
    yield mock.patch.object(_library, "loaded", return_value=True)
    # It would make real tensors on a device that PyTorch says is there.
    yield mock.patch.object(FakeTensorMode, "avoid_device_init", True)
    # A copy of a fake tensor belongs to the same mode.
    yield mock.patch.object(FakeTensorMode, "__deepcopy__", lambda mode, _: mode, create=True)
    # It draws again until a value fits, and here are no values.
    yield mock.patch.object(torch.nn.init, "trunc_normal_", lambda tensor, *_, **__: tensor)
    # Rates of stochastic depth: a few numbers on the host, which modules read while they are made.
    linspace = torch.linspace
    yield mock.patch.object(
        torch, "linspace", lambda *args, **options: on_the_host(linspace, *args, **options)
    )
    # The original exchanges the insides of fake tensors, which fails where something else refers to them.
    yield mock.patch.object(torch.nn.Module, "_apply", _apply)
    # A CPU build would take the plain one, which a GPU takes for neither dtype.
    yield mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", _attention)
    # Random numbers of a device have a generator there.
    make = torch.Generator
    yield mock.patch.object(torch, "Generator", side_effect=lambda *_: make())


def forget() -> None:
    """Forgets what was found out about devices and kernels."""
    backends._fastest.cache_clear()
    backends._entries.cache_clear()
    _library.without_code.cache_clear()


@contextmanager
def fake_gpu(
    *capabilities: tuple[int, int],
    library: frozenset[str] | None = None,
    built: tuple[str, ...] = ARCHITECTURES,
) -> Iterator[Machine]:
    """Everything inside runs on fake GPUs of these compute capabilities (one H200 by default).

    Patch nothing of ``torch.cuda`` inside that is taken back outside: that would bring back the fake.

    ``library`` names the CUDA ops of the native library, all of them by default; ``built`` its architectures.
    """
    with ExitStack() as stack:
        stack.enter_context(_device_for_autograd())
        for patch in _patches(capabilities or (H200,), cuda_ops() if library is None else library, built):
            stack.enter_context(patch)
        stack.callback(forget)
        forget()
        # The engine has a thread for each device it found when it first ran.
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        machine = Machine()
        stack.enter_context(FakeTensorMode())
        stack.enter_context(_HostCode(machine))
        yield machine
