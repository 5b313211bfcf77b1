"""A wrong result is not timed; everything else gets a complete row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.rivals.contender import Bound, Contender, DeviceMaker, Inputs, Outputs, cotangent
from benchmarks.suite import cases, memory, results
from benchmarks.suite.cases import Case
from benchmarks.suite.correctness import Errors, Gate, Truth, WrongResultError
from benchmarks.suite.precision import PRECISIONS
from benchmarks.suite.runner import Session, truth_of
from benchmarks.suite.shapes import NetworkShape


def planted(case: Case, name: str, change: str) -> Case:
    """The case with one more contender: the original with a mistake."""
    original = case.contenders[0]

    def bind(inputs: Inputs) -> Bound:
        bound = original.bind(inputs)
        honest = bound.function

        def run(*activations: Tensor) -> Outputs:
            outputs = honest(*activations)
            if change == "output":
                return (outputs[0] * 1.001, *outputs[1:])
            if change == "gradient":
                return (outputs[0] + 0.01 * (outputs[0] - outputs[0].detach()), *outputs[1:])
            if change == "nan":
                return (outputs[0].masked_fill(outputs[0] > 2, torch.nan), *outputs[1:])
            if change == "raise":
                raise RuntimeError("planted")
            if change == "lack":
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate ...")
            return outputs

        return Bound(run, bound.parameters, bound.rename)

    return replace(case, contenders=(original, Contender(name, bind)))


@pytest.mark.parametrize("change", ["output", "gradient", "nan", "raise"])
def test_a_wrong_kernel_is_not_timed(session: Session, shape: NetworkShape, change: str) -> None:
    session.run(planted(cases.issm(shape, 1, "cpu"), "wrong", change), "fp32", "training")
    timed = {row["contender"] for row in results.read(session.writer.path, "time")}
    (failed,) = results.read(session.writer.path, "failed")
    assert timed == {"original"}
    assert failed["contender"] == "wrong"
    assert session.failures == 1
    assert ("planted" if change == "raise" else "not timed") in failed["reason"]


@pytest.mark.parametrize("contender", ["original", "large"])
def test_nothing_is_timed_once_memory_ran_out(session: Session, shape: NetworkShape, contender: str) -> None:
    case = planted(cases.issm(shape, 1, "cpu"), "large", "lack")
    if contender == "original":
        case = replace(case, contenders=(replace(case.contenders[1], name="original"),))
    session.run(case, "fp32", "inference")
    session.run(cases.ladm(shape, 1, "cpu"), "fp32", "inference")
    first, second = results.read(session.writer.path, "skipped")
    assert first["contender"] == contender
    assert "not enough memory" in first["reason"]
    assert second["case"] == "ladm"
    assert "memory ran out before" in second["reason"]
    assert not results.read(session.writer.path, "time")
    assert session.failures == 0


@pytest.mark.parametrize("make", [cases.pool_tokens, cases.pooled_attention])
def test_the_truth_by_clips_is_the_truth_of_the_batch(shape: NetworkShape, make: Any) -> None:
    case = make(shape, shape.blocks[0], 3, "cpu")
    assert case.clipwise
    inputs = case.make(DeviceMaker(torch.float32))
    clips, whole = (truth_of(one, inputs, True, "cpu") for one in (case, replace(case, clipwise=False)))
    for got, wanted in zip(clips.outputs, whole.outputs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    assert clips.gradients.keys() == whole.gradients.keys()
    for name, wanted in whole.gradients.items():
        torch.testing.assert_close(clips.gradients[name], wanted, rtol=1e-10, atol=1e-10)


def test_a_wrong_gradient_does_not_matter_for_inference(session: Session, shape: NetworkShape) -> None:
    session.run(planted(cases.issm(shape, 1, "cpu"), "wrong", "gradient"), "fp32", "inference")
    assert {row["contender"] for row in results.read(session.writer.path, "time")} == {"original", "wrong"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows_are_complete(session: Session, shape: NetworkShape, precision: str) -> None:
    case = cases.pooled_attention(shape, shape.blocks[1], 1, "cpu")
    case = replace(case, contenders=tuple(c for c in case.contenders if c.compiled is None))
    session.run(case, precision, "training")
    rows = results.read(session.writer.path, "time")
    assert {row["contender"] for row in rows} == {c.name for c in case.contenders}
    for row in rows:
        assert 0 < row["low_s"] <= row["median_s"] <= row["high_s"]
        assert row["bytes"] > 0
        assert row["roofline"] == pytest.approx(
            max(row["bytes"] / 1e10, row["flops"] / 1e11) / row["median_s"], rel=1e-3
        )
        assert row["peak_bytes"] > 0
        assert 0 < row["error"] < 0.1
        assert row["threads"] == 1
    original = next(row for row in rows if row["contender"] == "original")
    assert original["speedup"] == 1
    assert original.get("error_in_eager_fp32") == (1 if precision == "fp32" else None)


def test_what_does_not_fit_is_said(session: Session, shape: NetworkShape) -> None:
    session.deadline = 0
    session.run(cases.issm(shape, 1, "cpu"), "fp32", "inference")
    (row,) = results.read(session.writer.path)
    assert row["kind"] == "skipped"
    assert "budget" in row["reason"]
    assert (session.left_out, session.failures) == (1, 0)


def test_gradients_that_are_missing_or_zero() -> None:
    truth = Truth((torch.ones(2),), {"a": torch.ones(3), "zero": torch.full((2,), 1e-12)})
    good = {"a": torch.ones(3), "zero": torch.full((2,), -1e-9)}
    assert truth.errors(("out",), (torch.ones(2),), good).gradient == pytest.approx(1e-9, rel=0.01)
    assert truth.errors(("out",), (torch.ones(2),), {"a": torch.ones(3)}).gradients["zero"] == float("inf")
    assert truth.errors(("out",), (), good).output == float("inf")


def test_nothing_large_leaves_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of the outputs are drawn, and results compared, where the tensors are."""

    def leaves(*_: Any, **__: Any) -> None:
        raise AssertionError("copied to the host")

    devices: list[Any] = []
    generator = torch.Generator

    def recorded(device: Any = "cpu") -> torch.Generator:
        devices.append(device)
        return generator("cpu")

    monkeypatch.setattr(torch, "Generator", recorded)
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        torch, "randn", lambda *_, **options: seen.update(options) or torch.empty(3, device="meta")
    )
    assert cotangent(torch.empty(3, device="meta", dtype=torch.bfloat16), 0).device.type == "meta"
    assert [torch.device(device).type for device in devices] == ["meta"]
    assert seen["device"].type == "meta"
    monkeypatch.setattr(torch.Tensor, "cpu", leaves)
    truth = Truth((torch.ones(2),), {"a": torch.ones(3), "zero": torch.full((2,), 1e-12)})
    good = {"a": torch.ones(3), "zero": torch.full((2,), -1e-9)}
    assert truth.errors(("out",), (torch.ones(2),), good).output == 0


def test_the_same_gradient_in_every_precision() -> None:
    wide, narrow = (cotangent(torch.empty(4, 5, dtype=dtype), 1) for dtype in (torch.float64, torch.bfloat16))
    assert torch.equal(wide, narrow.double())
    assert not torch.equal(wide, cotangent(torch.empty(4, 5, dtype=torch.float64), 2))


@pytest.mark.parametrize("clipwise", [False, True])
def test_the_truth_never_uses_tf32(shape: NetworkShape, clipwise: bool) -> None:
    case = cases.pool_tokens(shape, shape.blocks[0], 2, "cpu")
    seen: set[tuple[bool, bool]] = set()
    honest = case.truth

    def bind(inputs: Inputs) -> Bound:
        bound = honest.bind(inputs)

        def run(*activations: Tensor) -> Outputs:
            seen.add((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
            return bound.function(*activations)

        return Bound(run, bound.parameters, bound.rename)

    case = replace(case, truth=Contender("definition", bind), clipwise=clipwise)
    with PRECISIONS["tf32"].context("cpu"):
        assert torch.backends.cudnn.allow_tf32
        truth_of(case, case.make(DeviceMaker(torch.float32)), False, "cpu")
        assert torch.backends.cudnn.allow_tf32
    assert seen == {(False, False)}


def test_bounds() -> None:
    eager = Errors({"out": 1e-6}, {"x": 1.0})
    gate = Gate(1.2e-7, eager)
    gate.check(Errors({"out": 7e-6}, {"x": 1e-5}), "kernel", ours=True)
    with pytest.raises(WrongResultError, match=r"kernel: output out is off by 9\.0e-06"):
        gate.check(Errors({"out": 9e-6}, {}), "kernel")
    # The original's own bad gradient does not excuse ours.
    with pytest.raises(WrongResultError, match="gradient x"):
        gate.check(Errors({"out": 0.0}, {"x": 1e-2}), "kernel", ours=True)
    gate.check(Errors({"out": 0.0}, {"x": 1e-2}), "rival")
    with pytest.raises(WrongResultError, match="output"):
        Gate(1.2e-7).check(Errors({"out": 1e-2}, {}), "original", yardstick=True)


def test_peak_memory_is_exact() -> None:
    def call() -> Tensor:
        first = torch.ones(1000, 1000)
        return (first * 2).sum()

    _, peak = memory.peak(call, "cpu")
    assert 8_000_000 <= peak < 8_001_000


def test_peak_memory_sees_native_outputs(shape: NetworkShape) -> None:
    x = torch.randn(2, 8, 4, 128)
    index = torch.rand(2, 4) * 7
    call = torch.ops.ifdd.split_frames
    arguments = (x, index, index, None, None, None, None, 1e-5, False)
    outputs, peak = memory.peak(lambda: call(*arguments), "cpu")
    written = sum(out.numel() * out.element_size() for out in outputs)
    assert written <= peak < written + 10_000
