"""`record` tells what ran, `use_backend` chooses it for everything, `can_run` foretells it."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import ifdd_kernels as K
from ifdd import IFDD, IFDDConfig
from ifdd_kernels import _library, _preferred, recording
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels._schema import outputs_of
from ifdd_kernels.backends import can_run
from ifdd_kernels.registry import REGISTRY, Maker
from ops.cases import with_gradients

native_only = pytest.mark.skipif(not _library.loaded(), reason="needs the native library")


@pytest.fixture(autouse=True)
def _switched_back() -> Iterator[None]:
    yield
    K.use_backend("auto")


def network() -> tuple[IFDD, Tensor]:
    fields: dict[str, Any] = {"backbone": "mvit_nano", "clip_frames": 8, "image_size": 32, "embed_dim": 8}
    return IFDD(IFDDConfig(**fields, drop_path=0.0, dropout=0.0)), torch.rand(1, 3, 8, 32, 32)


def heads() -> Tensor:
    return torch.randn(2, 5, 2, 4, requires_grad=True)


@native_only
@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_each_op_and_its_backward(name: str) -> None:
    entry = REGISTRY[name]
    sample = next(iter(entry.samples(Maker(torch.float32))))
    learned = name != "augment_clips"  # refuses what requires a gradient
    args = [
        arg.requires_grad_(learned) if isinstance(arg, Tensor) and arg.is_floating_point() else arg
        for arg in sample.args
    ]
    parts = [name] if entry.operator is not None else ["linear", "lifting_attention"]
    tensors = tuple(tuple(arg.shape) for arg in args if isinstance(arg, Tensor))
    # The overload itself runs the native kernel where there is one.
    ways_of = {"reference": 2} if name == "add_layer_norm" else {"native": 2, "reference": 1}
    for backend, ways in ways_of.items():
        for direct in range(ways):
            with K.record() as calls:
                out = entry.overload(*args) if direct else entry.public(*args, backend=backend)
                results = [out] if isinstance(out, Tensor) else entry.differentiable(out)
                sum(part.sum() for part in results if part.requires_grad).backward() if (
                    results and results[0].requires_grad
                ) else None
            forward = [call for call in calls if not call.backward]
            assert {call.op for call in forward} == set(parts)
            found = {call.backend for call in forward if call.op == parts[-1]}
            assert found == {backend}
            if entry.operator is not None:
                assert [call.shapes for call in forward] == [tensors]
                assert set(forward[0].dtypes) <= {
                    torch.float32,
                    torch.float64,
                    torch.int64,
                    torch.uint8,
                    torch.bool,
                }
                differentiable = entry.operator.backward is not None and results[0].requires_grad
                assert [call.op for call in calls if call.backward] == [name] * differentiable
                assert all(call.backend == backend for call in calls)


def test_the_table() -> None:
    x = heads()
    with K.record() as calls:
        assert str(calls) == "no op ran"
        for _ in range(2):
            K.lifting_attention(x, x, x, backend="reference")
        K.linear(torch.randn(3, 4), torch.randn(2, 4))
    lines = str(calls).splitlines()
    assert lines[0].split() == ["calls", "op", "backend", "device", "dtypes", "shapes"]
    assert lines[1].split(maxsplit=5)[:5] == ["2", "lifting_attention", "reference", "cpu", "float32"]
    assert lines[1].endswith("(2, 5, 2, 4) (2, 5, 2, 4) (2, 5, 2, 4)")
    assert lines[2].split(maxsplit=5) == ["1", "linear", "F.linear", "cpu", "float32", "(3, 4) (2, 4)"]
    assert len(calls) == 3
    assert calls[-1].op == "linear"
    before = len(calls)
    K.lifting_attention(x, x, x)
    assert len(calls) == before
    assert recording.active == 0


def test_recordings_inside_of_each_other_and_errors() -> None:
    x = heads()
    with K.record() as outer:
        with pytest.raises(ValueError, match="lifting_attention"), K.record() as inner:  # noqa: PT012
            K.lifting_attention(x, x, x)
            K.lifting_attention(x, x[:1], x)
        K.linear(torch.randn(3, 4), torch.randn(2, 4))
    assert [call.op for call in inner][:1] == ["lifting_attention"]
    assert outer[-1].op == "linear"
    assert len(outer) == len(inner) + 1


def test_recordings_belong_to_their_threads() -> None:
    found: dict[int, list[int]] = {}
    barrier = threading.Barrier(3)

    def work(count: int) -> None:
        x = torch.randn(1, count, 1, 4)
        barrier.wait()
        with K.record() as calls:
            for _ in range(20 * count):
                K.lifting_attention(x, x, x)
                K.linear(x, torch.randn(2, 4))
        found[count] = [call.shapes[0][1] for call in calls]

    threads = [threading.Thread(target=work, args=(count,)) for count in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {count: [count] * 40 * count for count in (1, 2, 3)}


@native_only
@pytest.mark.filterwarnings("ignore")
def test_loaded_programs_are_seen() -> None:
    x = torch.randn(2, 5, 2, 4)
    traced = torch.jit.trace(lambda x: K.lifting_attention(x, x, x), (x,))
    stored = io.BytesIO()
    torch.jit.save(traced, stored)
    stored.seek(0)
    loaded = torch.jit.load(stored)
    with K.record() as calls:
        loaded(x)
    assert [(call.op, call.backend) for call in calls] == [("lifting_attention", "native")]


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_one_switch_for_a_network(backend: str) -> None:
    if backend == "native" and not _library.loaded():
        pytest.skip("needs the native library")
    model, x = network()
    wanted = model(x).logits.detach()
    with K.use_backend(backend), K.record() as calls:
        out = model(x)
        (out.logits.sum() + out.lifting_residual.sum()).backward()
    assert {call.backend for call in calls} == {backend}
    assert {call.op for call in calls} >= {"pool_tokens", "pooled_attention", "linear", "gelu_linear"}
    assert any(call.backward for call in calls)
    torch.testing.assert_close(out.logits.detach(), wanted, rtol=1e-4, atol=1e-5)


def test_where_the_switch_ends() -> None:
    x = heads()

    def ran(**named: Any) -> str:
        with K.record() as calls:
            K.lifting_attention(x, x, x, **named)
        return calls[0].backend

    plain = ran()
    assert plain == ("native" if _library.loaded() else "reference")
    with K.use_backend("reference"):
        assert ran() == "reference"
        if _library.loaded():
            assert ran(backend="native") == "native"
            with K.use_backend("native"):
                assert ran() == "native"
        with K.use_backend("auto"):
            assert ran() == plain
        assert ran() == "reference"
        out = K.lifting_attention(x, x, x)
    with K.record() as calls:
        out.sum().backward()
    assert [(call.op, call.backend, call.backward) for call in calls] == [
        ("lifting_attention", "reference", True)
    ]
    assert ran() == plain
    K.use_backend("reference")
    assert ran() == "reference"
    with pytest.raises(ValueError, match="use_backend: unknown backend 'fast'; known: auto, native"):
        K.use_backend("fast")
    assert ran() == "reference"
    with pytest.raises(ZeroDivisionError), K.use_backend("auto"):
        _ = 1 / 0
    assert ran() == "reference"


@pytest.mark.parametrize(("tables", "residual"), [(False, True), (False, False), (True, False)])
def test_variants_of_attention_are_seen_and_switched(tables: bool, residual: bool) -> None:
    """Without tables or without the query it is PyTorch's attention, or the definition."""
    x = torch.randn(1, 9, 2, 4)
    table = torch.randn(3, 4) if tables else None

    def ran(**named: Any) -> str:
        with K.record() as calls:
            K.pooled_attention(x, x, x, table, table, table, (2, 2, 2), (2, 2, 2), residual=residual, **named)
        (call,) = calls
        assert (call.op, call.shapes[:3]) == ("pooled_attention", ((1, 9, 2, 4),) * 3)
        assert len(call.shapes) == (6 if tables else 3)
        return call.backend

    assert ran() == "sdpa"
    assert ran(backend="reference") == "reference"
    with K.use_backend("reference"):
        assert ran() == "reference"
        assert ran(backend="sdpa") == "sdpa"


def test_ops_that_a_backend_was_never_written_for() -> None:
    x, w, b = torch.randn(2, 9, 4), torch.randn(3, 4), torch.randn(3)
    with K.use_backend("sdpa"), K.record() as calls:
        K.linear(x, w, b)
        K.gelu_linear(x, w, b)
        q = torch.randn(1, 9, 1, 4)
        K.pooled_attention(q, q, q, *[torch.randn(3, 4)] * 3, (2, 2, 2), (2, 2, 2))
    auto = "native" if _library.loaded() else "reference"
    assert [call.backend for call in calls] == ["F.linear", auto, "sdpa"]


def test_a_backend_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """And products, which have no Triton kernel by design, stay with PyTorch."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    x = heads()
    with K.use_backend("triton"):
        K.linear(torch.randn(3, 4), torch.randn(2, 4))
        with pytest.raises(RuntimeError, match="lifting_attention: backend 'triton' cannot run"):
            K.lifting_attention(x, x.double(), x.double())


def test_can_run_knows_the_switch() -> None:
    x = heads()
    arguments = {"lifting_attention": (x, x, x), "linear": (x, torch.randn(3, 4), None)}
    for op, args in arguments.items():
        with K.use_backend("reference"):
            assert can_run(op, "auto", *args).reason.startswith("chooses reference, as use_backend says")
        assert "use_backend" not in can_run(op, "auto", *args).reason
    with K.use_backend("reference"):
        assert "reference" in can_run("lifting_update", "auto").reason


def test_the_switch_under_a_compiler() -> None:
    """Programs are compiled for the backend that is chosen when they run."""
    x = torch.randn(2, 5, 2, 4)
    targets: list[str] = []

    def note(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        targets.extend(str(node.target) for node in graph.graph.nodes if "ifdd" in str(node.target))
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(lambda x: K.lifting_attention(x, x, x), backend=note, fullgraph=True)
    compiled(x)
    with K.use_backend("reference"):
        compiled(x)
    compiled(x)
    assert targets == ["ifdd.lifting_attention.default", "ifdd.lifting_attention_reference.default"]


def test_blocks_of_use_backend_end_in_any_order() -> None:
    """Entered twice, made early, and interleaved as threads do it."""
    once = K.use_backend("reference")
    with once:
        with once:
            assert _preferred.chosen == "reference"
        assert _preferred.chosen == "reference"
    assert _preferred.chosen == "auto"
    early = K.use_backend("native")
    with K.use_backend("sdpa"):
        with early:
            assert _preferred.chosen == "native"
        assert _preferred.chosen == "sdpa"
    assert _preferred.chosen == "auto"
    first, second = K.use_backend("sdpa"), K.use_backend("reference")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert _preferred.chosen == "reference"
    second.__exit__(None, None, None)
    assert _preferred.chosen == "auto"
    for _ in range(10):
        K.use_backend("native")
        K.use_backend("auto")
    assert len(_preferred._switches) <= 2


@native_only
def test_profilers_see_ops_by_name() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for name, operator in OPERATORS.items():
            args = with_gradients(next(REGISTRY[name].samples(Maker(torch.float32))))
            results = [part for part in outputs_of(operator("native", *args)) if part.requires_grad]
            if results:
                torch.autograd.backward(results, [part.detach() for part in results])
    seen = {event.name for event in profiler.events()}
    wanted = {f"ifdd::{name}" for name in OPERATORS}
    wanted |= {f"ifdd::{name}_backward" for name, operator in OPERATORS.items() if operator.backward}
    assert wanted <= seen
