"""Peak memory of a call beyond what was there before it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

# The profiler announces each start and stop on stderr otherwise; it reads this when it is first used.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

Result = TypeVar("Result")


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
