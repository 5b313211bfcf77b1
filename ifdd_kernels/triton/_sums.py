"""Second stage of sums over programs: partial sums in a fixed order, no atomics."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ifdd_kernels.triton._runtime import Kernel, cdiv, next_power_of_2
from ifdd_kernels.triton._tuning import Config

MOST_OUTPUTS = 4


@triton.jit
def sum_partials_kernel(
    partials, out_0, out_1, out_2, out_3, rows, width_0, width_1, width_2, width_3,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Columns of partials (rows, sum of widths) summed; the outputs share the columns in order."""
    row = tl.arange(0, BLOCK_R)
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    columns = width_0 + width_1 + width_2 + width_3
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for start in range(0, rows, BLOCK_R):
        base = partials + (start + row).to(tl.int64) * columns
        inside = (start + row < rows)[:, None] & (column < columns)[None, :]
        total += tl.load(base[:, None] + column[None, :], mask=inside, other=0.0)
    result = tl.sum(total, 0)
    _store_part(out_0, result, column, width_0)
    _store_part(out_1, result, column - width_0, width_1)
    _store_part(out_2, result, column - width_0 - width_1, width_2)
    _store_part(out_3, result, column - width_0 - width_1 - width_2, width_3)


@triton.jit
def _store_part(out, values, column, width):
    tl.store(out + column, values.to(out.dtype.element_ty), mask=(column >= 0) & (column < width))


SUM_PARTIALS = Kernel(
    sum_partials_kernel,
    configs=lambda _: (
        Config({"BLOCK_R": 32, "BLOCK_C": 32}, num_warps=4),
        Config({"BLOCK_R": 64, "BLOCK_C": 16}, num_warps=4),
        Config({"BLOCK_R": 16, "BLOCK_C": 128}, num_warps=4),
    ),
    key=("width_0", "width_1", "width_2", "width_3"),
    interpreter=lambda a: {"BLOCK_R": next_power_of_2(max(a["rows"], 1)), "BLOCK_C": 1024},
)


def sum_partials(partials: Tensor, outputs: Sequence[Tensor]) -> None:
    """Sums partials (P, W) in float32 over P into contiguous outputs of W elements together."""
    if len(outputs) > MOST_OUTPUTS:
        raise ValueError(f"sum_partials: at most {MOST_OUTPUTS} outputs, got {len(outputs)}")
    spare = MOST_OUTPUTS - len(outputs)
    places = [*outputs, *[outputs[0]] * spare]
    widths = [output.numel() for output in outputs] + [0] * spare
    SUM_PARTIALS(
        lambda tiles: (cdiv(sum(widths), tiles["BLOCK_C"]),),
        partials=partials,
        **{f"out_{i}": place for i, place in enumerate(places)},
        rows=partials.shape[0],
        **{f"width_{i}": width for i, width in enumerate(widths)},
    )
