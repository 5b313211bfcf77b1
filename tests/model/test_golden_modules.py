"""Every module against the stored values of the original implementation, gradients included."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from golden_cases import CASES, GoldenCase, assert_close, assert_gradients, assert_outputs, cases, golden
from ifdd.checkpoint import from_original
from ifdd.checkpoint.foreign_names import original_names
from ifdd.losses import IFDDLoss
from ifdd.model import IFDDOutput
from ifdd.modules import ISSM, LADM, ConvLifting, MultiscaleBlock, NoLifting, S3DEmbedding, TopKSplit

# (outputs, gradients), relative to the largest element. The values are stored in float32, rounding 6e-8; a
# float32 run accumulates its own rounding over sums of up to a few thousand terms.
TOLERANCE = {torch.float64: (1e-6, 1e-6), torch.float32: (1e-4, 1e-3)}
LADM_CASES = (*cases("ladm"), "lifting_conv", "lifting_none", "lifting_self_conditioned")
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def check(
    case: GoldenCase, module: nn.Module, part: str, run: Callable[[Tensor], tuple[Tensor, ...]]
) -> None:
    """Loads the case's weights through `from_original`, compares outputs and, where stored, gradients."""
    output_rtol, grad_rtol = TOLERANCE[case.inputs[0].dtype]
    module.to(case.inputs[0].dtype).eval()
    module.load_state_dict(from_original(case.state_dict, part, target=module).state_dict)
    x = case.inputs[0].clone().requires_grad_()
    outputs = run(x)
    assert_outputs(case, outputs, output_rtol)
    torch.autograd.backward(outputs, case.cotangents)
    parameters = dict(module.named_parameters())
    grads = {
        theirs: parameters[ours].grad
        for theirs, ours in original_names(case.state_dict, part).required.items()
        if ours in parameters
    }
    shaped = {name: None if g is None else g.view_as(case.params[name]) for name, g in grads.items()}
    assert len(shaped) == len(parameters)
    assert_gradients(case, (x.grad,), shaped, grad_rtol)


def to_frames(x: Tensor) -> Tensor:
    """The original's (B, C, T, N) -> (B, T, N, C)."""
    return x.permute(0, 2, 3, 1)


def to_original(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def test_every_stored_case_is_used() -> None:
    used = {
        *cases("issm"),
        *cases("topk"),
        *LADM_CASES,
        *cases("mvit_block"),
        "embedding_s3d",
        "lifting_loss",
    }
    assert used == set(CASES)


@dtypes
@pytest.mark.parametrize("name", cases("issm"))
def test_issm(name: str, dtype: torch.dtype) -> None:
    case = golden(name, dtype)
    meta = case.meta
    module = ISSM(frames=meta["T"], grid=(meta["H"], meta["W"]), channels=meta["C"], pool=meta["down"])
    check(case, module, "issm", lambda x: tuple(to_original(group) for group in module(to_frames(x))))
    indexes = module.indexes(to_frames(case.inputs[0]))
    for key, actual in (
        ("static_index", indexes.static),
        ("dynamic_index", indexes.dynamic),
        ("correlation", indexes.correlation),
    ):
        assert actual is not None
        assert_close(actual, case.extra[key], TOLERANCE[dtype][0], label=key)


@dtypes
@pytest.mark.parametrize("name", cases("topk"))
def test_topk_split(name: str, dtype: torch.dtype) -> None:
    case = golden(name, dtype)
    meta = case.meta
    module = TopKSplit(
        meta["T"], (meta["H"], meta["W"]), meta["C"], meta["down"], order_prior=meta["prior_order"]
    )
    groups = module(to_frames(case.inputs[0]))
    for actual, expected in zip(groups, case.outputs, strict=True):
        assert torch.equal(to_original(actual), expected)  # frames are gathered, not computed


def lifting(case: GoldenCase) -> nn.Module:
    meta = case.meta
    size = {"frames": meta["T"], "grid": (meta["H"], meta["W"]), "channels": meta["C"]}
    if case.name == "lifting_conv":
        return ConvLifting(**size)
    if case.name == "lifting_none":
        return NoLifting(**size)
    return LADM(
        **size,
        heads=meta["heads"],
        split="interpolate" if meta["issm"] else "even_odd",
        order="update_first" if meta["update_first"] else "predict_first",
        split_norm=meta["split_norm"],
        self_conditioned=case.name == "lifting_self_conditioned",
    )


@dtypes
@pytest.mark.parametrize("name", LADM_CASES)
def test_lifting(name: str, dtype: torch.dtype) -> None:
    case = golden(name, dtype)
    module = lifting(case)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        feature, residual = module(x)
        return residual, feature

    check(case, module, "ladm", run)


@dtypes
@pytest.mark.parametrize("name", cases("mvit_block"))
def test_block(name: str, dtype: torch.dtype) -> None:
    case = golden(name, dtype)
    meta = case.meta
    module = MultiscaleBlock(
        grid=(meta["T"], meta["H"], meta["W"]),
        in_channels=meta["c_in"],
        out_channels=meta["c_out"],
        heads=meta["heads"],
        stride_q=tuple(meta["stride_q"]),
        stride_kv=tuple(meta["stride_kv"]),
    )
    check(case, module, "block", lambda x: (module(x)[0],))
    tokens, grid = module(case.inputs[0])
    assert tokens.shape[1] == 1 + grid[0] * grid[1] * grid[2]


@dtypes
def test_s3d_embedding(dtype: torch.dtype) -> None:
    case = golden("embedding_s3d", dtype)
    module = S3DEmbedding(case.outputs[0].shape[1])
    check(case, module, "embedding", lambda x: (module(x),))


@dtypes
def test_lifting_loss(dtype: torch.dtype) -> None:
    case = golden("lifting_loss", dtype)
    residual = case.inputs[0].clone().requires_grad_()
    logits = torch.randn(residual.shape[0], 4, dtype=dtype)
    parts = IFDDLoss()(IFDDOutput(logits, residual, logits), torch.zeros(len(logits), dtype=torch.int64))
    assert_close(parts.lifting.reshape(1), case.outputs[0], TOLERANCE[dtype][0])
    parts.lifting.backward()
    assert residual.grad is not None
    assert_close(residual.grad, case.input_grads[0], TOLERANCE[dtype][1])
