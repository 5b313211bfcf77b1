"""``frame_tokens``: the tokenizer of the inter-frame static-dynamic splitting module (ISSM)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ifdd_kernels import _check, _cuda_limits, reference
from ifdd_kernels._operator import Backward, register
from ifdd_kernels.backends import run
from ifdd_kernels.reference._common import accumulator
from ifdd_kernels.triton import twin


def _check_arguments(x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, pool: int) -> None:
    _check.grid("frame_tokens", x, height, width, pool)
    _check.tokenizer("frame_tokens", x, "weight", weight, "bias", bias, pool)


def _fake(x: Tensor, weight: Tensor, pool: int) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], weight.shape[0] * pool * pool, dtype=accumulator(x.dtype))


def _fake_backward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


OPERATOR = register(
    "frame_tokens",
    "(Tensor x, Tensor weight, Tensor bias, int height, int width, int pool) -> Tensor tokens",
    reference=reference.frame_tokens,
    fake=_fake,
    check=_check_arguments,
    backends={"triton": twin("frame_tokens")},
    cuda_limit=_cuda_limits.tokenizer,
    parameters=("weight", "bias"),
    backward=Backward(
        schema="(Tensor grad_tokens, Tensor x, Tensor weight, Tensor bias, int height, int width, int pool)"
        " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
        reference=reference.frame_tokens_backward,
        fake=_fake_backward,
    ),
)


def frame_tokens(
    x: Tensor, grid: Sequence[int], weight: Tensor, bias: Tensor, pool: int, *, backend: str = "auto"
) -> Tensor:
    r"""Tokens of each frame: adaptive average pool, 1x1 convolution, exact GELU.

    .. math:: z_t = \mathrm{vec}\,\mathrm{GELU}(W\,\mathrm{pool}_{P \times P}(x_t) + b)

    Args:
        x: frames (B, T, N, C), N = H * W row-major; float16, bfloat16, float32 or float64, any strides.
        grid: (H, W).
        weight: (S, C), in x's dtype or float32 (float64 with float64), like every parameter.
        bias: (S,).
        pool: P, the side of the pooled grid.
        backend: see :mod:`ifdd_kernels.backends`.

    Returns:
        (B, T, S*P*P), channel-major, in float32 (float64 for float64 x): the chain that ends in frame
        indexes is never rounded to 16 bits, under autocast neither.

    Gradients flow to x, weight and bias. Deterministic. The activation's input is recomputed in backward.

    Raises:
        ValueError: a shape, grid or device that does not fit.
        TypeError: a dtype that does not.

    Source: Wang & Chai, AAAI 2025, arXiv:2412.13168 (ISSM).
    """
    height, width = _check.pair("frame_tokens", "grid", grid)
    tokens: Tensor = run(OPERATOR, backend, x, weight, bias, height, width, pool)
    return tokens
