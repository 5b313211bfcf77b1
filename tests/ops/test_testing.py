"""The comparison helpers themselves: each must see the fault it is named for."""

from __future__ import annotations

import torch

from ifdd_kernels.testing import (
    bias_error,
    cosine_error,
    poisoned_memory,
    relative_error,
    thread_count,
    unwritten_fraction,
    zero_fraction,
)


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
