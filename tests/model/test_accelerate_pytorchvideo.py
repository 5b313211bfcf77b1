"""`ifdd.accelerate` on the blocks of pytorchvideo 0.1.5."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ifdd
from ifdd_kernels.testing import relative_error

BOUND = {torch.float32: 1e-5, torch.float64: 1e-10}
GRID = [3, 8, 6]
#: dim, dim_out, heads, stride of queries, stride of keys and values
ROWS = [
    (8, 16, 1, (1, 1, 1), (1, 4, 4)),
    (16, 32, 2, (1, 2, 2), (1, 2, 2)),
    (32, 32, 2, (1, 1, 1), (1, 1, 1)),
]
ALL = [f"blocks.{place}{part}" for place in range(3) for part in ("", ".attn", ".mlp")]


def attention() -> Any:
    """`pytorchvideo.layers.attention`, from where `make test` puts it or installed."""
    folder = str(Path(sys.prefix) / "pytorchvideo")
    if Path(folder).is_dir() and folder not in sys.path:
        sys.path.append(folder)
    return pytest.importorskip("pytorchvideo.layers.attention")


class Network(nn.Module):
    """Blocks as pytorchvideo's network runs them."""

    def __init__(self, kind: Any = None, **options: Any) -> None:
        super().__init__()
        kind = kind or attention().MultiScaleBlock
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            kind(
                dim,
                dim_out,
                heads,
                kernel_q=(3, 3, 3) if max(stride_q) > 1 else (1, 1, 1),
                kernel_kv=(3, 3, 3),
                stride_q=stride_q,
                stride_kv=stride_kv,
                **{"qkv_bias": True, **options},
            )
            for dim, dim_out, heads, stride_q, stride_kv in ROWS
        )
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)  # biases and norms start at constants

    def forward(self, x: Tensor) -> tuple[Tensor, list[list[int]]]:
        grids = [GRID]
        for block in self.blocks:
            x, grid = block(x, grids[-1])
            grids.append(grid)
        return x, grids


def tokens(dtype: torch.dtype = torch.float32, count: int = 1 + 3 * 8 * 6) -> Tensor:
    return torch.randn(2, count, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


def assert_same(theirs: nn.Module, ours: nn.Module, dtype: torch.dtype = torch.float64) -> None:
    """Output, grids and all gradients, with the same random draws."""
    results = []
    for model in (theirs.to(dtype), ours.to(dtype)):
        torch.manual_seed(7)
        model.zero_grad()
        out, grids = model(tokens(dtype))
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
def test_numbers_draws_and_grids_are_theirs(dtype: torch.dtype) -> None:
    theirs = Network(droppath_rate=0.4, qkv_bias=dtype == torch.float64)
    ours = copy.deepcopy(theirs)
    names = [name for name, _ in ours.named_parameters()]
    report = ifdd.accelerate(ours)
    assert report.left == {}
    assert sorted(report.replaced) == sorted(ALL)
    assert [name for name, _ in ours.named_parameters()] == names
    assert_same(theirs.train(), ours.train(), dtype)
    assert_same(theirs.eval(), copy.deepcopy(ours).eval(), dtype)
    assert ifdd.accelerate(ours).left == dict.fromkeys(ALL, "is accelerated already")
    report.undo()
    assert str(ours) == str(theirs)
    assert type(ours.blocks[0]) is attention().MultiScaleBlock


def test_hooks_that_come_later_fire() -> None:
    theirs = Network()
    ours = copy.deepcopy(theirs)
    ifdd.accelerate(ours)
    block: Any = ours.blocks[1]
    for layer in (
        *(block, block.attn, block.attn.q, block.attn.k, block.attn.v, block.attn.pool_k, block.attn.norm_q),
        *(
            block.attn.proj,
            block.mlp,
            block.mlp.fc1,
            block.mlp.act,
            block.mlp.fc2,
            block.pool_skip,
            block.norm1,
        ),
    ):
        fired: list[str] = []
        handle = layer.register_forward_hook(lambda *_, fired=fired: fired.append(""))
        assert relative_error(ours(tokens())[0], theirs(tokens())[0]) <= 1e-5
        assert fired == [""]
        handle.remove()


def test_what_is_left_says_why() -> None:
    module = attention()

    class Mine(module.MultiScaleBlock):  # type: ignore[misc, name-defined]
        pass

    left = ifdd.accelerate(Network(Mine)).left
    assert left.keys() == {f"blocks.{place}" for place in range(3)}
    assert "subclass of MultiScaleBlock" in left["blocks.0"]
    for options, parts, reason in (
        ({"pool_first": True}, {"attn"}, "pools before it projects"),
        ({"pool_mode": "max"}, {"attn"}, "pools by MaxPool3d, not by a Conv3d"),
        ({"dropout_rate": 0.5}, {"mlp"}, "has a dropout of 0.5"),
        ({"act_layer": nn.ReLU}, {"mlp"}, "has a ReLU, not a GELU"),
        ({"has_cls_embed": False}, {"", "attn"}, "has no class token"),
    ):
        theirs = Network(**options)
        ours = copy.deepcopy(theirs)
        left = ifdd.accelerate(ours).left
        for part in parts:
            assert left[f"blocks.1.{part}".strip(".")].endswith(reason)
        if options != {"has_cls_embed": False}:
            assert left.keys() <= {name for name in ALL if name.rpartition(".")[2] in parts}
            assert_same(theirs.train(), ours.train())
    newer = Network()
    newer.blocks[0].attn.residual_pool = True  # type: ignore[union-attr]
    left = ifdd.accelerate(newer).left
    assert left == {"blocks.0.attn": "has attributes that release 0.1.5 has not: residual_pool"}


def test_settings_that_change_later_count() -> None:
    theirs = Network()
    ours = copy.deepcopy(theirs)
    ifdd.accelerate(ours)
    for model in (theirs, ours):
        model.blocks[0].attn.scale = nn.Parameter(torch.tensor(0.3))  # type: ignore[union-attr]
        model.blocks[1].pool_skip = nn.AvgPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        model.blocks[2].mlp.act = nn.Tanh()  # type: ignore[union-attr]
        model.blocks[2].attn.norm_k.eps = 0.5  # type: ignore[union-attr]
        model.blocks[1].attn.k = nn.Linear(16, 16, bias=False)  # type: ignore[union-attr]
    ours.blocks[1].attn.k.load_state_dict(theirs.blocks[1].attn.k.state_dict())  # type: ignore[union-attr]
    assert_same(theirs, ours)
