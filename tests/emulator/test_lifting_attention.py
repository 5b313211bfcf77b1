"""The CUDA kernels of lifting_attention on the emulator."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from emulator import build
from emulator.build import SHARED_BYTES, EmulatedOp, Plant
from emulator.compare import DTYPES, check, labels, registry_sample
from ifdd_kernels.registry import Maker
from ifdd_kernels.testing import precision_error_bound, relative_error
from ops.cases import nightly

pytestmark = pytest.mark.skipif(build.compiler is None, reason="the emulator needs a C++ compiler")
NAME = "lifting_attention"


@pytest.fixture(scope="module")
def op() -> EmulatedOp:
    return EmulatedOp(NAME)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("label", labels(NAME))
def test_registry_samples(op: EmulatedOp, label: str, dtype: torch.dtype) -> None:
    check(op, registry_sample(NAME, label, dtype).args)


def arguments(dtype: torch.dtype, batch: int, tokens: int, heads: int, channels: int) -> tuple[Any, ...]:
    """Query, and key and value packed as the projection gives them."""
    make = Maker(dtype, seed=tokens * 1000 + channels)
    key_value = make.normal(batch, tokens, 2, heads, channels)
    return (make.normal(batch, tokens, heads, channels), *key_value.unbind(2), channels**-0.5)


@pytest.mark.parametrize("tokens", [15, 16, 17, 31, 33, 63, 64, 65, 130])
def test_edges_of_tiles(op: EmulatedOp, tokens: int) -> None:
    """Rows of a warp and a block, streamed tiles of all three sizes; rows with and without vectors."""
    for dtype, channels in ((torch.bfloat16, 40), (torch.float32, 33)):
        check(op, arguments(dtype, 1, tokens, 1, channels), seeds=(0, 3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [32, 63, 64, 96, 128])
def test_head_dimensions(op: EmulatedOp, channels: int, dtype: torch.dtype) -> None:
    check(op, arguments(dtype, 1, 37, 2, channels), seeds=(1, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shared_bytes", SHARED_BYTES)
def test_stages_follow_the_shared_memory(op: EmulatedOp, shared_bytes: int, dtype: torch.dtype) -> None:
    """One stage and two give the same, bit for bit."""
    args = arguments(dtype, 1, 70, 1, 128)
    check(op, args, seeds=(0, 1), shared_bytes=shared_bytes)
    results = []
    for size in SHARED_BYTES:
        op.library.configure(2, shared_bytes=size)
        results.append(op.forward(*args))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_network_shape(op: EmulatedOp) -> None:
    check(op, arguments(torch.bfloat16, 1, 196, 1, 96), seeds=(0, 3))


def test_many_tokens(op: EmulatedOp) -> None:
    """Keys of many tiles; forward only, which is where the softmax is rescaled."""
    query, key, value, scale = arguments(torch.bfloat16, 1, 1030, 1, 32)
    op.library.configure(0)
    out, log_sum = op.forward(query, key, value, scale)
    exact, exact_log_sum = op.operator.reference(query.double(), key.double(), value.double(), scale)
    assert relative_error(out, exact) <= precision_error_bound(torch.bfloat16, 16)
    assert relative_error(log_sum, exact_log_sum) <= precision_error_bound(torch.float32, 16)


def many_float_rows() -> tuple[Any, ...]:
    """Sums of 500 terms of one sign in each pass, over many tiles."""
    query, key, value, scale = arguments(torch.float32, 1, 500, 1, 32)
    return query, key, value.abs() + 1, scale


def worst_of_many_rows(op: EmulatedOp) -> float:
    """The largest relative error of attention's own sums, in units of the registry's bound for float32."""
    query, key, value, scale = many_float_rows()
    grad = torch.rand_like(value, dtype=torch.float64).float() + 1
    wide = [t.double().requires_grad_() for t in (query, key, value)]
    op.library.configure(0)
    out, log_sum = op.forward(query, key, value, scale)
    exact, _ = op.operator.reference(*wide, scale)
    grads = op.backward(grad.flatten(2), query, key, value, out, log_sum, scale)
    exact_grads = torch.autograd.grad(exact, wide, grad.flatten(2).double())
    # Without the residuals, which hide the error of a sum: they are as large.
    parts = [
        (out - value.flatten(2), exact.detach() - value.flatten(2)),
        (grads[2] - grad, exact_grads[2] - grad),
    ]
    return max(relative_error(*part) for part in parts) / precision_error_bound(torch.float32, 16)


def test_float_sums_do_not_drift(op: EmulatedOp) -> None:
    """Tensor cores cut sums off: an error must not grow with the tiles, as it does in one accumulator."""
    assert worst_of_many_rows(op) <= 1
    header = "ifdd/cuda/mma.h"
    text = (build.ROOT / "csrc" / "include" / header).read_text().replace("#pragma once", "")
    in_place = Plant("if constexpr (is_16_bit<T>) {", "if constexpr (true) {").apply(text)
    few = Plant("dispatch_at_least<32, 64, 96, 128>", "dispatch_at_least<32>")
    broken = EmulatedOp(NAME, [few, Plant(f'#include "{header}"', in_place)])
    assert worst_of_many_rows(broken) > 1


def test_rising_scores(op: EmulatedOp) -> None:
    """Every tile holds the largest score so far, far above the ones before."""
    query, key, value, _ = arguments(torch.float32, 1, 150, 1, 32)
    rising = key.abs() * torch.arange(1, 151).view(1, 150, 1, 1)
    # A score of 300 errs by up to 300 ulps, and a probability by as many.
    check(op, (query.abs(), rising, value, 0.05), seeds=(1, 3), ulps=300)


def test_infinite_scores_give_nan_as_defined(op: EmulatedOp) -> None:
    query, key, value, scale = arguments(torch.float32, 1, 20, 1, 32)
    query[0, 3] = float("inf")
    out, _ = op.forward(query, key, value, scale)
    exact, _ = op.operator.reference(query, key, value, scale)
    assert torch.equal(out.isnan(), exact.isnan())
    assert bool(out[0, 3].isnan().all())


def test_refusals(op: EmulatedOp) -> None:
    query, key, value, scale = arguments(torch.float32, 1, 4, 1, 129)
    with pytest.raises(
        RuntimeError, match=r"ifdd::lifting_attention: query: expected head_dim <= 128 .* got 129"
    ):
        op.forward(query, key, value, scale)
    query, key, value, scale = arguments(torch.float32, 1, 4, 1, 8)
    with pytest.raises(RuntimeError, match=r"query: expected dtype float32 or .*, got float64"):
        op.forward(query.double(), key.double(), value.double(), scale)
    with pytest.raises(RuntimeError, match=r"key: expected shape \(1, 4, 1, 8\) .* got \(1, 3, 1, 8\)"):
        op.forward(query, key[:, :3], value, scale)
    with pytest.raises(RuntimeError, match="value: expected dtype float32, got float16"):
        op.forward(query, key, value.half(), scale)
    out, log_sum = op.forward(query, key, value, scale)
    with pytest.raises(RuntimeError, match="lifting_attention_backward: log_sum: expected shape"):
        op.backward(out, query, key, value, out, log_sum[:, :, :3], scale)


#: Changes of the kernels that the comparison must notice.
PLANTS = {
    "a removed barrier behind the wait": Plant("}\n    __syncthreads();", "}"),
    "a removed wait": Plant("copy_async_wait<1>();"),
    "a removed barrier before the next copy": Plant("__syncthreads();  // the", "//"),
    "a key too many": Plant("column < size.tokens ? s[n][i] *", "column <= size.tokens ? s[n][i] *"),
    "a row too few": Plant("if (row + r < size.tokens", "if (row + r + 1 < size.tokens"),
    "a removed barrier before rows are stored": Plant(
        "__syncwarp();\n  if (size.vectors)", "if (size.vectors)"
    ),
    "no rescaling of the sum": Plant("sum[r] *= factor;"),
    "no residual": Plant("add_rows<D>(o,", "if (false) add_rows<D>(o,"),
}


@pytest.mark.parametrize("name", [nightly(name, id=name, when=name != "a removed wait") for name in PLANTS])
def test_what_is_broken_is_caught(name: str) -> None:
    # Fewer instances compile faster.
    few = Plant("dispatch_at_least<32, 64, 96, 128>", "dispatch_at_least<32>")
    args = arguments(torch.bfloat16, 1, 70, 1, 24)
    check(EmulatedOp(NAME, [few]), args)
    broken = EmulatedOp(NAME, [few, PLANTS[name]])
    with pytest.raises((AssertionError, RuntimeError)):
        check(broken, args)
