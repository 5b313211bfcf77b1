"""Which Triton kernels tests and benchmarks launch, asked of their host code on tensors without memory.

For every sample of the registry and every call of the network, in all dtypes and the default configuration,
as the tests run them; for the calls that tests run in every configuration; for every case of the benchmarks'
GPU plan, which has a training step of the network, in every configuration that tuning tries.

Not found here: what TorchInductor makes of these kernels, for it compiles by its own rules and in processes
of its own; and batch sizes that stochastic depth leaves over.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu import network_calls, visit
from benchmarks.gpu.network_calls import Instance
from benchmarks.rivals.contender import DeviceMaker, prepare
from benchmarks.suite import ours, plan
from benchmarks.suite.cases import Case
from benchmarks.suite.launches import launches_of
from benchmarks.suite.precision import PRECISIONS
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels._schema import NAMESPACE
from ifdd_kernels.registry import REGISTRY, Maker
from ifdd_kernels.triton._runtime import Launch, captured_launches

#: Of the tests that run every configuration. float16 has those of bfloat16.
CONFIGURED_BATCH, CONFIGURED_DTYPES = 2, (torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Found:
    """Launches of one call, and whether all configurations of them are tried or the default alone."""

    label: str
    op: str
    launches: list[Launch]
    every: bool


class _Calls(TorchDispatchMode):
    """Notes what Triton would launch for every call of an op that has Triton kernels, whatever runs it."""

    def __init__(self, architecture: int) -> None:
        super().__init__()
        self.architecture = architecture
        self.launches: list[tuple[str, list[Launch]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        namespace, _, name = func._schema.name.partition("::")
        if namespace == NAMESPACE:
            name = name.removesuffix("_triton").removesuffix("_reference")
            op = name.removesuffix("_backward")
            if "triton" in OPERATORS[op].backends:
                module = importlib.import_module(f"ifdd_kernels.triton.{op}")
                with captured_launches(self.architecture) as launches:
                    (module.forward if op == name else module.backward)(*args)
                self.launches.append((op, launches))
        return results


#: Something that launches kernels: (architecture) -> the launches of its calls.
Question = Callable[[int], Iterator[Found]]


def of_tests() -> list[Question]:
    """Samples of the registry and calls of the network, forward and backward."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    written = [op for op, operator in OPERATORS.items() if "triton" in operator.backends]
    return [
        *(functools.partial(_of_samples, op, dtype) for op in written for dtype in dtypes),
        *(functools.partial(_of_calls, op, *tested) for op in written for tested in network_calls.TESTED),
        *(functools.partial(_of_configurations, op, dtype) for op in written for dtype in CONFIGURED_DTYPES),
    ]


def _of_samples(op: str, dtype: torch.dtype, architecture: int) -> Iterator[Found]:
    for sample in REGISTRY[op].samples(Maker(dtype, "meta")):
        label = f"sample {sample.label}, {str(dtype)[6:]}"
        yield Found(label, op, launches_of(OPERATORS[op], sample.args, architecture), every=False)


def _of_calls(op: str, dtype: torch.dtype, batch: int, architecture: int) -> Iterator[Found]:
    for call in network_calls.instances(plan.NETWORK):
        if call.op == op:
            label = f"{call.label}, B = {batch}, {str(dtype)[6:]}"
            arguments = call.empty(batch, dtype, "meta")
            yield Found(label, op, launches_of(OPERATORS[op], arguments, architecture), every=False)


def _of_configurations(op: str, dtype: torch.dtype, architecture: int) -> Iterator[Found]:
    for call in configured_calls(op, architecture):
        label = f"{call.label}, {str(dtype)[6:]}"
        arguments = call.empty(CONFIGURED_BATCH, dtype, "meta")
        yield Found(label, op, launches_of(OPERATORS[op], arguments, architecture), every=True)


def configured_calls(op: str, architecture: int) -> list[Instance]:
    """Calls that tests on a GPU run in every configuration.

    The one of the network whose kernels have the most, the smallest of such, and a ragged one; of an op that
    the recorded network does not call, the ragged one.
    """

    def configurations(call: Instance) -> int:
        most: dict[str, int] = {}
        arguments = call.empty(CONFIGURED_BATCH, torch.bfloat16, "meta")
        for launch in launches_of(OPERATORS[op], arguments, architecture):
            most[launch.kernel.name] = max(most.get(launch.kernel.name, 0), len(launch.configs))
        return sum(count for count in most.values() if count > 1)

    calls = [call for call in network_calls.instances(plan.NETWORK) if call.op == op]
    calls = sorted(calls, key=lambda call: (-configurations(call), call.largest))
    return [*calls[:1], *(call for call in network_calls.ragged() if call.op == op)]


def of_plan() -> list[Question]:
    """Cases of the GPU plan, in its order: single ops, and modules and networks by the ops they call."""
    questions: dict[tuple[Any, ...], Question] = {}
    # What could run on the device does not matter: the kernels' host code is called as it is.
    with mock.patch.object(ours, "backends", return_value=[]):
        for task in plan.gpu():
            case, training = task.case, task.pass_name == "training"
            what = (case.name, case.label, case.batch, case.frames, case.image_size, task.precision)
            # A training step launches what inference does, on more or the same.
            if not _traced_elsewhere(case) and (*what, True) not in questions:
                questions.setdefault((*what, training), functools.partial(_of_task, task))
    return list(questions.values())


def _of_task(task: plan.Task, architecture: int) -> Iterator[Found]:
    case, training = task.case, task.pass_name == "training"
    label = f"{case.name} {case.label}, B = {case.batch}, {task.precision}, {task.pass_name}"
    with PRECISIONS[task.precision].context("cpu"):
        for op, launches in _of_case(case, task.precision, training, architecture):
            yield Found(label, op, launches, every=True)


def _of_plan(wanted: Callable[[plan.Task], bool]) -> list[Question]:
    return [question for question in of_plan() if wanted(question.args[0])]  # type: ignore[attr-defined]


def of_network() -> list[Question]:
    """The network alone, in the precision it is trained in, of the plan."""

    def wanted(task: plan.Task) -> bool:
        case, standard = task.case, plan.NETWORK
        sizes = (case.frames, case.image_size) == (standard.clip_frames, standard.image_size)
        return case.name == "model" and task.precision == "bf16" and sizes

    return _of_plan(wanted)


def of_rivals() -> list[Question]:
    """The questions of the first call of gpu-check."""
    return _of_plan(lambda task: task.precision == "bf16" and task.case.batch == 16)


def of_wide() -> list[Question]:
    """The questions that its second call adds."""
    return _of_plan(
        lambda task: (
            task.precision in ("fp32", "tf32") and task.case.batch == 16 and task.case.name in visit.WIDE
        )
    )


#: What there is to compile for, by name.
PARTS: dict[str, Callable[[], list[Question]]] = {
    "network": of_network,
    "rivals": of_rivals,
    "tests": of_tests,
    "wide": of_wide,
    "benchmarks": of_plan,
}


def _traced_elsewhere(case: Case) -> bool:
    """Networks of other people, and ops without Triton kernels."""
    operator = OPERATORS.get(case.name)
    return case.name == "backbone_s" or (
        operator is not None and "triton" not in operator.backends and not operator.parts
    )


def _of_case(
    case: Case, precision: str, training: bool, architecture: int
) -> Iterator[tuple[str, list[Launch]]]:
    dtype = case.dtype or PRECISIONS[precision].activations
    operator = OPERATORS.get(case.name)
    if operator is not None and "triton" in operator.backends:
        inputs = case.make(DeviceMaker(dtype, "meta"))
        arguments = operator.signature.order(inputs.named())
        yield case.name, launches_of(operator, arguments, architecture)
        return
    calls = _Calls(architecture)
    mine = ours.issm("auto") if case.name == "issm" else next(one for one in case.contenders if one.ours)
    if case.name == "issm" or case.name in REGISTRY:
        with FakeTensorMode(), calls:
            prepare(mine, case.make(DeviceMaker(dtype, "cpu")), training)()
    else:
        # Modules are built of real parameters, which their initialisation reads; clips have no memory.
        inputs = case.make(DeviceMaker(dtype, "meta"))
        sizes = {name: x.shape for name, x in inputs.activations.items()}
        flat = {name: torch.empty((), dtype=dtype).expand(size) for name, size in sizes.items()}
        bound = mine.bind(replace(inputs, activations=flat))
        with FakeTensorMode(allow_non_fake_inputs=True), calls:
            fake = {name: torch.empty(size, dtype=dtype) for name, size in sizes.items()}
            prepare(mine, replace(inputs, activations=fake), training, bound)()
    yield from calls.launches


def shown(question: Any) -> str:
    shown = [f"{a.case.name} {a.case.label}" if isinstance(a, plan.Task) else str(a) for a in question.args]
    return f"launches of {', '.join(shown)}"
