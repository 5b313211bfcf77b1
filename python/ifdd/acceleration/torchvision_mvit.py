"""The parts of torchvision's MViT (`mvit_v1_b`, `mvit_v2_s` and others of its class `MViT`)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ifdd.acceleration.classes import Accelerated, backend_of, place_of, plain, takes, why_another
from ifdd.acceleration.mlp import Layers, run_mlp, why_not_run
from ifdd.acceleration.pooling import (
    ONES,
    Attention,
    Pooling,
    attend,
    cells,
    max_pool_stride,
    pair,
    pool,
    project_packed,
    read_pooling,
    read_stride,
    same_grids,
    why_not_read,
)
from ifdd.acceleration.probe import Trials
from ifdd.modules.backbone import Grid
from ifdd.modules.children import is_untouched
from ifdd_kernels import max_pool_tokens

Answer = tuple[Tensor, Any]
POOL = ("torchvision.models.video.mvit", "Pool")
MLP_LAYERS = [nn.Linear, nn.GELU, nn.Dropout, nn.Linear, nn.Dropout]


def _parts_of_pool(module: Any) -> tuple[nn.Module | None, nn.Module | None]:
    """The convolution and the norm of a `Pool`, where it does nothing else."""
    if place_of(module) != POOL or not is_untouched(module) or module.norm_before_pool:
        return None, None
    layers = module.norm_act
    alone = type(layers) is nn.Sequential and is_untouched(layers) and len(layers) == 1
    return (module.pool, layers[0]) if alone else (None, None)


def _read(module: nn.Module | None) -> Pooling | None:
    return None if module is None else read_pooling(*_parts_of_pool(module))


class AttentionOnKernels(Accelerated):
    """`MultiscaleAttention`: pools by `pool_tokens`, the rest by `pooled_attention`.

    `qkv` (where its rows are split), `pool_q`, `pool_k` and `pool_v` are read; `project` is called.
    """

    def forward(self, x: Tensor, thw: Any) -> Answer:
        """(B, 1 + T*H*W, C) and (T, H, W) -> (B, 1 + T'*H'*W', C') and (T', H', W')."""
        me: Any = self
        tables = (me.rel_pos_h, me.rel_pos_w, me.rel_pos_t)
        key_value = pair(_read(me.pool_k), _read(me.pool_v))
        query = _read(me.pool_q)
        unread = key_value is None or (me.pool_q is not None and query is None)
        # A learnable scale gets its gradient from their product only.
        unread = unread or not isinstance(me.scaler, int | float)
        if unread or not takes(x) or not plain(*tables) or (query and query.eps != key_value.key.eps):  # type: ignore[union-attr]
            return super().forward(x, thw)  # type: ignore[no-any-return]
        assert key_value is not None
        grid: Grid = tuple(thw)
        q_grid = grid if query is None else cells(grid, query.stride)
        k_grid = cells(grid, key_value.stride)
        if any(table is None for table in tables):  # then theirs adds none
            tables = (None, None, None)
        elif not same_grids(q_grid, k_grid):
            return super().forward(x, thw)  # type: ignore[no-any-return]
        width = me.num_heads * me.head_dim
        projected = project_packed(me.qkv, x, width, grid, key_value.stride, apart=query is None)
        parts = pool(projected, query, key_value, grid, me.num_heads, backend_of(self, "pool_tokens"))
        how = Attention(
            me.scaler,
            tables,
            me.residual_pool,
            me.residual_with_cls_embed,
            backend_of(self, "pooled_attention"),
        )
        out: Tensor = me.project(attend(parts, q_grid, k_grid, how))
        return out, thw if query is None else q_grid


class MLPOnKernels(Accelerated):
    """`MLP`: keeps only the argument of GELU for backward. All its layers are read."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C')."""
        layers = _layers_of_mlp(self) if takes(x) else None
        out = None if layers is None else run_mlp(self, layers, x)
        return super().forward(x) if out is None else out


def _layers_of_mlp(mlp: nn.Module) -> Layers | None:
    """None where they are others: one may have been replaced, put in or taken out."""
    layers = list(mlp.children())
    if [type(layer) for layer in layers] != MLP_LAYERS:
        return None
    first, activation, dropout, second, last = layers
    return Layers(first, activation, second, (dropout, last))


class SkipOnKernels(Accelerated):
    """`Pool` of a shortcut: its maximum, in the layout of tokens. Its `pool` is read."""

    def forward(self, x: Tensor, thw: Any) -> Answer:
        """(B, 1 + T*H*W, C) and (T, H, W) -> (B, 1 + T'*H'*W', C) and (T', H', W')."""
        me: Any = self
        stride = read_stride(me.pool, x)
        if stride is None or me.norm_act is not None:
            return super().forward(x, thw)  # type: ignore[no-any-return]
        grid: Grid = tuple(thw)
        out = max_pool_tokens(x, grid, stride, backend=backend_of(self, "max_pool_tokens"))
        return out, cells(grid, stride)


def plan(block: Any, _trials: Trials) -> tuple[dict[str, type[Accelerated]], dict[str, str]]:
    """The replacement of each part of a `MultiscaleBlock`, and why parts stay, by their names in it."""
    become: dict[str, type[Accelerated]] = {"attn": AttentionOnKernels, "mlp": MLPOnKernels}
    left: dict[str, str] = {}
    reasons = {"attn": _attention_reason(block.attn), "mlp": _mlp_reason(block.mlp)}
    if block.pool_skip is not None:
        become["pool_skip"] = SkipOnKernels
        reasons["pool_skip"] = _skip_reason(block.pool_skip)
    for name, reason in reasons.items():
        if reason:
            left[name] = reason
            del become[name]
    return become, left


def _attention_reason(attention: Any) -> str:
    wrong = why_another(attention, ("torchvision.models.video.mvit", "MultiscaleAttention"))
    if wrong:
        return wrong
    if attention.pool_k is None or attention.pool_v is None:
        return "does not pool keys and values"
    for name in ("pool_q", "pool_k", "pool_v"):
        module = getattr(attention, name)
        if module is None:
            continue
        wrong = why_another(module, POOL)
        if wrong:
            return f"{name} {wrong}"
        convolution, norm = _parts_of_pool(module)
        if convolution is None:
            return f"{name} has hooks, or is not a convolution with one norm behind it"
        if wrong := why_not_read(convolution, norm):
            return f"{name} {wrong}"
    key_value, query = pair(_read(attention.pool_k), _read(attention.pool_v)), _read(attention.pool_q)
    if key_value is None or (query and query.eps != key_value.key.eps):
        return "pools with norms of several eps, or keys and values with several strides"
    if not isinstance(attention.scaler, int | float):
        return f"scales by a {type(attention.scaler).__name__}, not by a number"
    if attention.pool_q is None and key_value.stride != ONES and type(attention.qkv) is not nn.Linear:
        return f"qkv is a {type(attention.qkv).__name__}, not a Linear"
    return ""


def _mlp_reason(mlp: Any) -> str:
    if wrong := why_another(mlp, ("torchvision.ops.misc", "MLP")):
        return wrong
    layers = _layers_of_mlp(mlp)
    if layers is None:
        return f"is made of {', '.join(type(layer).__name__ for layer in mlp)}"
    return why_not_run(layers)


def _skip_reason(skip: Any) -> str:
    wrong = why_another(skip, POOL)
    if wrong:
        return wrong
    if skip.norm_act is not None:
        return "normalises what it pools"
    if max_pool_stride(skip.pool) is None:
        return "pools by something else than a maximum over windows of stride + 1 cells, the strides even"
    return "" if is_untouched(skip.pool) else "has a hook on its pool, which would be skipped"
