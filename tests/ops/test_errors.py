"""Bad input names the op, the argument, what was expected and what came, before any kernel runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import ifdd_kernels as K
from ifdd_kernels import _operator
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels.registry import REGISTRY, Maker

X = torch.randn(2, 8, 6, 4)
INDEX = torch.rand(2, 4) * 7
NORM = (torch.rand(4), torch.rand(4))
TOKENIZER = (torch.randn(3, 4), torch.randn(3))
OFFSET = torch.randn(4, 64)
HEADS = torch.randn(1, 5, 2, 3)
QKV = torch.randn(1, 1 + 8, 3 * 2 * 3)
POOL = [torch.randn(3, 1, 3, 3, 3)] * 3
NORMS = [(torch.rand(3), torch.rand(3))] * 3
Q = torch.randn(1, 1 + 8, 2, 3)
TABLES = [torch.randn(3, 3)] * 3
W = torch.randn(4, 4)
STEP = (torch.randn(1, 6, 4), torch.randn(1, 6, 4), W, W[0], torch.randn(8, 4), torch.randn(8), W, W[0])

CASES: list[tuple[str, type[Exception], str, Callable[[], Any]]] = [
    ("rank", ValueError, r"frame_tokens: x must have shape \(B, T, N, C\), got \(8, 6, 4\)",
     lambda: K.frame_tokens(X[0], (2, 3), *TOKENIZER, 2)),
    ("grid", ValueError, r"frame_tokens: x has N = 6 tokens a frame, but grid \(2, 2\) has 4",
     lambda: K.frame_tokens(X, (2, 2), *TOKENIZER, 2)),
    ("grid of three", ValueError, "frame_tokens: grid must be two positive integers",
     lambda: K.frame_tokens(X, (2, 3, 1), *TOKENIZER, 2)),
    ("pool", ValueError, "frame_tokens: pool must be positive, got 0",
     lambda: K.frame_tokens(X, (2, 3), *TOKENIZER, 0)),
    ("weight", ValueError, r"frame_tokens: weight must have shape \(S, 4\), got \(3, 5\)",
     lambda: K.frame_tokens(X, (2, 3), torch.randn(3, 5), TOKENIZER[1], 2)),
    ("weight dtype", TypeError, "frame_tokens: weight must be torch.float32 with x of torch.float32, got",
     lambda: K.frame_tokens(X, (2, 3), TOKENIZER[0].double(), TOKENIZER[1], 2)),
    ("integer input", TypeError, "x must be float16, bfloat16, float32 or float64, got torch.int64",
     lambda: K.frame_tokens(X.long(), (2, 3), *TOKENIZER, 2)),
    ("device", ValueError, "frame_tokens: weight must be on the device of x, cpu, got meta",
     lambda: K.frame_tokens(X, (2, 3), TOKENIZER[0].to("meta"), TOKENIZER[1], 2)),
    ("correlation rank", ValueError, r"frame_correlation: tokens must have shape \(B, T, D\), got",
     lambda: K.frame_correlation(X, 1.0)),
    ("odd T", ValueError, "split_index: the number of frames T must be even and at least 2, got 7",
     lambda: K.split_index(X[:, :7], (2, 3), *TOKENIZER, OFFSET, OFFSET, 2)),
    ("offset weight", ValueError, r"split_index: static_weight must have shape \(4, 64\), got \(4, 63\)",
     lambda: K.split_index(X, (2, 3), *TOKENIZER, OFFSET[:, 1:], OFFSET, 2)),
    ("odd T, hard", ValueError, "topk_split_index: the number of frames T must be even and at least 2, got 1",
     lambda: K.topk_split_index(X[:, :1], (2, 3), 2)),
    ("index batch", ValueError, r"split_frames: static_index must have shape \(2, K\), got \(1, 4\)",
     lambda: K.split_frames(X, INDEX[:1], INDEX)),
    ("no index", ValueError, "split_frames: dynamic_index must hold at least one position",
     lambda: K.split_frames(X, INDEX, INDEX[:, :0])),
    ("index dtype", TypeError, "split_frames: static_index must be torch.int64 or torch.float32 with x of",
     lambda: K.split_frames(X, INDEX.double(), INDEX)),
    ("mixed indexes", TypeError, "split_frames: dynamic_index must have the dtype of static_index",
     lambda: K.split_frames(X, INDEX, INDEX.long())),
    ("one frame", ValueError, "split_frames: x must have at least 2 frames, got 1",
     lambda: K.split_frames(X[:, :1], INDEX, INDEX)),
    ("one norm", ValueError, "split_frames: give both norms or none; missing: dynamic_norm",
     lambda: K.split_frames(X, INDEX, INDEX, NORM)),
    ("some norms", ValueError,
     "give all four norm parameters or none; missing: dynamic_norm_weight, dynamic_norm_bias",
     lambda: torch.ops.ifdd.split_frames_reference(X, INDEX, INDEX, *NORM, None, None, 1e-5, False)),
    ("norm size", ValueError, r"split_frames: static_norm_bias must have shape \(4,\), got \(3,\)",
     lambda: K.split_frames(X, INDEX, INDEX, (NORM[0], NORM[1][1:]), NORM)),
    ("eps", ValueError, "split_frames: eps must be positive, got 0",
     lambda: K.split_frames(X, INDEX, INDEX, NORM, NORM, eps=0.0)),
    ("key count", ValueError, r"lifting_attention: key must have shape \(1, 5, 2, 3\), got \(1, 4, 2, 3\)",
     lambda: K.lifting_attention(HEADS, HEADS[:, 1:], HEADS)),
    ("value dtype", TypeError, "lifting_attention: value must have the dtype of query, torch.float32",
     lambda: K.lifting_attention(HEADS, HEADS, HEADS.double())),
    ("heads", ValueError, "lifting_update: C = 4 is not divisible by num_heads = 3",
     lambda: K.lifting_update(*STEP, 3)),
    ("step weight", ValueError, r"lifting_predict: key_value_weight must have shape \(8, 4\), got \(4, 4\)",
     lambda: K.lifting_predict(*STEP[:4], W, *STEP[5:], 2)),
    ("step source", ValueError, r"lifting_update: source must have shape \(1, 6, 4\), got \(1, 5, 4\)",
     lambda: K.lifting_update(STEP[0], STEP[1][:, 1:], *STEP[2:], 2)),
    ("residual", ValueError, r"approximation must have shape \(2, K, 6, 4\), got \(2, 8, 5, 4\)",
     lambda: K.lifting_residual(X, X[:, :, 1:])),
    ("residual dtype", TypeError, "lifting_residual: approximation must be float64 exactly if x is",
     lambda: K.lifting_residual(X, X.double())),
    ("loss scalar", ValueError, r"lifting_loss: residual must have shape \(B, ...\), got a scalar",
     lambda: K.lifting_loss(torch.tensor(1.0))),
    ("loss beta", ValueError, "lifting_loss: beta must be positive, got 0",
     lambda: K.lifting_loss(X, beta=0.0)),
    ("loss reduction", ValueError, "lifting_loss: reduction must be 'sum' or 'mean', got 'avg'",
     lambda: K.lifting_loss(X, reduction="avg")),
    ("qkv tokens", ValueError, r"pool_tokens: qkv must have 1 \+ 12 tokens for grid \(2, 2, 3\), got 9",
     lambda: K.pool_tokens(QKV, *POOL, *NORMS, (2, 2, 3), 2)),
    ("qkv width", ValueError, r"qkv's last axis must be a positive multiple of 3 \* heads = 12, got 18",
     lambda: K.pool_tokens(QKV, *POOL, *NORMS, (2, 2, 2), 4)),
    ("pool weight", ValueError, r"weight_k must have shape \(3, 1, 3, 3, 3\), got \(3, 1, 1, 3, 3\)",
     lambda: K.pool_tokens(QKV, POOL[0], POOL[0][:, :, 1:2], POOL[0], *NORMS, (2, 2, 2), 2)),
    ("stride", ValueError, "pool_tokens: stride_kv must be three positive integers",
     lambda: K.pool_tokens(QKV, *POOL, *NORMS, (2, 2, 2), 2, (1, 1, 1), (1, 0, 1))),
    ("key grid alone", ValueError, r"key_value_grid must equal grid \(2, 2, 2\) where key_value is not given",
     lambda: K.pool_tokens(QKV, *POOL, *NORMS, (2, 2, 2), 2, key_value_grid=(2, 1, 1))),
    ("key value tokens", ValueError, r"key_value must have 1 \+ 2 tokens for key_value_grid .*, got 9",
     lambda: K.pool_tokens(QKV, *POOL, *NORMS, (2, 2, 2), 6, key_value=QKV, key_value_grid=(2, 1, 1))),
    ("key value width", ValueError, r"key_value must have shape \(1, 9, 12\), got \(1, 9, 16\)",
     lambda: K.pool_tokens(QKV[..., :6], *POOL, *NORMS, (2, 2, 2), 2, key_value=QKV[..., :16])),
    ("key value dtype", TypeError, "key_value must have the dtype of qkv, torch.float32, got torch.float64",
     lambda: K.pool_tokens(QKV[..., :6], *POOL, *NORMS, (2, 2, 2), 2, key_value=QKV[..., 6:].double())),
    ("live tokens' grid", ValueError, "live_tokens: grid must be three positive integers",
     lambda: K.live_tokens((2, 0, 2), (1, 1, 1))),
    ("skip tokens", ValueError, r"max_pool_tokens: x must have shape \(B, 9, C\), got \(1, 8, 18\)",
     lambda: K.max_pool_tokens(QKV[:, 1:], (2, 2, 2), (1, 2, 2))),
    ("skip stride", ValueError, "max_pool_tokens: stride must be three positive integers",
     lambda: K.max_pool_tokens(QKV, (2, 2, 2), (1, 0, 2))),
    ("linear weight", ValueError, r"linear: weight must have shape \(M, 18\), got \(4, 17\)",
     lambda: K.linear(QKV.bfloat16(), torch.randn(4, 17), backend="reference")),
    ("gelu rank", ValueError, r"gelu_linear: x must have shape .* with at least two axes, got \(3,\)",
     lambda: K.gelu_linear(torch.randn(3), torch.randn(2, 3), torch.randn(2))),
    ("gelu weight", ValueError, r"gelu_linear: weight must have shape \(M, 18\), got \(4, 17\)",
     lambda: K.gelu_linear(QKV, torch.randn(4, 17), torch.randn(4))),
    ("gelu dtype", TypeError, "gelu_linear: bias must have the dtype of weight, .*32, got torch.bfloat16",
     lambda: K.gelu_linear(QKV, torch.randn(4, 18), torch.randn(4).bfloat16())),
    ("query count", ValueError, r"pooled_attention: query must have shape \(B, 9, h, d\), got \(1, 8, 2, 3\)",
     lambda: K.pooled_attention(Q[:, 1:], Q, Q, *TABLES, (2, 2, 2), (2, 2, 2))),
    ("key heads", ValueError, r"pooled_attention: key must have shape \(1, 9, 2, 3\), got \(1, 9, 1, 3\)",
     lambda: K.pooled_attention(Q, Q[:, :, :1], Q, *TABLES, (2, 2, 2), (2, 2, 2))),
    ("table width", ValueError, r"pooled_attention: table_h must have shape \(3, 3\), got \(3, 4\)",
     lambda: K.pooled_attention(Q, Q, Q, torch.randn(3, 4), *TABLES[1:], (2, 2, 2), (2, 2, 2))),
    ("grid of two", ValueError, "pooled_attention: q_grid must be three positive integers",
     lambda: K.pooled_attention(Q, Q, Q, *TABLES, (2, 2), (2, 2, 2))),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "message", "call"), [pytest.param(*c[1:], id=c[0]) for c in CASES])
def test_bad_input(kind: type[Exception], message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_frame_number_out_of_range() -> None:
    with pytest.raises((RuntimeError, IndexError)):
        K.split_frames(X, torch.full((2, 4), 8), torch.zeros(2, 4, dtype=torch.int64))


def wrong(arg: Any) -> Iterator[Any]:
    """Variants of an argument, most of which an op must refuse."""
    if isinstance(arg, Tensor):
        yield arg[None]
        yield arg.to("meta")
        yield from (arg.to(dtype) for dtype in (torch.float64, torch.float16, torch.int64, torch.bool))
        for axis, size in enumerate(arg.shape):
            yield torch.cat([arg, arg.narrow(axis, 0, 1)], axis)
            if size > 1:
                yield arg.narrow(axis, 1, size - 1)
            yield arg.narrow(axis, 0, 0)
    elif isinstance(arg, (list, tuple)):
        yield from ([*arg[:-1], arg[-1] + 1], [*arg[:-1], 0], [*arg[:-1]], [*arg, 1], [-1 for _ in arg])
    elif isinstance(arg, (int, float)) and not isinstance(arg, bool):
        yield from (arg + 1, arg * 0, -arg, arg + 100)


@pytest.mark.parametrize("name", list(OPERATORS))
def test_kernels_refuse_what_the_check_refuses(name: str) -> None:
    """Good arguments are checked by the kernels alone, so they must refuse all that the check would."""
    operator = OPERATORS[name]
    args = next(REGISTRY[name].samples(Maker(torch.float32))).args
    refused = 0
    for place, arg in enumerate(args):
        for value in wrong(arg):
            changed = (*args[:place], value, *args[place + 1 :])
            try:
                operator.check(*changed)
            except (TypeError, ValueError) as error:
                refused += 1
                with pytest.raises(type(error), match=re.escape(str(error))):
                    operator("native", *changed)
    assert refused


@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_refusal_says_the_same_where_gradients_flow(requires_grad: bool) -> None:
    x = X.clone().requires_grad_(requires_grad)
    with pytest.raises(
        ValueError, match=r"split_frames: static_norm_bias must have shape \(4,\), got \(3,\)"
    ):
        K.split_frames(x, INDEX, INDEX, (NORM[0], NORM[1][1:]), NORM)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ValueError, match="split_frames: eps must be positive, got 0"),
    ):
        K.split_frames(x, INDEX, INDEX, NORM, NORM, eps=0.0)


def test_an_error_that_is_not_of_the_arguments_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setitem(_operator._EAGER, ("frame_correlation", "native"), out_of_memory)
    with pytest.raises(RuntimeError, match="out of memory"):
        K.frame_correlation(X[0], 1.0)
