"""Runs a case: binds, checks against float64, times and writes one row per contender."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.rivals.contender import Contender, DeviceMaker, Inputs, Step, cotangent, prepare
from benchmarks.suite import datasheet, memory, ours
from benchmarks.suite.cases import Case
from benchmarks.suite.correctness import Errors, Gate, Truth, WrongResultError
from benchmarks.suite.journal import Journal
from benchmarks.suite.machine import Rates, load_average
from benchmarks.suite.precision import PRECISIONS, Precision
from benchmarks.suite.results import Writer
from benchmarks.suite.timing import CLOCKS, Call, Summary, interleave, ratios, summary
from ifdd_kernels.registry import Cost

PASSES = {"inference": False, "training": True}
"""Name of a pass -> whether it computes gradients. Training is forward and backward, no optimiser."""
MODES = ("graph", "eager")
"""How a GPU runs a step: as a replayed graph, and launch by launch."""
LIMIT_S = 30.0
"""Seconds of a contender in a check of a GPU, see :attr:`Session.limit_s`."""


def device_answers() -> bool:
    """Whether the GPU still works: after an error inside a kernel, every later call of the process fails."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


@dataclass
class Session:
    """State shared by all measurements of a run."""

    device: str
    writer: Writer
    #: What bounds the times; None where results are compared with float64 and nothing is timed.
    rates: Rates | None
    clock: str
    #: perf_counter value at which the run should be over.
    deadline: float
    row_budget_s: float = 6.0
    fewest: int = 3
    most: int = 25
    modes: tuple[str, ...] = MODES
    #: Whether every configuration of Triton kernels takes part.
    configurations: bool = False
    say: Callable[[str], None] = print
    #: Seconds that one contender, or float64, may take where a journal watches; a compiled one thrice.
    limit_s: float = LIMIT_S
    #: What the process is at, for whoever started it.
    journal: Journal = field(default_factory=Journal)
    #: Whether the device still answers; a process that lost it leaves.
    answers: Callable[[], bool] | None = None
    #: Output error of the eager original in float32, by case and pass: the unit errors are given in.
    unit: dict[tuple[Any, ...], float] = field(default_factory=dict)
    failures: int = 0
    #: Results that were checked or timed, and ops whose calls were timed.
    measured: int = 0
    #: Cases, and ops whose calls are timed, that were not begun for want of time.
    left_out: int = 0
    #: An allocation on the CPU has failed. glibc then serves the process from other arenas, which take large
    #: blocks from the system in every call: what is timed from there on pays for new pages.
    _lacked: bool = False
    _truth: tuple[tuple[Any, ...], Truth] | None = None

    def __post_init__(self) -> None:
        if self.answers is None:
            self.answers = device_answers if self.device == "cuda" else lambda: True

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.perf_counter()

    def run(self, case: Case, precision_name: str, pass_name: str) -> None:
        """Measures all contenders of a case in one precision and pass, or says why not."""
        precision = PRECISIONS[precision_name]
        what = f"{case.name} ({case.label}), B={case.batch}, {precision_name}, {pass_name}"
        identity = case.identity(precision_name, pass_name)
        if what in self.journal.finished():
            return
        self.say(what)
        if self.configurations:
            from benchmarks.suite.configurations import with_configurations

            case = with_configurations(case, precision.activations)
        lost = self.journal.lost(what)
        case = self._without(case, lost, identity)
        if not case.contenders:
            self.journal.finish(what, "failed", "; ".join(lost.values()))
            return
        if self._lacked:
            self._skip("memory ran out before, which slows the allocator down: run it on its own", identity)
            return
        needed = estimate(case, precision, PASSES[pass_name], self)
        if needed > self.left:
            self.left_out += 1
            self._skip(
                f"needs about {needed:.0f} s, {max(self.left, 0):.0f} s of the budget are left", identity
            )
            return
        failures = self.failures
        try:
            self.journal.start(what, "inputs", self.limit_s)
            with precision.context(self.device):
                self._measure(case, precision, PASSES[pass_name], identity, what)
        except Exception as error:  # one case must not take the others with it
            if memory.is_lack(error):
                self._truth = None
                self._lack(error, identity)
            else:
                self._fail(f"{type(error).__name__}: {error}", identity)
                self._leave_if_lost(what, "", str(error))
        finally:
            if self.device == "cuda":
                torch.cuda.empty_cache()
            else:
                memory.release()
        wrong = self.failures - failures
        self.journal.finish(
            what, *(("failed", f"{wrong} contenders or the case, see its rows") if wrong else ())
        )

    def _without(self, case: Case, lost: dict[str, str], identity: dict[str, Any]) -> Case:
        """The case without the contenders that an earlier process was lost at; without any where that was at
        something else.
        """
        names = {contender.name for contender in case.contenders}
        for part, detail in lost.items():
            self.writer.write("failed", **identity, contender=part.partition(",")[0], reason=detail)
        gone = {part.partition(",")[0] for part in lost}
        return case.only(names - gone if gone <= names else ())

    def _limit(self, contender: Contender) -> float:
        # What Triton did not compile ahead is compiled, and its configurations timed, at the first call.
        compiles = contender.compiled is not None or contender.name.startswith(("ifdd", "triton"))
        return 3 * self.limit_s if compiles else self.limit_s

    def _fail(self, reason: str, identity: dict[str, Any], contender: str | None = None) -> None:
        self.failures += 1
        own = {} if contender is None else {"contender": contender}
        self.writer.write("failed", **identity, **own, reason=reason[:500])
        self.say(f"  {contender or 'all'}: FAILED, {reason[:200]}")

    def _leave_if_lost(self, what: str, part: str, reason: str) -> None:
        assert self.answers is not None
        if not self.answers():
            self.say("  the device does not answer any more: a new process goes on after this")
            self.journal.leave(what, part, reason)

    def _lack(self, error: Exception, identity: dict[str, Any]) -> None:
        self._skip(f"not enough memory: {error}", identity)
        self._lacked = self.device == "cpu"

    def _skip(self, reason: str, identity: dict[str, Any]) -> None:
        self.writer.write("skipped", **identity, reason=reason[:500])
        who = f"{identity['contender']}: " if "contender" in identity else ""
        self.say(f"  {who}skipped, {reason}"[:200])

    def _measure(
        self, case: Case, precision: Precision, training: bool, identity: dict[str, Any], what: str
    ) -> None:
        dtype = case.dtype or precision.activations
        inputs = case.make(DeviceMaker(dtype, self.device))
        self.journal.start(what, "float64", self.limit_s)
        truth = self._truth_of(case, inputs, training, dtype)
        cost = case.cost(inputs, precision.activations, training)
        keys = ours.choice_fields(case.name, inputs, precision.activations)
        passed: dict[str, Step] = {}
        limits: dict[str, Step] = {}
        facts: dict[str, dict[str, Any]] = {}
        eager: Errors | None = None
        for contender in case.contenders:
            self.journal.start(what, contender.name, self._limit(contender))
            reason = contender.refusal(precision.activations)
            if reason:
                self._skip(reason, identity | {"contender": contender.name})
                continue
            try:
                if contender.setup is not None:
                    contender.setup.run(inputs, self.say)
                if contender.limit:
                    limits[contender.name] = prepare(contender, inputs, False)
                    continue
                bounds = Gate(precision.eps, eager, case.discontinuous)
                step, errors, peak = checked(case, contender, inputs, training, truth, bounds, self.device)
            except Exception as error:
                if memory.is_lack(error):
                    self._lack(error, identity | {"contender": contender.name})
                    if self._lacked:
                        return
                    continue
                wrong = isinstance(error, WrongResultError)
                text = str(error) if wrong else f"{type(error).__name__}: {error}"
                self._fail(text, identity, contender.name)
                self._leave_if_lost(what, contender.name, text)
                continue
            if contender.name == case.anchor:
                eager = errors
                if precision.name == "fp32":
                    self.unit[_quantity(case, training)] = errors.output
            passed[contender.name] = step
            memory_of = peak if contender.counted_memory else None
            facts[contender.name] = self._error_fields(case, training, errors) | {"peak_bytes": memory_of}
            facts[contender.name] |= contender.fields
        self.measured += len(passed)
        if self.rates is None:
            for name, found in facts.items():
                self.writer.write("checked", **identity, contender=name, **keys, **found)
                self.say(f"  {name:22s} error {found['error']:.1e}")
            return
        steps = passed | (limits if passed else {})
        for mode, calls in self._modes(steps, inputs, training, cost, identity, what).items():
            if not calls:
                continue
            # Each has run before, so what hangs here is not known by its contender.
            self.journal.start(what, f"times, {mode}", self.limit_s + 2 * self.row_budget_s * len(calls))
            budget = min(self.row_budget_s * len(calls), self.left)
            readings = interleave(calls, CLOCKS[self.clock], budget, self.fewest, self.most)
            for name, values in readings.items():
                ratio = ratios(readings[case.anchor], values) if case.anchor in readings else None
                fields = self._time_fields(summary(values), ratio, cost, precision.name)
                fields |= keys | facts.get(name, {})
                self.writer.write("time", **identity, contender=name, mode=mode, **fields)
                beside = f"  {ratio.median:5.2f}x" if ratio else ""
                error = f"  error {facts[name]['error']:.1e}" if name in facts else "  limit"
                self.say(f"  {name:22s} {mode:6s} {fields['median_s'] * 1e3:10.3f} ms{beside}{error}")

    def _truth_of(self, case: Case, inputs: Inputs, training: bool, dtype: torch.dtype) -> Truth:
        name = (*_quantity(case, training), dtype)
        if self._truth is None or self._truth[0] != name:
            self._truth = None  # frees the old one before the new one is made
            self._truth = (name, truth_of(case, inputs, training, self.device))
        return self._truth[1]

    def _error_fields(self, case: Case, training: bool, errors: Errors) -> dict[str, Any]:
        unit = self.unit.get(_quantity(case, training), math.nan)
        fields: dict[str, Any] = {"error": errors.output, "errors": errors.outputs}
        if training:
            fields["gradient_error"] = errors.gradient
        # Known once the original ran in float32, which comes first in every plan.
        fields["error_in_eager_fp32"] = errors.output / unit if unit > 0 else None
        return fields

    def _modes(
        self,
        passed: dict[str, Step],
        inputs: Inputs,
        training: bool,
        cost: Cost,
        identity: dict[str, Any],
        what: str,
    ) -> dict[str, dict[str, Call]]:
        if self.device == "cpu":
            return {"eager": dict(passed)}
        from benchmarks.suite import cuda

        def refused(name: str, reason: str) -> None:
            self.failures += 1
            self.writer.write("failed", **identity, contender=name, mode="graph", reason=reason[:300])
            self.say(f"  {name}: NOT CAPTURED, {reason[:200]}")
            self._leave_if_lost(what, name, reason)

        def begin(name: str) -> None:
            self.journal.start(what, f"{name}, graph", self.limit_s)

        return cuda.modes(passed, inputs, training, cost.bytes, self.modes, begin, refused)

    def _time_fields(
        self, times: Summary, ratio: Summary | None, cost: Cost, precision: str
    ) -> dict[str, Any]:
        assert self.rates is not None
        least = self.rates.least_seconds(cost.bytes, cost.flops, precision)
        fields: dict[str, Any] = {
            "clock": self.clock,
            "median_s": times.median,
            "low_s": times.low,
            "high_s": times.high,
            "rounds": times.count,
            "bytes": cost.bytes,
            "flops": cost.flops,
            "gb_per_s": cost.bytes / times.median * 1e-9,
            "tflop_per_s": cost.flops / times.median * 1e-12,
            "roofline": least / times.median,
        }
        if ratio is not None:
            fields |= {"speedup": ratio.median, "speedup_low": ratio.low, "speedup_high": ratio.high}
        sheet = datasheet.rates(str(self.writer.common.get("device", "")))
        if sheet:
            best = max(cost.bytes / sheet["copy"], cost.flops / sheet[precision])
            fields["datasheet_roofline"] = best / times.median
        if self.device == "cpu":
            fields["load"] = load_average()
        return fields


def _quantity(case: Case, training: bool) -> tuple[Any, ...]:
    return case.name, case.label, case.batch, case.frames, case.image_size, training


def truth_of(case: Case, inputs: Inputs, training: bool, device: str) -> Truth:
    """The case in float64, without autocast, and without TF32 in whatever a definition does in float32."""
    wide = inputs.double()
    with PRECISIONS["fp32"].context(device), torch.autocast(device, enabled=False):
        if case.clipwise:
            return _truth_by_clips(case, wide, training)
        step = prepare(case.truth, wide, training)
        outputs, grads = step()
        return Truth(outputs, step.name_gradients(grads) if training else {})


def _truth_by_clips(case: Case, inputs: Inputs, training: bool) -> Truth:
    clips = [inputs.clip(place) for place in range(case.batch)]
    like = prepare(case.truth, clips[0], False).forward()
    # Gradients of the outputs of the whole batch, as the contenders get them.
    whole = [cotangent(out.expand(case.batch, *out.shape[1:]), place) for place, out in enumerate(like)]
    outputs, gradients = [], []
    for place, clip in enumerate(clips):
        step = prepare(case.truth, clip, training)
        step.cotangents = [values[place : place + 1] for values in whole]
        results, grads = step()
        outputs.append(results)
        gradients.append(step.name_gradients(grads) if training else {})
    joined = {
        name: (torch.cat if name in inputs.activations else _total)([one[name] for one in gradients])
        for name in gradients[0]
    }
    return Truth(tuple(torch.cat(parts) for parts in zip(*outputs, strict=True)), joined)


def _total(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum(0)


def checked(
    case: Case, contender: Contender, inputs: Inputs, training: bool, truth: Truth, bounds: Gate, device: str
) -> tuple[Step, Errors, int]:
    """A contender's step, its errors and its peak memory, if its result is right.

    Raises:
        WrongResultError: it is not.
    """
    step = prepare(contender, inputs, training)
    if contender.compiled is not None or device == "cuda":
        step()  # compilers, their stopwatches and libraries allocate too, when they are first called
    (outputs, grads), peak = memory.peak(step, device)
    errors = truth.errors(case.outputs, outputs, step.name_gradients(grads) if training else {})
    del outputs, grads
    what = f"{case.name}, {contender.name}"
    bounds.check(errors, what, yardstick=contender.name == case.anchor, ours=contender.ours)
    return step, errors, peak


COMPILE_S = {"model": 90.0, "block": 30.0, "ladm": 30.0}
"""Seconds one compilation takes on two CPU cores, backward included; 12 for other cases. Only the budget
depends on these estimates. PyTorch keeps compiled code, so a second run takes less."""
EAGER_SHARE = 0.5
"""Share of the roofline that eager execution of these cases reaches at least, for the budget only."""


def estimate(case: Case, precision: Precision, training: bool, session: Session) -> float:
    """Seconds a case will need at least: the truth, the gate and the fewest rounds of every contender.

    Unknown, and 0, without the machine's rates.
    """
    if session.rates is None:
        return 0.0
    inputs = case.make(DeviceMaker(case.dtype or precision.activations, "meta"))
    cost = case.cost(inputs, precision.activations, training)
    once = session.rates.least_seconds(cost.bytes, cost.flops, "fp32") / EAGER_SHARE
    compiled = sum(contender.compiled is not None for contender in case.contenders)
    running = [c for c in case.contenders if not c.refusal(precision.activations)]
    setups = {contender.setup for contender in running if contender.setup is not None}
    once *= len(running) * (session.fewest + 2) + 3
    return once + compiled * COMPILE_S.get(case.name, 12.0) + sum(setup.seconds(inputs) for setup in setups)
