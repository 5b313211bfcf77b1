"""The choice of ``auto`` for CUDA tensors, shown on fake ones: no device is needed to choose."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ifdd_kernels import _cuda_limits, _library, _measured, _preferred, backends, use_backend
from ifdd_kernels._operator import OPERATORS

OP = "lifting_attention"


@pytest.fixture
def cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A library with CUDA kernels, whatever was built here."""
    monkeypatch.setattr(_library, "loaded", lambda: True)
    monkeypatch.setattr(_library, "native_ops", lambda device: frozenset(OPERATORS))
    clear()
    yield
    clear()


def clear() -> None:
    backends._fastest.cache_clear()
    backends._entries.cache_clear()
    _library.without_code.cache_clear()


def query(head_dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    with FakeTensorMode(allow_non_fake_inputs=True):
        return torch.empty(1, 2, 1, head_dim, dtype=dtype, device="cuda")


def entry(backend: str, *sizes: int, training: bool = False) -> _measured.Entry:
    return _measured.Entry(backend, "float32", training, sizes, "made up.jsonl")


def measure(monkeypatch: pytest.MonkeyPatch, op: str, *entries: _measured.Entry) -> None:
    """Puts measurements of a device that is not there into the table."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=None: "NVIDIA imagined")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (9, 0))
    monkeypatch.setitem(_measured.FASTEST, "NVIDIA imagined", {op: list(entries)})
    clear()


@pytest.mark.usefixtures("cuda_kernels")
def test_native_kernels_run_what_they_take() -> None:
    for head_dim in (1, 96, _cuda_limits.HEAD_DIM):
        assert backends.can_run(OP, "native", query(head_dim))
        assert backends.select(OP, "auto", query(head_dim)) == "native"


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
    for measured, chosen in (("reference", "reference"), ("native", "native")):
        measure(monkeypatch, OP, entry(measured, 1, 2, 1, 32), entry(measured, 1, 2, 1, 129))
        assert backends.select(OP, "auto", query(32)) == chosen
    # Measured as the fastest, but not for these: what can run them is taken instead.
    for x in (query(_cuda_limits.HEAD_DIM + 1), query(32, torch.float64)):
        assert backends.select(OP, "auto", x) in ("triton", "reference")


@pytest.mark.usefixtures("cuda_kernels")
def test_the_nearest_measurement_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    op, d = "pooled_attention", 96
    measure(
        monkeypatch,
        op,
        entry("sdpa", 16, 1569, 4, d, 393),
        entry("native", 4, 1569, 4, d, 393),
        entry("reference", 16, 1569, 4, d, 393, training=True),
    )

    def chosen(batch: int, queries: int = 1569, keys: int = 393, **options: Any) -> str:
        parts = [fake(batch, rows, 4, d, **options) for rows in (queries, keys)]
        return backends.select(op, "auto", *parts)

    assert chosen(16) == chosen(20) == chosen(9) == chosen(16, 3138) == "sdpa"
    assert chosen(4) == chosen(7) == chosen(2) == "native"
    # Beyond a factor of two in any size nothing was measured: the default.
    assert chosen(33) == chosen(16, 3139) == chosen(16, keys=196) == chosen(0) == "native"
    assert chosen(16, dtype=torch.bfloat16) == "native"
    learned = fake(16, 1569, 4, d).requires_grad_()
    assert backends.select(op, "auto", learned, fake(16, 393, 4, d)) == "reference"
    with torch.no_grad():
        assert backends.select(op, "auto", learned, fake(16, 393, 4, d)) == "sdpa"
    support = backends.can_run(op, "auto", fake(20, 1569, 4, d), fake(20, 393, 4, d))
    assert support.reason == (
        "chooses sdpa: measured as the fastest on this device at float32, inference, sizes 16x1569x4x96x393"
        " (made up.jsonl)"
    )
    assert "chooses native" in backends.can_run(op, "auto", fake(20, 1569, 4, d)).reason


@pytest.mark.usefixtures("cuda_kernels")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compilers_take_the_choice_as_a_constant(monkeypatch: pytest.MonkeyPatch, dynamic: bool) -> None:
    table = functools.cache(lambda op, index: (entry("reference", 3, 4, 1, 32),))
    monkeypatch.setattr(backends, "_entries", table)

    def choose(x: Tensor) -> Tensor:
        situation = backends._on_gpu(OPERATORS[OP], x.device.index, (x,))
        return x * (2 if backends._chosen(OP, *situation) == "reference" else 3)

    compiled = torch.compile(choose, fullgraph=True, backend="eager", dynamic=dynamic)
    for batch, factor in ((3, 2), (8, 3), (4, 2)):
        x = torch.ones(batch, 4, 1, 32)
        assert torch.equal(compiled(x), x * factor)


@pytest.mark.usefixtures("cuda_kernels")
def test_an_op_of_parts_answers_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    op, x = "static_dynamic_split", fake(1, 8, 4, 4)
    what = "composed of split_index and split_frames"
    for backend in ("auto", "native"):
        support = backends.can_run(op, backend, x)
        assert support
        assert what in support.reason
        assert "the native library has a cuda kernel" in support.reason
    assert backends.can_run(op, "auto", x).reason.startswith(f"chooses native: {what}; ")
    refused = backends.can_run(op, "native", fake(1, 8, 4, 4, dtype=torch.float64))
    assert not refused
    assert refused.reason.startswith(f"{what}; split_index: CUDA kernels take")
    monkeypatch.setattr(_library, "native_ops", lambda device: frozenset({"split_index"}))
    assert "split_frames: the native library has no cuda kernel" in backends.can_run(op, "native", x).reason
    monkeypatch.setattr(_library, "native_ops", lambda device: frozenset(OPERATORS))
    # Its own op has no kernel there that a benchmark or a test could run.
    assert all(backends.composed(OPERATORS[op], "cuda", backend) for backend in ("auto", "native", "triton"))
    on_cpu = torch.empty(1, 8, 4, 4)
    assert what not in backends.can_run(op, "native", on_cpu).reason
    with torch.autocast("cpu", torch.bfloat16):
        assert what in backends.can_run(op, "native", on_cpu).reason


@pytest.mark.parametrize("op", sorted(backends.LIBRARY_OPS))
def test_ops_left_to_libraries_say_so(op: str) -> None:
    x = fake(1, 9, 4)
    assert "library kernels run it on GPUs" in backends.can_run(op, "triton", x).reason
    assert "triton" not in OPERATORS[op].backends


@pytest.mark.parametrize("op", sorted(_preferred.TRITON_OPS))
def test_ops_of_triton_alone_are_not_asked_of_cuda(op: str) -> None:
    x = fake(1, 9, 4)
    assert "no cuda kernel" in backends.can_run(op, "native", x).reason
    assert "triton" in OPERATORS[op].backends
    with use_backend("native"):
        assert backends.can_run(op, "auto", x).reason.startswith("chooses triton")


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
