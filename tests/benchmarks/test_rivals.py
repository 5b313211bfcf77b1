"""Every rival computes the same as the definition: outputs and gradients in float64, on a small network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.rivals.contender import prepare
from benchmarks.suite import cases
from benchmarks.suite.cases import Case
from benchmarks.suite.runner import truth_of
from benchmarks.suite.shapes import network_shape
from ifdd import IFDDConfig
from ifdd_kernels.registry import Maker

CONFIG = IFDDConfig(backbone="mvit_nano", image_size=64)
SHAPE = network_shape(CONFIG)


def all_cases() -> list[Case]:
    blocks = SHAPE.blocks
    return [
        *cases.small_ops(SHAPE, 2, "cpu"),
        *cases.around_attention(SHAPE, 2, "cpu"),
        *(make(SHAPE, b, 2, "cpu") for b in blocks for make in (cases.pool_tokens, cases.pooled_attention)),
        cases.issm(SHAPE, 2, "cpu"),
        cases.issm(SHAPE, 1, "cpu", frames=16),
        cases.ladm(SHAPE, 2, "cpu"),
        *(cases.block(SHAPE, b, 1, "cpu") for b in blocks),
        cases.model(CONFIG, 2, "cpu"),
        cases.model(replace(CONFIG, clip_frames=32), 1, "cpu"),
    ]


@pytest.mark.parametrize("case", all_cases(), ids=lambda c: f"{c.name}-{c.label}-{c.batch}")
def test_contenders_agree_in_float64(case: Case) -> None:
    training = case.differentiable
    inputs = case.make(Maker(torch.float64, seed=3))
    truth = truth_of(case, inputs, training, "cpu")
    assert len(truth.outputs) == len(case.outputs)
    assert all(float(out.double().abs().max()) > 0 for out in truth.outputs)
    contenders = [c for c in case.contenders if c.compiled is None]
    assert {"original"} < {c.name for c in contenders}
    for contender in contenders:
        step = prepare(contender, inputs, training)
        outputs, grads = step()
        errors = truth.errors(case.outputs, outputs, step.name_gradients(grads) if training else {})
        # Sums in another order: 1e-16 each; gradients of sums that cancel are the worst.
        assert errors.output < 1e-11, (contender.name, errors.outputs)
        assert errors.gradient < 1e-8, (contender.name, errors.gradients)


def test_every_network_parameter_is_compared() -> None:
    case = cases.model(CONFIG, 1, "cpu")
    inputs = case.make(Maker(torch.float32))
    truth = truth_of(case, inputs, True, "cpu")
    ours = prepare(next(c for c in case.contenders if c.name == "ifdd"), inputs, True)
    assert truth.gradients.keys() == ours.leaves.keys()


def test_rotating_inputs_share_parameters_and_not_memory() -> None:
    case = cases.pool_tokens(SHAPE, SHAPE.blocks[0], 1, "cpu")
    inputs = case.make(Maker(torch.float32))
    step = prepare(case.contenders[0], inputs, True)
    other = prepare(case.contenders[0], inputs.copy(), True, step.bound)
    assert other.bound is step.bound
    assert other.activations[0].data_ptr() != step.activations[0].data_ptr()
    assert torch.equal(other()[0][0], step()[0][0])
