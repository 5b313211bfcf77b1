"""``can_run`` answers, and nothing else, whatever it is asked about on a GPU."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.fake_gpu.machine import cuda_ops, fake_gpu
from benchmarks.suite import cases
from benchmarks.suite.plan import NETWORK
from benchmarks.suite.shapes import network_shape
from ifdd_kernels import _cuda_limits, backends
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels.backends import BACKENDS, LIBRARY_OPS, can_run, composed
from ifdd_kernels.registry import REGISTRY, Maker

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LIMITED = sorted(name for name, operator in OPERATORS.items() if operator.cuda_limit is not None)
OPEN = "they have limits on sizes"


def probes(dtype: torch.dtype) -> Iterator[Tensor]:
    """Of every rank, empty and not: shapes that ops take and shapes that none does."""
    for rank in range(6):
        for size in (0, 2):
            yield torch.empty((size,) * rank, dtype=dtype, device="cuda")


def network_arguments(op: str, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    """Arguments of an op at every shape of the network."""
    shape = network_shape(NETWORK)
    by_block = (cases.pool_tokens, cases.pooled_attention)
    found = [
        *(make(shape, b, 16, "cuda") for make in by_block for b in shape.blocks),
        *cases.small_ops(shape, 16, "cuda"),
        *cases.around_attention(shape, 16, "cuda"),
    ]  # fmt: skip
    for case in found:
        if case.name == op:
            inputs = case.make(Maker(dtype, "cuda"))
            yield REGISTRY[op].signature.order(inputs.named())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", sorted(OPERATORS))
def test_every_probe_has_an_answer(op: str, backend: str) -> None:
    with fake_gpu():
        for dtype in DTYPES:
            for first, second in itertools.product((None, *probes(dtype)), repeat=2):
                for args in (
                    (first,),
                    (first, second),
                    (first, None, second),
                    (first, second, second, second),
                ):
                    support = can_run(op, backend, *args)
                    assert support.reason
                    assert backend not in ("auto", "reference") or support
        assert can_run(op, backend).reason


@pytest.mark.parametrize("op", sorted(OPERATORS))
def test_every_real_shape_has_an_answer(op: str) -> None:
    network_shape(NETWORK)  # reads a network on the meta device, which fake tensors do not mix with
    with fake_gpu():
        for dtype in DTYPES:
            samples = [sample.args for sample in REGISTRY[op].samples(Maker(dtype, "cuda"))]
            for args, backend in itertools.product((*samples, *network_arguments(op, dtype)), BACKENDS):
                answers = {count: can_run(op, backend, *args[:count]) for count in range(1, len(args) + 1)}
                whole = answers.pop(len(args))
                # Nothing real is beyond a limit: less of it has the same answer, and says what is open.
                for support in answers.values():
                    assert support.ok == whole.ok
                    # What a linear layer is left to depends on its second argument, the weight.
                    assert op == "linear" or support.reason.startswith(whole.reason)
                expected = "float64" not in str(dtype) and op in cuda_ops()
                if backend == "native" and not composed(OPERATORS[op], "cuda", backend):
                    assert whole.ok == expected, whole.reason
                    assert OPEN not in whole.reason
                    assert (OPEN in can_run(op, backend, args[0]).reason) == (expected and op in LIMITED)


@pytest.mark.parametrize("op", LIMITED)
def test_a_probe_leaves_limits_open_and_says_so(op: str) -> None:
    with fake_gpu():
        for x in (torch.empty(0, device="cuda"), torch.empty((), device="cuda")):
            assert can_run(op, "native", x)
            assert OPEN in can_run(op, "native", x).reason
            assert can_run(op, "auto", x).reason.startswith("chooses native: ")
            assert OPEN in can_run(op, "auto", x).reason
            assert OPEN not in can_run(op, "triton", x).reason
            assert OPEN not in can_run(op, "reference", x).reason


def test_what_is_exceeded_for_certain_is_told_of_less_than_a_call() -> None:
    with fake_gpu():
        wide = torch.empty(_cuda_limits.HEAD_DIM + 1, 1, 3, 3, 3, device="cuda")
        many = torch.empty(_cuda_limits.ROWS + 1, 1, 1, 0, device="cuda")
        for x in (None, torch.empty(0, device="cuda"), torch.empty(1, 1, 129 * 3, device="cuda")):
            assert "head_dim <= 128, got 129" in can_run("pool_tokens", "native", x, None, wide).reason
        for op in ("split_frames", "split_index", "frame_tokens", "topk_split_index"):
            assert "rows" in can_run(op, "native", many).reason
            assert can_run(op, "auto", many).reason.startswith("chooses triton")


def test_the_first_tensor_decides_the_device_wherever_it_is() -> None:
    weight = torch.empty(3, 4)
    with fake_gpu():
        on_gpu = torch.empty(3, 4, device="cuda")
        for op in sorted(cuda_ops() & set(OPERATORS)):
            assert "cuda kernel" in can_run(op, "native", None, on_gpu).reason
        assert can_run("static_dynamic_split", "native", None, on_gpu).reason.startswith("composed of")
        for op in LIBRARY_OPS:
            assert "no cuda kernel" in can_run(op, "native", None, on_gpu).reason
    assert "cpu" in can_run("frame_tokens", "native", None, weight).reason


@pytest.mark.parametrize("op", LIMITED)
def test_wrong_shapes_are_refused_in_the_ops_own_words(op: str) -> None:
    with fake_gpu():
        for place, right in enumerate(next(iter(REGISTRY[op].samples(Maker(torch.float32, "cuda")))).args):
            if not isinstance(right, Tensor):
                continue
            args = list(next(iter(REGISTRY[op].samples(Maker(torch.float32, "cuda")))).args)
            args[place] = right.flatten()[:1].reshape(())
            with pytest.raises(ValueError, match=f"^{op}: "):
                backends.run(OPERATORS[op], "auto", *args)


@pytest.mark.parametrize("op", LIMITED)
def test_misplaced_arguments_have_an_answer(op: str) -> None:
    """In the order of the public function, say: a tensor where a number belongs, and the other way round."""
    with fake_gpu():
        args = list(next(iter(REGISTRY[op].samples(Maker(torch.float32, "cuda")))).args)
        assert can_run(op, "native", args[0], *reversed(args[1:])).reason


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("op", sorted(OPERATORS))
def test_every_device_has_an_answer(op: str, device: str) -> None:
    for backend in BACKENDS:
        assert can_run(op, backend, torch.empty(0, device=device)).reason


def test_a_composed_op_is_asked_with_all_its_arguments() -> None:
    """Its parts' limits hold for what they get of it, and for what one gets from the other."""
    op = "static_dynamic_split"
    with fake_gpu():
        args = next(REGISTRY[op].samples(Maker(torch.float32, "cuda"))).args
        assert can_run(op, "native", *args)
        assert OPEN not in can_run(op, "native", *args).reason
        assert OPEN in can_run(op, "native", args[0]).reason
        pool = REGISTRY[op].signature.arguments.index("pool")
        wide = (*args[:pool], _cuda_limits.SIDE + 1, *args[pool + 1 :])
        refused = can_run(op, "native", *wide)
        assert not refused
        assert refused.reason.startswith("composed of split_index and split_frames; split_index: ")
        frames = _cuda_limits.SAMPLED_FRAMES + 2
        offsets = [torch.empty(frames // 2, frames**2, device="cuda") for _ in range(2)]
        long = (torch.empty(1, frames, *args[0].shape[2:], device="cuda"), *args[1:3], *offsets, *args[5:])
        assert "split_frames: its CUDA kernels take indexes" in can_run(op, "native", *long).reason


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("op", sorted(OPERATORS))
def test_more_arguments_than_an_op_has_are_an_answer_about_the_first(op: str, device: str) -> None:
    with fake_gpu():
        args = next(REGISTRY[op].samples(Maker(torch.float32, device))).args
        answer, more = can_run(op, "native", *args), can_run(op, "native", *args, None, 1)
        assert more.ok == answer.ok
        assert more.reason.startswith(answer.reason)
