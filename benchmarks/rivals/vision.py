"""torchvision's MViTv2-S, where it is installed: the backbone of the S network as others ship it."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from benchmarks.rivals import network
from benchmarks.rivals.contender import Contender, Gradients, Outputs
from ifdd import IFDD, IFDDConfig, accelerate
from ifdd.checkpoint import from_torchvision_mvit

CONFIG = IFDDConfig(backbone="mvit_s", dropout=0.0, drop_path=0.0)


def available() -> bool:
    """Whether torchvision can be imported; it is not imported here."""
    return importlib.util.find_spec("torchvision") is not None


def make() -> nn.Module:
    """The network with random weights, no stochastic depth."""
    from torchvision.models.video import mvit_v2_s

    module: nn.Module = mvit_v2_s(weights=None, stochastic_depth_prob=0.0)
    return module


def _their_class_token(module: nn.Module, clips: Tensor) -> Outputs:
    """As torchvision's forward, without the classifier."""
    parts: Any = module
    x = parts.pos_encoding(parts.conv_proj(clips).flatten(2).transpose(1, 2))
    grid = (parts.pos_encoding.temporal_size, *parts.pos_encoding.spatial_size)
    for block in parts.blocks:
        x, grid = block(x, grid)
    return (parts.norm(x)[:, 0],)


def _our_class_token(module: nn.Module, clips: Tensor) -> Outputs:
    """Embedding and backbone of IFDD."""
    parts: Any = module
    tokens = parts["embedding"](clips).flatten(2).transpose(1, 2)
    return (parts["backbone"](tokens, (3,))[3].tokens[:, 0],)


def _rename(grads: Gradients) -> Gradients:
    return dict(from_torchvision_mvit(grads, CONFIG).state_dict)


def _convert(theirs: nn.Module) -> nn.Module:
    model = IFDD(CONFIG)
    module = nn.ModuleDict({"embedding": model.embedding, "backbone": model.backbone})
    module.load_state_dict(from_torchvision_mvit(theirs.state_dict(), CONFIG).state_dict)
    return module


def _accelerate(theirs: nn.Module) -> nn.Module:
    module = copy.deepcopy(theirs)
    accelerate(module)
    return module


def contenders() -> list[Contender]:
    """torchvision's, compiled and not, accelerated in place, and our own modules on its weights."""
    theirs = network.contender("torchvision", copy.deepcopy, _their_class_token, _rename, capturable=False)
    ours = replace(network.contender("ifdd", _convert, _our_class_token), ours=True)
    in_place = network.contender("accelerate", _accelerate, _their_class_token, _rename, capturable=False)
    return [theirs, theirs.compile(), replace(in_place, ours=True), ours]
