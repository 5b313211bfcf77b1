"""Numbers, sizes, devices and dtypes that are not what an op expects; and what it does with ties."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import ifdd_kernels as K
from ifdd_kernels import _costs, backends
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels._schema import Signature, outputs_of
from ifdd_kernels.registry import REGISTRY, Maker, backward_arguments
from ops.wrong_calls import KEEPS_CAUSE

Q = torch.randn(1, 9, 2, 4)
X = torch.randn(1, 2, 4, 3)
TOKENIZER = (torch.randn(2, 3), torch.randn(2), torch.randn(1, 4), torch.randn(1, 4))
NORM = (torch.ones(3), torch.zeros(3))
INDEX = torch.rand(1, 2)


def run(program: str) -> str:
    """The output of a program in a process of its own, where a crash or a limit of memory harms nothing."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-X", "faulthandler", "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, f"{done.stdout[-500:]}\n{done.stderr[-3000:]}"
    return done.stdout


NUMBERS: list[tuple[str, str, Callable[[Any], Any]]] = [
    ("lifting_attention", "scale", lambda p: K.lifting_attention(Q, Q, Q, scale=p)),
    (
        "pooled_attention",
        "scale",
        lambda p: K.pooled_attention(Q, Q, Q, *[torch.randn(3, 4)] * 3, (2, 2, 2), (2, 2, 2), scale=p),
    ),
    ("frame_correlation", "scale", lambda p: K.frame_correlation(Q[..., 0], p)),
    ("lifting_loss", "weight", lambda p: K.lifting_loss(Q, weight=p)),
    ("lifting_loss", "beta", lambda p: K.lifting_loss(Q, beta=p)),
    ("split_index", "reach", lambda p: K.split_index(X, (2, 2), *TOKENIZER, 2, reach=p)),
    ("static_dynamic_split", "reach", lambda p: K.static_dynamic_split(X, (2, 2), *TOKENIZER, 2, reach=p)),
    ("split_frames", "eps", lambda p: K.split_frames(X, INDEX, INDEX, NORM, NORM, eps=p)),
    (
        "pool_tokens",
        "eps",
        lambda p: K.pool_tokens(
            torch.randn(1, 9, 9), *[torch.randn(3, 1, 3, 3, 3)] * 3, *[NORM] * 3, (2, 2, 2), 1, eps=p
        ),
    ),
    ("lifting_attention", "scale", lambda p: torch.ops.ifdd.lifting_attention(Q, Q, Q, p)),
    ("lifting_attention", "scale", lambda p: torch.ops.ifdd.lifting_attention.default(Q, Q, Q, scale=p)),
    (
        "lifting_attention_reference",
        "scale",
        lambda p: torch.ops.ifdd.lifting_attention_reference(Q, Q, Q, p),
    ),
    (
        "lifting_loss_backward",
        "beta",
        lambda p: torch.ops.ifdd.lifting_loss_backward(torch.tensor(1.0), Q, 1.0, p, False),
    ),
]


@pytest.mark.parametrize(
    "value", [nn.Parameter(torch.tensor(0.5)), torch.tensor(0.5), None, "0.5", [0.5], True]
)
def test_a_number_is_a_number(value: Any) -> None:
    """A learned scalar would be taken as its value, and never get a gradient."""
    for op, argument, call in NUMBERS:
        if value is None and op in ("lifting_attention", "pooled_attention"):
            continue  # stands for the default
        with pytest.raises(TypeError, match=f"^{op}: {argument} must be a number"):
            call(value)


@pytest.mark.parametrize(
    "value", [2.0, True, torch.tensor(2), nn.Parameter(torch.tensor(2.0)), None, "2", np.ones(2)]
)
def test_an_integer_is_an_integer(value: Any) -> None:
    qkv, weights = torch.randn(1, 9, 9), [torch.randn(3, 1, 3, 3, 3)] * 3
    step = [torch.randn(1, 2, 4)] * 2 + [torch.randn(4, 4), torch.randn(4), torch.randn(8, 4), torch.randn(8)]
    for op, argument, call in (
        ("frame_tokens", "pool", lambda: K.frame_tokens(X, (2, 2), *TOKENIZER[:2], value)),
        ("frame_tokens", "grid", lambda: K.frame_tokens(X, (2, value), *TOKENIZER[:2], 2)),
        ("pool_tokens", "num_heads", lambda: K.pool_tokens(qkv, *weights, *[NORM] * 3, (2, 2, 2), value)),
        (
            "pool_tokens",
            "stride_q",
            lambda: K.pool_tokens(qkv, *weights, *[NORM] * 3, (2, 2, 2), 1, (1, value, 1)),
        ),
        ("max_pool_tokens", "grid", lambda: K.max_pool_tokens(qkv, value, (1, 2, 2))),
        ("lifting_update", "num_heads", lambda: K.lifting_update(*step, *step[2:4], value)),
        ("topk_split_index", "pool", lambda: torch.ops.ifdd.topk_split_index(X, 2, 2, value, False)),
        ("max_pool_tokens", "stride", lambda: torch.ops.ifdd.max_pool_tokens(qkv, [2, 2, 2], [1, value, 2])),
    ):
        with pytest.raises((TypeError, RuntimeError), match=f"{op}.*{argument}"):
            call()


@pytest.mark.parametrize("value", [None, "x", 1.0, [1.0], np.ones(3, np.float32)])
@pytest.mark.parametrize("op", list(REGISTRY))
def test_a_tensor_is_a_tensor(op: str, value: Any) -> None:
    entry = REGISTRY[op]
    args = next(entry.samples(Maker(torch.float32))).args
    kinds = entry.signature.kinds
    for place, (name, kind) in enumerate(zip(entry.signature.arguments, kinds, strict=True)):
        if kind != "Tensor":
            continue
        changed = (*args[:place], value, *args[place + 1 :])
        with pytest.raises((TypeError, RuntimeError), match=f"{op}.*{name}"):
            entry.overload(*changed)
        optional = value is None and op == "pooled_attention" and name.startswith("table")
        if "norm" not in name and not optional:  # norms are pairs in the public function
            with pytest.raises(TypeError, match=f"{op}: .* must be a tensor"):
                entry.public(*changed)


def test_integers_beyond_64_bits_are_named() -> None:
    for pool in (2**63, -(2**63) - 1, 10**40):
        with pytest.raises(ValueError, match="frame_tokens: pool must fit in 64 bits"):
            K.frame_tokens(X, (2, 2), *TOKENIZER[:2], pool)
        with pytest.raises(ValueError, match="topk_split_index: pool must fit in 64 bits"):
            torch.ops.ifdd.topk_split_index(X, 2, 2, pool, False)


HUGE = """
import torch, ifdd_kernels as K
r, e = torch.randn, torch.empty
def tokenizer(B, T, N, C, S): return r(B, T, N, C), r(S, C), r(S), r(T // 2, T * T), r(T // 2, T * T)
def split(function, side, pool, *sizes):
    x, *weights = tokenizer(*sizes)
    return function(x, (side, side), *weights, pool)
def frames(pool, side, *sizes):
    x, weight, bias, *_ = tokenizer(*sizes)
    return K.frame_tokens(x, (side, side), weight, bias, pool)
CALLS = {
    "frame_tokens S=16": lambda: frames(1 << 30, 1, 1, 2, 1, 1, 16),
    "frame_tokens S=64": lambda: frames(1 << 29, 2, 1, 2, 4, 1, 64),
    "frame_tokens empty batch": lambda: frames(1 << 28, 2, 0, 2, 4, 1, 256),
    "split_index": lambda: split(K.split_index, 2, 1 << 29, 1, 8, 4, 8, 8),
    "split_index S=7": lambda: split(K.split_index, 7, 1 << 30, 2, 8, 49, 12, 7),
    "static_dynamic_split": lambda: split(K.static_dynamic_split, 2, 1 << 30, 1, 2, 4, 8, 16),
    "topk_split_index C=16": lambda: K.topk_split_index(r(1, 2, 4, 16), (2, 2), 1 << 30),
    "topk_split_index C=768": lambda: K.topk_split_index(r(1, 8, 49, 768), (7, 7), 1 << 28),
    "frame_tokens_backward": lambda: torch.ops.ifdd.frame_tokens_backward(
        r(1, 2, 0), r(1, 2, 1, 1), r(16, 1), r(16), 1, 1, 1 << 30),
    "split_index_backward": lambda: torch.ops.ifdd.split_index_backward(
        r(2, 4), r(2, 4), r(2, 8, 8), r(2, 8, 49, 12), r(7, 12), r(7), r(4, 64), r(4, 64), r(2, 8, 8), 7, 7,
        1 << 30, 2.0),
    "frame_tokens reference": lambda: torch.ops.ifdd.frame_tokens_reference(
        r(1, 2, 1, 1), r(16, 1), r(16), 1, 1, 1 << 30),
    "frame_tokens on meta": lambda: torch.ops.ifdd.frame_tokens(
        *(t.to("meta") for t in (r(1, 2, 1, 1), r(16, 1), r(16))), 1, 1, 1 << 30),
    "split_frames": lambda: K.split_frames(e(0, 4, 3, 2), e(0, 1 << 62), e(0, 1 << 62)),
    "lifting_attention": lambda: K.lifting_attention(*[e(1 << 32, 0, 1 << 32, 4)] * 3),
    "lifting_residual": lambda: K.lifting_residual(*[e(1 << 31, 0, 1 << 31, 4)] * 2),
    "lifting_loss": lambda: K.lifting_loss(e(0, 1 << 62)),
    "frame_correlation": lambda: K.frame_correlation(e(0, 1 << 61, 3), 1.0),
    "frame_correlation products": lambda: K.frame_correlation(e(1, 1 << 30, 0), 1.0),
    "max_pool_tokens_backward": lambda: torch.ops.ifdd.max_pool_tokens_backward(
        e(1, 1, 1).expand(1 << 20, 2, 1 << 10), e(1, 1, 1, dtype=torch.int32).expand(1 << 20, 1, 1 << 10),
        [1, 1, (1 << 31) - 2], [1, 1, 1 << 40]),
}
for name, call in CALLS.items():
    print(name, flush=True)
    try:
        call()
    except (RuntimeError, ValueError) as error:
        assert "2**47" in str(error) and name.split()[0] in str(error), f"{name}: {error}"
    else:
        raise AssertionError(name)
EMPTY = {
    "lifting_attention": (lambda: K.lifting_attention(*[e(0, 1 << 40, 2, 3)] * 3), (0, 1 << 40, 6)),
    "pooled_attention": (lambda: K.pooled_attention(
        *[e(0, 1 << 20, 1, 1)] * 3, r(1, 1), r(1, 1), r(2 * ((1 << 20) - 1) - 1, 1), ((1 << 20) - 1, 1, 1),
        ((1 << 20) - 1, 1, 1)), (0, 1 << 20, 1)),
    "max_pool_tokens": (lambda: K.max_pool_tokens(e(0, 1 + (1 << 30), 4), [1 << 10] * 3, (1, 2, 2)),
                        (0, 1 + (1 << 28), 4)),
    "lifting_residual": (lambda: K.lifting_residual(*[e(1 << 6, 0, 1 << 6, 4)] * 2), (1 << 6, 1 << 6)),
    "linear": (lambda: K.linear(e(1 << 40, 0, 3), r(2, 3), backend="native"), (1 << 40, 0, 2)),
    "lifting_loss": (lambda: K.lifting_loss(e(0, 1 << 40)), ()),
}
for name, (call, shape) in EMPTY.items():
    print(name, flush=True)
    assert call().shape == shape, name
"""


def test_products_of_sizes_that_overflow_are_refused_and_empty_tensors_are_not() -> None:
    """They crashed: products wrapped around, buffers came out empty and were written past."""
    run(HUGE)


OUT_OF_MEMORY = """
import resource, torch, ifdd_kernels as K
x, index = torch.empty(1, 1, 1, 1).expand(64, 8, 3136, 768), torch.zeros(64, 4)
tokens = torch.empty(1, 1, 1).expand(64, 1 + 8 * 56 * 56, 768)
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
for call in (
    lambda: x + 1,
    lambda: K.split_frames(x, index, index),
    lambda: K.split_frames(x, index, index, backend="reference"),
    lambda: K.max_pool_tokens(tokens, (8, 56, 56), (1, 1, 1)),
    lambda: K.frame_tokens(torch.randn(1, 2, 1, 1), (1, 1), torch.randn(16, 1), torch.randn(16), 1 << 15),
    lambda: K.split_index(torch.randn(1, 2, 1, 1), (1, 1), torch.randn(16, 1), torch.randn(16),
                          *[torch.randn(1, 4)] * 2, 1 << 15),
    lambda: K.topk_split_index(torch.randn(1, 2, 1, 16), (1, 1), 1 << 15),
):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, "DefaultCPUAllocator: can't allocate memory" in str(error))
    else:
        print("nothing")
"""


def test_out_of_memory_is_said_as_pytorch_does() -> None:
    lines = run(OUT_OF_MEMORY).splitlines()
    if not KEEPS_CAUSE:  # only PyTorch's own ops say it there
        assert lines[0] == lines[2] == "RuntimeError True"
        lines = [line.replace("False", "True") for line in lines]
    assert lines == ["RuntimeError True"] * 7


LONG_AXIS = """
import pathlib, torch, ifdd_kernels as K
def peak(): return int(pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
n, d = 12288, 4
q = torch.randn(1, 1 + n, 1, d)
tables = [torch.randn(1, d), torch.randn(2 * n - 1, d), torch.randn(1, d)]
small = [torch.randn(1, d)] * 3
K.pooled_attention(q[:, :2], q[:, :2], q[:, :2], *small, (1, 1, 1), (1, 1, 1))
before = peak()
K.pooled_attention(q[:, :65], q, q, *tables, (1, 1, 64), (1, 1, n))
K.pooled_attention(q, q[:, :65], q[:, :65], *tables, (1, 1, n), (1, 1, 64))
K.pooled_attention(q[:, : n // 2 + 1], q, q, *tables, (1, 1, n // 2), (1, 1, n))
print(peak() - before)
"""


def test_nothing_of_the_size_of_queries_times_keys_is_stored() -> None:
    """The last call has 75 million pairs: 300 MB as float32, 600 MB as the index table that there was."""
    assert int(run(LONG_AXIS)) < 100 * 1024


def test_the_rows_of_position_tables_are_those_of_the_definition() -> None:
    """Only numbers of queries and numbers of keys are kept: for every ratio of the two."""
    for q_grid, k_grid in (
        ((1, 1, 7), (1, 1, 3)),
        ((2, 5, 3), (3, 2, 7)),
        ((4, 1, 6), (2, 1, 4)),
        ((1, 6, 1), (5, 6, 2)),
    ):
        args = [torch.randn(2, 1 + torch.Size(grid).numel(), 2, 4) for grid in (q_grid, k_grid, k_grid)]
        tables = [torch.randn(2 * max(q_grid[axis], k_grid[axis]) - 1, 4) for axis in (1, 2, 0)]
        expected = K.pooled_attention(*args, *tables, q_grid, k_grid, backend="reference")
        torch.testing.assert_close(K.pooled_attention(*args, *tables, q_grid, k_grid), expected)


@pytest.mark.parametrize("op", [name for name, op in OPERATORS.items() if op.backward is not None])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_backward_ops_take_tensors_of_one_device(op: str, backend: str) -> None:
    """One meta tensor among others would make the results meta tensors, without a word."""
    operator = OPERATORS[op]
    assert operator.backward is not None
    args = backward_arguments(operator, next(REGISTRY[op].samples(Maker(torch.float32))).args)
    names = Signature.of(op, operator.backward.schema).arguments
    backward = operator.overload(backend, backward=True)
    tensors = sum(isinstance(arg, Tensor) for arg in args)
    for place, arg in enumerate(args):
        if isinstance(arg, Tensor) and tensors > 1:
            changed = (*args[:place], arg.to("meta"), *args[place + 1 :])
            with pytest.raises(ValueError, match=f"{op}_backward: .* must be on the device of"):
                backward(*changed)
            if names[place] != "residual":  # which has any number of axes
                with pytest.raises((TypeError, ValueError, RuntimeError), match=rf"{op}_backward: \w+"):
                    backward(*args[:place], arg[None], *args[place + 1 :])
    meta = [arg.to("meta") if isinstance(arg, Tensor) else arg for arg in args]
    shapes = [result.shape for result in outputs_of(backward(*args))]
    assert [result.shape for result in outputs_of(backward(*meta))] == shapes


@pytest.mark.parametrize("given", [torch.float16, torch.bfloat16])
def test_16_bit_layers_run_under_the_other_autocast(given: torch.dtype) -> None:
    """As nn.Linear does: its weight is cast, whatever it is."""
    lowered = torch.bfloat16 if given == torch.float16 else torch.float16
    x, weight, bias = torch.randn(3, 5, 8), torch.randn(4, 8), torch.randn(4)
    for tokens in (x, x.to(lowered), x.to(given)):
        for w, b in ((weight.to(given), bias.to(given)), (weight.to(given), bias), (weight, bias.to(given))):
            w, b = w.clone().requires_grad_(), b.clone().requires_grad_()
            for activate, function in (
                (lambda t: t, K.linear),
                (lambda t: t, torch.ops.ifdd.linear),
                (F.gelu, K.gelu_linear),
            ):
                with torch.autocast("cpu", lowered):
                    found = function(tokens, w, b)
                exact = F.linear(activate(tokens.double()), w.double(), b.double())
                assert found.dtype == lowered
                bound = 8 * torch.finfo(torch.bfloat16).eps
                torch.testing.assert_close(
                    found.double(), exact, rtol=bound, atol=bound * exact.detach().abs().max().item()
                )
                w_grad, b_grad = torch.autograd.grad(found.float().square().sum(), (w, b))
                assert (w_grad.dtype, b_grad.dtype) == (w.dtype, b.dtype)
    tokens = torch.randn(1, 9, 18)
    pools = [torch.randn(3, 1, 3, 3, 3, dtype=given)] * 3
    norms = [(torch.ones(3, dtype=given), torch.zeros(3, dtype=given))] * 3
    with torch.autocast("cpu", lowered):
        query, _, _ = K.pool_tokens(tokens, *pools, *norms, (2, 2, 2), 2)
        tables = [torch.randn(3, 3, dtype=given)] * 3
        for backend in ("auto", "sdpa"):
            out = K.pooled_attention(query, query, query, *tables, (2, 2, 2), (2, 2, 2), backend=backend)
            assert out.dtype == lowered
        K.split_frames(X, INDEX, INDEX, *[(NORM[0].to(given), NORM[1].to(given))] * 2)
        K.frame_tokens(X, (2, 2), *(t.to(given) for t in TOKENIZER[:2]), 2)


def test_every_op_has_a_count_of_its_flops() -> None:
    for name, operator in OPERATORS.items():
        for backend in ("native", "reference", *operator.backends):
            assert operator.overload(backend).overloadpacket in flop_registry
            if operator.backward is not None:
                assert operator.overload(backend, backward=True).overloadpacket in flop_registry
        args = next(REGISTRY[name].samples(Maker(torch.float32))).args
        cost = getattr(_costs, name)
        for backend in ("native", "reference"):
            given = [
                arg.clone().requires_grad_() if isinstance(arg, Tensor) and arg.is_floating_point() else arg
                for arg in args
            ]
            with FlopCounterMode(display=False) as counter:
                results = operator.differentiable(outputs_of(operator(backend, *given)))
            forward = REGISTRY[name].cost(*args).flops
            assert counter.get_total_flops() == forward > 0, cost
            if operator.backward is not None:
                with FlopCounterMode(display=False) as counter:
                    torch.autograd.backward([result.sum() for result in results])
                assert counter.get_total_flops() == 2 * forward


def test_flops_of_products_are_those_pytorch_counts() -> None:
    x, weight = torch.randn(2, 9, 32), torch.randn(8, 32)
    with FlopCounterMode(display=False) as ours:
        torch.ops.ifdd.linear(x, weight, None)
    with FlopCounterMode(display=False) as theirs:
        F.linear(x, weight)
    assert ours.get_total_flops() == theirs.get_total_flops()
    step = (
        *[torch.randn(1, 16, 64)] * 2,
        *(torch.randn(s) for s in ((64, 64), (64,), (128, 64), (128,), (64, 64), (64,))),
    )
    with FlopCounterMode(display=False) as counter:
        K.lifting_update(*step, 2)
    products = 8 * 16 * 64 * 64 + 2 * 4 * 16 * 16 * 32
    assert products <= counter.get_total_flops() < 1.05 * products


def test_flops_are_counted_after_somebody_only_looked_for_the_counter() -> None:
    code = """
import importlib.util, torch, ifdd_kernels
importlib.util.find_spec("torch.utils.flop_counter")
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    ifdd_kernels.frame_correlation(torch.randn(1, 4, 6), 1.0)
print(counter.get_total_flops())
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert int(ran.stdout) > 0, ran.stderr


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_equal_scores_the_earlier_frame_ranks_higher(backend: str, dtype: torch.dtype) -> None:
    if not backends.can_run("topk_split_index", backend):
        pytest.skip("no native kernel")
    for frames, side, channels, pool in ((6, 3, 5, 2), (10, 4, 3, 4), (14, 5, 7, 3), (32, 2, 33, 3)):
        # Two kinds of frames, in any order: within a kind all scores are equal.
        kinds = torch.randn(2, side * side, channels)
        kind = torch.randint(0, 2, (8, frames))
        static, dynamic = K.topk_split_index(kinds[kind].to(dtype), (side, side), pool, backend=backend)
        for row in range(8):
            groups = [[t for t in range(frames) if kind[row, t] == which] for which in (0, 1)]
            orders = [first + second for first, second in (groups, groups[::-1])]
            halves = [(sorted(order[: frames // 2]), sorted(order[frames // 2 :])) for order in orders]
            assert (static[row].tolist(), dynamic[row].tolist()) in halves


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_of_equal_values_the_first_is_the_maximum(backend: str) -> None:
    if not backends.can_run("max_pool_tokens", backend):
        pytest.skip("no native kernel")
    grid, stride = (3, 5, 7), (1, 2, 3)
    x = torch.randint(0, 2, (2, 1 + 3 * 5 * 7, 17)).float().requires_grad_()
    K.max_pool_tokens(x, grid, stride, backend=backend).sum().backward()
    expected = torch.zeros_like(x)
    expected[:, 0] = 1
    volume = x.detach()[:, 1:].reshape(2, *grid, 17)
    for y in range(3):
        for u in range(3):
            cells = [
                (j, i)
                for j in range(max(0, 2 * y - 1), min(5, 2 * y + 2))
                for i in range(max(0, 3 * u - 2), min(7, 3 * u + 2))
            ]
            values = torch.stack([volume[:, :, j, i] for j, i in cells])
            first = (values == values.amax(0)).int().argmax(0)
            for t in range(3):
                for place, (j, i) in enumerate(cells):
                    expected[:, 1 + (t * 5 + j) * 7 + i] += (first[:, t] == place).float()
    assert torch.equal(x.grad, expected)


def test_can_run_says_what_a_linear_layer_and_a_lifting_step_run_on() -> None:
    x, weight = torch.randn(2, 4), torch.randn(3, 4)
    assert backends.can_run("linear", "auto", x, weight).reason.startswith("chooses F.linear: ")
    assert "chooses F.linear" not in backends.can_run("linear", "auto", x.half(), weight).reason
    assert "F.linear" not in backends.can_run("linear", "reference", x, weight).reason
    step = (
        *[torch.randn(1, 2, 4)] * 2,
        *(torch.randn(s) for s in ((4, 4), (4,), (8, 4), (8,), (4, 4), (4,))),
        2,
        False,
    )
    for op in ("lifting_update", "lifting_predict"):
        for args in ((), step[:1], step):
            support = backends.can_run(op, "auto", *args)
            assert support
            assert support.reason.startswith(
                "composed of linear and lifting_attention; lifting_attention: chooses "
            )
        refused = backends.can_run(op, "sdpa", *step)
        assert not refused
        assert "lifting_attention: only pooled_attention" in refused.reason
        with pytest.raises(RuntimeError, match=f"{op}: backend 'sdpa' cannot run"):
            backends.can_run(op, "sdpa", *step, raise_error=True)


@pytest.mark.parametrize(
    "bias", [torch.zeros(1, 1), torch.zeros(1, dtype=torch.uint8)], ids=["rank", "dtype"]
)
def test_a_bias_that_only_pytorch_takes_is_refused(bias: torch.Tensor) -> None:
    with pytest.raises((TypeError, ValueError), match="linear: bias must"):
        K.linear(torch.randn(2, 3), torch.randn(1, 3), bias)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("index", [-1, 4])
def test_a_frame_that_does_not_exist_is_named(backend: str, index: int) -> None:
    if not backends.can_run("split_frames", backend):
        pytest.skip("no native kernel")
    x, good, bad = torch.randn(1, 4, 2, 3), torch.tensor([[0, 2]]), torch.tensor([[1, index]])
    with pytest.raises(RuntimeError, match="split_frames: dynamic_index: index out of range"):
        K.split_frames(x, good, bad, backend=backend)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_pooling_of_no_channels_is_empty(backend: str) -> None:
    if not backends.can_run("max_pool_tokens", backend):
        pytest.skip("no native kernel")
    x = torch.randn(2, 9, 0, requires_grad=True)
    out = K.max_pool_tokens(x, (2, 2, 2), (1, 2, 2), backend=backend)
    assert out.shape == (2, 3, 0)
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
