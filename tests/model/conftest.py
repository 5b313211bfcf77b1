"""A small network of any variant, in this package and in the plain formulation, with the same weights."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.original import OriginalIFDD
from golden_cases import weight_from_name
from ifdd import IFDD, IFDDConfig
from ifdd.checkpoint import from_original

SMALL: dict[str, Any] = {
    "num_classes": 5,
    "clip_frames": 8,
    "image_size": 64,
    "backbone": "mvit_nano",
    "embed_dim": 16,
    "drop_path": 0.0,
    "dropout": 0.0,
}
Pair = tuple[IFDD, OriginalIFDD]


def original_arguments(config: IFDDConfig) -> dict[str, Any]:
    """Keyword arguments that make `OriginalIFDD` the network of `config`."""
    shared = "num_classes clip_frames image_size embedding stages split lifting self_conditioned split_norm"
    rates = "dropout drop_path attention_dropout"
    return {name: getattr(config, name) for name in f"{shared} {rates}".split()} | {
        "embed_dim": config.stage_channels[0],
        "depths": config.stage_depths,
        "ladm_heads": config.lifting_heads,
        "pool": config.split_pool,
        "order_prior": config.topk_order_prior,
    }


def random_state(module: torch.nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Random values that depend on the names only; running variances positive, integers as they are."""
    state = {}
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor = weight_from_name(name, tuple(tensor.shape)).to(dtype)
            if name.endswith("running_var"):
                tensor = 1.0 + tensor.abs()
        state[name] = tensor
    return state


@pytest.fixture(autouse=True)
def _seed(request: pytest.FixtureRequest) -> None:
    """Other data for every test, the same in every run."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def small_config() -> Callable[..., IFDDConfig]:
    return lambda **fields: IFDDConfig.from_dict({**SMALL, **fields})


@pytest.fixture
def make_pair(small_config: Callable[..., IFDDConfig]) -> Callable[..., Pair]:
    """(ours, plain) of a small variant in float64 with the same weights."""

    def make(dtype: torch.dtype = torch.float64, **fields: Any) -> Pair:
        config = small_config(**fields)
        original = OriginalIFDD(**original_arguments(config)).to(dtype)
        state = random_state(original, dtype)
        original.load_state_dict(state)
        ours = IFDD(config).to(dtype)
        ours.load_state_dict(from_original(state, "model", target=ours).state_dict)
        return ours, original

    return make


@pytest.fixture
def clips() -> Callable[..., torch.Tensor]:
    """Random clips (B, 3, T, S, S) for a configuration."""

    def make(
        config: IFDDConfig, batch: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0
    ) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        size = config.image_size
        return torch.rand(batch, 3, config.clip_frames, size, size, generator=generator).to(dtype)

    return make
