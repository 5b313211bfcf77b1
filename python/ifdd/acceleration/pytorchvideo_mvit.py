"""The parts of pytorchvideo's MViT, release 0.1.5: an MViT v1 with q, k and v as three layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ifdd.acceleration.classes import Accelerated, backend_of, takes, why_another
from ifdd.acceleration.mlp import TwoLayerMLP, two_layers, why_not_run
from ifdd.acceleration.pooling import (
    ONES,
    Attention,
    attend,
    cells,
    max_pool_stride,
    pair,
    pool,
    project_apart,
    read_pooling,
    read_stride,
    why_not_read,
)
from ifdd.acceleration.probe import Trials
from ifdd.modules.backbone import Grid
from ifdd.modules.children import is_untouched
from ifdd_kernels import max_pool_tokens

Answer = tuple[Tensor, Any]
PLACE = "pytorchvideo.layers.attention"
#: What its constructors keep beside modules. An option of another version may change what is computed.
OPTIONS = frozenset({"pool_first", "dropout_rate", "num_heads", "scale", "has_cls_embed"})
NO_POOLS = frozenset(f"{kind}_{part}" for kind in ("pool", "norm") for part in "qkv")  # where they are None
BLOCK_OPTIONS = frozenset({"dim", "dim_out", "has_cls_embed", "pool_skip"})


class AttentionOnKernels(Accelerated):
    """`MultiScaleAttention`: pools by `pool_tokens`, the rest is PyTorch's attention.

    `pool_q`, `pool_k`, `pool_v` and their norms are read, and `k` and `v` where they may be; `q` and `proj`
    are called.
    """

    def forward(self, x: Tensor, thw_shape: Any) -> Answer:
        """(B, 1 + T*H*W, C) and [T, H, W] -> (B, 1 + T'*H'*W', C) and [T', H', W']."""
        me: Any = self
        key_value = pair(read_pooling(me.pool_k, me.norm_k), read_pooling(me.pool_v, me.norm_v))
        query = read_pooling(me.pool_q, me.norm_q)
        unread = key_value is None or (me.pool_q is not None and query is None)
        # A learnable scale gets its gradient from their product only.
        unread = unread or me.pool_first or not me.has_cls_embed or not isinstance(me.scale, int | float)
        if unread or not takes(x) or (query and query.eps != key_value.key.eps):  # type: ignore[union-attr]
            return super().forward(x, thw_shape)  # type: ignore[no-any-return]
        assert key_value is not None
        t, h, w = thw_shape
        grid: Grid = (t, h, w)
        q_grid = grid if query is None else cells(grid, query.stride)
        projected = project_apart((me.q, me.k, me.v), x, grid, key_value.stride)
        parts = pool(projected, query, key_value, grid, me.num_heads, backend_of(self, "pool_tokens"))
        how = Attention(me.scale, (None, None, None), False, False, backend_of(self, "pooled_attention"))
        out: Tensor = me.proj(attend(parts, q_grid, cells(grid, key_value.stride), how))
        if me.dropout_rate > 0:
            out = me.proj_drop(out)
        return out, thw_shape if query is None else list(q_grid)


class MLPOnKernels(TwoLayerMLP):
    """`Mlp`."""

    dropout_name = "dropout"


class BlockOnKernels(Accelerated):
    """`MultiScaleBlock`: the maximum of its shortcut, in the layout of tokens. Its `pool_skip` is read."""

    def forward(self, x: Tensor, thw_shape: Any) -> Answer:
        """(B, 1 + T*H*W, C) and [T, H, W] -> (B, 1 + T'*H'*W', C') and [T', H', W']."""
        me: Any = self
        stride = read_stride(me.pool_skip, x)
        if stride is None or not me.has_cls_embed:
            return super().forward(x, thw_shape)  # type: ignore[no-any-return]
        attended, pooled_shape = me.attn(me.norm1(x), thw_shape)
        shortcut = x
        if stride != ONES:
            shortcut = max_pool_tokens(x, thw_shape, stride, backend=backend_of(self, "max_pool_tokens"))
        x = shortcut + me.drop_path(attended)
        normed = me.norm2(x)
        hidden = me.mlp(normed)
        shortcut = x if me.dim == me.dim_out else me.proj(normed)
        return shortcut + me.drop_path(hidden), pooled_shape


def plan(block: Any, _trials: Trials) -> tuple[dict[str, type[Accelerated]], dict[str, str]]:
    """The replacement of each part of a `MultiScaleBlock`, and why parts stay; the block itself is ""."""
    become: dict[str, type[Accelerated]] = {
        "": BlockOnKernels,
        "attn": AttentionOnKernels,
        "mlp": MLPOnKernels,
    }
    reasons = {
        "": _block_reason(block),
        "attn": _attention_reason(block.attn),
        "mlp": _mlp_reason(block.mlp),
    }
    left = {name: reason for name, reason in reasons.items() if reason}
    return {name: mixin for name, mixin in become.items() if name not in left}, left


def _unknown(module: nn.Module, options: frozenset[str]) -> str:
    """Of another version than the release."""
    more = sorted(vars(module).keys() - vars(nn.Module()).keys() - options)
    return f"has attributes that release 0.1.5 has not: {', '.join(more)}" if more else ""


def _block_reason(block: Any) -> str:
    if wrong := _unknown(block, BLOCK_OPTIONS):
        return wrong
    if not block.has_cls_embed:
        return "has no class token"
    if isinstance(block.norm1, nn.BatchNorm1d) or isinstance(block.norm2, nn.BatchNorm1d):
        return "normalises by a BatchNorm1d"
    if block.pool_skip is None:
        return "does not pool its shortcut"
    if max_pool_stride(block.pool_skip) is None:
        return "pools its shortcut by another window than stride + 1 cells, the strides even"
    return "" if is_untouched(block.pool_skip) else "has a hook on its pool_skip, which would be skipped"


def _attention_reason(attention: Any) -> str:
    wrong = why_another(attention, (PLACE, "MultiScaleAttention")) or _unknown(attention, OPTIONS | NO_POOLS)
    if wrong:
        return wrong
    if attention.pool_first:
        return "pools before it projects"
    if not attention.has_cls_embed:
        return "has no class token"
    if attention.pool_k is None or attention.pool_v is None:
        return "does not pool keys and values"
    for name in ("q", "k", "v"):
        pooling, norm = getattr(attention, f"pool_{name}"), getattr(attention, f"norm_{name}", None)
        if pooling is not None and (wrong := why_not_read(pooling, norm)):
            return f"pool_{name} {wrong}"
    key, value, query = (
        read_pooling(getattr(attention, f"pool_{name}"), getattr(attention, f"norm_{name}")) for name in "kvq"
    )
    if (key_value := pair(key, value)) is None or (query and query.eps != key_value.key.eps):
        return "pools with norms of several eps, or keys and values with several strides"
    if not isinstance(attention.scale, int | float):
        return f"scales by a {type(attention.scale).__name__}, not by a number"
    return ""


def _mlp_reason(mlp: Any) -> str:
    wrong = why_another(mlp, (PLACE, "Mlp")) or _unknown(mlp, frozenset({"dropout_rate"}))
    if wrong:
        return wrong
    if type(mlp.act) is not nn.GELU:
        return f"has a {type(mlp.act).__name__}, not a GELU"
    return why_not_run(two_layers(mlp, MLPOnKernels.dropout_name))
