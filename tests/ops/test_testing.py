"""The comparison helpers themselves: each must see the fault it is named for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ifdd_kernels import reference
from ifdd_kernels.registry import REGISTRY, Maker
from ifdd_kernels.testing import (
    bias_error,
    cosine_error,
    full_float32,
    poisoned_memory,
    relative_error,
    thread_count,
    unwritten_fraction,
    zero_fraction,
)
from ops.backend_checks import check_backend, check_call


def test_relative_error() -> None:
    exact = torch.tensor([1.0, -4.0])
    assert relative_error(torch.tensor([1.0, -3.0]), exact) == 0.25
    assert relative_error(torch.tensor([1.0, float("nan")]), exact) == float("inf")
    assert relative_error(torch.ones(3), exact) == float("inf")
    assert relative_error(torch.full((2,), 0.5), torch.zeros(2)) == 0.5
    assert relative_error(torch.empty(0), torch.empty(0)) == 0


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


@pytest.mark.parametrize("switch", ["backends", "backends.cuda.matmul", "backends.cudnn.conv"])
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
    with pytest.raises(AssertionError, match=f"{where} 0: the definition's own error in this precision is"):
        check_call(entry, sample, entry.operator.overload(), against_eager=True)
