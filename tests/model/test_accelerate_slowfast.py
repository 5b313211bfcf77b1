"""`ifdd.accelerate` on the blocks of SlowFast's MViT (tests/slowfast_mvit.py says which)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ifdd
from ifdd.acceleration.classes import swap
from ifdd.acceleration.pooling import same_positions
from ifdd.acceleration.slowfast_mvit import AttentionOnKernels
from ifdd_kernels import recording
from ifdd_kernels.testing import relative_error
from slowfast_mvit import attention

BOUND = {torch.float32: 1e-5, torch.float64: 1e-10}
V2 = {
    "rel_pos_spatial": True,
    "rel_pos_temporal": True,
    "residual_pooling": True,
    "dim_mul_in_att": True,
}
#: dim, dim_out, heads, stride of queries, stride of keys and values
ROWS = [
    (8, 16, 1, (1, 1, 1), (1, 4, 4)),
    (16, 32, 2, (1, 2, 2), (1, 2, 2)),
    (32, 32, 2, (1, 1, 1), (1, 1, 1)),
]
GRID = [3, 8, 8]
#: Only the second block has a shortcut to pool.
ALL = ["blocks.1"] + [f"blocks.{place}.{part}" for place in range(3) for part in ("attn", "mlp")]


class Network(nn.Module):
    """Blocks as SlowFast's network runs them."""

    def __init__(self, kind: Any = None, **options: Any) -> None:
        super().__init__()
        kind = kind or attention().MultiScaleBlock
        torch.manual_seed(0)
        self.blocks = nn.ModuleList()
        size = GRID
        for dim, dim_out, heads, stride_q, stride_kv in ROWS:
            pooled = max(stride_q) > 1 or options.get("rel_pos_spatial")  # v2 pools queries in all blocks
            block = kind(
                dim,
                dim_out,
                heads,
                size,
                kernel_q=(3, 3, 3) if pooled else (1, 1, 1),
                kernel_kv=(3, 3, 3),
                stride_q=stride_q,
                stride_kv=stride_kv,
                **{"qkv_bias": True, **options},
            )
            self.blocks.append(block)
            size = [cells // stride for cells, stride in zip(size, stride_q, strict=True)]
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)  # biases and norms start at constants

    def forward(self, x: Tensor, grid: list[int]) -> tuple[Tensor, list[list[int]]]:
        grids = [grid]
        for block in self.blocks:
            x, grid = block(x, grids[-1])
            grids.append(grid)
        return x, grids


def tokens(grid: list[int], dtype: torch.dtype = torch.float32, has_cls: bool = True) -> Tensor:
    count = has_cls + grid[0] * grid[1] * grid[2]
    return torch.randn(2, count, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


def assert_same(
    theirs: nn.Module,
    ours: nn.Module,
    dtype: torch.dtype = torch.float64,
    grid: list[int] = GRID,
    has_cls: bool = True,
) -> None:
    """Output, grids and all gradients, with the same random draws."""
    results = []
    for model in (theirs.to(dtype), ours.to(dtype)):
        torch.manual_seed(7)
        model.zero_grad()
        out, grids = model(tokens(grid, dtype, has_cls), grid)
        (out * torch.linspace(-1, 2, out.numel(), dtype=dtype).view_as(out)).sum().backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((out.detach(), grids, gradients))
    (wanted, wanted_grids, gradients), (out, grids, found) = results
    assert relative_error(out, wanted) <= BOUND[dtype]
    assert grids == wanted_grids
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        # A softmax does not see what is added to all scores of a row: zero but for rounding.
        unseen = name.endswith(("norm_k.bias", "attn.k.bias"))
        like = gradients[name.replace("k.bias", "v.bias")] if unseen else gradient
        assert (found[name] - gradient).norm() <= BOUND[dtype] * like.norm(), name


@pytest.mark.parametrize("dtype", list(BOUND), ids=str)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="v1"),
        pytest.param(V2, id="v2"),
        pytest.param({**V2, "separate_qkv": True}, id="separate"),
        pytest.param({**V2, "rel_pos_temporal": False}, id="positions in space"),
        pytest.param({**V2, "rel_pos_spatial": False}, id="positions in time"),
        pytest.param({"separate_qkv": True, "qkv_bias": False, "residual_pooling": True}, id="no positions"),
        pytest.param({**V2, "residual_pooling": False, "dim_mul_in_att": False}, id="no residual"),
    ],
)
def test_numbers_draws_and_grids_are_theirs(options: dict[str, Any], dtype: torch.dtype) -> None:
    theirs = Network(drop_path=0.4, **options)
    ours = copy.deepcopy(theirs)
    names = [name for name, _ in ours.named_parameters()]
    report = ifdd.accelerate(ours)
    assert report.left == {}
    assert sorted(report.replaced) == sorted(ALL)
    assert [name for name, _ in ours.named_parameters()] == names
    with recording.record() as calls:
        assert_same(theirs.train(), ours.train(), dtype)
    assert {"pool_tokens", "pooled_attention", "gelu_linear", "max_pool_tokens"} <= {c.op for c in calls}
    assert_same(theirs.eval(), copy.deepcopy(ours).eval(), dtype, [5, 8, 6])  # tables are interpolated
    again = ifdd.accelerate(ours)
    assert again.replaced == ()
    assert again.left == dict.fromkeys(ALL, "is accelerated already")
    report.undo()
    assert str(ours) == str(theirs)
    assert type(ours.blocks[1]) is attention().MultiScaleBlock


def test_scaled_branches() -> None:
    theirs = Network(layer_scale_init_value=0.5)
    # A scale of dim values fits what the attention returns only where the attention keeps the width.
    ours = copy.deepcopy(theirs)
    assert ifdd.accelerate(ours).left == {}
    assert_same(theirs, ours)


def test_the_trial_changes_nothing() -> None:
    ours = Network(drop_path=0.4, **V2)
    fired: list[int] = []
    for module in ours.modules():
        module.register_forward_hook(lambda *_: fired.append(1))
    before = copy.deepcopy(ours.state_dict())
    state = torch.get_rng_state()
    report = ifdd.accelerate(ours)
    # Hooks on layers that are read leave the parts that would read them.
    assert {name.rpartition(".")[2] for name in report.left} == {"1", "attn", "mlp"}
    assert fired == []
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    assert all(module.training for module in ours.modules())
    with torch.device("meta"):
        on_meta = Network(**V2)
    assert sorted(ifdd.accelerate(on_meta).replaced) == sorted(ALL)


@pytest.mark.parametrize("part", ["attn", "mlp", ""])
def test_an_edited_class_is_left(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SlowFast is used from checkouts: the same name and settings, another forward."""
    theirs = Network(**V2)
    kind = type(theirs.blocks[1].get_submodule(part))
    own = kind.forward

    def edited(self: Any, *arguments: Any) -> Any:
        out = own(self, *arguments)
        return (out[0] * 1.01, out[1]) if isinstance(out, tuple) else out * 1.01

    monkeypatch.setattr(kind, "forward", edited)
    ours = copy.deepcopy(theirs)
    left = ifdd.accelerate(ours).left
    wanted = [name for name in ALL if name.rpartition(".")[2] == (part or "1")]
    assert left == dict.fromkeys(wanted, "computes something else than SlowFast's class of this name")
    assert_same(theirs, ours)


def test_a_class_that_draws_in_training_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = attention().MultiScaleAttention
    own = kind.forward

    def edited(self: Any, x: Tensor, thw_shape: Any) -> Any:
        return own(self, torch.dropout(x, 0.1, self.training), thw_shape)

    monkeypatch.setattr(kind, "forward", edited)
    left = ifdd.accelerate(Network()).left
    assert left.keys() == {name for name in ALL if name.endswith("attn")}


def test_a_class_that_cannot_be_tried_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, x: Tensor, thw_shape: Any) -> Any:
        raise KeyError("mask")

    monkeypatch.setattr(attention().MultiScaleAttention, "forward", broken)
    left = ifdd.accelerate(Network()).left
    assert left["blocks.0.attn"] == "could not be tried on random numbers: KeyError: 'mask'"


def test_hooks_that_come_later_fire() -> None:
    theirs = Network(**V2)
    ours = copy.deepcopy(theirs)
    ifdd.accelerate(ours)
    block: Any = ours.blocks[1]
    at, mlp = block.attn, block.mlp
    for layer in (
        *(block, block.norm1, block.norm2, block.proj, block.pool_skip, at, mlp),
        *(at.qkv, at.pool_q, at.pool_k, at.pool_v, at.norm_q, at.norm_k, at.norm_v, at.proj),
        *(mlp.fc1, mlp.act, mlp.fc2),
    ):
        fired: list[str] = []
        handle = layer.register_forward_hook(lambda *_, fired=fired: fired.append(""))
        wanted = theirs(tokens(GRID), GRID)[0]
        assert relative_error(ours(tokens(GRID), GRID)[0], wanted) <= 1e-5
        assert fired == [""]
        handle.remove()


def test_what_is_left_says_why() -> None:
    class Mine(attention().MultiScaleBlock):  # type: ignore[misc, name-defined]
        pass

    left = ifdd.accelerate(Network(Mine)).left
    assert left.keys() == {f"blocks.{place}" for place in range(3)}
    assert "subclass of MultiScaleBlock" in left["blocks.0"]
    options: dict[str, Any]
    for options, parts, reason in (
        ({"pool_first": True}, {"attn"}, "pools before it projects"),
        ({"mode": "max"}, {"attn"}, "pools by MaxPool3d, not by a Conv3d"),
        ({"drop_rate": 0.5}, {"mlp"}, "has a dropout of 0.5"),
        ({"act_layer": nn.ReLU}, {"mlp"}, "has a ReLU, not a GELU"),
        ({"has_cls_embed": False}, {"", "attn"}, "has no class token"),
    ):
        theirs = Network(**options)
        ours = copy.deepcopy(theirs)
        left = ifdd.accelerate(ours).left
        assert left.keys() == {name for name in ALL if name.rpartition(".")[2].replace("1", "") in parts}
        assert all(text.endswith(reason) for text in left.values())
        assert_same(theirs.train(), ours.train(), has_cls="has_cls_embed" not in options)
    other = Network()
    other.blocks[0].attn.shift = True  # type: ignore[union-attr]
    other.blocks[1].adapter = nn.Linear(8, 8)
    del other.blocks[2].attn.separate_qkv
    left = ifdd.accelerate(other).left
    assert left == {
        "blocks.0.attn": "has attributes that SlowFast's class has not: shift",
        "blocks.1": "has attributes that SlowFast's class has not: adapter",
        "blocks.2.attn": "is of an older SlowFast, without separate_qkv",
    }


def test_settings_that_change_later_count() -> None:
    theirs = Network(**V2)
    ours = copy.deepcopy(theirs)
    ifdd.accelerate(ours)
    model: Any
    for model in (theirs, ours):
        model.blocks[0].attn.scale = nn.Parameter(torch.tensor(0.3))
        model.blocks[1].pool_skip = nn.AvgPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        model.blocks[1].attn.rel_pos_spatial = False
        model.blocks[2].mlp.act = nn.Tanh()
        model.blocks[2].attn.norm_k.eps = 0.5
    assert_same(theirs, ours)


def test_positions_that_rounding_moves_are_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """SlowFast shifts behind the product, torchvision before it: other ratios round to the row below."""
    assert same_positions(16, 6, torch.float32)
    assert not same_positions(16, 6, torch.float32, shift_last=True)
    theirs = attention().MultiScaleAttention(
        8, 8, [1, 16, 16], 1, kernel_kv=(3, 3, 3), stride_kv=(1, 3, 3), rel_pos_spatial=True
    )
    ours = copy.deepcopy(theirs)
    swap(ours, AttentionOnKernels, "auto")
    x = tokens([1, 16, 16])
    with torch.no_grad():
        theirs.rel_pos_h.normal_()
        ours.rel_pos_h.copy_(theirs.rel_pos_h)
    wanted = theirs(x, [1, 16, 16])[0]
    assert relative_error(ours(x, [1, 16, 16])[0], wanted) <= 1e-5
    monkeypatch.setattr("ifdd.acceleration.slowfast_mvit.same_grids", lambda *_, **__: True)
    assert relative_error(ours(x, [1, 16, 16])[0], wanted) > 1e-3


def test_tokens_without_a_grid() -> None:
    """A block that pools nothing may be called without one; it returns tokens alone."""
    block = attention().MultiScaleBlock(8, 8, 1, [1, 4, 4])
    ours = copy.deepcopy(block)
    report = ifdd.accelerate(ours)
    assert report.left == {"attn": "does not pool keys and values"}
    x = tokens([1, 4, 4])
    assert relative_error(ours(x), block(x)) <= 1e-5
