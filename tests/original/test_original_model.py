"""The whole plain model: stored values, parameter counts, variants and refusals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.original import (
    LADM,
    ConvLifting,
    EvenOddSplit,
    InterpolatedSplit,
    LiftingLoss,
    MultiscaleBackbone,
    OriginalIFDD,
    PyramidLifting,
    SeparableConv3d,
    TopKSplit,
    make_split,
)
from benchmarks.original.layers import DropPath
from golden_cases import INTEGER_BUFFERS, assert_close, golden_model, weights_from_names

SMALL: dict[str, Any] = {
    "num_classes": 5,
    "clip_frames": 8,
    "image_size": 64,
    "embed_dim": 16,
    "depths": (1, 1, 2, 1),
    "heads": (1, 2, 2, 4),
    "ladm_heads": 4,
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# One in each precision: float64 rounds nothing, float32 is what is published, and a float64 run takes long.
@pytest.mark.parametrize(("name", "dtype"), [("ifdd_dfew", torch.float64), ("ifdd_mafw", torch.float32)])
def test_whole_model_matches_the_original(name: str, dtype: torch.dtype) -> None:
    case = golden_model(name)
    model = OriginalIFDD(num_classes=case.num_classes, clip_frames=case.clip_frames)
    buffers = {k: v for k, v in model.state_dict().items() if k.rpartition(".")[2] in INTEGER_BUFFERS}
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == case.keys
    model.load_state_dict({**weights_from_names(case.keys), **buffers}, strict=True)
    model.to(dtype).eval()
    with torch.no_grad():
        output = model(case.clips(dtype))
    for field, actual in output._asdict().items():
        assert_close(actual, case.outputs[field], 1e-6 if dtype == torch.float64 else 1e-5, label=field)


def test_parameter_counts_are_the_published_ones() -> None:
    model = OriginalIFDD(num_classes=7)
    assert count(model) == 37_577_123
    assert count(model.embed) == 42_432
    assert count(model.backbone.backbone) == 23_451_072
    assert count(model.backbone.PANLayer) + count(model.backbone.CatConv) == 2_211_840
    assert count(model.backbone.WaveLifts) == 11_866_396
    assert count(model.head) == 5_383


def test_parameters_without_effect_are_the_known_ones() -> None:
    torch.manual_seed(0)
    model = OriginalIFDD(**SMALL)
    output = model(torch.rand(2, 3, 8, 64, 64))
    (output.logits.sum() + LiftingLoss()(output.lifting_residual).sum()).backward()
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    lifts = "backbone.WaveLifts."
    assert unused == {
        f"{lifts}{name}"
        for name in (
            "spatial_pos",
            "temporal_pos",
            "class_pos",
            *(f"adapt_split.time_project.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
        )
    }


VARIANTS: list[dict[str, Any]] = [
    {"stages": (3,)},
    {"stages": (1, 2, 3)},
    {"stages": (0, 1, 2, 3)},
    {"split": "topk"},
    {"split": "topk", "order_prior": True},
    {"split": "even_odd"},
    {"lifting": "predict_first"},
    {"lifting": "conv", "split": "even_odd"},
    {"lifting": "none"},
    {"lifting": "none", "split": "even_odd"},
    {"self_conditioned": True},
    {"self_conditioned": True, "lifting": "predict_first"},
    {"split_norm": False},
    {"embedding": "s3d", "clip_frames": 32},
    {"clip_frames": 16},
    {"clip_frames": 32},
    {"clip_frames": 4},
    {"depths": (1, 2, 11, 2)},
    {"depths": (1, 1), "heads": (1, 2), "stages": (0, 1), "image_size": 32},
    {"attention_dropout": 0.1},
    {"image_size": 32},
]


@pytest.mark.parametrize("change", VARIANTS, ids=str)
def test_variants_run_and_depend_on_the_clip(change: dict[str, Any]) -> None:
    torch.manual_seed(1)
    options = {**SMALL, **change}
    model = OriginalIFDD(**options)
    side = options["image_size"]
    clips = torch.rand(2, 3, options["clip_frames"], side, side, requires_grad=True)
    output = model(clips)
    last = side // (4 * 2 ** (len(options["depths"]) - 1))
    if options.get("self_conditioned"):
        last //= 2
    assert output.logits.shape == (2, 5)
    assert output.lifting_residual.shape == (2, last, last)
    assert output.dynamic.shape == (2, 16 * 2 ** (len(options["depths"]) - 1))
    (output.logits.square().sum() + LiftingLoss()(output.lifting_residual).sum()).backward()
    assert clips.grad is not None
    assert torch.isfinite(clips.grad).all()
    assert (clips.grad.flatten(1).abs().amax(1) > 0).all()


def test_variants_differ() -> None:
    """Options reach the computation: equal weights, other options, other values."""
    clips = torch.rand(1, 3, 8, 64, 64, generator=torch.Generator().manual_seed(2))
    changes = [
        {},
        {"split": "even_odd"},
        {"split": "topk"},
        {"lifting": "predict_first"},
        {"self_conditioned": True},
        {"split_norm": False},
        {"stages": (3,)},
        {"reach": 1.0},
        {"kv_stride": 4},
        {"ladm_heads": 2},
    ]
    features = []
    for change in changes:
        model = OriginalIFDD(**{**SMALL, **change}).double().eval()
        state = model.state_dict()
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        model.load_state_dict({**state, **weights_from_names(shapes)})
        with torch.no_grad():
            features.append(model(clips.double()).dynamic)
    for (i, a), (j, b) in itertools.combinations(enumerate(features), 2):
        assert float((a - b).abs().max()) > 1e-6, f"{changes[i]} and {changes[j]} give the same feature"


def test_order_prior_is_an_option_that_is_off() -> None:
    for options, expected in (({}, False), ({"order_prior": True}, True)):
        split = OriginalIFDD(**SMALL, split="topk", **options).backbone.WaveLifts.adapt_split
        assert isinstance(split, TopKSplit)
        assert split.order_prior is expected


def test_relative_tables_of_another_length_are_interpolated() -> None:
    """A backbone built for a 16 x 16 grid runs on 24 x 24: its position tables are stretched."""
    backbone = MultiscaleBackbone((2, 16, 16), embed_dim=8, depths=(1, 1), heads=(1, 2), kv_stride=2)
    x = torch.randn(1, 8, 2, 24, 24, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        stages = backbone(x)
        before = stages[-1][0]
        assert stages[-1][1] == (2, 12, 12)
        assert before.shape == (1, 1 + 2 * 12 * 12, 16)
        backbone.blocks[0].attn.rel_pos_h.add_(torch.randn(31, 8))
        assert not torch.equal(backbone(x)[-1][0], before)


def test_lifting_loss_sums_over_clips() -> None:
    residual = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(5))
    one_by_one = sum(LiftingLoss(0.1)(clip[None]) for clip in residual)
    torch.testing.assert_close(LiftingLoss(0.1)(residual), one_by_one)
    torch.testing.assert_close(LiftingLoss(0.3)(residual), 3 * LiftingLoss(0.1)(residual))


def test_even_odd_split() -> None:
    x = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(6))
    static, dynamic = EvenOddSplit()(x)
    torch.testing.assert_close(torch.stack((static, dynamic), dim=3).flatten(2, 3), x)


def test_initialisation_follows_the_paper() -> None:
    torch.manual_seed(7)
    model = OriginalIFDD()

    def std(x: Tensor) -> float:
        return float(x.detach().std())

    block = model.backbone.backbone.blocks[5]
    assert math.isclose(std(block.mlp[0].weight), 0.02, rel_tol=0.02)
    assert math.isclose(std(block.attn.rel_pos_h), 0.02, rel_tol=0.1)
    assert not block.mlp[0].bias.any()
    offsets = model.backbone.WaveLifts.adapt_split.offset_project_approx[0].weight
    assert math.isclose(std(offsets), 0.03, rel_tol=0.2)
    assert math.isclose(std(model.head.head[1].weight), 0.01, rel_tol=0.1)
    assert not model.head.head[1].bias.any()
    rates = [block.drop_path.rate for block in model.backbone.backbone.blocks]
    torch.testing.assert_close(torch.tensor(rates), torch.arange(10) * (0.2 / 9))
    assert model.backbone.WaveLifts.drop_path.rate == 0.2
    assert model.head.head[0].p == 0.5


def test_drop_path_is_per_sample_and_keeps_the_mean() -> None:
    torch.manual_seed(8)
    layer = DropPath(0.2)
    x = torch.rand(4000, 2, 3) + 1.0
    ratio = layer(x) / x
    kept = ratio[:, 0, 0] > 0
    torch.testing.assert_close(ratio, kept[:, None, None].expand_as(x) / 0.8)
    assert abs(float(kept.float().mean()) - 0.8) < 0.03  # 4.7 standard deviations
    layer.eval()
    assert layer(x) is x


def test_separable_convolution_uses_batch_statistics_in_training() -> None:
    torch.manual_seed(9)
    layer = SeparableConv3d(4, 6, kernel=3, stride=2)
    x = torch.randn(2, 4, 4, 8, 8)
    assert layer(x).shape == (2, 6, 2, 4, 4)
    assert not torch.equal(layer[0][1].running_mean, torch.zeros(6))
    assert layer[0][1].eps == 0.001
    assert layer[0][1].momentum == 0.001


REFUSALS: list[tuple[Callable[[], object], str]] = [
    (lambda: OriginalIFDD(image_size=100), "image_size: expected a multiple of 32, got 100"),
    (lambda: OriginalIFDD(clip_frames=20), "clip_frames: expected 1 to 16, or 32"),
    (lambda: OriginalIFDD(**{**SMALL, "clip_frames": 7}), "frames: expected an even number"),
    (lambda: OriginalIFDD(embedding="s3d", clip_frames=12), "clip_frames: expected a multiple of 8"),
    (lambda: OriginalIFDD(embedding="vit"), "embedding: expected conv or s3d, got 'vit'"),
    (lambda: OriginalIFDD(**SMALL, split="random"), "split: expected interpolate, topk or even_odd"),
    (lambda: OriginalIFDD(**SMALL, lifting="haar"), "lifting: expected update_first"),
    (lambda: OriginalIFDD(**SMALL, lifting="conv"), "split: the conv lifting splits even_odd"),
    (
        lambda: OriginalIFDD(**SMALL, lifting="none", self_conditioned=True),
        "self_conditioned: the lifting 'none' has no queries",
    ),
    (lambda: OriginalIFDD(**SMALL, stages=(2,)), "stages: expected ascending stages that end with 3"),
    (lambda: OriginalIFDD(**SMALL, stages=(3, 2)), "stages: expected ascending stages that end with 3"),
    (lambda: OriginalIFDD(**{**SMALL, "heads": (1, 2)}), "heads: expected one per stage, 4, got 2"),
    (lambda: OriginalIFDD(**{**SMALL, "heads": (1, 2, 4, 3)}), "heads: 3 do not divide 128 channels"),
    (lambda: OriginalIFDD(**{**SMALL, "ladm_heads": 3}), "heads: 3 do not divide 128 channels"),
    (lambda: OriginalIFDD(**SMALL, drop_path=1.0), "drop path rate: expected 0 <= rate < 1"),
    (lambda: make_split("interpolate", 8, 5, (2, 2)), "frames: expected an even number of at least 2, got 5"),
    (lambda: ConvLifting(8, 3, (2, 2)), "frames: expected an even number of at least 2, got 3"),
    (
        lambda: PyramidLifting(MultiscaleBackbone((2, 5, 5), 8, (1, 1), (1, 1)), (0, 1), nn.Identity()),
        "stages: stage 0 is 5x5, no multiple of 3x3",
    ),
    (
        lambda: LADM(8, 4, (2, 2), InterpolatedSplit(8, 4, (2, 2)))(torch.rand(1, 15, 8)),
        r"x: expected \(B, 4\*2\*2, C\) tokens, got shape \(1, 15, 8\)",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[message[:40] for _, message in REFUSALS])
def test_refusals_name_what_was_wrong(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
