"""MViTv2: four stages of multiscale attention blocks over space-time tokens with a class token.

Source: Li et al., "MViTv2: Improved Multiscale Vision Transformers" (CVPR 2022).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ifdd.config import STAGE_COUNT, STAGE_HEADS
from ifdd.modules import lowered
from ifdd.modules.children import (
    add_and_norm,
    add_branch,
    apply_linear,
    apply_norm,
    is_untouched,
    lowered_layers,
    weight_and_bias,
    weights,
)
from ifdd.modules.drop_path import DropPath, drawn
from ifdd.modules.recompute import checkpointed, norm_again
from ifdd_kernels import gelu_linear, linear, max_pool_tokens, pool_tokens, pooled_attention
from ifdd_kernels._serialised import serialisable
from ifdd_kernels.grids import live_tokens, pooled_grid, table_length

Grid = tuple[int, int, int]

NORM_EPS = 1e-6
INIT_STD = 0.02
CAST_TOGETHER = 4
"""Blocks whose weights are cast in one launch, which takes 64 tensors. Not all: their gradients come together
too, and ranks begin to exchange them as soon as the first are there."""
KEY_VALUE_STRIDES = (8, 4, 2, 1)
"""Spatial stride of the key and value pools in each stage."""


def _with_rows(tokens: torch.Tensor, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (B, N, C), and the rows of them that ``at`` names."""
    return tokens, tokens.index_select(1, at)


class _WithRows(torch.autograd.Function):
    """`_with_rows`, whose backward adds the rows' gradient to that of all tokens in one pass.

    Autograd would add it to zeros first.
    """

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(at)
        tokens, rows = _with_rows(tokens, at)
        return tokens.view_as(tokens), rows

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, grad_rows: torch.Tensor) -> tuple[torch.Tensor, None]:
        (at,) = ctx.saved_tensors
        return grad.index_add(1, at, grad_rows), None


class MultiscaleAttention(nn.Module):
    """Attention on pooled queries, keys and values with decomposed relative positions and residual queries.

    `ifdd_kernels.pool_tokens` and `ifdd_kernels.pooled_attention` define the two steps. Tokens that lie in no
    pooling window of the keys and values (7 of 8 at stride 8) are projected to queries only.

    The ops read the weights of `qkv`, of the pools and of their norms. Where one of these children is not
    exactly what they compute (see docs/modules.md) it is called instead, on all tokens.

    Args:
        grid: (T, H, W) of the input tokens.
        in_channels, out_channels: widths of the tokens before and after.
        heads: attention heads; must divide `out_channels`.
        stride_q, stride_kv: (t, h, w) strides of the query pool and of the key and value pools.
    """

    live_rows: torch.Tensor

    def __init__(
        self, grid: Grid, in_channels: int, out_channels: int, heads: int, stride_q: Grid, stride_kv: Grid
    ) -> None:
        super().__init__()
        head_dim = out_channels // heads
        self.grid, self.heads, self.stride_q, self.stride_kv = grid, heads, stride_q, stride_kv
        self.channels = out_channels
        self.q_grid, self.k_grid = pooled_grid(grid, stride_q), pooled_grid(grid, stride_kv)
        live = live_tokens(grid, stride_kv)
        self.live_grid, self.live_stride = live.grid, live.stride
        self.register_buffer("live_rows", live.rows, persistent=False)
        self.qkv = nn.Linear(in_channels, 3 * out_channels)
        self.pool_q, self.pool_k, self.pool_v = (
            nn.Conv3d(head_dim, head_dim, 3, padding=1, groups=head_dim, bias=False) for _ in range(3)
        )
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(head_dim, eps=NORM_EPS) for _ in range(3))
        rows_t, rows_h, rows_w = map(table_length, self.q_grid, self.k_grid)
        self.table_h = nn.Parameter(torch.empty(rows_h, head_dim))
        self.table_w = nn.Parameter(torch.empty(rows_w, head_dim))
        self.table_t = nn.Parameter(torch.empty(rows_t, head_dim))
        self.output = nn.Linear(out_channels, out_channels)
        for table in (self.table_h, self.table_w, self.table_t):
            nn.init.trunc_normal_(table, std=INIT_STD)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> MultiscaleAttention:
        super()._apply(fn, recurse)
        self._find_rows(self.live_rows.device)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._find_rows(self.table_h.device)

    def _find_rows(self, device: torch.device) -> torch.Tensor:
        """Makes the rows on a device: a constant that no state dict restores to a module built on meta."""
        with torch.inference_mode(False):  # training goes on with what loading or a prediction made
            self.live_rows = live_tokens(self.grid, self.stride_kv, device).rows
        return self.live_rows

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, 1 + T*H*W, C_in) -> (B, 1 + Nq, C_out)."""
        q, k, v = self._pooled(tokens)
        mixed = pooled_attention(
            q, k, v, self.table_h, self.table_w, self.table_t, q_grid=self.q_grid, k_grid=self.k_grid
        )
        return apply_linear(self.output, mixed)

    def _pooled(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (B, 1 + Nq, h, d), keys and values (B, 1 + Nk, h, d)."""
        norms = (self.norm_q, self.norm_k, self.norm_v)
        kernels = [_pool_weight(pool) for pool in (self.pool_q, self.pool_k, self.pool_v)]
        parameters = [weight_and_bias(norm, nn.LayerNorm) for norm in norms]
        found: list[Any] = [part for part in (*kernels, *parameters) if part is not None]
        if len(found) < 6 or not norms[0].eps == norms[1].eps == norms[2].eps:
            return self._pooled_by_calls(tokens)
        qkv, key_value = self._project(tokens)
        weight_q, weight_k, weight_v, norm_q, norm_k, norm_v = found
        return pool_tokens(
            qkv,
            weight_q,
            weight_k,
            weight_v,
            norm_q,
            norm_k,
            norm_v,
            grid=self.grid,
            num_heads=self.heads,
            stride_q=self.stride_q,
            stride_kv=self.stride_kv if key_value is None else self.live_stride,
            key_value=key_value,
            key_value_grid=None if key_value is None else self.live_grid,
            eps=norms[0].eps,
        )

    def _project(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Packed queries, keys and values; the last two apart where they come from fewer tokens."""
        found = None if self.live_grid == self.grid else weights(self.qkv, nn.Linear)
        if found is None:
            return apply_linear(self.qkv, tokens), None
        rows = (self.channels, 2 * self.channels)
        weight_q, weight_kv = found[0].split(rows)
        bias_q, bias_kv = (None, None) if found[1] is None else found[1].split(rows)
        at = self.live_rows
        if at.device != tokens.device:
            at = self._find_rows(tokens.device)
        tokens, live = _WithRows.apply(tokens, at) if lowered.eager_on_gpu(tokens) else _with_rows(tokens, at)
        return linear(tokens, weight_q, bias_q), linear(live, weight_kv, bias_kv)

    def _pooled_by_calls(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As :meth:`_pooled`, every child called."""
        packed = apply_linear(self.qkv, tokens).unflatten(-1, (3, self.heads, self.channels // self.heads))
        q, k, v = (
            self._pooled_by_call(part, getattr(self, f"pool_{name}"), getattr(self, f"norm_{name}"), stride)
            for name, part, stride in zip(
                "qkv", packed.unbind(2), (self.stride_q, self.stride_kv, self.stride_kv), strict=True
            )
        )
        return q, k, v

    def _pooled_by_call(
        self, tokens: torch.Tensor, pool: nn.Module, norm: nn.Module, stride: Grid
    ) -> torch.Tensor:
        """(B, 1 + T*H*W, h, d) -> (B, 1 + N', h, d).

        A convolution with a stride is every so manieth cell of the one without, which the child is.
        """
        batch, _, heads, head_dim = tokens.shape
        volume = tokens[:, 1:].unflatten(1, self.grid).permute(0, 4, 5, 1, 2, 3).flatten(0, 1)
        cells = pool(volume)
        if cells.shape != volume.shape:
            raise ValueError(
                f"MultiscaleAttention: a pool must keep the shape of its input, {tuple(volume.shape)} (the "
                f"strides are applied behind it); {type(pool).__name__} returned {tuple(cells.shape)}"
            )
        cells = cells[:, :, :: stride[0], :: stride[1], :: stride[2]]
        rows = cells.reshape(batch, heads, head_dim, math.prod(cells.shape[2:]))
        pooled: torch.Tensor = norm(torch.cat((tokens[:, :1], rows.permute(0, 3, 1, 2)), 1))
        return pooled


@dataclass
class Chain:
    """Values that consecutive blocks pass on beside the tokens, if nothing reads the tokens between them."""

    #: `attention_norm` of the tokens, where the block before has formed it; afterwards of the result.
    normed: torch.Tensor | None = None
    #: The norm that takes the block's result; None where it is not known.
    following: nn.Module | None = None
    #: The samples that keep either branch, where they were drawn for the block's `drop_path`.
    kept: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
    #: Whether the weights of the block were cast with those of others; else it casts its own.
    cast: bool = False


class MultiscaleBlock(nn.Module):
    """One MViTv2 block: x = s + DropPath(Attention(LN(x))), then x + DropPath(MLP(LN(x))).

    The shortcut s is x, or Linear(LN(x)) where the width changes, max-pooled where the queries are strided
    (kernel stride + 1; the class token is kept).

    Args:
        grid: (T, H, W) of the input tokens.
        in_channels, out_channels: widths before and after the attention.
        heads: attention heads; must divide `out_channels`.
        stride_q, stride_kv: (t, h, w) strides of the query pool and of the key and value pools.
        drop_path: stochastic depth rate of both branches.

    Raises:
        ValueError: sizes or strides below 1, or heads that do not divide the width.
    """

    def __init__(
        self,
        grid: Grid,
        in_channels: int,
        out_channels: int,
        heads: int,
        stride_q: Grid = (1, 1, 1),
        stride_kv: Grid = (1, 1, 1),
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        grid, stride_q, stride_kv = (
            _triple(name, value)
            for name, value in (("grid", grid), ("stride_q", stride_q), ("stride_kv", stride_kv))
        )
        if min(in_channels, out_channels, heads) < 1 or out_channels % heads:
            raise ValueError(
                "MultiscaleBlock: heads must divide out_channels and all be positive; got "
                f"in_channels={in_channels}, out_channels={out_channels}, heads={heads}"
            )
        self.grid, self.stride_q = grid, stride_q
        self.out_grid = pooled_grid(grid, stride_q)
        self.in_channels = in_channels
        self.attention_norm = nn.LayerNorm(in_channels, eps=NORM_EPS)
        self.attention = MultiscaleAttention(grid, in_channels, out_channels, heads, stride_q, stride_kv)
        self.shortcut = nn.Linear(in_channels, out_channels) if in_channels != out_channels else None
        self.mlp_norm = nn.LayerNorm(out_channels, eps=NORM_EPS)
        self.mlp_expand = nn.Linear(out_channels, 4 * out_channels)
        self.mlp_contract = nn.Linear(4 * out_channels, out_channels)
        self.drop_path = DropPath(drop_path)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: torch.Tensor, chain: Chain | None = None) -> tuple[torch.Tensor, Grid]:
        """``(B, 1 + T*H*W, C_in)`` -> ``(B, 1 + T'*H'*W', C_out)`` and the grid (T', H', W').

        In a `chain` the block begins with the norm that the one before has left there, and leaves that of its
        result. Backward normalises the tokens of the MLP again instead of keeping them (:func:`norm_again`).

        Raises:
            ValueError: tokens of another shape than the block was made for.
        """
        count = 1 + self.grid[0] * self.grid[1] * self.grid[2]
        if tokens.ndim != 3 or tokens.shape[1] != count or tokens.shape[2] != self.in_channels:
            raise ValueError(
                f"MultiscaleBlock: tokens must be (B, {count}, {self.in_channels}) for grid {self.grid}; "
                f"got {tuple(tokens.shape)}"
            )
        chain = Chain() if chain is None else chain
        if chain.cast:
            return self._forward(tokens, chain), self.out_grid
        first = self.attention_norm if chain.normed is None else None
        with lowered_layers(tokens, first, chain.following, *self.lowerable()):
            return self._forward(tokens, chain), self.out_grid

    def lowerable(self) -> list[nn.Module | None]:
        """The layers whose weights may be cast before the module runs, without the norm it begins with."""
        # A wrapper or a hook around the attention may change weights or precision before they are used.
        plain = type(self.attention) is MultiscaleAttention and is_untouched(self.attention)
        inner = (self.attention.qkv, self.attention.output) if plain else ()
        return [self.shortcut, self.mlp_norm, self.mlp_expand, self.mlp_contract, *inner]

    def _forward(self, tokens: torch.Tensor, chain: Chain) -> torch.Tensor:
        """The tokens behind the block."""
        # Taken out of the chain: nothing may hold it while the MLP runs, where memory is largest.
        normed, chain.normed = chain.normed, None
        if normed is None:
            normed = apply_norm(self.attention_norm, tokens)
        with norm_again(self.attention_norm, tokens, normed) if self._is_early(tokens) else nullcontext():
            shortcut = tokens if self.shortcut is None else apply_linear(self.shortcut, normed)
            branch = self.attention(normed)
        if max(self.stride_q) > 1:
            shortcut = max_pool_tokens(shortcut, self.grid, self.stride_q)
        tokens, normed = add_and_norm(shortcut, branch, self.drop_path, self.mlp_norm, chain.kept[0])
        with norm_again(self.mlp_norm, tokens, normed):
            hidden = apply_linear(self.mlp_expand, normed)
        branch = self._contract(hidden)
        if chain.following is None:
            return add_branch(tokens, branch, self.drop_path)
        last, path = chain.kept[1], self.drop_path
        tokens, chain.normed = add_and_norm(tokens, branch, path, chain.following, last)
        return tokens

    def _is_early(self, tokens: torch.Tensor) -> bool:
        """Whether the block's input is normalised again in backward.

        On a GPU only, whose memory decides the batch, and in the first stages, which hold most of it: a pass
        and a launch for each layer on the norm.
        """
        return lowered.eager_on_gpu(tokens) and self.attention.live_grid != self.grid

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As `nn.Module.compile`, with a limit of recompilations for each block.

        PyTorch counts the programs of a function (8 by default), and all blocks share one: those of other
        widths and grids, each for a fixed and a varying batch, would be more. PyTorch before 2.13 has no
        such limits; there `torch._dynamo.config.recompile_limit` must allow for all blocks.
        """
        if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
            kwargs.setdefault("isolate_recompiles", True)
        super().compile(*args, **kwargs)

    def _contract(self, hidden: torch.Tensor) -> torch.Tensor:
        """The second half of the MLP: (B, N, 4*C) -> (B, N, C)."""
        found = weight_and_bias(self.mlp_contract, nn.Linear)
        if found is None:
            return apply_linear(self.mlp_contract, F.gelu(hidden))
        return gelu_linear(hidden, *found)


@serialisable
class StageOutput(NamedTuple):
    """Tokens after a stage, and their grid."""

    #: (B, 1 + T*H*W, C), class token first.
    tokens: torch.Tensor
    #: (T, H, W).
    grid: Grid


class MultiscaleBackbone(nn.Module):
    """The four stages. Channels, heads and grids change in the first block of stages 1, 2 and 3.

    Args:
        grid: (T, H, W) of the embedded tokens.
        stage_channels: channels of the four stages.
        depths: blocks of the four stages.
        drop_path: rate of the last block; the rate rises linearly from 0 over the blocks.
        activation_checkpointing: recompute the blocks in the backward pass.
    """

    def __init__(
        self,
        grid: Grid,
        stage_channels: Sequence[int],
        depths: Sequence[int],
        drop_path: float = 0.2,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.class_token = nn.Parameter(torch.empty(stage_channels[0]))
        nn.init.trunc_normal_(self.class_token, std=INIT_STD)
        count = sum(depths)
        self.blocks = nn.ModuleList()
        self.stage_ends: list[int] = []
        self.stage_grids: list[Grid] = []
        channels = stage_channels[0]
        for stage, depth in enumerate(depths):
            for index in range(depth):
                step = 2 if stage > 0 and index == 0 else 1
                # One stride for the whole stage, though its first block still sees the larger grid.
                key_step = KEY_VALUE_STRIDES[stage]
                block = MultiscaleBlock(
                    grid,
                    channels,
                    stage_channels[stage],
                    STAGE_HEADS[stage],
                    stride_q=(1, step, step),
                    stride_kv=(1, key_step, key_step),
                    drop_path=drop_path * len(self.blocks) / max(count - 1, 1),
                )
                self.blocks.append(block)
                grid, channels = block.out_grid, stage_channels[stage]
            self.stage_ends.append(len(self.blocks) - 1)
            self.stage_grids.append(grid)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)

    def forward(
        self, tokens: torch.Tensor, stages: Collection[int] = range(STAGE_COUNT)
    ) -> dict[int, StageOutput]:
        """Embedded tokens (B, T*H*W, C) -> the outputs of the asked stages; the last stage is normalised."""
        recompute = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        # On a GPU a block forms the norm that the next one begins with. A hook on either of them would see,
        # or change, what the norm was not made of.
        fused = not recompute and lowered.eager_on_gpu(tokens)
        plain = [fused and type(block) is MultiscaleBlock and is_untouched(block) for block in self.blocks]
        outputs: dict[int, StageOutput] = {}
        with ExitStack() if fused else nullcontext() as casts:  # TorchDynamo enters no context of a stack
            if casts is not None:
                alone = (self.class_token,)
                casts.enter_context(lowered_layers(tokens, *self._group(plain, 0, stages), alone=alone))
            class_token = lowered.lowered_weight(self.class_token).to(tokens.dtype)
            tokens = torch.cat((class_token.expand(tokens.shape[0], 1, -1), tokens), dim=1)
            kept = self._drawn(plain, tokens) if fused else []
            chain = Chain(cast=fused)
            for index, block in enumerate(self.blocks):
                if casts is not None and index and index % CAST_TOGETHER == 0:
                    casts.enter_context(lowered_layers(tokens, *self._group(plain, index, stages)))
                if plain[index]:
                    chain.following = self._following(plain, index, stages)
                    chain.kept = kept[index]
                    tokens, grid = block(tokens, chain)
                else:
                    tokens, grid = checkpointed(block, tokens) if recompute else block(tokens)
                if index in self.stage_ends and (stage := self.stage_ends.index(index)) in stages:
                    if stage == len(self.stage_ends) - 1:
                        tokens = self.norm(tokens) if chain.normed is None else chain.normed
                    outputs[stage] = StageOutput(tokens, grid)
        return outputs

    def _following(self, plain: Sequence[bool], index: int, stages: Collection[int]) -> nn.Module | None:
        """The norm that takes the result of a plain block, if nothing else does."""
        if index + 1 == len(plain):
            last = len(self.stage_ends) - 1
            return self.norm if last in stages and index == self.stage_ends[last] else None
        following: Any = self.blocks[index + 1]
        return following.attention_norm if plain[index + 1] else None

    def _group(self, plain: Sequence[bool], first: int, stages: Collection[int]) -> list[nn.Module | None]:
        """The layers of the plain blocks from `first` whose weights are cast together."""
        found: list[nn.Module | None] = []
        for index in range(first, min(first + CAST_TOGETHER, len(plain))):
            if plain[index]:
                block: Any = self.blocks[index]
                found += [block.attention_norm, *block.lowerable(), self._following(plain, index, stages)]
        return list(dict.fromkeys(found))

    def _drawn(
        self, plain: Sequence[bool], tokens: torch.Tensor
    ) -> list[tuple[torch.Tensor | None, torch.Tensor | None]]:
        """The samples that keep either branch of each block, drawn together for plain blocks."""
        paths = {
            index: path
            for index, block in enumerate(self.blocks)
            if plain[index] and type(path := block.drop_path) is DropPath and is_untouched(path)
        }
        rows = iter(drawn([path for path in paths.values() for _ in range(2)], tokens))
        found = {index: (next(rows), next(rows)) for index in paths}
        return [found.get(index, (None, None)) for index in range(len(plain))]


def _pool_weight(pool: nn.Module) -> torch.Tensor | None:
    """The weight of a pool that `pool_tokens` computes; None where it has to be called."""
    found = weights(pool, nn.Conv3d)
    if found is None or found[1] is not None:
        return None
    ones = (1, 1, 1)
    fits = pool.stride == ones and pool.padding == ones and pool.dilation == ones
    return found[0] if fits and pool.padding_mode == "zeros" else None


def _triple(name: str, value: Sequence[int]) -> Grid:
    if len(value) != 3 or min(value) < 1:
        raise ValueError(f"MultiscaleBlock: {name} must be three integers of at least 1; got {tuple(value)}")
    return value[0], value[1], value[2]
