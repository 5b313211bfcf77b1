"""Lifting of the two groups of frames: LADM (cross attention), its convolutional variant, and none."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ifdd.modules.children import (
    add_and_norm,
    apply_linear,
    apply_norm,
    is_untouched,
    lowered_layers,
    weight_and_bias,
    weights,
)
from ifdd.modules.drop_path import DropPath
from ifdd.modules.issm import EvenOddSplit, FrameIndexes, FrameSplit, make_split
from ifdd.modules.separable import SeparableConv
from ifdd_kernels import lifting_attention, lifting_predict, lifting_residual, lifting_update
from ifdd_kernels._serialised import serialisable

ORDERS = ("update_first", "predict_first")


@serialisable
class Lifted(NamedTuple):
    """Everything a lifting module computes.

    `feature` (B, C): the dynamic feature; `residual` (B, H, W), or (B, H//2, W//2) when self-conditioned;
    `static`, `dynamic`: the lifted groups (B, T/2, N, C), before refinement; `indexes`: the frames behind
    them.
    """

    feature: torch.Tensor
    residual: torch.Tensor
    static: torch.Tensor
    dynamic: torch.Tensor
    indexes: FrameIndexes


class Lifting(nn.Module):
    """Base of the lifting modules: layout checks, the token compression and the residual."""

    def __init__(self, frames: int, grid: tuple[int, int], channels: int, compress_bias: bool) -> None:
        super().__init__()
        self.frames, self.grid, self.channels = frames, (grid[0], grid[1]), channels
        self.compress = nn.Linear(frames // 2 * grid[0] * grid[1], 1, bias=compress_bias)

    def lift(self, tokens: torch.Tensor) -> Lifted:
        """Tokens (B, T*N, C) -> every quantity of the lifting."""
        raise NotImplementedError

    def lowerable(self) -> list[nn.Module]:
        """The layers whose weights may be cast before the module runs."""
        return []

    def forward(self, tokens: torch.Tensor, everything: bool = False) -> tuple[Any, ...]:
        """Tokens (B, T*N, C) -> dynamic feature (B, C), lifting residual (B, H, W).

        `everything` returns all that :meth:`lift` does, a `Lifted`, which begins with these two.

        Raises:
            ValueError: tokens of another shape than the module was made for.
        """
        lifted = self.lift(tokens)
        return lifted if everything else lifted[:2]

    def _frames(self, tokens: torch.Tensor) -> torch.Tensor:
        area = self.grid[0] * self.grid[1]
        if tokens.ndim != 3 or tuple(tokens.shape[1:]) != (self.frames * area, self.channels):
            raise ValueError(
                f"{type(self).__name__}: tokens must be (B, {self.frames * area}, {self.channels}) for "
                f"{self.frames} frames of {self.grid}; got {tuple(tokens.shape)}"
            )
        frames: torch.Tensor = tokens.unflatten(1, (self.frames, area))
        return frames

    def _compress(self, tokens: torch.Tensor) -> torch.Tensor:
        """sum_m w_m tokens_m: (B, M, K) -> (B, K)."""
        found = weights(self.compress, nn.Linear)
        if found is None:
            called: torch.Tensor = self.compress(tokens.mT).squeeze(-1)
            return called
        weight, bias = found
        pooled = (weight @ tokens).squeeze(1)
        return pooled if bias is None else pooled + bias

    def _split(
        self,
        frames: torch.Tensor,
        static_norm: nn.Module | None = None,
        dynamic_norm: nn.Module | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, FrameIndexes]:
        """`FrameSplit.split` of `self.split`, which is called where hooks or a wrapper wait for that."""
        split: Any = self.split
        if isinstance(split, FrameSplit) and is_untouched(split):
            return split.split(frames, static_norm, dynamic_norm)
        static, dynamic, indexes = split(frames, with_indexes=True)
        static = static if static_norm is None else static_norm(static)
        dynamic = dynamic if dynamic_norm is None else dynamic_norm(dynamic)
        return static, dynamic, indexes

    def _residual(self, frames: torch.Tensor, static: torch.Tensor) -> torch.Tensor:
        residual: torch.Tensor = lifting_residual(frames, static).unflatten(1, self.grid)
        return residual


class LiftingStep(nn.Module):
    """target + A(query_in, source) (`update`) or target - A(query_in, source) (`predict`).

    A is multi-head cross attention with a value residual; the queries come from the target, or from the
    source when self-conditioned. `ifdd_kernels.lifting_update` and `lifting_predict` define both steps.
    """

    def __init__(
        self,
        kind: Literal["update", "predict"],
        channels: int,
        heads: int,
        self_conditioned: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.kind, self.heads, self.self_conditioned, self.dropout = kind, heads, self_conditioned, dropout
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.output = nn.Linear(channels, channels)

    def forward(self, target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """Two groups (B, M, C) -> the lifted target (B, M, C)."""
        layers = (self.query, self.key_value, self.output)
        query, key_value, output = (weight_and_bias(layer, nn.Linear) for layer in layers)
        dropping = self.training and self.dropout > 0.0
        if dropping or query is None or key_value is None or output is None:
            attended = F.dropout(self._attend(target, source), self.dropout, self.training)
            return target + attended if self.kind == "update" else target - attended
        step = lifting_update if self.kind == "update" else lifting_predict
        return step(
            target,
            source,
            query[0],
            query[1],
            key_value[0],
            key_value[1],
            output[0],
            output[1],
            num_heads=self.heads,
            self_conditioned=self.self_conditioned,
        )

    def _attend(self, target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """The step's attention with its children called; dropout would fall behind it, before the sum."""
        query = apply_linear(self.query, source if self.self_conditioned else target)
        key, value = apply_linear(self.key_value, source).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return apply_linear(self.output, lifting_attention(query.unflatten(-1, (self.heads, -1)), key, value))

    def extra_repr(self) -> str:
        """Kind of step and its settings."""
        return f"kind={self.kind}, heads={self.heads}, self_conditioned={self.self_conditioned}"


class SelfAttention(nn.Module):
    """Multi-head self attention, scale d^-1/2, with dropout after the output projection."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.output = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, M, C) -> (B, M, C)."""
        q, k, v = apply_linear(self.qkv, tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        attended: torch.Tensor = self.dropout(apply_linear(self.output, mixed.transpose(1, 2).flatten(2)))
        return attended


class LADM(Lifting):
    """Lifting aggregation and disentanglement, with the split in front of it.

    Update first: Y_s = X_s + U(X_d | X_s), Y_d = X_d - P(Y_s | X_d); predict first: Y_d = X_d - P(X_s | X_d),
    Y_s = X_s + U(Y_d | X_s). Then Y_d is refined by self attention and an MLP (without residual) and
    compressed to one feature by a weighted sum over tokens. The lifting residual compares the input, averaged
    over time and channels, with Y_s.

    Source: Wang & Chai, AAAI 2025, arXiv:2412.13168.

    Args:
        frames: T, even.
        grid: (H, W) of a frame's tokens, N = H * W.
        channels: C.
        heads: attention heads; must divide C.
        split: `interpolate` (ISSM), `topk` or `even_odd`.
        order: `update_first` or `predict_first`.
        split_norm: LayerNorm on both groups before lifting.
        self_conditioned: queries come from the source group; the residual is then pooled to (H//2, W//2).
        pool, index_sampling, topk_order_prior: settings of the split, see `ISSM` and `TopKSplit`.
        drop_path: stochastic depth rate of the refinement.
        attention_dropout: dropout rate on attention outputs and in the MLP.

    Raises:
        ValueError: an unknown name, heads that do not divide C, or a grid too small to be self-conditioned.
    """

    def __init__(
        self,
        frames: int,
        grid: tuple[int, int],
        channels: int,
        heads: int = 8,
        split: str = "interpolate",
        order: str = "update_first",
        split_norm: bool = True,
        self_conditioned: bool = False,
        pool: int = 7,
        index_sampling: str = "original",
        topk_order_prior: bool = False,
        drop_path: float = 0.2,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__(frames, grid, channels, compress_bias=False)
        if order not in ORDERS:
            raise ValueError(f"LADM: order must be one of {ORDERS}; got {order!r}")
        if heads < 1 or channels % heads:
            raise ValueError(f"LADM: heads must divide channels={channels}; got {heads}")
        if self_conditioned and min(grid) < 2:
            raise ValueError(f"LADM: self_conditioned needs a grid of at least (2, 2); got {grid}")
        self.order, self.self_conditioned = order, self_conditioned
        self.split = make_split(split, frames, grid, channels, pool, index_sampling, topk_order_prior)
        self.static_norm = nn.LayerNorm(channels) if split_norm else None
        self.dynamic_norm = nn.LayerNorm(channels) if split_norm else None
        self.updater = LiftingStep("update", channels, heads, self_conditioned, attention_dropout)
        self.predictor = LiftingStep("predict", channels, heads, self_conditioned, attention_dropout)
        self.attention_norm = nn.LayerNorm(channels)
        self.attention = SelfAttention(channels, heads, attention_dropout)
        self.mlp_norm = nn.LayerNorm(channels)
        self.mlp_expand = nn.Linear(channels, 4 * channels)
        self.mlp_contract = nn.Linear(4 * channels, channels)
        self.mlp_dropout = nn.Dropout(attention_dropout)
        self.drop_path = DropPath(drop_path)

    def lift(self, tokens: torch.Tensor) -> Lifted:
        """Tokens (B, T*N, C) -> every quantity of the lifting."""
        with lowered_layers(tokens, *self.lowerable()):
            return self._lift(tokens)

    def lowerable(self) -> list[nn.Module]:
        """The layers whose weights may be cast before the module runs."""
        parts = ((self.updater, LiftingStep), (self.predictor, LiftingStep), (self.attention, SelfAttention))
        # A wrapper or a hook around a part may change weights or precision before they are used.
        plain = (part for part, kind in parts if type(part) is kind and is_untouched(part))
        inner = (layer for part in plain for layer in part.children())
        refinement = (self.attention_norm, self.mlp_norm, self.mlp_expand, self.mlp_contract, self.compress)
        return [*inner, *refinement]

    def _lift(self, tokens: torch.Tensor) -> Lifted:
        frames = self._frames(tokens)
        static, dynamic, indexes = self._split(frames, self.static_norm, self.dynamic_norm)
        layout = static.shape[1:3]
        static, dynamic = static.flatten(1, 2), dynamic.flatten(1, 2)
        if self.order == "update_first":
            static = self.updater(static, dynamic)
            dynamic = self.predictor(dynamic, static)
        else:
            dynamic = self.predictor(dynamic, static)
            static = self.updater(static, dynamic)
        static = static.unflatten(1, layout)
        residual = self._residual(frames, static)
        if self.self_conditioned:
            half = (self.grid[0] // 2, self.grid[1] // 2)
            residual = F.adaptive_avg_pool2d(residual.unsqueeze(1), half).squeeze(1)
        return Lifted(self._refine(dynamic), residual, static, dynamic.unflatten(1, layout), indexes)

    def _refine(self, dynamic: torch.Tensor) -> torch.Tensor:
        branch = self.attention(apply_norm(self.attention_norm, dynamic))
        _, normed = add_and_norm(dynamic, branch, self.drop_path, self.mlp_norm)
        hidden = self.mlp_dropout(F.gelu(apply_linear(self.mlp_expand, normed)))
        contract, compress = weights(self.mlp_contract, nn.Linear), weights(self.compress, nn.Linear)
        if contract is None or compress is None or compress[1] is not None or not self._drops_whole_samples():
            return self._compress(self.drop_path(self.mlp_dropout(apply_linear(self.mlp_contract, hidden))))
        # sum_m w_m (W h_m + b) = W (sum_m w_m h_m) + b sum_m w_m: one row instead of M goes through W.
        # Dropping a whole sample commutes with the sum as well; dropout of single elements, above, does not.
        # A product for each sample: as one matrix for all, PyTorch would copy the hidden values.
        rows = compress[0].expand(hidden.shape[0], -1, -1) @ hidden
        feature = F.linear(rows.squeeze(1), contract[0])
        if contract[1] is not None:
            feature = feature + contract[1] * compress[0].sum()
        dropped: torch.Tensor = self.drop_path(feature)
        return dropped

    def _drops_whole_samples(self) -> bool:
        """Whether all that may follow the MLP's second layer is the loss of whole samples."""
        dropout: nn.Module = self.mlp_dropout
        path = self.drop_path
        return (
            (
                type(dropout) is nn.Identity
                or (type(dropout) is nn.Dropout and not (dropout.training and dropout.p > 0.0))
            )
            and type(path) in (DropPath, nn.Identity)
            and is_untouched(dropout)
            and is_untouched(path)
        )


class ConvLifting(Lifting):
    """Lifting of even and odd frames by separable convolutions: Y_s = X_s + U(X_d), Y_d = X_d - P(Y_s).

    No norms and no refinement.

    Args:
        frames, grid, channels: as for `LADM`.
    """

    def __init__(self, frames: int, grid: tuple[int, int], channels: int) -> None:
        super().__init__(frames, grid, channels, compress_bias=False)
        self.split = EvenOddSplit(frames, grid, channels)
        self.updater = SeparableConv(channels, channels, kernel=3)
        self.predictor = SeparableConv(channels, channels, kernel=3)

    def lift(self, tokens: torch.Tensor) -> Lifted:
        """Tokens (B, T*N, C) -> every quantity of the lifting."""
        frames = self._frames(tokens)
        static, dynamic, indexes = self._split(frames)
        static = static + self._convolve(self.updater, dynamic)
        dynamic = dynamic - self._convolve(self.predictor, static)
        feature = self._compress(dynamic.flatten(1, 2))
        return Lifted(feature, self._residual(frames, static), static, dynamic, indexes)

    def _convolve(self, operator: SeparableConv, group: torch.Tensor) -> torch.Tensor:
        """(B, T/2, N, C) -> (B, T/2, N, C) through (B, C, T/2, H, W)."""
        volume: torch.Tensor = operator(group.unflatten(2, self.grid).permute(0, 4, 1, 2, 3))
        return volume.permute(0, 2, 3, 4, 1).flatten(2, 3)


class NoLifting(Lifting):
    """The split alone: the feature is a weighted sum (with bias) of the dynamic group's tokens.

    Args:
        frames, grid, channels, split, pool, index_sampling, topk_order_prior: as for `LADM`.

    Raises:
        ValueError: an unknown `split` or `index_sampling`, odd T, or sizes below 1.
    """

    def __init__(
        self,
        frames: int,
        grid: tuple[int, int],
        channels: int,
        split: str = "interpolate",
        pool: int = 7,
        index_sampling: str = "original",
        topk_order_prior: bool = False,
    ) -> None:
        super().__init__(frames, grid, channels, compress_bias=True)
        self.split = make_split(split, frames, grid, channels, pool, index_sampling, topk_order_prior)

    def lift(self, tokens: torch.Tensor) -> Lifted:
        """Tokens (B, T*N, C) -> every quantity of the lifting."""
        frames = self._frames(tokens)
        static, dynamic, indexes = self._split(frames)
        feature = self._compress(dynamic.flatten(1, 2))
        return Lifted(feature, self._residual(frames, static), static, dynamic, indexes)
