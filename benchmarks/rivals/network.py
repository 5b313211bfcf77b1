"""Whole modules and the whole network: the original, its rewrite from library kernels, and their weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.original import LADM, InterpolatedSplit, PooledAttention
from benchmarks.original.backbone import TokenPool
from benchmarks.rivals.attention import LibraryAttention
from benchmarks.rivals.contender import Bound, Contender, Gradients, Inputs, Outputs
from benchmarks.rivals.lifting import LibraryLADM
from benchmarks.rivals.pooling import ChannelsLastPool
from benchmarks.rivals.splitting import ProductSplit
from ifdd.checkpoint import from_original

REWRITTEN: dict[type[nn.Module], type[nn.Module]] = {
    PooledAttention: LibraryAttention,
    TokenPool: ChannelsLastPool,
    InterpolatedSplit: ProductSplit,
    LADM: LibraryLADM,
}
"""Modules of the original and what computes the same from library kernels, on the same attributes."""


def rewrite(module: nn.Module) -> nn.Module:
    """A copy whose slow parts run on the best library kernels."""
    module = copy.deepcopy(module)
    for part in module.modules():
        # Each rewrite only overrides methods of what it replaces, so the class is all that changes.
        part.__class__ = REWRITTEN.get(type(part), type(part))
    return module


class Adapter(nn.Module):
    """A module whose outputs are put into the order that all contenders share."""

    def __init__(self, module: nn.Module, outputs: Callable[[nn.Module, Tensor], Outputs]) -> None:
        super().__init__()
        self.module, self.outputs = module, outputs

    def forward(self, x: Tensor) -> Outputs:
        return self.outputs(self.module, x)


def contender(
    name: str,
    transform: Callable[[nn.Module], nn.Module],
    outputs: Callable[[nn.Module, Tensor], Outputs],
    rename: Callable[[Gradients], Gradients] = dict,
    capturable: bool = True,
) -> Contender:
    """A module made from the original one in the inputs' constants, in the precision of its parameters."""

    def bind(inputs: Inputs) -> Bound:
        source: nn.Module = inputs.constants["original"]
        double = next(iter(inputs.activations.values())).dtype == torch.float64
        module = transform(source).to(
            device=next(iter(inputs.activations.values())).device,
            dtype=torch.float64 if double else torch.float32,
        )
        module.train()  # dropout rates are zero: the flag only selects what training needs
        return Bound(Adapter(module, outputs), dict(module.named_parameters()), rename)

    return Contender(name, bind, capturable=capturable)


def original_and_rewrite(
    outputs: Callable[[nn.Module, Tensor], Outputs], part: str, capturable: bool
) -> list[Contender]:
    """The original module and its rewrite; gradients under our names."""

    def rename(grads: Gradients) -> Gradients:
        return dict(from_original(grads, part).state_dict)

    original = contender("original", copy.deepcopy, outputs, rename, capturable)
    rewritten = contender("rewrite", rewrite, outputs, rename)
    return [original, rewritten, original.compile(), rewritten.compile()]
