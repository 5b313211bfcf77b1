"""The comparison helpers themselves: each must see the fault it is named for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ifdd_kernels import reference
from ifdd_kernels.registry import REGISTRY, Maker
from ifdd_kernels.testing import (
    bias_error,
    check_against_float64,
    cosine_error,
    full_float32,
    poisoned_memory,
    precision_error_bound,
    relative_error,
    thread_count,
    unwritten_fraction,
    zero_fraction,
)
from ops.backend_checks import check_backend, check_call
from ops.cases import nightly


def test_relative_error() -> None:
    exact = torch.tensor([1.0, -4.0])
    assert relative_error(torch.tensor([1.0, -3.0]), exact) == 0.25
    assert relative_error(torch.tensor([1.0, float("nan")]), exact) == float("inf")
    assert relative_error(torch.ones(3), exact) == float("inf")
    assert relative_error(torch.full((2,), 0.5), torch.zeros(2)) == 0.5
    assert relative_error(torch.empty(0), torch.empty(0)) == 0


EXACT = torch.tensor([1.0, -4.0, 0.5], dtype=torch.float64)


def check(*pairs: tuple[Tensor, Tensor], bound: float = 1e-3, **options: Any) -> None:
    """Float32 results, or as ``options`` say, with a bound of their own."""
    given = {"results": len(pairs), "dtypes": [torch.float32] * len(pairs), **options}
    actual, exact = zip(*pairs, strict=True)
    check_against_float64(actual, exact, lambda dtype: bound, **given)


def off(error: float, exact: Tensor = EXACT) -> tuple[Tensor, Tensor]:
    """One value of several is off by a part of the largest."""
    actual = exact.clone()
    actual.view(-1)[-1] += error * exact.abs().max()
    return actual.float(), exact


def test_a_result_may_err_by_its_bound_and_a_gradient_by_four_times_that() -> None:
    check(off(0.99e-3), off(3.9e-3), results=1)
    with pytest.raises(AssertionError, match=r"result 0: relative error 1.01e-03, allowed 1.00e-03"):
        check(off(-1.01e-3), off(0.0), results=1)
    with pytest.raises(AssertionError, match=r"gradient 1: relative error 4.10e-03, allowed 4.00e-03"):
        check(off(0.0), off(3.9e-3), off(4.1e-3), results=1)
    check(off(4.1e-3), least_allowed=5e-3)
    nothing = torch.zeros(2, dtype=torch.float64)  # of no size: errors are absolute
    check(((nothing + 0.9e-3).float(), nothing))
    with pytest.raises(AssertionError, match="result 0"):
        check(((nothing + 1.1e-3).float(), nothing))
    with pytest.raises(AssertionError, match="gradient 0"):
        check(off(4.1e-3), results=0, least_allowed=5e-3)
    with pytest.raises(AssertionError, match=r"gradient 0: relative error 3.90e-03, allowed 1.00e-03"):
        check(off(3.9e-3), results=0, gradient_factor=1)


@pytest.mark.parametrize("results", [0, 1])
@pytest.mark.parametrize(
    ("actual", "dtype", "message"),
    [
        (torch.tensor([1.0, -4.0, float("nan")]), torch.float32, "has unwritten values"),
        (torch.tensor([1.0, -4.0, float("inf")]), torch.float32, "relative error inf"),
        (torch.tensor([[1.0, -4.0, 0.5]]), torch.float32, r"shape \(1, 3\) for \(3,\)"),
        (torch.tensor([1.0]), torch.float32, r"shape \(1,\) for \(3,\)"),
        (torch.tensor([1.0, -4.0, 0.5]), torch.bfloat16, "torch.float32 for torch.bfloat16"),
        (torch.tensor([1.0, -4.0, 0.5]).double(), torch.float32, "torch.float64 for torch.float32"),
        (torch.zeros(3), torch.float32, "relative error 1.00e[+]00"),
    ],
)
def test_what_no_bound_covers(actual: Tensor, dtype: torch.dtype, message: str, results: int) -> None:
    which = "result" if results else "gradient"
    with pytest.raises(AssertionError, match=f"{which} 0:? {message}"):
        check((actual, EXACT), dtypes=[dtype], results=results)


def test_a_nan_in_float64_is_no_excuse_and_nothing_is_left_out() -> None:
    broken = torch.tensor([1.0, float("nan")], dtype=torch.float64)
    with pytest.raises(AssertionError, match="relative error nan"):
        check((torch.ones(2), broken))
    with pytest.raises(ValueError, match="zip"):
        check_against_float64([EXACT], [EXACT] * 2, lambda dtype: 1.0, results=2, dtypes=[EXACT.dtype] * 2)
    empty = torch.empty(0, 3)
    check((empty, empty.double()))
    with pytest.raises(AssertionError, match="shape"):
        check((empty, torch.empty(0, 2).double()))


def test_integers_are_equal_or_wrong() -> None:
    integers = torch.tensor([1, 2])
    check((integers, integers), dtypes=[torch.int64])
    with pytest.raises(AssertionError, match="result 0: not the same integers"):
        check((integers + 1, integers), dtypes=[torch.int64], bound=10.0)


def test_a_gradient_that_vanishes_is_judged_by_the_others() -> None:
    """By 4 bounds times a hundredth of the largest value, 4: 1.6e-4. A result has its own size alone."""
    nothing = 1e-15 * EXACT
    check(off(0.0), ((nothing + 1.5e-4).float(), nothing), results=0)
    with pytest.raises(AssertionError, match="gradient 1"):
        check(off(0.0), ((nothing + 1.7e-4).float(), nothing), results=0)
    with pytest.raises(AssertionError, match="gradient 1"):
        check(off(0.0), ((nothing + 1.5e-4).float(), nothing), results=0, vanishing=1e-3)
    with pytest.raises(AssertionError, match="result 0"):
        check(((nothing + 1e-8).float(), nothing), off(0.0), results=1)
    with pytest.raises(AssertionError, match="gradient 0"):
        check(off(0.0), ((nothing + 1e-8).float(), nothing), results=1)
    # Below the smallest normal number of float16, 6.1e-5, its spacing does not shrink: 6e-8.
    tiny = torch.full((2,), 1e-6, dtype=torch.float64)
    rounded = ((tiny + 3e-8).half(), tiny)
    check(rounded, results=0, dtypes=[torch.float16])
    with pytest.raises(AssertionError, match="gradient 0"):
        check((rounded[0].float(), tiny), results=0)


def test_a_gradient_may_start_from_a_result_of_a_coarser_dtype() -> None:
    def allowed(dtype: torch.dtype) -> float:
        return precision_error_bound(dtype, 1)

    error = 3.9 * torch.finfo(torch.bfloat16).eps
    given = {"results": 0, "dtypes": [torch.float32]}
    actual, exact = off(error)
    half = {"results": 0, "dtypes": [torch.bfloat16], "result_dtype": torch.float32}
    check_against_float64([actual.bfloat16()], [exact], allowed, **half)
    check_against_float64([actual], [exact], allowed, result_dtype=torch.bfloat16, **given)
    for result_dtype in (None, torch.float32, torch.float64):
        with pytest.raises(AssertionError, match="gradient 0"):
            check_against_float64([actual], [exact], allowed, result_dtype=result_dtype, **given)


def test_the_error_of_eager_pytorch_is_allowed_some_times() -> None:
    check(off(3.9e-2), eager=[off(1e-2)[0]])
    check(off(1e-4), eager=[EXACT.float()])
    with pytest.raises(AssertionError, match="result 0"):
        check(off(4.1e-2), eager=[off(1e-2)[0]])
    with pytest.raises(AssertionError, match="result 0"):
        check(off(2.1e-2), eager=[off(1e-2)[0]], eager_factor=2)
    with pytest.raises(AssertionError, match="the error of plain PyTorch in this precision is inf"):
        check(off(0.0), eager=[torch.full((3,), float("inf"))])


def test_the_mean_square_spreads_one_error_over_all_values() -> None:
    exact = torch.ones(100, dtype=torch.float64)
    exact[0] = 7  # their mean square is 1.48
    check(off(1.7e-3, exact), mean_square=True)
    with pytest.raises(AssertionError, match=r"relative error 1.04e-03"):
        check(off(1.8e-3, exact), mean_square=True)
    with pytest.raises(AssertionError, match=r"relative error 1.70e-03"):
        check(off(1.7e-3, exact))


def test_cosine_error_sees_direction_not_length() -> None:
    exact = torch.tensor([3.0, 4.0])
    assert cosine_error(2 * exact, exact) < 1e-12
    assert abs(cosine_error(torch.tensor([-4.0, 3.0]), exact) - 1) < 1e-12
    assert cosine_error(torch.tensor([float("nan"), 1.0]), exact) == float("inf")
    assert cosine_error(torch.ones(2), torch.zeros(2)) > 1


def test_bias_error_sees_truncation() -> None:
    exact = torch.rand(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    rounded = exact.float().bfloat16()
    truncated = (exact.float().view(torch.int32) & -65536).view(torch.float32)
    assert bias_error(rounded, exact) < 1e-4 < 1e-3 < bias_error(truncated, exact)
    assert bias_error(torch.ones(2), torch.zeros(2)) == 1


def test_unwritten_memory_shows() -> None:
    with poisoned_memory():
        forgotten = torch.empty(8)
        forgotten[:6] = 1
    assert unwritten_fraction(forgotten) == 0.25
    assert not torch.are_deterministic_algorithms_enabled()
    assert unwritten_fraction(torch.empty(3, dtype=torch.int64)) == 0
    assert zero_fraction(torch.tensor([0.0, 1.0])) == 0.5


def test_thread_count_is_restored() -> None:
    before = torch.get_num_threads()
    with thread_count(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def _switches() -> tuple[object, ...]:
    backends = torch.backends
    newer = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    return (torch.get_float32_matmul_precision(), *(switch.fp32_precision for switch in newer))


@pytest.fixture
def tf32() -> Iterator[None]:
    """TF32 wherever PyTorch would use it on a GPU."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def test_full_float32_forbids_tf32_and_restores_the_switches(tf32: None) -> None:
    before = _switches()
    assert "tf32" in before
    with full_float32():
        assert "tf32" not in _switches()
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    assert _switches() == before
    assert torch.backends.cudnn.allow_tf32


NEWER_SWITCHES = """
import torch
from ifdd_kernels.testing import full_float32
backends = torch.backends
def found():
    switches = backends, backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn
    return [switch.fp32_precision for switch in switches]
{switch}.fp32_precision = "tf32"
before = found()
assert "tf32" in before
with full_float32():
    assert "tf32" not in found(), found()
assert found() == before, (found(), before)
"""


@pytest.mark.parametrize(
    "switch", ["backends", nightly("backends.cuda.matmul"), nightly("backends.cudnn.conv")]
)
def test_full_float32_where_the_newer_switches_were_used(switch: str) -> None:
    """In a process of its own: that they were used cannot be undone."""
    code = NEWER_SWITCHES.format(switch=switch)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_references_that_ops_are_compared_with_are_full_float32(
    tf32: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(*args: Tensor) -> Tensor:
        seen.append(torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
        return original(*args)

    original = reference.lifting_residual
    monkeypatch.setattr(reference, "lifting_residual", watched)
    entry = REGISTRY["lifting_residual"]
    check_backend(entry, next(iter(entry.samples(Maker(torch.float32)))), "native")
    assert seen == [False]


@pytest.mark.parametrize("where", ["result", "gradient"])
def test_no_bound_comes_from_a_definition_that_is_not_finite(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a definition whose own error in the tested precision is infinite, anything would be right."""

    def overflows(*args: Tensor) -> Tensor:
        result = original(*args)
        if result.dtype == torch.float64:
            return result
        if where == "gradient":
            result.register_hook(lambda grad: grad * float("inf"))
            return result
        return result * float("inf")

    entry = REGISTRY["lifting_residual"]
    assert entry.operator is not None
    sample = next(iter(entry.samples(Maker(torch.float32))))
    check_call(entry, sample, entry.operator.overload(), against_eager=True)
    original = reference.lifting_residual
    monkeypatch.setattr(reference, "lifting_residual", overflows)
    with pytest.raises(AssertionError, match=f"{where} 0: the error of plain PyTorch in this precision is"):
        check_call(entry, sample, entry.operator.overload(), against_eager=True)
