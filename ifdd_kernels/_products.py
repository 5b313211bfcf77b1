"""Whether a CPU multiplies 16-bit matrices faster by PyTorch's own kernels or through float32.

No property of a CPU says so: bfloat16 products are twice as fast as float32 ones on one CPU with AVX512_BF16
and slower on another. So both ways are timed at the first 16-bit product of a process, on the smallest layer
of the network, and the answer is kept for every later process on such a CPU with the same PyTorch.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import os
import platform
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ifdd_kernels import _kept, _library

VARIABLE = "IFDD_CPU_PRODUCTS"
WAYS = {"library": False, "float32": True}
"""Words of the variable -> whether products go through float32."""
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_PLACES = {torch.bfloat16: 0, torch.float16: 1}  # as csrc/cpu/choice.cpp counts them
_UNDECIDED = -1

#: Rows and channels of the last stage at B = 1 and 16 frames, and of a trial before: where the library has no
#: kernel for a dtype, a product of that size would take seconds.
_LAYER, _TRIAL = (393, 768), (16, 256)
_ROUNDS = 3
#: Less is within the noise, and PyTorch's own products stay.
_WORTH_IT = 1.05
#: Such a difference in the trial decides.
_HOPELESS = 8.0
#: Variables that take instructions from this library and from those of PyTorch.
_LOWERING = (
    "IFDD_CPU_ISA",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
)


@dataclass(frozen=True)
class Choice:
    """How products of one dtype are computed in this process, and why."""

    through_float32: bool
    reason: str

    def __str__(self) -> str:
        return f"{'through float32' if self.through_float32 else 'by PyTorch'} ({self.reason})"


_choices: dict[torch.dtype, Choice] = {}
_lock = threading.RLock()


def _new_lock() -> None:
    """A thread that held the lock does not exist in a forked child."""
    global _lock
    _lock = threading.RLock()


@functools.cache
def _setter(name: str) -> Any:
    """A function (dtype, way) of the library; None without native kernels."""
    return _library.c_function(name, None, ctypes.c_int32, ctypes.c_int32)


def through_float32(dtype: torch.dtype) -> bool:
    """Whether a CPU's products of a dtype go through float32; False without a native kernel for that.

    Raises:
        ValueError: the environment variable ``IFDD_CPU_PRODUCTS`` says nothing that is known.
    """
    found = choice(dtype)
    return found is not None and found.through_float32


def choice(dtype: torch.dtype) -> Choice | None:
    """The choice for a 16-bit dtype, made at the first call; None for others and without native kernels."""
    if dtype not in _PLACES or _setter("ifdd_choose_products") is None:
        return None
    if (found := _choices.get(dtype)) is None:
        with _lock:
            if (found := _choices.get(dtype)) is None:
                found = _decide(dtype)
                _settle(dtype, found)
    return found


def choices() -> dict[str, str]:
    """Name of each 16-bit dtype -> its choice in words, or why there is none.

    Empty without native kernels.
    """
    words = {}
    for name, dtype in DTYPES.items():
        try:
            made: object = choice(dtype)
        except ValueError as error:
            made = error
        if made is not None:
            words[name] = str(made)
    return words


def asked_for(dtype: torch.dtype) -> bool | None:
    """The value of ``IFDD_CPU_PRODUCTS``: ``float32``, ``library``, or one of them for a dtype.

    Such as ``bfloat16=library,float16=float32``. None where it says nothing of this dtype.
    """
    text = os.environ.get(VARIABLE, "")
    answer = None
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, separator, way = part.rpartition("=")
        if way not in WAYS or (separator and name not in DTYPES):
            expected = "'library' or 'float32', alone or as bfloat16=WAY,float16=WAY"
            raise ValueError(f"{VARIABLE}: expected {expected}, got {text!r}")
        if not separator or DTYPES[name] == dtype:
            answer = WAYS[way]
    return answer


@contextlib.contextmanager
def forced(through: bool) -> Iterator[None]:
    """Inside, 16-bit products of the whole process go through float32, or by PyTorch. For tests of both."""
    with _lock:
        before = {dtype: choice(dtype) for dtype in _PLACES}
        for dtype in _PLACES:
            _settle(dtype, Choice(through, "forced"))
    try:
        yield
    finally:
        for dtype, made in before.items():
            if made is not None:
                _settle(dtype, made)


def _settle(dtype: torch.dtype, made: Choice) -> None:
    _choices[dtype] = made
    _setter("ifdd_choose_products")(_PLACES[dtype], int(made.through_float32))


def _decide(dtype: torch.dtype) -> Choice:
    if (wanted := asked_for(dtype)) is not None:
        return Choice(wanted, f"{VARIABLE} is set")
    path = _kept.file_for("products", str(dtype), *_machine())
    if (found := _kept_choice(path)) is not None:
        return found
    library, float32 = measure(dtype)
    content = {
        "dtype": str(dtype),
        "machine": _machine(),
        "library_ms": library * 1e3,
        "float32_ms": float32 * 1e3,
        "through_float32": library > _WORTH_IT * float32,
    }
    kept = _kept.write(path, content, lambda earlier: _described(earlier, "") is not None)
    # Of processes that measured at the same time all take what the first one kept.
    found = _kept_choice(path) if kept else None
    made = found or _described(content, "the user's cache cannot be written: not kept")
    assert made is not None
    return made


def _kept_choice(path: Path | None) -> Choice | None:
    content = _kept.read(path)
    return None if content is None else _described(content, f"kept in {path}")


def _described(content: dict[str, Any], origin: str) -> Choice | None:
    """The choice in a file; None if there is none in it."""
    library, float32, through = (
        content.get(name) for name in ("library_ms", "float32_ms", "through_float32")
    )
    if not (isinstance(library, float) and isinstance(float32, float) and isinstance(through, bool)):
        return None
    return Choice(through, f"{library:.3g} ms by PyTorch, {float32:.3g} ms through float32; {origin}")


def _machine() -> list[str]:
    """Key of the answer: CPU, PyTorch, threads, and the variables that lower their instruction sets."""
    settings = [f"{name}={os.environ[name]}" for name in _LOWERING if name in os.environ]
    return [_cpu(), torch.__version__, f"threads={torch.get_num_threads()}", *settings]


def _cpu() -> str:
    """The model as /proc/cpuinfo has it, with its flags: a virtual machine may hide some."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    fields = dict(line.replace("\t", "").split(":", 1) for line in lines.splitlines() if ":" in line)
    names = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features", "CPU part")
    return " ".join(fields[name].strip() for name in names if name in fields)


def measure(dtype: torch.dtype) -> tuple[float, float]:
    """Seconds of a layer's forward pass in a 16-bit dtype: by PyTorch, and through float32.

    With the threads that PyTorch has now; the least of three in turn.
    """
    # In a trace and under autocast, too, these are plain products of this CPU. No random numbers are drawn.
    plain = (torch.device("cpu"), torch.no_grad(), torch.autocast("cpu", enabled=False))
    with contextlib.ExitStack() as stack:
        for context in (_disable_current_modes(), *plain):
            stack.enter_context(context)
        library, float32 = _layer_times(dtype, *_TRIAL, rounds=1)
        if library > _HOPELESS * float32:
            return library, float32
        return _layer_times(dtype, *_LAYER, rounds=_ROUNDS)


def _layer_times(dtype: torch.dtype, rows: int, channels: int, rounds: int) -> tuple[float, float]:
    x, weight = (torch.linspace(-1, 1, n * channels).view(n, channels).to(dtype) for n in (rows, channels))
    force = _setter("ifdd_force_products")
    best = [float("inf"), float("inf")]
    try:
        for number in range(rounds + 1):  # the first ones prepare what the library keeps for a shape
            for way in range(2):
                force(_PLACES[dtype], way)
                started = time.perf_counter()
                _layer(x, weight)
                if number > 0:
                    best[way] = min(best[way], time.perf_counter() - started)
    finally:
        force(_PLACES[dtype], _UNDECIDED)
    return best[0], best[1]


def _layer(x: Tensor, weight: Tensor) -> Tensor:
    out: Tensor = torch.ops.ifdd.linear(x, weight, None)
    return out


def _answer(place: int) -> int:
    """Called by the library at its first product of a dtype. Must not raise: nobody would see the error."""
    dtype = next(dtype for dtype, number in _PLACES.items() if number == place)
    try:
        return int(through_float32(dtype))
    except Exception as error:
        with contextlib.suppress(Warning):  # where warnings are errors
            warnings.warn(f"16-bit products run as most CPUs do them best: {error}", stacklevel=2)
        return _UNDECIDED


_callback: Any = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int32)(_answer)


def connect() -> None:
    """Lets the library ask this module. Once, after it is loaded."""
    register = _library.c_function("ifdd_decide_products_by", None, ctypes.c_void_p)
    if register is not None:
        register(ctypes.cast(_callback, ctypes.c_void_p))
        # Of the library that is loaded: a later installation may put another file in its place.
        for name in ("ifdd_choose_products", "ifdd_force_products"):
            _setter(name)
        os.register_at_fork(after_in_child=_new_lock)
        atexit.register(register, None)  # threads may outlive the interpreter
