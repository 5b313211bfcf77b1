"""Pooling and attention of all MViTs: pools that a kernel can read, and attention on their results."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ifdd.acceleration.classes import takes
from ifdd.modules.backbone import Grid
from ifdd.modules.children import apply_linear, is_untouched, weight_and_bias, weights
from ifdd_kernels import pool_tokens, pooled_attention
from ifdd_kernels._constant import constant_result
from ifdd_kernels.grids import LiveTokens, live_tokens, pooled_grid
from ifdd_kernels.reference.pooled_attention import relative_index

ONES: Grid = (1, 1, 1)


class Pooling(NamedTuple):
    """A depthwise 3x3x3 convolution and the LayerNorm behind it, as `pool_tokens` reads them."""

    weight: Tensor
    norm: tuple[Tensor, Tensor]
    stride: Grid
    eps: float


class KeyValuePools(NamedTuple):
    """Those of keys and values, of one stride and eps."""

    key: Pooling
    value: Pooling

    @property
    def stride(self) -> Grid:
        """(t, h, w)."""
        return self.key.stride


def read_pooling(pool: nn.Module | None, norm: nn.Module | None) -> Pooling | None:
    """A pool that `pool_tokens` computes; None where it has to be called."""
    found = weights(pool, nn.Conv3d)
    parameters = weight_and_bias(norm, nn.LayerNorm)
    if found is None or found[1] is not None or parameters is None:
        return None
    assert isinstance(pool, nn.Conv3d)
    assert isinstance(norm, nn.LayerNorm)
    channels = pool.out_channels
    fits = (
        pool.kernel_size == (3, 3, 3)
        and pool.padding == ONES
        and pool.dilation == ONES
        and pool.padding_mode == "zeros"
        and pool.groups == pool.in_channels == channels
        and norm.normalized_shape == (channels,)
    )
    if not fits:
        return None
    t, h, w = pool.stride
    return Pooling(found[0], parameters, (t, h, w), norm.eps)


def why_not_read(pool: nn.Module | None, norm: nn.Module | None) -> str:
    """The reason why :func:`read_pooling` cannot read a pool, in words; empty if it can."""
    if read_pooling(pool, norm) is not None:
        return ""
    if type(pool) is not nn.Conv3d:
        return f"pools by {type(pool).__name__}, not by a Conv3d"
    if type(norm) is not nn.LayerNorm:
        return f"normalises pooled tokens by {type(norm).__name__}, not by a LayerNorm"
    if pool.kernel_size != (3, 3, 3):
        return f"pools by a kernel of {pool.kernel_size}, not (3, 3, 3)"
    if weights(pool, nn.Conv3d) is None or weight_and_bias(norm, nn.LayerNorm) is None:
        return "has a hook, a tensor subclass or no bias in a pool or its norm, whose weights would be read"
    return "pools by another convolution than a depthwise one with padding 1 and no bias"


def pair(key: Pooling | None, value: Pooling | None) -> KeyValuePools | None:
    """Pools of keys and values that one call computes."""
    if key is None or value is None or (key.stride, key.eps) != (value.stride, value.eps):
        return None
    return KeyValuePools(key, value)


class Projected(NamedTuple):
    """Queries (B, 1 + N, h*d); keys and values (B, 1 + N', 2*h*d) of the tokens that are pooled.

    Without `key_value` the first has all three, (B, 1 + N, 3*h*d).
    """

    query: Tensor
    key_value: Tensor | None
    #: Of the tokens of `key_value`, and the stride of their pools on it.
    grid: Grid
    stride: Grid


def project_packed(
    layer: nn.Module, x: Tensor, width: int, grid: Grid, stride: Grid, *, apart: bool
) -> Projected:
    """Of a layer whose rows are queries, keys and values, `width` each.

    Where the layer may be read, keys and values are those of the tokens that their pools look at.

    Args:
        layer: (B, 1 + N, C) -> (B, 1 + N, 3*width).
        x: (B, 1 + N, C).
        width: h*d.
        grid: (T, H, W) of the tokens.
        stride: of the pools of keys and values.
        apart: whether queries are wanted apart from them in any case.
    """
    covered = live(grid, stride, x.device)
    found = weights(layer, nn.Linear) if apart or covered is not None else None
    if found is None:
        return Projected(apply_linear(layer, x), None, grid, stride)
    weight, bias = found
    query = slice(None, width), slice(width, None)
    first, rest = (
        nn.functional.linear(tokens, weight[rows], None if bias is None else bias[rows])
        for tokens, rows in zip(
            (x, x if covered is None else x.index_select(1, covered.rows)), query, strict=True
        )
    )
    if covered is None:
        return Projected(first, rest, grid, stride)
    return Projected(first, rest, covered.grid, covered.stride)


def project_apart(
    layers: tuple[nn.Module, nn.Module, nn.Module], x: Tensor, grid: Grid, stride: Grid
) -> Projected:
    """Of three layers: queries of all tokens; keys and values, in one product, of those that pools look at.

    Args:
        layers: of queries (called), keys and values (read where they may be), each (B, 1 + N, C) ->
            (B, 1 + N, h*d).
        x: (B, 1 + N, C).
        grid: (T, H, W) of the tokens.
        stride: of the pools of keys and values.
    """
    query = layers[0](x)
    key, value = (weights(layer, nn.Linear) for layer in layers[1:])
    if key is None or value is None or (key[1] is None) != (value[1] is None):
        return Projected(query, torch.cat((layers[1](x), layers[2](x)), -1), grid, stride)
    covered = live(grid, stride, x.device)
    weight = torch.cat((key[0], value[0]))
    bias = None if key[1] is None or value[1] is None else torch.cat((key[1], value[1]))
    tokens = x if covered is None else x.index_select(1, covered.rows)
    key_value = nn.functional.linear(tokens, weight, bias)
    if covered is None:
        return Projected(query, key_value, grid, stride)
    return Projected(query, key_value, covered.grid, covered.stride)


def pool(
    projected: Projected,
    query: Pooling | None,
    key_value: KeyValuePools,
    grid: Grid,
    heads: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, 1 + Nq, h, d), keys and values (B, 1 + Nk, h, d)."""
    return pool_tokens(
        projected.query,
        None if query is None else query.weight,
        key_value.key.weight,
        key_value.value.weight,
        None if query is None else query.norm,
        key_value.key.norm,
        key_value.value.norm,
        grid,
        heads,
        ONES if query is None else query.stride,
        projected.stride,
        key_value=projected.key_value,
        key_value_grid=None if projected.key_value is None else projected.grid,
        eps=key_value.key.eps,
        backend=backend,
    )


def live(grid: Grid, stride: Grid, device: torch.device) -> LiveTokens | None:
    """The tokens that some window of keys and values covers; None where that is all of them."""
    if max(stride) <= 2:
        return None
    with torch.inference_mode(False):  # backward keeps the rows
        found = live_tokens(grid, stride, device)
    return None if found.grid == grid else found


class Attention(NamedTuple):
    """How scores are made, beside queries and keys."""

    scale: float
    #: Tables of the positions along height, width and time.
    tables: tuple[Tensor | None, Tensor | None, Tensor | None]
    #: Whether queries are added to the result, and whether the class token's is.
    residual: bool
    residual_of_class: bool
    backend: str


def attend(parts: tuple[Tensor, Tensor, Tensor], q_grid: Grid, k_grid: Grid, how: Attention) -> Tensor:
    """Attention on pooled parts (B, 1 + N, h, d): (B, 1 + Nq, h*d)."""
    special = how.residual_of_class or not how.residual or all(table is None for table in how.tables)
    out = pooled_attention(
        *parts,
        *how.tables,
        q_grid,
        k_grid,
        scale=how.scale,
        residual=how.residual,
        # Variants that are PyTorch's own attention have no kernels to choose from.
        backend="auto" if special and how.backend in ("native", "triton") else how.backend,
    )
    if how.residual and how.residual_of_class:
        first = out[:, :1] + parts[0][:, :1].flatten(2)
        out = torch.cat((first, out[:, 1:]), 1)
    return out


# The mark goes to a plain function: TorchDynamo looks through a cache.
@constant_result
def same_positions(queries: int, keys: int, default: torch.dtype, shift_last: bool = False) -> bool:
    """Whether the ratio of two sizes, in floats of a dtype, finds the rows of a table that integers find.

    MViTs compute places in a table in PyTorch's default dtype; where the ratio is not an integer, rounding
    may bring one to the row below. torchvision shifts the keys to positive distances before it multiplies
    them by their ratio, SlowFast behind it (`shift_last`).
    """
    return _same_positions(queries, keys, default, shift_last)


@functools.cache
def _same_positions(queries: int, keys: int, default: torch.dtype, shift_last: bool) -> bool:
    # Traced or faked tensors have no values to compare.
    real = torch.utils._python_dispatch._disable_current_modes()
    with real, torch.device("cpu"), torch.inference_mode(False):
        q, k = torch.arange(queries)[:, None].to(default), torch.arange(keys)[None].to(default)
        ratio_of_query, ratio_of_key = max(keys / queries, 1.0), max(queries / keys, 1.0)
        if shift_last:
            places = q * ratio_of_query - k * ratio_of_key + (keys - 1) * ratio_of_key
        else:
            of_query, of_key = (
                torch.tensor(ratio, dtype=default) for ratio in (ratio_of_query, ratio_of_key)
            )
            places = q * of_query - (k + (1.0 - keys)) * of_key
        return torch.equal(places.long(), relative_index(queries, keys, torch.device("cpu")))


def same_grids(q_grid: Grid, k_grid: Grid, shift_last: bool = False) -> bool:
    """:func:`same_positions` of all axes."""
    default = torch.get_default_dtype()
    return all(same_positions(q, k, default, shift_last) for q, k in zip(q_grid, k_grid, strict=True))


def max_pool_stride(skip: nn.Module | None) -> Grid | None:
    """The stride of a shortcut that `max_pool_tokens` computes; None where it has to be called."""
    if type(skip) is not nn.MaxPool3d or skip.ceil_mode or skip.return_indices:
        return None
    kernel, stride, padding, dilation = (
        _triple(value) for value in (skip.kernel_size, skip.stride, skip.padding, skip.dilation)
    )
    # Windows of an odd stride above one leave another number of cells at some sizes.
    fits = dilation == ONES and all(
        (k, p) == ((s + 1, s // 2) if s > 1 else (1, 0)) and (s == 1 or s % 2 == 0)
        for k, s, p in zip(kernel, stride, padding, strict=True)
    )
    return stride if fits else None


def read_stride(skip: nn.Module | None, x: Tensor) -> Grid | None:
    """:func:`max_pool_stride` where the kernel takes x (B, 1 + T*H*W, C) and the module may be read."""
    if skip is None or not is_untouched(skip) or not takes(x) or x.dim() != 3:
        return None
    return max_pool_stride(skip)


def _triple(value: int | tuple[int, ...]) -> Grid:
    t, h, w = (value,) * 3 if isinstance(value, int) else value
    return t, h, w


def cells(grid: Grid, stride: Grid) -> Grid:
    """(T, H, W) behind a pool."""
    t, h, w = pooled_grid(grid, stride)
    return t, h, w
