"""The cost model of the whole network: FLOPs as counted by PyTorch, parameters exactly."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.original import OriginalIFDD
from benchmarks.suite import costs
from benchmarks.suite.shapes import network_shape
from ifdd import IFDD, IFDDConfig
from ifdd_kernels.registry import REGISTRY, Maker, backward_cost


@functools.cache
def counted(frames: int, training: bool) -> dict[Any, float]:
    """GFLOP of the original by op, counted without computing anything."""
    model = OriginalIFDD(clip_frames=frames, dropout=0.0, drop_path=0.0).to("meta")
    clip = torch.empty(1, 3, frames, 224, 224, device="meta")
    with FlopCounterMode(display=False) as counter:
        output = model(clip)
        if training:
            (output.logits.sum() + output.lifting_residual.sum()).backward()
    return {op: flops * 1e-9 for op, flops in counter.get_flop_counts()["Global"].items()}


def modelled(frames: int, training: bool, original: bool = True) -> float:
    shape = network_shape(IFDDConfig(clip_frames=frames))
    layers = costs.network(shape, 1, torch.float32, original)
    return costs.total(layers, training).flops * 1e-9


@pytest.mark.parametrize(("frames", "published"), [(16, 95.7), (32, 97.8)])
def test_forward_flops(frames: int, published: float) -> None:
    total = sum(counted(frames, training=False).values())
    assert total == pytest.approx(published, abs=0.05)
    # The model also counts exponentials, norms and activations: 1.2 % of all.
    assert modelled(frames, training=False) == pytest.approx(total, rel=0.02)


def test_training_flops() -> None:
    """Backward of products only: the counter takes depthwise convolutions for dense ones in backward."""
    products = ("addmm", "bmm", "mm")
    ops = counted(16, training=True)
    counted_products = sum(v for op, v in ops.items() if str(op).split(".")[-1] in products)
    convolutions = counted(16, training=False)[torch.ops.aten.convolution]
    embedding = 2.124
    # Every product has two in backward; the embedding's convolution one, since clips have no gradient.
    total = counted_products + 3 * convolutions - embedding
    assert total - 95.7 == pytest.approx(189, abs=1.5)
    assert modelled(16, training=True) == pytest.approx(total, rel=0.02)


def test_one_row_instead_of_all_goes_through_the_last_layer() -> None:
    """IFDD compresses the tokens before the second linear layer of the refinement, which commutes."""
    shape = network_shape(IFDDConfig())
    published, ours = (
        costs.total(costs.ladm(shape, 1, torch.float32, original), False).flops for original in (True, False)
    )
    # 195 of 196 rows spared in (4C -> C); the weighted sum is over 4C instead of C values.
    assert published - ours == 2 * 195 * 4 * 768 * 768 - 2 * 196 * 3 * 768


def test_keys_and_values_of_live_tokens_only() -> None:
    """12.8 % of the tokens of block 0 lie in a window of stride 8, which is all that is projected."""
    block = network_shape(IFDDConfig()).blocks[0]
    published, ours = (
        costs.by_part(costs.block(block, 1, torch.float32, original), False)["qkv"].flops
        for original in (True, False)
    )
    assert ours / published == pytest.approx((1 + 2 * 0.128) / 3, rel=0.01)


@pytest.mark.parametrize("change", [{}, {"backbone": "mvit_s"}, {"image_size": 128, "num_classes": 11}])
def test_parameters(change: dict[str, Any]) -> None:
    config = IFDDConfig(**change)
    shape = network_shape(config)
    with torch.device("meta"):
        ours = IFDD(config)
    original = OriginalIFDD(config.num_classes, image_size=config.image_size, depths=config.stage_depths)
    for layers, model in (
        (costs.network(shape, 1, torch.float32), ours),
        (costs.network(shape, 1, torch.float32, original=True), original),
    ):
        assert costs.parameters(layers) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_backward_cost_is_of_the_size_of_its_tensors(name: str) -> None:
    entry = REGISTRY[name]
    sample = next(entry.samples(Maker(torch.float32)))
    meta = tuple(a.to("meta") if isinstance(a, torch.Tensor) else a for a in sample.args)
    cost = backward_cost(entry, meta)
    if entry.operator is not None and entry.operator.backward is None:
        assert (cost.bytes, cost.flops) == (0, 0)
        return
    read = sum(a.numel() * a.element_size() for a in meta if isinstance(a, torch.Tensor))
    assert read <= cost.bytes <= 8 * read
    assert cost.flops == 2 * entry.cost(*meta).flops
