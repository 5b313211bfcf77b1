"""Autocast, compile, export, determinism, second derivatives, backends, and the golden order of top-k."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import ifdd_kernels
from ifdd_kernels import backends
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels._schema import outputs_of
from ifdd_kernels.registry import REGISTRY, Entry, Maker, Sample
from ifdd_kernels.testing import precision_error_bound, relative_error, thread_count
from ops.cases import samples, with_gradients


def _first(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    return next(REGISTRY[name].samples(Maker(dtype))).args


# Both backends throughout: the reference is plain PyTorch, whose products autocast would lower on its own.
BACKENDS = pytest.mark.parametrize("backend", ["native", "reference"])


@BACKENDS
@pytest.mark.parametrize("name", [n for n, o in OPERATORS.items() if o.autocast])
def test_autocast_lowers_activations_and_keeps_parameters(name: str, backend: str) -> None:
    op = OPERATORS[name].overload(backend)
    cast = OPERATORS[name].autocast
    for sample in REGISTRY[name].samples(Maker(torch.float32)):
        args = sample.args
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = outputs_of(op(*args))[0]
        lowered = tuple(
            arg.bfloat16() if called in cast and arg is not None else arg
            for called, arg in zip(OPERATORS[name].signature.arguments, args, strict=True)
        )
        assert out.dtype == torch.bfloat16
        assert torch.equal(out, outputs_of(op(*lowered))[0])


@BACKENDS
@pytest.mark.parametrize("name", [n for n, o in OPERATORS.items() if o.backward])
def test_autocast_with_gradients_is_the_registered_op_with_gradients(name: str, backend: str) -> None:
    """With gradients the public functions enter autocast from Python; the dispatcher's way is the rule."""
    operator = OPERATORS[name]
    ways: tuple[Callable[..., Any], ...] = (operator.overload(backend), partial(operator, backend))
    found = []
    for way in ways:
        args = with_gradients(next(REGISTRY[name].samples(Maker(torch.float32))))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outs = [out for out in outputs_of(way(*args)) if out.requires_grad]
        inputs = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
        grads = torch.autograd.grad(outs, inputs, [out.detach() for out in outs])
        found.append((*outs, *grads))
    assert len(found[0]) == len(found[1])
    for wanted, got in zip(*found, strict=True):
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)


@BACKENDS
@pytest.mark.parametrize("name", [n for n, o in OPERATORS.items() if not o.autocast])
def test_autocast_leaves_the_index_chain_and_losses_alone(name: str, backend: str) -> None:
    """bfloat16 anywhere in the chain to the indexes would move samples by a part of a frame."""
    op = OPERATORS[name].overload(backend)
    args = _first(name)
    plain = outputs_of(op(*args))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = outputs_of(op(*args))
    for got, wanted in zip(cast, plain, strict=True):
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)


@BACKENDS
@pytest.mark.parametrize("name", [n for n, o in OPERATORS.items() if o.backward])
def test_backward_inside_autocast_is_the_same(name: str, backend: str) -> None:
    grads = []
    for enabled in (False, True):
        args = tuple(
            a.detach().clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a
            for a in _first(name)
        )
        out = outputs_of(OPERATORS[name].overload(backend)(*args))[0]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out.sum().backward()
        grads.append([a.grad for a in args if isinstance(a, Tensor) and a.grad is not None])
    assert grads[0]
    for got, wanted in zip(*grads, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("name", list(REGISTRY))
def test_compiles_without_graph_breaks(name: str) -> None:
    """The public function, keyword arguments and backend choice included, in one graph."""
    torch.compiler.reset()
    entry = REGISTRY[name]
    args = _first(name)

    def step(*tensors: Any) -> tuple[Tensor, ...]:
        return outputs_of(entry.public(*tensors))

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(compiled(*args), step(*args), strict=True):
        assert relative_error(got, wanted) <= 1e-6


@pytest.mark.parametrize("name", list(REGISTRY))
def test_exports(name: str) -> None:
    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
            it = iter(tensors)
            return outputs_of(REGISTRY[name].overload(*(next(it) if t else a for t, a in layout)))

    args = _first(name)
    layout = [(isinstance(arg, Tensor), arg) for arg in args]
    tensors = tuple(arg for arg in args if isinstance(arg, Tensor))
    program = torch.export.export(Module(), tensors)
    for got, wanted in zip(program.module()(*tensors), Module()(*tensors), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "name", ["frame_correlation", "frame_tokens", "max_pool_tokens", "split_frames", "split_index"]
)
def test_exports_with_any_batch(name: str, strict: bool) -> None:
    """Checks of sizes leave no guard behind that bounds the batch."""
    entry, args = REGISTRY[name], list(_first(name))
    if name == "split_frames":
        args[3:7] = [None] * 4
    batched = {"x", "z", "tokens", "static_index", "dynamic_index"}
    moving = [n in batched for n in entry.signature.arguments]
    assert any(moving)

    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
            it = iter(tensors)
            return outputs_of(
                entry.public(*(next(it) if m else a for m, a in zip(moving, args, strict=True)))
            )

    tensors = tuple(a for a, m in zip(args, moving, strict=True) if m)
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in tensors)
    program = torch.export.export(Module(), tensors, dynamic_shapes=(shapes,), strict=strict)
    more = tuple(torch.cat([t, t, t]) for t in tensors)
    for got, wanted in zip(program.module()(*more), Module()(*more), strict=True):
        assert torch.equal(got, wanted)


def test_explicit_native_backend_compiles() -> None:
    """The refusal logic of an explicit backend is folded by the compiler, not traced into a graph break."""
    if not backends.can_run("split_frames", "native"):
        pytest.skip("the native library is not built")
    x, static, dynamic = _first("split_frames")[:3]

    def step(x: Tensor) -> Tensor:
        return ifdd_kernels.split_frames(x, static, dynamic, backend="native")[0]

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), step(x))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", list(REGISTRY))
def test_public_function_is_the_op(name: str, backend: str) -> None:
    entry = REGISTRY[name]
    for sample in entry.samples(Maker(torch.float32)):
        got = outputs_of(entry.public(*sample.args, backend=backend))
        wanted = outputs_of(entry.overload(*sample.args))
        for one, other in zip(got, wanted, strict=False):
            assert one.shape == other.shape
            if not other.is_floating_point():
                assert torch.equal(one, other)
            elif other.numel():
                assert relative_error(one, other) <= precision_error_bound(other.dtype, entry.ulps)


@pytest.mark.parametrize(("entry", "sample"), samples(torch.float32, differentiable=True, native=True))
def test_threads_do_not_change_the_bits(entry: Entry, sample: Sample) -> None:
    """A native kernel gives the same bits for any number of threads, forward and backward."""
    results = []
    for threads in (1, 2, 3):
        with thread_count(threads):
            args = with_gradients(sample)
            outputs = outputs_of(entry.overload(*args))
            inputs = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
            loss = sum((o * o).sum() for o in outputs if o.requires_grad)
            results.append([*outputs, *torch.autograd.grad(loss, inputs)])  # type: ignore[arg-type]
    for other in results[1:]:
        for got, wanted in zip(other, results[0], strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("name", [n for n, o in OPERATORS.items() if o.backward])
def test_second_derivatives_are_refused(name: str) -> None:
    entry = REGISTRY[name]
    args = tuple(
        arg.detach().requires_grad_() if isinstance(arg, Tensor) and arg.is_floating_point() else arg
        for arg in _first(name)
    )
    loss = sum(o.square().sum() for o in outputs_of(entry.overload(*args)) if o.requires_grad)
    grad = torch.autograd.grad(loss, args[0], create_graph=True)[0]  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match=f"{name}_backward: second derivatives"):
        grad.sum().backward()


def _of_first_input(name: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The op's first output as a function of its first input alone, and three such inputs."""
    x, *rest = _first(name)
    return lambda x: outputs_of(OPERATORS[name]("native", x, *rest))[0], torch.stack([x, 1.5 * x, -x])


@pytest.mark.parametrize("name", list(OPERATORS))
def test_vmap_is_the_op_of_each_input(name: str) -> None:
    op, inputs = _of_first_input(name)
    wanted = torch.stack([op(x) for x in inputs])
    assert relative_error(torch.func.vmap(op)(inputs), wanted) <= 1e-6
    assert relative_error(torch.func.vmap(op, in_dims=1)(inputs.movedim(0, 1)), wanted) <= 1e-6


@pytest.mark.parametrize("name", [n for n, o in OPERATORS.items() if o.backward])
def test_functional_gradients_per_sample(name: str) -> None:
    op, inputs = _of_first_input(name)

    def loss(x: Tensor) -> Tensor:
        return op(x).square().sum()

    wanted = []
    for x in inputs:
        leaf = x.clone().requires_grad_()
        wanted.append(torch.autograd.grad(loss(leaf), leaf)[0])
    got = torch.func.vmap(torch.func.grad(loss))(inputs)
    assert relative_error(got, torch.stack(wanted)) <= 1e-6
    with pytest.raises(NotImplementedError, match=f"{name}_backward: second derivatives"):
        torch.func.grad(lambda x: torch.func.grad(loss)(x).sum())(inputs[0])


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("name", list(OPERATORS))
def test_forward_mode_is_refused(name: str, raw: bool) -> None:
    """PyTorch's dispatcher takes an op without a rule for tangents as constant: zeros without a word."""
    op, (x, *_) = _of_first_input(name)
    if raw:
        _, *rest = _first(name)

        def op(x: Tensor) -> Tensor:
            return outputs_of(getattr(torch.ops.ifdd, name)(x, *rest))[0]

    with pytest.raises(NotImplementedError, match=f"{name}: forward-mode derivatives"):
        torch.func.jvp(op, (x,), (x,))
    with forward_ad.dual_level():
        assert torch.equal(op(x), op(x))
        with pytest.raises(NotImplementedError, match=f"{name}: forward-mode derivatives"):
            op(forward_ad.make_dual(x, x))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("aligned", [False, True])
def test_a_position_of_nan_samples_nan_and_nothing_else_does(backend: str, aligned: bool) -> None:
    x, static, dynamic = _first("split_frames")[:3]
    broken = static.clone()
    broken[0, 1] = torch.nan
    got, other = ifdd_kernels.split_frames(x, broken, dynamic, aligned=aligned, backend=backend)
    wanted, _ = ifdd_kernels.split_frames(x, static, dynamic, aligned=aligned, backend=backend)
    assert got[0, 1].isnan().all()
    wanted[0, 1] = got[0, 1]
    assert torch.equal(got.nan_to_num(7.0), wanted.nan_to_num(7.0))
    assert other.isfinite().all()


def test_topk_ranks_ties_by_time() -> None:
    x = torch.ones(1, 6, 4, 3)
    index = ifdd_kernels.topk_split_index(x, (2, 2), 2)
    assert index.static_index.tolist() == [[0, 1, 2]]
    assert index.dynamic_index.tolist() == [[3, 4, 5]]
    index = ifdd_kernels.topk_split_index(x, (2, 2), 2, order_prior=True)
    assert index.static_index.tolist() == [[0, 2, 4]]


def test_tables_of_another_length_are_interpolated() -> None:
    query, key, value, *tables, q_grid, k_grid, _ = _first("pooled_attention")
    long = [
        torch.nn.functional.interpolate(t.T[None], size=t.shape[0] + 4, mode="linear")[0].T for t in tables
    ]
    back = [torch.nn.functional.interpolate(t.T[None], size=o.shape[0], mode="linear")[0].T
            for t, o in zip(long, tables, strict=True)]  # fmt: skip
    got = ifdd_kernels.pooled_attention(query, key, value, *long, q_grid, k_grid)
    wanted = ifdd_kernels.pooled_attention(query, key, value, *back, q_grid, k_grid)
    assert torch.allclose(got, wanted, atol=1e-6)
    assert not torch.allclose(got, ifdd_kernels.pooled_attention(query, key, value, *tables, q_grid, k_grid))


def test_backend_choice_explains_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # otherwise Triton runs on the CPU
    refused = backends.can_run("pool_tokens", "triton")
    assert not refused
    assert "Triton" in refused.reason
    with pytest.raises(RuntimeError, match="pool_tokens: backend 'triton' cannot run"):
        backends.can_run("pool_tokens", "triton", raise_error=True)
    with pytest.raises(RuntimeError, match="backend 'triton' cannot run"):
        ifdd_kernels.frame_correlation(torch.randn(1, 2, 3), 1.0, backend="triton")
    with pytest.raises(
        ValueError, match="unknown backend 'tritn'; known: auto, native, triton, sdpa, reference"
    ):
        ifdd_kernels.frame_correlation(torch.randn(1, 2, 3), 1.0, backend="tritn")
    with pytest.raises(ValueError, match="unknown op 'nothing'"):
        backends.can_run("nothing", "auto")
    assert backends.can_run("split_frames", "reference").ok
    assert "chooses" in backends.can_run("split_frames", "auto").reason


def test_vmap_under_autocast_keeps_gradients() -> None:
    """The dispatcher would run the op below the transform, and the gradient would be missing."""
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(3, 1, 4, 2, 8, generator=generator, requires_grad=True)
    weights = torch.randn(3, generator=generator)

    def total(x: Tensor) -> Tensor:
        return ifdd_kernels.lifting_attention(x, x, x).float().sum()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        (got,) = torch.autograd.grad((torch.func.vmap(total)(inputs) * weights).sum(), inputs)
        one_by_one = torch.stack([total(x) for x in inputs])
        (wanted,) = torch.autograd.grad((one_by_one * weights).sum(), inputs)
        own = torch.func.grad(total)(inputs[0].detach())
        (of_first,) = torch.autograd.grad(total(inputs[0]), inputs)
    assert wanted.abs().max() > 0.1
    assert torch.equal(got, wanted)
    assert torch.equal(own, of_first[0])
