"""The parts of SlowFast's MViT, as its repository has them since MViTv2: one class for v1 and v2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ifdd.acceleration.classes import Accelerated, backend_of, is_accelerated, plain, takes, why_another
from ifdd.acceleration.mlp import TwoLayerMLP, two_layers, why_not_run
from ifdd.acceleration.pooling import (
    ONES,
    Attention,
    Pooling,
    Projected,
    attend,
    cells,
    max_pool_stride,
    pair,
    pool,
    project_apart,
    project_packed,
    read_pooling,
    read_stride,
    same_grids,
    why_not_read,
)
from ifdd.acceleration.probe import Trials, why_different
from ifdd.modules.backbone import Grid
from ifdd.modules.children import is_untouched
from ifdd_kernels import max_pool_tokens

Answer = tuple[Tensor, Any]
PLACE = "slowfast.models.attention"
TABLES = ("rel_pos_h", "rel_pos_w", "rel_pos_t")
#: What the constructors keep beside modules and parameters. Others than these are those of another version.
OPTIONS = {
    "pool_first",
    "separate_qkv",
    "drop_rate",
    "num_heads",
    "dim_out",
    "scale",
    "has_cls_embed",
    "mode",
    "rel_pos_spatial",
    "rel_pos_temporal",
    "residual_pooling",
}
BLOCK_OPTIONS = {"dim", "dim_out", "dim_mul_in_att", "has_cls_embed"}
#: Where they are None.
ABSENT = {f"{kind}_{part}" for kind in ("pool", "norm") for part in "qkv"}
BLOCK_ABSENT = {"gamma_1", "gamma_2", "pool_skip"}
CHILDREN = {"q", "k", "v", "qkv", "proj", "proj_drop"} | ABSENT
BLOCK_CHILDREN = {"norm1", "attn", "drop_path", "norm2", "mlp", "proj", "pool_skip"}
MLP_CHILDREN = {"fc1", "act", "fc2", "drop"}


def _read(attention: Any, part: str) -> Pooling | None:
    """The pool of queries ("q"), keys or values; max and average pools have no norm."""
    return read_pooling(getattr(attention, f"pool_{part}"), getattr(attention, f"norm_{part}", None))


class AttentionOnKernels(Accelerated):
    """`MultiScaleAttention`: pools by `pool_tokens`, the rest by `pooled_attention`.

    `pool_q`, `pool_k`, `pool_v` and their norms are read. So are `k` and `v` of separate layers where they
    may be, and `qkv` where its rows are split; `q` and `proj` are called.
    """

    def forward(self, x: Tensor, thw_shape: Any) -> Answer:
        """(B, 1 + T*H*W, C) and [T, H, W] -> (B, 1 + T'*H'*W', C') and [T', H', W']."""
        me: Any = self
        key_value, query = pair(_read(me, "k"), _read(me, "v")), _read(me, "q")
        unread = key_value is None or (me.pool_q is not None and query is None)
        # A learnable scale gets its gradient from their product only.
        unread = unread or me.pool_first or not me.has_cls_embed or not isinstance(me.scale, int | float)
        tables = _tables(me)
        if unread or not takes(x) or not plain(*tables) or (query and query.eps != key_value.key.eps):  # type: ignore[union-attr]
            return super().forward(x, thw_shape)  # type: ignore[no-any-return]
        assert key_value is not None
        t, h, w = thw_shape
        grid: Grid = (t, h, w)
        q_grid = grid if query is None else cells(grid, query.stride)
        k_grid = cells(grid, key_value.stride)
        with_tables = any(table is not None for table in tables)
        if with_tables and not same_grids(q_grid, k_grid, shift_last=True):
            return super().forward(x, thw_shape)  # type: ignore[no-any-return]
        projected = self._project(x, grid, key_value.stride, query is None)
        parts = pool(projected, query, key_value, grid, me.num_heads, backend_of(self, "pool_tokens"))
        backend = backend_of(self, "pooled_attention")
        how = Attention(me.scale, tables, me.residual_pooling, False, backend)
        out: Tensor = me.proj(attend(parts, q_grid, k_grid, how))
        if me.drop_rate > 0:
            out = me.proj_drop(out)
        return out, thw_shape if query is None else list(q_grid)

    def _project(self, x: Tensor, grid: Grid, stride: Grid, apart: bool) -> Projected:
        me: Any = self
        if me.separate_qkv:
            return project_apart((me.q, me.k, me.v), x, grid, stride)
        return project_packed(me.qkv, x, me.dim_out, grid, stride, apart=apart)


def _tables(attention: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of height, width and time; None on an axis that has no positions."""
    height, width, time = (getattr(attention, name, None) for name in TABLES)
    if not attention.rel_pos_spatial:
        height = width = None
    return height, width, time if attention.rel_pos_temporal else None


class MLPOnKernels(TwoLayerMLP):
    """`Mlp`."""

    dropout_name = "drop"


class BlockOnKernels(Accelerated):
    """`MultiScaleBlock`: the maximum of its shortcut, in the layout of tokens. Its `pool_skip` is read."""

    def forward(self, x: Tensor, thw_shape: Any = None) -> Any:
        """(B, 1 + T*H*W, C) and [T, H, W] -> (B, 1 + T'*H'*W', C') and [T', H', W']."""
        me: Any = self
        stride = read_stride(me.pool_skip, x)
        if stride is None or stride == ONES or not me.has_cls_embed or not thw_shape:
            return super().forward(x, thw_shape)
        widens = me.dim != me.dim_out
        normed = me.norm1(x)
        attended, pooled_shape = me.attn(normed, thw_shape)
        shortcut = me.proj(normed) if widens and me.dim_mul_in_att else x
        shortcut = max_pool_tokens(shortcut, thw_shape, stride, backend=backend_of(self, "max_pool_tokens"))
        x = shortcut + me.drop_path(attended if me.gamma_1 is None else me.gamma_1 * attended)
        normed = me.norm2(x)
        hidden = me.mlp(normed)
        shortcut = me.proj(normed) if widens and not me.dim_mul_in_att else x
        return shortcut + me.drop_path(hidden if me.gamma_2 is None else me.gamma_2 * hidden), pooled_shape


def plan(block: Any, trials: Trials) -> tuple[dict[str, type[Accelerated]], dict[str, str]]:
    """The replacement of each part of a `MultiScaleBlock`, and why parts stay; the block itself is ""."""
    become: dict[str, type[Accelerated]] = {"attn": AttentionOnKernels, "mlp": MLPOnKernels}
    reasons = {"attn": _attention_reason(block.attn), "mlp": _mlp_reason(block.mlp)}
    if getattr(block, "pool_skip", None) is not None:
        become[""] = BlockOnKernels
        reasons[""] = _block_reason(block)
    parts = {"": block, **dict(block.named_children())}
    for name, mixin in become.items():
        if not reasons[name] and not is_accelerated(parts[name]):
            reasons[name] = why_different(
                parts[name], mixin, _channels(block, name), trials, on_grid=mixin is not MLPOnKernels
            )
    left = {name: reason for name, reason in reasons.items() if reason}
    return {name: mixin for name, mixin in become.items() if name not in left}, left


def _channels(block: Any, part: str) -> int:
    """Of the tokens that a part takes."""
    return int(block.mlp.fc1.in_features if part == "mlp" else block.dim)


def _of_another_version(module: nn.Module, options: set[str], absent: set[str], children: set[str]) -> str:
    """Of none of the repository's since MViTv2."""
    kept = vars(module).keys() - vars(nn.Module()).keys()
    more = sorted((kept - options - absent) | (dict(module.named_children()).keys() - children))
    if more:
        return f"has attributes that SlowFast's class has not: {', '.join(more)}"
    missing = sorted(options - kept)
    return f"is of an older SlowFast, without {', '.join(missing)}" if missing else ""


def _block_reason(block: Any) -> str:
    if wrong := _of_another_version(block, BLOCK_OPTIONS, BLOCK_ABSENT, BLOCK_CHILDREN):
        return wrong
    if not block.has_cls_embed:
        return "has no class token"
    if max_pool_stride(block.pool_skip) is None:
        return "pools its shortcut by another window than stride + 1 cells, the strides even"
    return "" if is_untouched(block.pool_skip) else "has a hook on its pool_skip, which would be skipped"


def _attention_reason(attention: Any) -> str:
    wrong = why_another(attention, (PLACE, "MultiScaleAttention"))
    if wrong := wrong or _of_another_version(attention, OPTIONS, ABSENT, CHILDREN):
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
    key_value, query = pair(_read(attention, "k"), _read(attention, "v")), _read(attention, "q")
    if key_value is None or (query and query.eps != key_value.key.eps):
        return "pools with norms of several eps, or keys and values with several strides"
    if not isinstance(attention.scale, int | float):
        return f"scales by a {type(attention.scale).__name__}, not by a number"
    return _qkv_reason(attention, key_value.stride)


def _qkv_reason(attention: Any, stride: Sequence[int]) -> str:
    if attention.separate_qkv or attention.pool_q is not None or tuple(stride) == ONES:
        return ""
    layer = attention.qkv
    return "" if type(layer) is nn.Linear else f"qkv is a {type(layer).__name__}, not a Linear"


def _mlp_reason(mlp: Any) -> str:
    wrong = why_another(mlp, ("slowfast.models.common", "Mlp"))
    if wrong := wrong or _of_another_version(mlp, {"drop_rate"}, set(), MLP_CHILDREN):
        return wrong
    if type(mlp.act) is not nn.GELU:
        return f"has a {type(mlp.act).__name__}, not a GELU"
    return why_not_run(two_layers(mlp, MLPOnKernels.dropout_name))
