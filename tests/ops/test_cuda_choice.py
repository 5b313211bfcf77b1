"""What ``auto`` chooses on CUDA tensors, shown on fake ones: no device is needed to choose."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ifdd_kernels import _library, _measured, backends
from ifdd_kernels.ops.lifting_attention import CUDA_HEAD_DIM

OP = "lifting_attention"


@pytest.fixture
def cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A library with CUDA kernels, whatever was built here."""
    monkeypatch.setattr(_library, "loaded", lambda: True)
    monkeypatch.setattr(_library, "native_ops", lambda device: frozenset({OP, "pool_tokens"}))
    backends._fastest.cache_clear()
    yield
    backends._fastest.cache_clear()


def query(head_dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    with FakeTensorMode(allow_non_fake_inputs=True):
        return torch.empty(1, 2, 1, head_dim, dtype=dtype, device="cuda")


@pytest.mark.usefixtures("cuda_kernels")
def test_native_kernels_run_what_they_take() -> None:
    for head_dim in (1, 96, CUDA_HEAD_DIM):
        assert backends.can_run(OP, "native", query(head_dim))
        assert backends.select(OP, "auto", query(head_dim)) == ""


@pytest.mark.usefixtures("cuda_kernels")
@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (query(CUDA_HEAD_DIM + 1), "head_dim <= 128, the query has 129"),
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
    for x in (query(CUDA_HEAD_DIM + 1), query(32, torch.float64)):
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
        assert "head_dim <= 128, the weights have 129" in support.reason
