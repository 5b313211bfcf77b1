"""``topk_split_index``: the hard split, whole frames ranked by how they correlate with the clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ifdd_kernels import _check, _cuda_limits, reference
from ifdd_kernels._operator import register
from ifdd_kernels._serialised import serialisable
from ifdd_kernels.backends import run
from ifdd_kernels.triton import twin


@serialisable
class TopkIndex(NamedTuple):
    """The result of :func:`topk_split_index`, both int64 and ascending."""

    #: (B, T/2): the frames most like the clip.
    static_index: Tensor
    #: (B, T/2): the other frames.
    dynamic_index: Tensor


def _check_arguments(x: Tensor, height: int, width: int, pool: int) -> None:
    _check.grid("topk_split_index", x, height, width, pool)
    _check.even_frames("topk_split_index", x)


def _fake(x: Tensor) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], x.shape[1] // 2)
    return x.new_empty(shape, dtype=torch.int64), x.new_empty(shape, dtype=torch.int64)


def _cuda_limit(x: Tensor | None, height: int | None, width: int | None, pool: int | None) -> str:
    frames = _cuda_limits.sizes(x, 4)[1]
    return _cuda_limits.most("frames", _cuda_limits.RANKED_FRAMES, frames) or _cuda_limits.tokenizer(
        x, None, height, width, pool
    )


OPERATOR = register(
    "topk_split_index",
    "(Tensor x, int height, int width, int pool, bool order_prior)"
    " -> (Tensor static_index, Tensor dynamic_index)",
    reference=reference.topk_split_index,
    fake=_fake,
    check=_check_arguments,
    backends={"triton": twin("topk_split_index")},
    cuda_limit=_cuda_limit,
    non_differentiable=("static_index", "dynamic_index"),
)


def topk_split_index(
    x: Tensor, grid: Sequence[int], pool: int, *, order_prior: bool = False, backend: str = "auto"
) -> TopkIndex:
    r"""Frame numbers of the static and the dynamic group, chosen by correlation scores.

    .. math:: s_t = \frac{1}{T} \sum_u \langle z_t, z_u \rangle / C \;(+\,1 \text{ on even } t),
        \quad z_t = \mathrm{vec}\,\mathrm{pool}_{P \times P}(x_t)

    The T/2 largest scores form the static group, the other frames the dynamic one; inside a group the
    frames keep their order in time. Of equal scores the earlier frame ranks higher.

    Args:
        x: frames (B, T, N, C), T even, N = H * W; float16, bfloat16, float32 or float64, any strides.
        grid: (H, W).
        pool: P, side of the pooled grid.
        order_prior: favour even frames by one, as in the lazy wavelet.
        backend: see :mod:`ifdd_kernels.backends`.

    Returns:
        :class:`TopkIndex` for :func:`split_frames`. No gradient flows through the choice.

    Raises:
        ValueError: a shape, odd T or grid that does not fit.
        TypeError: x is not floating point.

    Source: Wang & Chai, AAAI 2025, arXiv:2412.13168 (hard split, ablation).
    """
    height, width = _check.pair("topk_split_index", "grid", grid)
    return TopkIndex(*run(OPERATOR, backend, x, height, width, pool, order_prior))
