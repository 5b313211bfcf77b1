"""The modules used alone: shapes, refusals, regularisation, and the exact shortcuts they take."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ifdd.modules import (
    ISSM,
    LADM,
    ClassHead,
    ConvEmbedding,
    ConvLifting,
    DropPath,
    EvenOddSplit,
    MultiscaleBackbone,
    MultiscaleBlock,
    NoLifting,
    PyramidAggregation,
    S3DEmbedding,
    StageOutput,
    TopKSplit,
)
from ifdd.modules.convolution import Conv2d, Conv3d
from ifdd.modules.issm import FrameSplit, make_split
from ifdd.modules.ladm import Lifting
from ifdd.modules.recompute import norm_again
from ifdd_kernels import live_tokens


def test_conv_embedding_folds_the_temporal_mean() -> None:
    module = ConvEmbedding(6, clip_frames=32).double()
    clips = torch.rand(2, 3, 32, 32, 32, dtype=torch.float64)
    plain = F.avg_pool3d(module.conv(clips), (2, 1, 1))
    torch.testing.assert_close(module(clips), plain, rtol=1e-12, atol=1e-12)
    assert module.conv.weight.shape == (6, 3, 3, 7, 7)


@pytest.mark.parametrize("frames", [8, 16, 32])
def test_embeddings_leave_eight_frames(frames: int) -> None:
    clips = torch.rand(1, 3, frames, 32, 32)
    assert ConvEmbedding(6, frames)(clips).shape == (1, 6, 8, 8, 8)
    assert S3DEmbedding(6).eval()(clips).shape == (1, 6, frames // 4, 8, 8)


def test_conv_embedding_refuses_other_lengths() -> None:
    with pytest.raises(ValueError, match=r"clip_frames must be one of \(8, 16, 32\); got 10"):
        ConvEmbedding(6, 10)


def test_pyramid_is_the_dilated_convolution() -> None:
    grids = [(2, 16, 16), (2, 4, 4), (2, 2, 2)]
    module = PyramidAggregation([4, 6, 8], grids).double()
    stages = [
        StageOutput(torch.randn(3, 1 + t * h * w, width, dtype=torch.float64), (t, h, w))
        for (t, h, w), width in zip(grids, (4, 6, 8), strict=True)
    ]

    def images(stage: StageOutput) -> torch.Tensor:
        t, h, w = stage.grid
        return stage.tokens[:, 1:].reshape(3 * t, h, w, -1).permute(0, 3, 1, 2)

    maps = [
        F.conv2d(images(stage), conv.weight, stride=ratio, padding=ratio, dilation=ratio)
        for stage, conv, ratio in zip(stages, module.reduce, (8, 2), strict=False)
    ]
    assert module.merge is not None
    merged = F.conv2d(torch.cat((*maps, images(stages[-1])), 1), module.merge.weight[:, :, None, None])
    expected = merged.permute(0, 2, 3, 1).reshape(3, 8, 8)
    torch.testing.assert_close(module(stages), expected, rtol=1e-12, atol=1e-12)


def test_pyramid_of_one_stage_has_no_weights() -> None:
    module = PyramidAggregation([8], [(2, 2, 2)])
    tokens = torch.randn(1, 9, 8)
    assert torch.equal(module([StageOutput(tokens, (2, 2, 2))]), tokens[:, 1:])
    assert not list(module.parameters())


def test_pyramid_refuses_grids_without_whole_ratio() -> None:
    with pytest.raises(ValueError, match="not a whole multiple"):
        PyramidAggregation([4, 8], [(2, 5, 5), (2, 2, 2)])


def test_block_grid_is_rounded_up() -> None:
    block = MultiscaleBlock((3, 5, 7), 8, 16, 2, stride_q=(1, 2, 2), stride_kv=(1, 4, 4))
    tokens, grid = block(torch.randn(2, 1 + 3 * 5 * 7, 8))
    assert grid == (3, 3, 4)
    assert tokens.shape == (2, 1 + 36, 16)


def test_block_strided_in_time() -> None:
    block = MultiscaleBlock((4, 4, 4), 8, 8, 2, stride_q=(2, 2, 2), stride_kv=(2, 2, 2)).double()
    x = torch.randn(1, 65, 8, dtype=torch.float64)
    tokens, grid = block(x)
    assert grid == (2, 2, 2)
    pooled = F.max_pool3d(x[:, 1:].reshape(1, 4, 4, 4, 8).permute(0, 4, 1, 2, 3), 3, 2, 1)
    nn.init.zeros_(block.attention.output.weight)
    nn.init.zeros_(block.mlp_contract.weight)
    shortcut, _ = block(x)  # both branches are zero: the biases start at zero
    torch.testing.assert_close(shortcut[:, 1:], pooled.flatten(2).transpose(1, 2))
    assert torch.equal(shortcut[:, :1], x[:, :1])
    assert not torch.equal(shortcut, tokens)


@pytest.mark.parametrize("stride", [(1, 8, 8), (1, 4, 4), (5, 3, 2)], ids=str)
def test_block_projects_keys_and_values_of_live_tokens_only(stride: tuple[int, int, int]) -> None:
    """Exactly the block that projects every token, but for the order of sums over tokens."""
    torch.manual_seed(0)
    grid = (6, 9, 16)
    block = MultiscaleBlock(grid, 12, 16, 2, stride_kv=stride).double()
    full = copy.deepcopy(block)
    full.attention.live_grid, full.attention.live_stride = grid, stride
    tokens = torch.randn(2, 1 + 6 * 9 * 16, 12, dtype=torch.float64, requires_grad=True)
    results, flops = [], []
    for module in (block, full):
        with FlopCounterMode(display=False) as counter:
            out, _ = module(tokens)
        flops.append(counter.get_total_flops())
        results.append((out, *torch.autograd.grad(out.square().sum(), [tokens, *module.parameters()])))
    dead = tokens.shape[1] - len(live_tokens(grid, stride).rows)
    assert flops[1] - flops[0] == 2 * 2 * dead * 12 * 32
    # A gradient that vanishes by symmetry, like that of the keys' bias, is all rounding: it is judged by the
    # size of the others, whose terms it is made of.
    largest = max(every.abs().max().item() for every in results[1])
    for live, every in zip(*results, strict=True):
        torch.testing.assert_close(live, every, rtol=1e-11, atol=1e-14 * largest)


@pytest.mark.parametrize("stride_q", [(1, 1, 1), (1, 2, 2)], ids=str)
def test_block_under_autocast(stride_q: tuple[int, int, int]) -> None:
    """bfloat16 activations beside float32 parameters, with gradients; within some ulps of bfloat16."""
    torch.manual_seed(0)
    block = MultiscaleBlock((2, 9, 9), 32, 48, 2, stride_q=stride_q, stride_kv=(1, 8, 8))
    tokens = torch.randn(2, 1 + 2 * 81, 32)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out, _ = block(tokens)
        block.zero_grad()
        out.float().square().mean().backward()
        results.append((out.float(), *(p.grad for p in block.parameters() if p.grad is not None)))
    assert len(results[0]) == 1 + len(list(block.parameters()))
    for plain, lowered in zip(*results, strict=True):
        assert lowered.dtype == torch.float32
        # About ten rounding errors of 2^-9 in a row; gradients that cancel keep those of their terms.
        assert (plain - lowered).norm() <= 0.05 * max(plain.norm().item(), 1e-3)


def test_block_made_on_meta_has_its_rows() -> None:
    with torch.device("meta"):
        block = MultiscaleBlock((2, 9, 9), 8, 8, 2, stride_kv=(1, 8, 8))
    assert block.attention.live_rows.is_meta
    assert "live_rows" not in "".join(block.state_dict())
    rows = live_tokens((2, 9, 9), (1, 8, 8)).rows
    state = MultiscaleBlock((2, 9, 9), 8, 8, 2, stride_kv=(1, 8, 8)).state_dict()
    assigned, by_hand = copy.deepcopy(block), copy.deepcopy(block)
    assert torch.equal(block.to_empty(device="cpu").attention.live_rows, rows)
    assigned.load_state_dict(state, assign=True)
    assert torch.equal(assigned.attention.live_rows, rows)
    # As loaders do that hand out parameters one by one.
    for name, tensor in state.items():
        parent, _, leaf = name.rpartition(".")
        setattr(by_hand.get_submodule(parent), leaf, nn.Parameter(tensor))
    tokens = torch.randn(2, 163, 8)
    assert by_hand.attention.live_rows.is_meta
    assert torch.equal(by_hand(tokens)[0], assigned(tokens)[0])
    assert torch.equal(by_hand.attention.live_rows, rows)


def test_a_block_loaded_in_inference_mode_can_be_trained() -> None:
    block = MultiscaleBlock((2, 9, 9), 8, 8, 2, stride_kv=(1, 8, 8))
    with torch.inference_mode():
        block.load_state_dict(block.state_dict())
    block(torch.randn(2, 163, 8))[0].sum().backward()
    assert block.attention.qkv.weight.grad is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 3}, "heads must divide out_channels"),
        ({"in_channels": 0}, "all be positive"),
        ({"grid": (2, 2)}, "grid must be three integers"),
        ({"stride_q": (1, 0, 1)}, "stride_q must be three integers of at least 1"),
        ({"stride_kv": (1, 2)}, "stride_kv must be three integers"),
    ],
)
def test_block_refusals(arguments: dict[str, object], message: str) -> None:
    valid = {"grid": (2, 4, 4), "in_channels": 8, "out_channels": 8, "heads": 2}
    with pytest.raises(ValueError, match=message):
        MultiscaleBlock(**{**valid, **arguments})  # type: ignore[arg-type]


def test_block_refuses_other_tokens() -> None:
    block = MultiscaleBlock((2, 4, 4), 8, 8, 2)
    for shape in ((1, 32, 8), (1, 33, 6), (33, 8)):
        with pytest.raises(ValueError, match=r"tokens must be \(B, 33, 8\)"):
            block(torch.randn(shape))


def test_backbone_drop_path_rises_to_its_rate() -> None:
    backbone = MultiscaleBackbone((2, 8, 8), (8, 16, 32, 64), (1, 2, 1, 1), drop_path=0.2)
    rates = [block.drop_path.rate for block in backbone.blocks]  # type: ignore[union-attr]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert backbone.stage_grids == [(2, 8, 8), (2, 4, 4), (2, 2, 2), (2, 1, 1)]


def test_initial_weights() -> None:
    torch.manual_seed(0)
    backbone = MultiscaleBackbone((8, 16, 16), (32, 64, 128, 256), (1, 1, 1, 1))
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
            assert not module.bias.any()
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-6
    tables = torch.cat([block.attention.table_h.flatten() for block in backbone.blocks])  # type: ignore[union-attr]
    assert float(tables.detach().std()) == pytest.approx(0.02, rel=0.1)
    issm = ISSM(8, (2, 2), 64)
    assert float(issm.static_offset.weight.detach().std()) == pytest.approx(0.03, rel=0.25)
    head = ClassHead(768, 7)
    assert float(head.classifier.weight.detach().std()) == pytest.approx(0.01, rel=0.1)
    assert not head.classifier.bias.any()


@pytest.mark.parametrize("frames", [2, 4, 10])
def test_issm_alone(frames: int) -> None:
    module = ISSM(frames=frames, grid=(3, 5), channels=12, pool=2)
    x = torch.randn(2, frames, 15, 12, requires_grad=True)
    static, dynamic = module(x)
    assert static.shape == dynamic.shape == (2, frames // 2, 15, 12)
    indexes = module.indexes(x.detach())
    assert indexes.static.dtype == torch.float32
    even = torch.arange(0, frames, 2)
    assert float((indexes.static - even).detach().abs().max()) <= 2.0
    assert float((indexes.dynamic - even - 1).detach().abs().max()) <= 2.0
    assert indexes.correlation is not None
    assert indexes.correlation.shape == (2, frames, frames)
    (static.sum() + dynamic.square().sum()).backward()
    assert all(p.grad is not None for p in module.parameters())


def test_even_odd_split() -> None:
    x = torch.randn(2, 6, 4, 3)
    static, dynamic = EvenOddSplit(6, (2, 2), 3)(x)
    assert torch.equal(static, x[:, 0::2])
    assert torch.equal(dynamic, x[:, 1::2])


def test_topk_groups_partition_the_frames() -> None:
    x = torch.randn(3, 8, 4, 5)
    indexes = TopKSplit(8, (2, 2), 5, pool=2).indexes(x)
    both = torch.cat((indexes.static, indexes.dynamic), 1).sort(1).values
    assert torch.equal(both, torch.arange(8).expand(3, 8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ISSM(7, (2, 2), 4), "ISSM: frames must be even"),
        (lambda: ISSM(0, (2, 2), 4), "ISSM: frames must be even"),
        (lambda: ISSM(8, (0, 2), 4), "grid must be"),
        (lambda: ISSM(8, (2, 2), 4, pool=0), "pool must be at least 1"),
        (lambda: ISSM(8, (2, 2), 4, index_sampling="cubic"), "index_sampling must be one of"),
        (lambda: TopKSplit(8, (2, 2), 4, pool=0), "pool must be at least 1"),
        (lambda: make_split("odd", 8, (2, 2), 4), "split must be one of"),
        (lambda: ISSM(8, (2, 2), 4)(torch.randn(1, 8, 4, 5)), r"frames must be \(B, 8, 4, 4\)"),
        (lambda: ISSM(8, (2, 2), 4)(torch.randn(8, 4, 4)), r"frames must be \(B, 8, 4, 4\)"),
        (lambda: LADM(8, (2, 2), 16, 8, order="both"), "order must be one of"),
        (lambda: LADM(8, (2, 2), 16, 5), "heads must divide channels=16"),
        (lambda: LADM(8, (1, 2), 16, 4, self_conditioned=True), "self_conditioned needs a grid"),
        (lambda: LADM(7, (2, 2), 16, 4), "frames must be even"),
        (lambda: LADM(8, (2, 2), 16, 4)(torch.randn(1, 31, 16)), r"tokens must be \(B, 32, 16\)"),
        (lambda: DropPath(1.0), r"rate must be in \[0, 1\)"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_bases_decide_nothing() -> None:
    with pytest.raises(NotImplementedError):
        FrameSplit(8, (2, 2), 4).indexes(torch.randn(1, 8, 4, 4))
    with pytest.raises(NotImplementedError):
        Lifting(8, (2, 2), 4, compress_bias=False)(torch.randn(1, 32, 4))


@pytest.mark.parametrize("order", ["update_first", "predict_first"])
@pytest.mark.parametrize("self_conditioned", [False, True])
def test_dropout_path_is_the_same_network(order: str, self_conditioned: bool) -> None:
    """At a rate that never drops anything, the unfused training path must agree with the fused one."""
    module = LADM(
        8,
        (2, 2),
        16,
        4,
        order=order,
        self_conditioned=self_conditioned,
        drop_path=0.0,
        attention_dropout=1e-15,
    ).double()
    x = torch.randn(2, 32, 16, dtype=torch.float64)
    trained, evaluated = module.train()(x), module.eval()(x)
    for a, b in zip(trained, evaluated, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_attention_dropout_acts_in_training_only() -> None:
    module = LADM(8, (2, 2), 16, 4, drop_path=0.0, attention_dropout=0.5)
    x = torch.randn(2, 32, 16)
    module.train()
    assert not torch.equal(module(x)[0], module(x)[0])
    module.eval()
    assert torch.equal(module(x)[0], module(x)[0])


def test_ladm_feature_is_zero_when_its_branch_is_dropped() -> None:
    """No residual around the refining MLP: stochastic depth zeroes the whole feature of a clip."""
    torch.manual_seed(0)
    module = LADM(4, (2, 2), 16, 4, drop_path=0.5).train()
    feature, _ = module(torch.randn(64, 16, 16))
    dropped = (feature == 0).all(1)
    assert 10 < int(dropped.sum()) < 54
    assert torch.equal(dropped, (feature == 0).any(1))


def test_lift_returns_the_groups() -> None:
    size = (8, (2, 3), 16)
    x = torch.randn(2, 48, 16)
    for module in (LADM(*size, 4), ConvLifting(*size), NoLifting(*size)):
        lifted = module.eval().lift(x)
        assert lifted.static.shape == lifted.dynamic.shape == (2, 4, 6, 16)
        expected = x.unflatten(1, (8, 6)).mean((1, 3)) - lifted.static.mean((1, 3))
        torch.testing.assert_close(lifted.residual.flatten(1), expected, rtol=1e-4, atol=1e-5)


def test_drop_path() -> None:
    torch.manual_seed(0)
    module = DropPath(0.25).train()
    x = torch.rand(4000, 3, 2) + 0.5
    y = module(x)
    kept = (y != 0).all(2).all(1)
    assert torch.equal(y[kept], x[kept] * (1 / 0.75))
    assert not y[~kept].any()
    # Binomial: mean 3000, standard deviation 27.
    assert abs(int(kept.sum()) - 3000) < 5 * 27.4
    assert module.eval()(x) is x
    assert "0.25" in repr(module)


def test_block_keeps_no_normed_tokens_of_its_mlp(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of the norm's result is free as soon as the block is through, for the same gradients."""
    block = MultiscaleBlock((2, 4, 4), 8, 8, 1)
    tokens = torch.randn(2, 33, 8)
    kept: list[bool] = []
    gradients: list[list[torch.Tensor]] = []
    for recomputing in (True, False):
        results: list[Any] = []

        def context(
            norm: nn.Module,
            tokens: torch.Tensor,
            normed: torch.Tensor,
            results: list[Any] = results,
            recomputing: bool = recomputing,
        ) -> Any:
            results.append(torch.multiprocessing.reductions.StorageWeakRef(normed.untyped_storage()))
            return norm_again(norm, tokens, normed) if recomputing else nullcontext()

        monkeypatch.setattr("ifdd.modules.backbone.norm_again", context)
        x = tokens.clone().requires_grad_()
        out, _ = block(x)
        kept.append(not results[0].expired())
        gradients.append(list(torch.autograd.grad(out.square().sum(), [x, *block.parameters()])))
    assert kept == [False, True]
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("clip_frames", [8, 16, 32])
@pytest.mark.parametrize("autocast", [False, True])
def test_embedding_in_16_bits_is_rounded_once_where_float32_is_faster(
    monkeypatch: pytest.MonkeyPatch, clip_frames: int, autocast: bool
) -> None:
    monkeypatch.setattr("ifdd.modules.convolution.faster_in_float32", lambda dtype: dtype == torch.bfloat16)
    embedding = ConvEmbedding(6, clip_frames)
    if not autocast:
        embedding = embedding.bfloat16()
    clips = torch.randn(1, 3, clip_frames, 32, 32, dtype=embedding.conv.weight.dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        tokens = embedding(clips)
    assert tokens.dtype == torch.bfloat16
    wide = copy.deepcopy(embedding).float()
    exact = wide(clips.float())
    # The mean of two kernels, for 32 frames, is rounded too where the weights are bfloat16.
    ulps = 0.5 if autocast or clip_frames < 32 else 2.0
    error = ((tokens.float() - exact).abs().max() / exact.abs().max()).detach()
    assert float(error) <= ulps * torch.finfo(torch.bfloat16).eps
    tokens.float().sum().backward()
    assert embedding.conv.weight.grad is not None
    assert embedding.conv.weight.grad.dtype == embedding.conv.weight.dtype


@pytest.mark.parametrize(("kind", "axes"), [(Conv2d, 2), (Conv3d, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_convolution_in_16_bits_is_the_rounded_float32_one(
    monkeypatch: pytest.MonkeyPatch, kind: type[Conv2d | Conv3d], axes: int, bias: bool
) -> None:
    monkeypatch.setattr("ifdd.modules.convolution.faster_in_float32", lambda dtype: dtype == torch.bfloat16)
    conv = kind(3, 4, 3, padding=1, bias=bias)
    x = torch.randn(2, 3, *(5,) * axes)
    exact = conv(x.bfloat16().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = conv(x.bfloat16())
    assert torch.equal(lowered, exact.bfloat16())
