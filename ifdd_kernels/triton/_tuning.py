"""Which configuration a kernel runs in: from the table of known devices, a measurement, or the default.

In this order: a choice of this process; :mod:`ifdd_kernels.triton._tuned`, the committed table; the cache
on disk; a measurement, at the kernel's first launch with a key, whose result goes to the disk. Nothing is
timed while a CUDA graph is captured or a compiler traces (the default then), nor where
``torch.use_deterministic_algorithms`` asks for results that do not depend on a stopwatch, nor with
``IFDD_TRITON_TUNE=0``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources

from ifdd_kernels.triton import _tuned

if TYPE_CHECKING:
    from ifdd_kernels.triton._runtime import Kernel


@dataclass(frozen=True)
class Config:
    """Compile-time tile sizes of a kernel by argument name, warps of a program, stages of its loops.

    ``max_registers`` is a thread's limit for the assembler, which otherwise picks one for occupancy.
    """

    tiles: Mapping[str, int]
    num_warps: int = 4
    num_stages: int = 2
    max_registers: int | None = None

    @property
    def options(self) -> dict[str, int]:
        """Everything but the tiles, as Triton's compiler names it."""
        limit = {} if self.max_registers is None else {"maxnreg": self.max_registers}
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, **limit}


_chosen: dict[tuple[torch.device, str], Config] = {}


def choose(
    kernel: Kernel,
    arguments: Mapping[str, Any],
    device: torch.device,
    launch: Callable[[Config], None],
    may_time: bool = True,
) -> Config:
    """The configuration to launch with; times the candidates where none is known and ``may_time``."""
    candidates = kernel.configs(arguments)
    if len(candidates) == 1:
        return candidates[0]
    key = _key(kernel, arguments)
    known = _chosen.get((device, key))
    if known is not None:
        return known
    if may_time and torch.cuda.is_current_stream_capturing():
        may_time = False
    if device.type != "cuda" or not torch.cuda.is_available():  # a compiler's picture of a device
        return candidates[0]
    config = _from_table(device, key, candidates)
    if config is None:
        path = _cache_file(kernel, device, key, candidates)
        config = _load(path, candidates)
        if config is None:
            if not may_time or not _timing_allowed():
                return candidates[0]
            config = fastest(candidates, launch)
            _store(path, key, config)
    _chosen[device, key] = config
    return config


def fastest(candidates: Sequence[Config], launch: Callable[[Config], None]) -> Config:
    """The candidate with the least median time; one that needs more than the device has never wins."""

    def milliseconds(config: Config) -> float:
        try:
            result: float = triton.testing.do_bench(
                lambda: launch(config), warmup=5, rep=20, return_mode="median"
            )
        except OutOfResources:
            return float("inf")
        return result

    return min(candidates, key=milliseconds)


def _timing_allowed() -> bool:
    return os.environ.get("IFDD_TRITON_TUNE", "1") != "0" and not torch.are_deterministic_algorithms_enabled()


def _key(kernel: Kernel, arguments: Mapping[str, Any]) -> str:
    dtypes = ",".join(str(v.dtype)[6:] for v in arguments.values() if isinstance(v, Tensor))
    values = ((name, arguments[name]) for name in kernel.key)
    shown = (f"{name}={tuple(v.shape) if isinstance(v, Tensor) else v}" for name, v in values)
    return f"{kernel.name}({dtypes}; {', '.join(shown)})"


def _from_table(device: torch.device, key: str, candidates: Sequence[Config]) -> Config | None:
    entry = _tuned.CHOSEN.get(torch.cuda.get_device_name(device), {}).get(key)
    return _matching(entry, candidates)


def _matching(entry: object, candidates: Sequence[Config]) -> Config | None:
    """The candidate a stored choice names; None if it is no longer one."""
    return next((config for config in candidates if asdict(config) == entry), None)


def cache_directory() -> Path:
    """Where measured choices are kept: ``IFDD_TRITON_CACHE`` or a folder in the user's cache."""
    override = os.environ.get("IFDD_TRITON_CACHE")
    if override:
        return Path(override)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ifdd_kernels" / "triton"


@functools.cache
def _device_tag(device: torch.device) -> str:
    return f"{torch.cuda.get_device_name(device)} {torch.version.cuda} {torch.__version__}"


def _cache_file(kernel: Kernel, device: torch.device, key: str, candidates: Sequence[Config]) -> Path:
    """One file a choice: nothing is read to be written back, so processes cannot lose each other's."""
    what = (triton.__version__, _device_tag(device), kernel.function.cache_key, key, repr(candidates))
    return cache_directory() / f"{hashlib.sha256(repr(what).encode()).hexdigest()[:32]}.json"


def _load(path: Path, candidates: Sequence[Config]) -> Config | None:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return _matching(stored.get("config"), candidates) if isinstance(stored, dict) else None


def _store(path: Path, key: str, config: Config) -> None:
    """Writes a choice in one step; a cache that cannot be written only means timing again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"key": key, "config": asdict(config)}, file)
        Path(temporary).replace(path)
    except OSError:
        return
