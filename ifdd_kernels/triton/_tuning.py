"""Which configuration a kernel runs in: from the table of known devices, a measurement, or the default.

In this order: a choice of this process; :mod:`ifdd_kernels.triton._tuned`, the committed table; the cache
on disk; a measurement, at the kernel's first launch with a key, whose result goes to the disk; the default.
Nothing is timed while a CUDA graph is captured or a compiler traces, nor where
``torch.use_deterministic_algorithms`` asks for results that do not depend on a stopwatch, nor with
``IFDD_TRITON_TUNE=0``.

A choice is kept twice in a process: by its key, which launches of about the same size share, and by the
launch itself, so that the next one like it costs one look-up. That the default was taken for want of a
measurement is kept apart, and forgotten with the next measurement.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import triton
from torch import Tensor
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from ifdd_kernels.triton import _tuned

logger = logging.getLogger(__name__)

#: What keeps one configuration from running: too many registers or too much shared memory, an assembler or
#: compiler that gives up, a launch the driver refuses (RuntimeError).
FAILURES = (OutOfResources, PTXASError, CompilationError, RuntimeError)


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


Grid = Callable[[Mapping[str, Any]], tuple[int, ...]]
Launch = Callable[[Config], None]


class Kernel(Protocol):
    """What a choice needs to know of :class:`ifdd_kernels.triton._runtime.Kernel`."""

    name: str
    function: Any
    configs: Callable[[Mapping[str, Any]], Sequence[Config]]
    key: frozenset[str]
    constants: frozenset[str]


#: Choices by key and candidates, which launches of about one size share.
_by_key: dict[Hashable, Config] = {}
#: Choices by launch: devices, names and values of the arguments, shapes and dtypes of the tensors.
_by_launch: dict[Hashable, Config] = {}
#: Launches for which nothing was known and nothing could be timed.
_default: dict[Hashable, Config] = {}
#: Entries after which the memories by launch start anew: shapes may change with every call.
MOST_LAUNCHES = 4096


def choose(
    kernel: Kernel, grid: Grid, arguments: Mapping[str, Any], device: torch.device, launch: Launch
) -> Config:
    """The configuration to launch with; times the candidates where none is known and timing is allowed."""
    values = arguments.values()
    seen = (
        kernel,
        device,
        tuple(arguments),
        tuple([(v.dtype, v.shape) if isinstance(v, Tensor) else v for v in values]),
    )
    config = _by_launch.get(seen)
    if config is not None:
        return config
    may_time = _timing_allowed()
    if not may_time:
        config = _default.get(seen)
        if config is not None:
            return config
    candidates = tuple(kernel.configs(arguments))
    config = candidates[0] if len(candidates) == 1 else _known(kernel, grid, arguments, device, candidates)
    memory = _by_launch
    if config is None and may_time:
        try:
            config = _measured(kernel, grid, arguments, device, candidates, launch)
        except torch.OutOfMemoryError as error:
            # Kept for this process: another attempt would make the allocator give back all its memory again.
            logger.warning("%s: not timed for want of memory: %s", kernel.name, _first_line(error))
            config = candidates[0]
    elif config is None:
        config, memory = candidates[0], _default
    if len(memory) >= MOST_LAUNCHES:
        memory.clear()
    memory[seen] = config
    return config


def choose_traced(kernel: Kernel, grid: Grid, arguments: Mapping[str, Any], device: torch.device) -> Config:
    """The same for a compiler that traces: nothing runs, sizes may be symbols, and nothing is remembered.

    Raises:
        RuntimeError: every configuration limits its registers. Compilers launch without the limit, and the
            kernel would spill: its op must not be traced into (``twin(..., traced=False)``).
    """
    candidates = tuple(config for config in kernel.configs(arguments) if config.max_registers is None)
    if not candidates:
        raise RuntimeError(
            f"{kernel.name}: each of its configurations limits the registers, which compilers that trace"
            " cannot pass on; register its op with twin(..., traced=False)"
        )
    if len(candidates) == 1 or device.type != "cuda" or not torch.cuda.is_available():
        return candidates[0]
    if any(isinstance(v, torch.SymInt) and v.node.hint is None for v in arguments.values()):
        return candidates[0]  # a size that depends on data: nobody knows which
    return _known(kernel, grid, arguments, device, candidates) or candidates[0]


def _known(
    kernel: Kernel,
    grid: Grid,
    arguments: Mapping[str, Any],
    device: torch.device,
    candidates: Sequence[Config],
) -> Config | None:
    """A choice that was made before, here or elsewhere."""
    key = launch_key(kernel, grid, arguments, candidates)
    name = _cache_name(kernel, device, key, candidates)
    config = _by_key.get((device, name))
    if config is None:
        config = _from_table(device, key, candidates) or _load(name, candidates)
        if config is not None:
            _by_key[device, name] = config
    return config


def _measured(
    kernel: Kernel,
    grid: Grid,
    arguments: Mapping[str, Any],
    device: torch.device,
    candidates: Sequence[Config],
    launch: Launch,
) -> Config:
    """Times the candidates; another process that was faster to do so is right."""
    key = launch_key(kernel, grid, arguments, candidates)
    name = _cache_name(kernel, device, key, candidates)
    config = _store(name, key, fastest(kernel.name, candidates, launch, device), candidates)
    _by_key[device, name] = config
    _default.clear()  # launches with this key were remembered there
    return config


def fastest(name: str, candidates: Sequence[Config], launch: Launch, device: torch.device) -> Config:
    """The candidate of the kernel ``name`` with the least median time; one that does not run never wins.

    Raises:
        torch.OutOfMemoryError: there is no room for the buffer with which the stopwatch empties the cache.
        RuntimeError: none of them runs; the last one's error is the cause.
        Whatever error the device keeps after one of them, such as an illegal memory access: nothing that
            runs on that device afterwards would be right.
    """
    times: dict[int, float] = {}
    failure: BaseException | None = None
    for place, config in enumerate(candidates):
        try:
            times[place] = triton.testing.do_bench(
                functools.partial(launch, config), warmup=5, rep=20, return_mode="median"
            )
        except torch.OutOfMemoryError:
            raise  # the stopwatch allocates, kernels do not: this says nothing of the configuration
        except FAILURES as error:
            torch.cuda.synchronize(device)  # raises again what is wrong with more than this configuration
            logger.warning("%s: %s does not run and is passed over: %s", name, config, _first_line(error))
            failure = error
    if not times:
        raise RuntimeError(
            f"{name}: none of its {len(candidates)} configurations runs; the last one said:"
            f" {_first_line(failure)}. IFDD_TRITON_TUNE=0 launches the first one without timing"
        ) from failure
    return candidates[min(times, key=times.__getitem__)]


def _first_line(error: BaseException | None) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _timing_allowed() -> bool:
    return not (
        torch.are_deterministic_algorithms_enabled()
        or os.environ.get("IFDD_TRITON_TUNE", "1") == "0"
        or torch.cuda.is_current_stream_capturing()
    )


def launch_key(kernel: Kernel, grid: Grid, arguments: Mapping[str, Any], candidates: Sequence[Config]) -> str:
    """What the best configuration depends on.

    Dtypes of the tensors; compile-time constants; the sizes in ``kernel.key``; every other whole number and
    the number of programs (of the first candidate) as the next power of two. Those follow the batch: it may
    vary without end, and a device that is full twice over is not filled otherwise three times over, while
    one clip and sixteen are four powers apart.
    """
    parts = []
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            parts.append(str(value.dtype)[6:])
        elif name in kernel.constants or name in kernel.key:
            parts.append(f"{name}={_plain(value)}")
        elif isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
            parts.append(f"{name}<={_class(_plain(value))}")
        elif not isinstance(value, float):
            parts.append(f"{name}={value}")
    programs = [_plain(size) for size in grid({**arguments, **candidates[0].tiles})]
    parts.append("programs<=" + "x".join(str(_class(size)) for size in programs))
    return f"{kernel.name}({', '.join(parts)})"


def _class(size: int) -> int:
    """The next power of two."""
    return 1 << (size - 1).bit_length() if size > 1 else size


def _plain(value: Any) -> Any:
    """A number; of a symbolic size the one it was traced with."""
    return value.node.hint if isinstance(value, torch.SymInt) else value


def _from_table(device: torch.device, key: str, candidates: Sequence[Config]) -> Config | None:
    entry = _tuned.CHOSEN.get(_device_name(device), {}).get(key)
    return _matching(entry, candidates)


def _matching(entry: object, candidates: Sequence[Config]) -> Config | None:
    """The candidate a stored choice names; None if it is no longer one."""
    return next((config for config in candidates if asdict(config) == entry), None)


def cache_directory() -> Path | None:
    """Where measured choices are kept: ``IFDD_TRITON_CACHE`` or a folder in the user's cache.

    None for a user without a home.
    """
    override = os.environ.get("IFDD_TRITON_CACHE")
    if override:
        return Path(override)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "ifdd_kernels" / "triton"
    except RuntimeError:
        return None


@functools.cache
def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


def _cache_name(kernel: Kernel, device: torch.device, key: str, candidates: Sequence[Config]) -> str:
    """Name of a choice's file.

    One file a choice: nothing is read to be written back, so processes cannot lose each other's.
    """
    versions = (triton.__version__, torch.version.cuda, torch.__version__)
    what = (versions, _device_name(device), kernel.function.cache_key, key, repr(candidates))
    return f"{hashlib.sha256(repr(what).encode()).hexdigest()[:32]}.json"


def _load(name: str, candidates: Sequence[Config]) -> Config | None:
    folder = cache_directory()
    if folder is None:
        return None
    try:
        stored = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return _matching(stored.get("config"), candidates) if isinstance(stored, dict) else None


def _store(name: str, key: str, config: Config, candidates: Sequence[Config]) -> Config:
    """Writes a choice in one step; returns the one that other processes will read.

    Of several processes that timed the same launches the first to write is right, and the others take its
    choice: all of them run the same kernels. A file that holds no choice (damaged, or of a version that
    wrote others) is replaced. A cache that cannot be written only means timing again.
    """
    folder = cache_directory()
    if folder is None:
        return config
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"key": key, "config": asdict(config)}, file)
        try:
            os.link(temporary, folder / name)
        except OSError:  # there is one already, or the file system has no links
            earlier = _load(name, candidates)
            if earlier is not None:
                return earlier
            Path(temporary).replace(folder / name)
    except OSError:
        pass
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
    return config
