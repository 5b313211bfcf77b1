"""Peak memory of a call beyond what was there before it, and what the host does with its memory."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

# The profiler announces each start and stop on stderr otherwise; it reads this when it is first used.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

Result = TypeVar("Result")


# Of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed() -> bool:
    """Lets the process reuse the memory it frees; whether the C library can be told so.

    By default glibc gives large blocks back to the system, or not, depending on what was freed before, and
    the next call then pays for touching thousands of new pages: the same row of the same code varied by a
    factor of three. Kept, every contender runs on warm memory after some rounds, as under PyTorch's caching
    allocator on a GPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    # -1: never. A number could at most be 2 GB, which a step of sixteen clips frees at once.
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


def release() -> None:
    """Gives the freed memory back to the system after all: the next case needs blocks of other sizes.

    Kept memory splits into pieces that fit no larger block, so a run that never did this would grow from
    case to case.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library, which keep_freed() did not change
        return


def limit_to_free() -> bool:
    """Makes an allocation beyond nine tenths of the free memory an error; whether the system can be told so.

    Without it Linux kills the process, and the rest of a run with it: a float64 step of the original at
    sixteen clips can need more than a desktop has. For a run on the CPU: drivers of GPUs reserve more address
    space than there is memory.
    """
    try:
        import resource

        free = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        used = re.search(r"^VmData:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        if free is None or used is None:
            return False
        limit = int(1024 * (int(used[1]) + 0.9 * int(free[1])))
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    except (ImportError, OSError, ValueError):  # not Linux, or a lower limit is set already
        return False
    return True


def is_lack(error: Exception) -> bool:
    """Whether an error says that there is not enough memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def peak(call: Callable[[], Result], device: str) -> tuple[Result, int]:
    """The call's result, and the most bytes of tensors that lived at once, outputs included.

    On a GPU PyTorch's allocator counts. On a CPU the profiler records each allocation and release of
    PyTorch's allocator, which tensors of native kernels go through too; small buffers a kernel takes from the
    C++ heap (some kilobytes a thread) are not seen.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        return result, torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorder:
        result = call()
    raw = recorder.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in raw if event.name() == "[memory]")
    now = highest = 0
    for _, change in changes:
        now += change
        highest = max(highest, now)
    return result, highest
