"""The lifting: cross attention with a value residual, whole steps, residual and loss; original and SDPA."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.original import LADM, LiftingLoss
from benchmarks.rivals.contender import Bound, Contender, Inputs, Outputs, parameters_of

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def original_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T) v + v with the matrix in memory; (B, heads, M, d)."""
    weights = (torch.matmul(q, k.transpose(-2, -1)) * scale).softmax(dim=-1)
    return torch.matmul(weights, v) + v


def library_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The same by SDPA."""
    return F.scaled_dot_product_attention(q, k, v, scale=scale) + v


class LibraryLADM(LADM):
    """The original module with SDPA in its three attentions."""

    def _cross(self, query: Tensor, key_value: Tensor, project: torch.nn.Module) -> Tensor:
        q = self._heads(query, 1)[0]
        k, v = self._heads(key_value, 2)
        out: Tensor = project(library_attention(q, k, v, self.scale).transpose(1, 2).flatten(2))
        return out

    def _self_attention(self, x: Tensor) -> Tensor:
        q, k, v = self._heads(self.qkv(x), 3)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        out: Tensor = self.project(mixed.transpose(1, 2).flatten(2))
        return out


def _attention(name: str, attend: Attend) -> Contender:
    def bind(inputs: Inputs) -> Bound:
        scale = inputs.constants["scale"]

        def run(query: Tensor, key: Tensor, value: Tensor) -> Outputs:
            q, k, v = (x.transpose(1, 2) for x in (query, key, value))
            out = attend(q, k, v, scale)
            return (out.transpose(1, 2).flatten(2),)

        return Bound(run, {})

    return Contender(name, bind)


def lifting_attention() -> list[Contender]:
    """q, k, v (B, M, h, d) to joined heads."""
    original, rewrite = _attention("original", original_attention), _attention("rewrite", library_attention)
    return [original, rewrite, original.compile(), rewrite.compile()]


def _step(name: str, sign: int, attend: Attend) -> Contender:
    def bind(inputs: Inputs) -> Bound:
        parameters = parameters_of(inputs)
        heads = inputs.constants["num_heads"]

        def linear(x: Tensor, layer: str) -> Tensor:
            return F.linear(x, parameters[f"{layer}_weight"], parameters[f"{layer}_bias"])

        def run(target: Tensor, source: Tensor) -> Outputs:
            q = linear(target, "query").unflatten(2, (heads, -1)).transpose(1, 2)
            k, v = linear(source, "key_value").unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4)
            mixed = attend(q, k, v, q.shape[-1] ** -0.5).transpose(1, 2).flatten(2)
            return (target + sign * linear(mixed, "output"),)

        return Bound(run, parameters)

    return Contender(name, bind)


def lifting_step(sign: int) -> list[Contender]:
    """A whole update (sign 1) or predict (-1) step."""
    original, rewrite = _step("original", sign, original_attention), _step("rewrite", sign, library_attention)
    return [original, rewrite, original.compile(), rewrite.compile()]


def lifting_residual() -> list[Contender]:
    """Frames averaged in pairs minus the approximation, averaged over frames and channels."""

    def run(x: Tensor, approximation: Tensor) -> Outputs:
        volume, static = (frames.permute(0, 3, 1, 2)[..., None] for frames in (x, approximation))
        return ((F.avg_pool3d(volume, (2, 1, 1)) - static).mean(dim=(1, 2))[..., 0],)

    original = Contender("original", lambda inputs: Bound(run, {}))
    return [original, original.compile()]


def lifting_loss() -> list[Contender]:
    """The loop over the clips."""

    def bind(inputs: Inputs) -> Bound:
        loss = LiftingLoss(inputs.constants["weight"])
        return Bound(lambda residual: (loss(residual)[0],), {})

    return [Contender("original", bind)]
