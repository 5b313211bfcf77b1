"""``pooled_attention`` as PyTorch's fused attention on augmented heads, against the definition in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ifdd_kernels
from ifdd_kernels import backends
from ifdd_kernels.registry import REGISTRY, Maker, Sample
from ops.backend_checks import check_call

OP = "pooled_attention"
# Everything on the way is rounded to query's dtype. What counts is the bias, whose terms reach 8 here: half
# an ulp of its size is up to 4 ulps of a probability, once for the tables and once for the product. A table's
# gradient sums such errors over all pairs of its row.
ULPS = 8


def samples(dtype: torch.dtype) -> list[Sample]:
    return list(REGISTRY[OP].samples(Maker(dtype)))


def leaves(args: tuple[Any, ...], dtype: torch.dtype | None = None) -> list[Any]:
    return [a.detach().to(dtype or a.dtype).requires_grad_() if isinstance(a, Tensor) else a for a in args]


def sdpa(*args: Any) -> Tensor:
    return ifdd_kernels.pooled_attention(*args[:8], scale=args[8], backend="sdpa")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("place", range(6))
def test_output_and_all_gradients(place: int, dtype: torch.dtype) -> None:
    check_call(
        REGISTRY[OP],
        samples(dtype)[place],
        sdpa,
        allowed=lambda _: ULPS * torch.finfo(dtype).eps,
        least_allowed=0.0,
        vanishing=0.0,
    )


def test_gradcheck() -> None:
    args = leaves(samples(torch.float64)[2].args)
    assert torch.autograd.gradcheck(lambda *tensors: sdpa(*tensors, *args[6:]), args[:6])


def test_no_matrix_of_queries_by_keys_is_made() -> None:
    grid = (4, 12, 12)
    pairs = (1 + 576) ** 2
    maker = Maker(torch.float32)
    parts = [maker.normal(1, 577, 1, 8) for _ in range(3)]
    tables = [maker.parameter(2 * size - 1, 8) for size in (12, 12, 4)]
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for value in torch.utils._pytree.tree_leaves(result):
                if isinstance(value, Tensor):
                    largest = max(largest, value.numel())
            return result

    with Largest():
        ifdd_kernels.pooled_attention(*parts, *tables, grid, grid, backend="sdpa")
    assert 577 * 28 <= largest < pairs // 4


def test_autocast_casts_what_the_op_casts() -> None:
    args = samples(torch.float32)[0].args
    with torch.autocast("cpu", torch.bfloat16):
        out = sdpa(*args)
        double = sdpa(*samples(torch.float64)[0].args)
    assert out.dtype == torch.bfloat16
    low = [part.bfloat16() for part in args[:3]]
    assert torch.equal(out, sdpa(*low, *args[3:]))
    assert double.dtype == torch.float64


def test_compiles_to_one_graph_and_exports() -> None:
    args = samples(torch.float32)[1].args
    tensors, rest = args[:6], args[6:]

    class Attention(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return sdpa(*tensors, *rest)

    wanted = sdpa(*args)
    compiled = torch.compile(Attention(), fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(*tensors), wanted, atol=1e-6)
    exported = torch.export.export(Attention(), tensors).module()
    assert torch.allclose(exported(*tensors), wanted, atol=1e-6)


def test_bad_arguments_are_refused_like_those_of_the_op() -> None:
    query, *rest = samples(torch.float32)[0].args
    with pytest.raises(ValueError, match="pooled_attention: query"):
        sdpa(query[:, :-1], *rest)


def test_only_pooled_attention_has_it() -> None:
    assert backends.can_run(OP, "sdpa", torch.empty(0, dtype=torch.float64))
    refused = backends.can_run("lifting_attention", "sdpa")
    assert not refused
    assert refused.reason == "only pooled_attention can be written as PyTorch's fused attention"
    with pytest.raises(RuntimeError, match="frame_correlation: backend 'sdpa' cannot run: only pooled_att"):
        ifdd_kernels.frame_correlation(torch.randn(1, 2, 3), 1.0, backend="sdpa")
