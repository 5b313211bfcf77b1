"""What ``auto`` chooses on CUDA tensors, shown on fake ones: no device is needed to choose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ifdd_kernels import _cuda_limits, _library, _measured, backends
from ifdd_kernels._operator import OPERATORS

OP = "lifting_attention"


@pytest.fixture
def cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A library with CUDA kernels, whatever was built here."""
    monkeypatch.setattr(_library, "loaded", lambda: True)
    monkeypatch.setattr(_library, "native_ops", lambda device: frozenset(OPERATORS))
    backends._fastest.cache_clear()
    yield
    backends._fastest.cache_clear()


def query(head_dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    with FakeTensorMode(allow_non_fake_inputs=True):
        return torch.empty(1, 2, 1, head_dim, dtype=dtype, device="cuda")


@pytest.mark.usefixtures("cuda_kernels")
def test_native_kernels_run_what_they_take() -> None:
    for head_dim in (1, 96, _cuda_limits.HEAD_DIM):
        assert backends.can_run(OP, "native", query(head_dim))
        assert backends.select(OP, "auto", query(head_dim)) == ""


@pytest.mark.usefixtures("cuda_kernels")
@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (query(_cuda_limits.HEAD_DIM + 1), "head_dim <= 128, got 129"),
        (query(32, torch.float64), "float16, bfloat16 and float32, the input is float64"),
    ],
    ids=["head_dim", "float64"],
)
def test_what_they_do_not_take_goes_elsewhere(x: Tensor, reason: str) -> None:
    support = backends.can_run(OP, "native", x)
    assert not support
    assert reason in support.reason
    with pytest.raises(RuntimeError, match=f"lifting_attention: backend 'native' cannot run: .*{reason}"):
        backends.select(OP, "native", x)
    chosen = backends.select(OP, "auto", x)
    assert chosen in ("triton", "reference")
    assert reason in backends.can_run(OP, "auto", x).reason


@pytest.mark.usefixtures("cuda_kernels")
def test_a_measured_backend_is_taken_where_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    device = "NVIDIA imagined"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: device)
    for measured, chosen in (("reference", "reference"), ("native", "")):
        monkeypatch.setitem(_measured.FASTEST, device, {OP: measured})
        backends._fastest.cache_clear()
        assert backends.select(OP, "auto", query(32)) == chosen
    # Measured as the fastest, but not for these: what can run them is taken instead.
    for x in (query(_cuda_limits.HEAD_DIM + 1), query(32, torch.float64)):
        assert backends.select(OP, "auto", x) in ("triton", "reference")


@pytest.mark.usefixtures("cuda_kernels")
@pytest.mark.parametrize("head_dim", [128, 129])
def test_the_limit_of_pool_tokens_is_that_of_its_weights(head_dim: int) -> None:
    with FakeTensorMode():
        qkv = torch.empty(1, 9, 3 * 2 * head_dim, device="cuda")
        weight = torch.empty(head_dim, 1, 3, 3, 3, device="cuda")
    support = backends.can_run("pool_tokens", "auto", qkv, None, weight)
    if head_dim == 128:
        assert "chooses native" in support.reason
    else:
        assert "chooses native" not in support.reason
        assert "head_dim <= 128, got 129" in support.reason


def fake(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    with FakeTensorMode():
        return torch.empty(*shape, dtype=dtype, device="cuda")


TOKENIZER = (fake(7, 8), fake(7))
OFFSETS = (fake(4, 64), fake(4, 64))
POOLING = (fake(2**27, 2, 3), None, fake(1, 1, 3, 3, 3), *[fake(1)] * 8, [1, 1, 1], [1, 1, 1], 1)
#: Arguments that the kernels take, with others in place of one of them that they do not take, and why.
LIMITS: dict[str, tuple[str, tuple[object, ...], int, object, str]] = {
    "indexes": ("split_frames", (fake(1, 8, 3, 4), fake(1, 2000), fake(1, 48)), 2, fake(1, 49), "<= 2048"),
    "rows": ("split_frames", (fake(2**20, 4, 2**8, 1), fake(2**20, 1)), 0, fake(2**21, 4, 2**8, 1), "rows"),
    "ranked frames": ("topk_split_index", (fake(1, 8192, 1, 4), 1, 1, 1), 0, fake(1, 8194, 1, 4), "8192"),
    "pool": ("topk_split_index", (fake(0, 2, 1, 4), 1, 1, 32767), 3, 32768, "32767, got 32768"),
    "tokens": ("frame_tokens", (fake(1, 8, 1, 8), *TOKENIZER, 1, 1, 2**11), 5, 2**14, "rows"),
    "outputs": ("split_index", (fake(1, 8, 1, 8), *TOKENIZER, *OFFSETS, 1, 1, 2**13), 1, fake(17, 8), "rows"),
    "side": ("pool_tokens", POOLING, 12, [1, 2**24 + 1, 1], "16777216, got 16777217"),
    "attention": ("lifting_attention", (fake(2**20, 2**10, 1, 1),), 0, fake(2**20, 2**10, 2, 1), "rows"),
    "one cell": ("pool_tokens", POOLING, 0, fake(2**28, 2, 6), "rows"),
}


@pytest.mark.usefixtures("cuda_kernels")
@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_known_before_the_launch(name: str) -> None:
    op, args, place, value, reason = LIMITS[name]
    assert backends._limit(op, args) == ""
    refusal = backends._limit(op, (*args[:place], value, *args[place + 1 :]))
    assert reason in refusal
    assert "its CUDA kernels take" in refusal


@pytest.mark.parametrize("name", LIMITS)
def test_limits_do_not_break_a_compiled_graph(name: str) -> None:
    op, args, *_ = LIMITS[name]
    limit = OPERATORS[op].cuda_limit
    assert limit is not None

    def scaled(*args: Any) -> Tensor:
        return args[0] * (2 if limit(*args) else 3)

    small = [torch.ones([min(n, 2) for n in a.shape]) if isinstance(a, Tensor) else a for a in args]
    compiled = torch.compile(scaled, fullgraph=True, backend="eager", dynamic=True)
    assert torch.equal(compiled(*small), small[0] * 3)
