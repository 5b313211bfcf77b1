"""The learned split of the frames: the original through grid_sample, and a small matrix product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.original import InterpolatedSplit, TopKSplit
from benchmarks.rivals.contender import Bound, Contender, Gradients, Inputs, Outputs, adopt, parameters_of


def sampling_matrix(index: Tensor, frames: int) -> Tensor:
    """(B, K, T) weights that interpolate at p = clamp(i T/(T-1) - 1/2, 0, T-1): max(0, 1 - |p - t|)."""
    position = (index * (frames / (frames - 1)) - 0.5).clamp(0, frames - 1)
    frame = torch.arange(frames, device=index.device, dtype=index.dtype)
    weights: Tensor = (1 - (position[..., None] - frame).abs()).clamp(min=0)
    return weights


class ProductSplit(InterpolatedSplit):
    """The original split whose sampling is a (K x T) matrix product, exact in result and gradients."""

    def sample(self, x: Tensor, index: Tensor) -> Tensor:
        """As the original's, (B, C, T, N) -> (B, C, K, N), on the memory of (B, T, N, C)."""
        batch, channels, frames, tokens = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(batch, frames, tokens * channels)
        weights = sampling_matrix(index, frames).to(rows.dtype)
        sampled: Tensor = torch.bmm(weights, rows).unflatten(2, (tokens, channels)).permute(0, 3, 1, 2)
        return sampled


class NormedSplit(nn.Module):
    """Frames (B, T, N, C) to both groups (B, T/2, N, C) behind their LayerNorms, as the original's LADM."""

    def __init__(self, split: InterpolatedSplit, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        channels = parameters["static_norm_weight"].shape[0]
        self.split = split
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        for norm, group in zip(self.norms, ("static", "dynamic"), strict=True):
            adopt(norm, {kind: parameters[f"{group}_norm_{kind}"] for kind in ("weight", "bias")})

    def forward(self, x: Tensor) -> Outputs:
        groups = self.split(x.permute(0, 3, 1, 2))
        layout = (groups[0].shape[2], x.shape[2])
        rows = (group.flatten(2).transpose(1, 2) for group in groups)
        normed = (norm(row).unflatten(1, layout) for norm, row in zip(self.norms, rows, strict=True))
        return tuple(normed)


#: Names of the tokenizer's and the offsets' weights in the original split.
SPLIT_NAMES = {
    "dim_project.0.weight": "token_weight",
    "dim_project.0.bias": "token_bias",
    "offset_project_approx.0.weight": "static_weight",
    "offset_project_detail.0.weight": "dynamic_weight",
}


def _make_split(
    kind: type[InterpolatedSplit], inputs: Inputs, parameters: dict[str, Tensor]
) -> InterpolatedSplit:
    """The original's split on given weights; its 1x1 convolution stores (S, C, 1, 1)."""
    constants, x = inputs.constants, inputs.activations["x"]
    grid = (constants["height"], constants["width"])
    split = kind(x.shape[3], x.shape[1], grid, constants["pool"], constants.get("reach", 2.0))
    adopt(split, {own: parameters[name] for own, name in SPLIT_NAMES.items() if name in parameters})
    return split.to(x.device)


def _leaves(inputs: Inputs) -> dict[str, Tensor]:
    parameters = parameters_of(inputs)
    if "token_weight" in parameters:
        parameters["token_weight"] = nn.Parameter(inputs.parameters["token_weight"][:, :, None, None])
    return parameters


def _flat_weight(grads: Gradients) -> Gradients:
    return {name: g.flatten(1) if name == "token_weight" else g for name, g in grads.items()}


def _issm(name: str, kind: type[InterpolatedSplit]) -> Contender:
    def bind(inputs: Inputs) -> Bound:
        parameters = _leaves(inputs)
        split = _make_split(kind, inputs, parameters)
        return Bound(NormedSplit(split, parameters), parameters, _flat_weight)

    return Contender(name, bind)


def issm() -> list[Contender]:
    """The rivals of the whole splitting module: frames to both normalised groups."""
    original, rewrite = _issm("original", InterpolatedSplit), _issm("rewrite", ProductSplit)
    tuned = original.compile("max-autotune", mode="max-autotune")
    return [original, rewrite, original.compile(), rewrite.compile(), tuned]


def split_index() -> list[Contender]:
    """Frames to both groups' positions and the correlation."""

    def bind(inputs: Inputs) -> Bound:
        parameters = _leaves(inputs)
        split = _make_split(InterpolatedSplit, inputs, parameters)

        def run(x: Tensor) -> Outputs:
            correlation = split.correlation(x.permute(0, 3, 1, 2))
            return (*split.indexes(correlation), correlation)

        return Bound(run, parameters, _flat_weight)

    original = Contender("original", bind)
    return [original, original.compile()]


def frame_tokens() -> list[Contender]:
    """Frames to their tokens."""

    def bind(inputs: Inputs) -> Bound:
        constants, parameters = inputs.constants, parameters_of(inputs)
        pool = constants["pool"]

        def run(x: Tensor) -> Outputs:
            batch, frames, _, channels = x.shape
            grid = (constants["height"], constants["width"])
            images = x.transpose(2, 3).reshape(batch * frames, channels, *grid)
            weight = parameters["weight"][:, :, None, None]
            tokens = F.gelu(F.conv2d(F.adaptive_avg_pool2d(images, pool), weight, parameters["bias"]))
            return (tokens.reshape(batch, frames, -1),)

        return Bound(run, parameters)

    return [Contender("original", bind)]


def frame_correlation() -> list[Contender]:
    """Tokens to their correlation."""

    def bind(inputs: Inputs) -> Bound:
        scale = inputs.constants["scale"]
        return Bound(lambda tokens: (torch.matmul(tokens, tokens.transpose(1, 2)) * scale,), {})

    return [Contender("original", bind)]


def split_frames() -> list[Contender]:
    """Positions to both normalised groups, through grid_sample and through a product."""

    def make(name: str, kind: type[InterpolatedSplit]) -> Contender:
        def bind(inputs: Inputs) -> Bound:
            parameters = parameters_of(inputs)
            x = inputs.activations["x"]
            split = kind(x.shape[3], x.shape[1], (x.shape[2], 1)).to(x.device)
            norms = NormedSplit(split, parameters).norms

            def run(x: Tensor, static_index: Tensor, dynamic_index: Tensor) -> Outputs:
                volume = x.permute(0, 3, 1, 2)
                groups = (split.sample(volume, index) for index in (static_index, dynamic_index))
                return tuple(norm(g.permute(0, 2, 3, 1)) for norm, g in zip(norms, groups, strict=True))

            return Bound(run, parameters)

        return Contender(name, bind)

    original, rewrite = make("original", InterpolatedSplit), make("rewrite", ProductSplit)
    return [original, rewrite, original.compile(), rewrite.compile()]


def topk_split_index() -> list[Contender]:
    """Frames to the ranked frame numbers of both groups."""

    def bind(inputs: Inputs) -> Bound:
        constants, x = inputs.constants, inputs.activations["x"]
        grid = (constants["height"], constants["width"])
        split = TopKSplit(x.shape[3], x.shape[1], grid, constants["pool"], constants["order_prior"])

        def run(x: Tensor) -> Outputs:
            scores = split.scores(x.permute(0, 3, 1, 2))
            ranked = (
                torch.topk(scores, split.group_frames, largest=largest).indices for largest in (True, False)
            )
            return tuple(indices.sort(dim=-1).values for indices in ranked)

        return Bound(run, {})

    return [Contender("original", bind)]
