"""Every module of the plain formulation against the stored values of the original, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.original import (
    LADM,
    ConvLifting,
    EvenOddSplit,
    InterpolatedSplit,
    LiftingLoss,
    MultiscaleBlock,
    NoLifting,
    S3DEmbedding,
    TopKSplit,
)
from golden_cases import GoldenCase, assert_close, assert_outputs, cases, check_module, golden

# Outputs and gradients, relative to the largest element. The values are stored in float32 (rounding 6e-8 of
# each element), so a float64 run can only differ by that; a float32 run accumulates its own rounding.
TOLERANCE = {torch.float64: (1e-6, 1e-6), torch.float32: (1e-4, 1e-3)}


class BlockOnGrid(MultiscaleBlock):
    """A block whose grid is fixed, so that it maps tokens to tokens."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, self.grid)[0]


def build(case: GoldenCase) -> nn.Module:
    """The module of a case, from the sizes in its metadata."""
    meta = case.meta
    if case.name.startswith("embedding_s3d"):
        return S3DEmbedding(case.outputs[0].shape[1])
    if case.name.startswith("mvit_block"):
        grid = (meta["T"], meta["H"], meta["W"])
        strides = (tuple(meta["stride_q"]), tuple(meta["stride_kv"]))
        block = BlockOnGrid(grid, meta["c_in"], meta["c_out"], meta["heads"], *strides)
        block.grid = grid
        return block
    if case.name == "lifting_loss":
        return LiftingLoss()
    channels, frames, grid = meta["C"], meta["T"], (meta["H"], meta["W"])
    if case.name.startswith("issm"):
        return InterpolatedSplit(channels, frames, grid, meta["down"])
    if case.name.startswith("topk"):
        return TopKSplit(channels, frames, grid, meta["down"], meta["prior_order"])
    if case.name == "lifting_conv":
        return ConvLifting(channels, frames, grid)
    if case.name == "lifting_none":
        return NoLifting(frames, grid, InterpolatedSplit(channels, frames, grid))
    return LADM(
        channels,
        frames,
        grid,
        InterpolatedSplit(channels, frames, grid) if meta["issm"] else EvenOddSplit(),
        heads=meta["heads"],
        update_first=meta["update_first"],
        self_conditioned=case.name == "lifting_self_conditioned",
        split_norm=meta["split_norm"],
    )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", cases(""))
def test_module_matches_the_original(name: str, dtype: torch.dtype) -> None:
    case = golden(name, dtype)
    output_rtol, grad_rtol = TOLERANCE[dtype]
    check_module(case, build(case), output_rtol=output_rtol, grad_rtol=grad_rtol)


@pytest.mark.parametrize("name", cases("issm"))
def test_split_indexes_match_the_original(name: str) -> None:
    case = golden(name)
    split = build(case).double()
    assert isinstance(split, InterpolatedSplit)
    split.load_state_dict(case.state_dict)
    correlation = split.correlation(case.inputs[0])
    static, dynamic = split.indexes(correlation)
    assert_close(correlation, case.extra["correlation"], 1e-6)
    assert_close(static, case.extra["static_index"], 1e-6)
    assert_close(dynamic, case.extra["dynamic_index"], 1e-6)


@pytest.mark.parametrize("name", cases("topk"))
def test_topk_gradient_flows_to_gathered_frames_only(name: str) -> None:
    case = golden(name)
    x = case.inputs[0].clone().requires_grad_(True)
    static, dynamic = build(case)(x)
    assert_outputs(case, (static, dynamic), 1e-6)
    generator = torch.Generator().manual_seed(3)
    cotangent = torch.randn(static.shape, generator=generator, dtype=static.dtype)
    (grad,) = torch.autograd.grad(static, x, cotangent)
    for t in range(x.shape[2]):
        # A frame is in the static group exactly if its values are found there.
        rows = [k for k in range(static.shape[2]) if torch.equal(static[:1, :, k], x[:1, :, t])]
        expected = cotangent[0, :, rows[0]] if rows else torch.zeros_like(grad[0, :, t])
        assert torch.equal(grad[0, :, t], expected)


def test_a_wrong_output_and_a_wrong_gradient_are_noticed() -> None:
    """The comparison itself: one weight or a cotangent scaled by 1 + 1e-4, a stray gradient, a NaN."""
    case = golden("mvit_block_1")
    params = {**case.params, "attn.rel_pos_t": case.params["attn.rel_pos_t"] * (1 + 1e-4)}
    wrong = GoldenCase(**{**vars(case), "params": params})
    with pytest.raises(AssertionError, match=r"out\.0"):
        check_module(wrong, build(case), output_rtol=1e-6, grad_rtol=1e-6)

    grads = {name: grad for name, grad in case.grads.items() if name != "norm1.weight"}
    with pytest.raises(AssertionError, match=r"norm1\.weight must have no gradient"):
        check_module(
            GoldenCase(**{**vars(case), "grads": grads}), build(case), output_rtol=1e-6, grad_rtol=1e-6
        )

    cotangents = (case.cotangents[0] * (1 + 1e-4),)
    with pytest.raises(AssertionError, match=r"grad"):
        check_module(
            GoldenCase(**{**vars(case), "cotangents": cotangents}),
            build(case),
            output_rtol=1e-6,
            grad_rtol=1e-6,
        )
    with pytest.raises(AssertionError, match="value"):
        assert_close(torch.full((3,), torch.nan), torch.ones(3), 1e-3)
