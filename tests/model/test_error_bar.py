"""float32 against float64: no op, nor the network, errs more than twice as much as its eager formulation.

An error is the norm of the difference, over all outputs (all gradients) of several draws, from the eager
formulation in float64, relative to that one's norm. Both run from the same float32 numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import ifdd_kernels
from benchmarks.original.backbone import TokenPool, add_relative_position
from benchmarks.rivals.contender import Contender, DeviceMaker, Inputs, prepare
from benchmarks.suite import cases
from benchmarks.suite.shapes import network_shape
from ifdd import IFDDConfig
from ifdd_kernels.grids import Grid, table_length

FACTOR = 2.0
DRAWS = 4

Function = Callable[..., Sequence[Tensor]]


class Case(NamedTuple):
    """An op, its eager formulation and shapes of float32 arguments; the first of them are activations."""

    ours: Function
    eager: Function
    shapes: Sequence[tuple[int, ...]]


def lifting_attention() -> Case:
    def eager(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        attention = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)
        return [(attention @ v + v).transpose(1, 2).flatten(2)]

    return Case(lambda *args: [ifdd_kernels.lifting_attention(*args)], eager, [(2, 98, 4, 96)] * 3)


def pooled_attention(q_grid: Grid = (4, 8, 8), k_grid: Grid = (4, 4, 4)) -> Case:
    def eager(q: Tensor, k: Tensor, v: Tensor, *tables: Tensor) -> list[Tensor]:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)
        along_h, along_w, along_t = tables
        scores = add_relative_position(scores, q, q_grid, k_grid, (along_t, along_h, along_w))
        out = scores.softmax(-1) @ v
        return [(out + torch.cat((0 * q[:, :, :1], q[:, :, 1:]), 2)).transpose(1, 2).flatten(2)]

    def ours(*args: Tensor) -> list[Tensor]:
        return [ifdd_kernels.pooled_attention(*args, q_grid=q_grid, k_grid=k_grid)]

    tables = [(table_length(q_grid[axis], k_grid[axis]), 96) for axis in (1, 2, 0)]
    return Case(ours, eager, [(2, 257, 2, 96), (2, 65, 2, 96), (2, 65, 2, 96), *tables])


def pool_tokens(grid: Grid = (4, 8, 8), stride_q: Grid = (1, 1, 1), stride_kv: Grid = (1, 4, 4)) -> Case:
    names = ("pool.weight", "norm_act.0.weight", "norm_act.0.bias")

    def eager(qkv: Tensor, *parameters: Tensor) -> list[Tensor]:
        pooled = []
        for part, tokens in enumerate(qkv.unflatten(-1, (3, 2, 96)).permute(2, 0, 3, 1, 4)):
            given = dict(
                zip(names, (parameters[part], *parameters[3 + 2 * part : 5 + 2 * part]), strict=True)
            )
            rows, _ = functional_call(TokenPool(96, stride_kv if part else stride_q), given, (tokens, grid))
            pooled.append(rows.transpose(1, 2))
        return pooled

    def ours(qkv: Tensor, *parameters: Tensor) -> Sequence[Tensor]:
        norms = (parameters[3:5], parameters[5:7], parameters[7:9])
        return ifdd_kernels.pool_tokens(qkv, *parameters[:3], *norms, grid, 2, stride_q, stride_kv)

    return Case(ours, eager, [(2, 257, 3 * 2 * 96), *[(96, 1, 3, 3, 3)] * 3, *[(96,)] * 6])


def ratio(ours: Function, eager: Function, draws: Sequence[Sequence[Tensor]]) -> tuple[float, float]:
    """Errors of ours in those of eager: of the outputs and of all gradients."""
    error = {kind: torch.zeros(2, dtype=torch.float64) for kind in ("ours", "eager")}
    for draw, inputs in enumerate(draws):
        results = {}
        for kind, function, dtype in (
            ("exact", eager, torch.float64),
            ("eager", eager, torch.float32),
            ("ours", ours, torch.float32),
        ):
            leaves = [x.to(dtype).requires_grad_() for x in inputs]
            outputs = list(function(*leaves))
            generator = torch.Generator().manual_seed(draw)
            cotangents = [torch.randn(out.shape, generator=generator).to(dtype) for out in outputs]
            results[kind] = (
                [out.detach() for out in outputs],
                torch.autograd.grad(outputs, leaves, cotangents),
            )
        for kind, total in error.items():
            for place in (0, 1):
                for value, exact in zip(results[kind][place], results["exact"][place], strict=True):
                    total[place] += ((value.double() - exact).norm() / exact.norm()).square()
    of_outputs, of_gradients = (error["ours"] / error["eager"]).sqrt().tolist()
    return of_outputs, of_gradients


@pytest.mark.parametrize("case", [lifting_attention, pooled_attention, pool_tokens], ids=lambda c: c.__name__)
def test_ops(case: Callable[[], Case]) -> None:
    ours, eager, shapes = case()
    generator = torch.Generator().manual_seed(7)
    draws = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(DRAWS)]
    outputs, gradients = ratio(ours, eager, draws)
    assert outputs <= FACTOR, outputs
    assert gradients <= FACTOR, gradients


SHAPE = network_shape(IFDDConfig(backbone="mvit_nano"))
OTHERS = [
    case
    for case in (
        *(cases.issm(SHAPE, 2, "cpu", frames) for frames in (8, 16)),
        *cases.small_ops(SHAPE, 2, "cpu"),
        *cases.around_attention(SHAPE, 2, "cpu"),
    )
    if case.differentiable and case.name != "lifting_attention"
]


def results(contender: Contender, inputs: Inputs) -> list[list[Tensor]]:
    """Outputs, and gradients in the order of their names."""
    step = prepare(contender, inputs, training=True)
    outputs, gradients = step()
    named = step.name_gradients(gradients)
    return [list(outputs), [named[name] for name in sorted(named)]]


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: f"{case.name}-{case.label}")
def test_other_ops(case: cases.Case) -> None:
    """As the benchmarks call them. A result may always be off by the rounding of its own last digit."""
    contenders = {c.name: c for c in case.contenders}
    if "native" not in contenders:
        pytest.skip("the native library is not built")
    error = {name: torch.zeros(2, dtype=torch.float64) for name in ("original", "native")}
    for seed in range(2 * DRAWS):
        inputs = case.make(DeviceMaker(torch.float32, seed=seed))
        exact = results(case.truth, inputs.double())
        for name, total in error.items():
            for place, found in enumerate(results(contenders[name], inputs)):
                largest = max((float(value.norm()) for value in exact[place]), default=0.0)
                for value, expected in zip(found, exact[place], strict=True):
                    # A gradient that is zero up to rounding has no relative error.
                    size = max(float(expected.double().norm()), 1e-6 * largest, 1e-300)
                    total[place] += ((value.double() - expected).norm() / size).square() / (2 * DRAWS)
    rounding = torch.finfo(torch.float32).eps / 2
    for ours, eager in zip(error["native"].sqrt().tolist(), error["original"].sqrt().tolist(), strict=True):
        assert ours <= max(FACTOR * eager, rounding), (ours, eager)


def test_the_bar_is_failed_by_a_rounded_result() -> None:
    """An op that loses four bits more is found out: 2^4 times the rounding of eager's own terms."""
    ours, eager, shapes = lifting_attention()
    inputs = [torch.randn(shape, generator=torch.Generator().manual_seed(8)) for shape in shapes]

    def coarse(*args: Tensor) -> list[Tensor]:
        return [out + out.detach() * 2**-20 for out in ours(*args)]

    assert ratio(coarse, eager, [inputs])[0] > FACTOR


@pytest.mark.parametrize("part", ["lifting", "network"])
def test_modules(part: str, make_pair: Callable[..., Any], clips: Callable[..., Any]) -> None:
    """LADM and the logits, without dropout."""
    ours, original = make_pair()
    exact = copy.deepcopy(original).double()
    ours, original = ours.float(), original.float()
    modules: tuple[nn.Module, ...] = (ours, original, exact)
    inputs: list[Tensor] = [clips(ours.config, seed=seed).float() for seed in range(DRAWS)]
    if part == "lifting":
        lifting = ours.lifting
        modules = (lifting, original.backbone.WaveLifts, exact.backbone.WaveLifts)
        tokens = lifting.frames * lifting.grid[0] * lifting.grid[1]
        inputs = [torch.randn(2, tokens, lifting.channels) for _ in range(DRAWS)]

    def call(module: nn.Module, x: Tensor) -> list[Tensor]:
        result = module(x)
        if part == "network":
            return [result.logits]
        # The original returns the residual first.
        return sorted((out for out in result), key=lambda out: out.dim())

    def eager(x: Tensor) -> list[Tensor]:
        return call(modules[2] if x.dtype == torch.float64 else modules[1], x)

    outputs, gradients = ratio(lambda x: call(modules[0], x), eager, [[x] for x in inputs])
    assert outputs <= FACTOR, outputs
    assert gradients <= FACTOR, gradients
