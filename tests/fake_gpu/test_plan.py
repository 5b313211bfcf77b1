"""Every case of the GPU plan of the benchmarks, and everybody who takes part in it, on fake CUDA tensors.

Inputs are made, costs computed, the truth in float64 and every contender bound and run, forward and backward,
in the precision of the plan under CUDA's autocast: outputs and gradients must have names and shapes of the
truth's. Compiled contenders run as the functions that they compile. Not covered: torch.compile itself, CUDA
graphs, and what looks at values (the gate, the clocks).

By day each label of a case runs once per pass, and each precision with each set of contenders once per pass,
at the first batch it has in the plan; whole networks run once, forward and backward; sizes of the network
other than the standard one are left out. The whole plan runs at night.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.fake_gpu.machine import fake_gpu, on_the_host
from benchmarks.rivals import attention
from benchmarks.rivals.contender import DeviceMaker, prepare
from benchmarks.suite import cases, ours, plan, runner, shapes
from benchmarks.suite.cases import Case
from benchmarks.suite.correctness import Truth
from benchmarks.suite.plan import Task
from benchmarks.suite.precision import PRECISIONS
from benchmarks.suite.runner import PASSES
from benchmarks.suite.shapes import NetworkShape
from fake_gpu.marks import CPU_BUILD
from ifdd import IFDDConfig

pytestmark = CPU_BUILD

#: Of the seven shapes of blocks: with and without stride, one head and several.
BLOCKS = ("block 0", "block 1", "block 4-7")
LARGE = ("model", "block", "backbone_s")


def _network_shape(config: IFDDConfig) -> NetworkShape:
    # It reads a network on the meta device, which fake tensors do not mix with.
    return on_the_host(shapes.network_shape, config)


@pytest.fixture(autouse=True)
def _shapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (plan, cases):
        monkeypatch.setattr(module, "network_shape", _network_shape)
    # A rival keeps its index tables, and fake tensors of one machine are none of another.
    attention._layout.cache_clear()
    yield
    attention._layout.cache_clear()


def _names() -> list[str]:
    return [
        *("issm", "ladm", "model", "block", "pool_tokens", "pooled_attention"),
        *("frame_tokens", "frame_correlation", "split_index", "topk_split_index", "split_frames"),
        *("lifting_attention", "lifting_update", "lifting_predict", "lifting_residual", "lifting_loss"),
        *("add_layer_norm", "max_pool_tokens", "linear", "gelu_linear", "backbone_s"),
    ]


def _tasks(name: str) -> Iterator[Task]:
    """All tasks of a case."""
    return (task for task in plan.gpu() if task.case.name == name)


def _chosen(name: str) -> Iterator[Task]:
    """One task of each kind: what depends on shapes and what depends on precision, not every pair."""
    seen: set[Any] = set()
    for task in _tasks(name):
        case = task.case
        standard = case.image_size == plan.NETWORK.image_size
        standard = standard and case.frames in (8, plan.NETWORK.clip_frames)
        many = name in ("pool_tokens", "pooled_attention")
        if not standard or (many and case.label not in BLOCKS):
            continue
        passes, contenders = task.pass_name, tuple(c.name for c in case.contenders)
        kinds = {(passes, "label", case.label), (passes, task.precision, contenders)}
        if name in LARGE:  # forward and backward: the other pass is half of that
            kinds = {passes} if passes == "training" else set()
        if not kinds <= seen:
            seen |= kinds
            yield task


def _run(task: Task, truths: dict[Any, Truth]) -> int:
    case, precision, training = task.case, PRECISIONS[task.precision], PASSES[task.pass_name]
    dtype = case.dtype or precision.activations
    inputs = case.make(DeviceMaker(dtype, "cuda"))
    cost = case.cost(inputs, precision.activations, training)
    assert cost.bytes > 0
    ours.choice_fields(case.name, inputs, precision.activations)
    key = (*runner._quantity(case, training), dtype)
    with precision.context("cuda"):
        if key not in truths:
            # Clip by clip is a matter of memory, of which nothing is used here; see the test below.
            truths[key] = runner.truth_of(replace(case, clipwise=False), inputs, training, "cuda")
        truth = truths[key]
        for contender in case.contenders:
            step = prepare(replace(contender, compiled=None), inputs, training)
            outputs, grads = step()
            named = step.name_gradients(grads) if training else {}
            what = f"{case.name} ({case.label}), B={case.batch}, {task.precision}, {contender.name}"
            assert [out.shape for out in outputs] == [out.shape for out in truth.outputs], what
            assert {n: g.shape for n, g in named.items()} == {
                n: g.shape for n, g in truth.gradients.items()
            }, what
            assert {out.device.type for out in outputs} == {"cuda"}, what
    return len(case.contenders)


def test_the_plan_has_no_other_cases() -> None:
    with fake_gpu():
        found = {task.case.name for task in plan.gpu()}
    assert found | {"backbone_s"} == set(_names())


def _run_all(name: str, tasks: Callable[[str], Iterator[Task]]) -> None:
    if name == "backbone_s" and not cases.vision.available():
        pytest.skip("torchvision is not installed")
    truths: dict[Any, Truth] = {}
    with fake_gpu():
        ran = sum(_run(task, truths) for task in tasks(name))
    assert ran > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", _names())
def test_everybody_runs(name: str) -> None:
    _run_all(name, _chosen)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", _names())
def test_the_whole_plan_runs(name: str) -> None:
    _run_all(name, _tasks)


def test_the_truth_of_a_batch_goes_clip_by_clip() -> None:
    with fake_gpu():
        shape = _network_shape(plan.NETWORK)
        for make in (cases.pool_tokens, cases.pooled_attention):
            case: Case = make(shape, shape.blocks[1], 2, "cuda")
            assert case.clipwise
            inputs = case.make(DeviceMaker(torch.float32, "cuda"))
            by_clips, at_once = (
                runner.truth_of(one, inputs, True, "cuda") for one in (case, replace(case, clipwise=False))
            )
            assert [o.shape for o in by_clips.outputs] == [o.shape for o in at_once.outputs]
            assert {n: g.shape for n, g in by_clips.gradients.items()} == {
                n: g.shape for n, g in at_once.gradients.items()
            }


def test_autocast_of_cuda_lowers_what_it_does_on_a_gpu() -> None:
    """The dtypes that the fake GPU must show: products in 16 bits, norms and sums in float32."""
    with fake_gpu():
        x = torch.randn(2, 4, 8, device="cuda", requires_grad=True)
        layer, norm = nn.Linear(8, 8, device="cuda"), nn.LayerNorm(8, device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            product = layer(x)
            normed = norm(product)
            shares = product.softmax(-1)
        (normed + shares).sum().backward()
    assert (product.dtype, normed.dtype, shares.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert x.grad is not None
    assert x.grad.device.type == "cuda"
