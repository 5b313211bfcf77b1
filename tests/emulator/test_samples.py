"""Every CUDA kernel on the registry's samples, and that what is broken on purpose is noticed.

A planted bug is caught where a check of one of its samples fails: a result that no longer agrees with
float64, that was not written, or that depends on the schedule.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from emulator import build
from emulator.build import ROOT, EmulatedOp, Plant
from emulator.compare import DTYPES, check, labels, registry_sample
from ifdd_kernels.registry import REGISTRY
from ops.cases import everyday, nightly
from ops.devices import short

pytestmark = pytest.mark.skipif(build.compiler is None, reason="the emulator needs a C++ compiler")

#: All but those whose samples a file of their own runs.
OPS = sorted({path.stem for path in Path(ROOT / "csrc" / "cuda").glob("*.cu")} - {"lifting_attention"})

emulated = functools.cache(EmulatedOp)


@pytest.mark.parametrize(
    ("name", "label", "dtype"),
    [
        nightly(
            *(name, label, dtype),
            id=f"{name}-{label}-{short(dtype)}",
            when=dtype != torch.float32 and label not in everyday(REGISTRY[name]),
        )
        for name in OPS
        for label in labels(name)
        for dtype in DTYPES
    ],
)
def test_registry(name: str, label: str, dtype: torch.dtype) -> None:
    """All in float32, by day two of an op in 16 bits."""
    check(emulated(name), registry_sample(name, label, dtype).args)


def in_header(header: str, *plants: Plant) -> Plant:
    """Plants in a header that the source includes, which becomes part of the source."""
    text = (ROOT / "csrc" / header).read_text().replace("#pragma once", "")
    for plant in plants:
        text = plant.apply(text)
    return Plant(f'#include "{header}"', text)


BARRIER = "__syncthreads();"
STREAM = ("add_layer_norm", "tokens, branches dropped", torch.float32)
SPLIT = ("split_frames", "T=8, positions, norms", torch.float32)
TOKENS = ("frame_tokens", "T=2, odd grid and channels, strided", torch.float32)
INDEX = ("split_index", "T=16, pool larger than the grid", torch.float32)
CLIPS = ("augment_clips", "larger than a tile", torch.float32)
POOL = ("pool_tokens", "stride 1 and 2", torch.bfloat16)

#: Op, sample and dtype that show it, and the bug. Left out: a missing barrier of topk_split_index would write
#: out of bounds.
BUGS: dict[str, tuple[tuple[str, str, torch.dtype], Plant]] = {
    "add_layer_norm, no barrier between the warps' sums and their use": (STREAM, Plant(BARRIER)),
    "add_layer_norm, the mean left out of the gradient": (
        STREAM,
        Plant("grad[i][j] - sum - ", "grad[i][j] - "),
    ),
    "split_frames, no barrier behind the samples": (SPLIT, Plant(BARRIER)),
    "split_frames, no barrier between a row's sums and their use": (SPLIT, Plant(BARRIER, occurrence=1)),
    "split_frames, last output row dropped": (SPLIT, Plant("k < K; k += kWarps", "k < K - 1; k += kWarps")),
    "split_frames, gradient to the next frame": (
        ("split_frames", "T=16, frame numbers, norms", torch.float16),
        Plant("t0 + t == sample.first", "t0 + t == sample.first + 1"),
    ),
    "frame_tokens, no barrier behind the staged gradients": (
        ("frame_tokens", "T=8, 7x7, identity pool", torch.float32),
        in_header("cuda/tokens.h", Plant(BARRIER)),
    ),
    "frame_tokens, last cell of a window dropped": (
        TOKENS,
        in_header("cuda/tokens.h", Plant("i + 1) * size + out - 1", "i + 1) * size")),
    ),
    "split_index, no barrier behind the correlation": (INDEX, Plant(BARRIER)),
    "split_index, no barrier behind the gradients of the offsets": (INDEX, Plant(BARRIER, occurrence=3)),
    "frame_correlation, row of the neighbouring frame": (
        ("frame_correlation", "T=16, one value", torch.float32),
        in_header("cuda/correlation.h", Plant("clamped(first_row + i)", "clamped(first_row + i + 1)")),
    ),
    "topk_split_index, last pooled cell dropped": (
        ("topk_split_index", "T=32, one channel", torch.float32),
        Plant("p < cells; ++p", "p < cells - 1; ++p"),
    ),
    "augment_clips, no barrier between a row's columns and its taps": (CLIPS, Plant("__syncwarp();")),
    "augment_clips, no barrier before the next row": (CLIPS, Plant("__syncwarp();", occurrence=1)),
    "augment_clips, last tap of a column dropped": (CLIPS, Plant("k < down.count", "k < down.count - 1")),
    "augment_clips, mean of the frame before": (
        CLIPS,
        Plant("partial + static_cast<int64_t>(frame)", "partial + static_cast<int64_t>(frame ^ 1)"),
    ),
    "lifting_residual, last frame dropped": (
        ("lifting_residual", "T=8", torch.bfloat16),
        Plant("t < term.frames", "t < term.frames - 1"),
    ),
    "lifting_loss, last value dropped": (
        ("lifting_loss", "mean over clips, other beta", torch.float32),
        Plant("i < end", "i < end - 1"),
    ),
    "pool_tokens, copies not waited for": (POOL, Plant("copy_async_wait<0>();")),
    "pool_tokens, no barrier behind the convolution": (POOL, Plant(BARRIER, occurrence=1)),
    "pool_tokens, no barrier behind the norm's gradients": (POOL, Plant(BARRIER, occurrence=4)),
    "pool_tokens, a frame early in the ring": (
        POOL,
        in_header("cuda/pooling.h", Plant("o * part_.t.step + dt", "o * part_.t.step + dt + 1")),
    ),
    "pool_tokens, neighbouring row in the gradient of the tokens": (
        ("pool_tokens", "strides 2 and 8, odd grid", torch.float16),
        Plant("(y + 1 - oy", "(y - oy"),
    ),
}


#: One of each kind by day.
DAILY = {
    "frame_correlation, row of the neighbouring frame",
    "split_index, no barrier behind the correlation",
    "lifting_loss, last value dropped",
}


@pytest.mark.parametrize("bug", [nightly(bug, id=bug, when=bug not in DAILY) for bug in BUGS])
def test_planted_bug_is_caught(bug: str) -> None:
    (name, label, dtype), plant = BUGS[bug]
    op = EmulatedOp(name, [plant])
    args = registry_sample(name, label, dtype).args
    with pytest.raises((AssertionError, RuntimeError)):
        check(op, args)
