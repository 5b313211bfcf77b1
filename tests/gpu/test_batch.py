"""Clips do not see each other: the last of a large batch gets what it gets alone, bit for bit.

With a batch whose tensors have more than 2^31 elements that is a test of every 64-bit offset, and needs no
reference. What is compared: results and gradients that have an axis of clips. Gradients of parameters are
sums over the batch: the tests against float64 have those.

Three things keep a backend from giving the same bits, and are compared by size instead:

- a product of PyTorch's library, whose algorithm follows the number of rows (:data:`LIBRARY_PRODUCTS`);
- a product in Triton's interpreter: it is NumPy's, whose algorithm follows the size of the tile;
- a sum that a GPU's kernel cuts into parts, or a tile that it makes, by the number of clips
  (:data:`CUT_BY_BATCH`). Here the first clip of the batch, which is a copy of the last, must still get the
  same bits as that.

Triton's kernels run in their default configuration, whatever was measured before on this machine: what a
stopwatch prefers for few clips may be another one than for many.
"""

from __future__ import annotations

import fcntl
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.network_calls import Instance, instances
from ifdd_kernels._schema import outputs_of
from ifdd_kernels.registry import REGISTRY, Entry
from ifdd_kernels.testing import (
    GRADIENT_FACTOR,
    full_float32,
    poisoned_memory,
    precision_error_bound,
    relative_error,
)
from ops.backend_checks import has_gradients
from ops.devices import NETWORKS, affordable, call_of, devices, parameter

#: PyTorch's matrix products: no offsets of ours, and no promise of bits.
LIBRARY_PRODUCTS = {"linear", "gelu_linear"}
#: Results, and arguments by their gradients, that a GPU computes in another order for few clips:
#:
#: - Triton's gradients of keys and values are sums over queries in chunks, of which few clips get more
#:   (``_query_chunk`` in ifdd_kernels/triton/_attention.py);
#: - products with Triton's tables of positions, which all of pooled_attention starts from, are computed in
#:   tiles of as many rows as there are (``_rows`` in ifdd_kernels/triton/pooled_attention.py);
#: - native gradients of indices are sums over tokens in chunks, of which few clips get more
#:   (``kBackwardBlocks`` in csrc/cuda/split_frames.cu). Where the indices come from the clip itself, its own
#:   gradient is made of them.
CUT_BY_BATCH = {
    ("pooled_attention", "triton"): ("result 0", "result 1", "query", "key", "value"),
    ("lifting_attention", "triton"): ("key", "value"),
    ("split_frames", "native"): ("static_index", "dynamic_index"),
    ("static_dynamic_split", "native"): ("x",),
}
#: The least, and the elements that the largest tensor must have more of where memory allows.
CLIPS, ELEMENTS = 256, 2**31
#: Bytes that a call and its gradients take for each element of the largest argument; beyond half of a large
#: GPU's memory the batch is smaller.
BYTES_PER_ELEMENT, MOST_BYTES = 24, 64 * 2**30
#: Seconds that a test waits for its turn with the memory.
PATIENCE = 200
TESTS = Path(__file__).parents[1]
#: On the CPU the same with a few clips.
FEW = 3


def clips_of(call: Instance, device: str) -> int:
    """Clips of the batch."""
    if device == "cpu":
        return FEW
    if call.largest * CLIPS * 4 <= ELEMENTS:  # nothing there comes near 2^31, not even bytes of float32
        return CLIPS
    wanted = max(CLIPS, ELEMENTS // call.largest + 2)
    return min(wanted, MOST_BYTES // (BYTES_PER_ELEMENT * call.largest))


def selection(device: str, extreme: Callable[..., Instance] = max) -> Iterator[Instance]:
    """The largest (smallest) call of each op, and of those that pack q, k and v in one tensor."""
    kinds: dict[Any, list[Instance]] = {}
    for call in instances(NETWORKS[device]):
        packed = call.op == "pool_tokens" and call.args[1] is None
        kinds.setdefault((call.op, packed), []).append(call)
    for calls in kinds.values():
        yield extreme(calls, key=lambda call: call.largest)


def _cases(device: str) -> Iterator[Any]:
    for backend in ("native", "triton", "reference"):
        interpreted = device == "cpu" and backend == "triton"
        for call in selection(device, min if interpreted else max):
            # Of the reference only what stands for a kernel on a GPU: PyTorch's own are PyTorch's matter.
            if backend == "reference" and call.op not in {"max_pool_tokens", *LIBRARY_PRODUCTS}:
                continue
            clips = clips_of(call, device)
            if affordable(call.op, backend, device):
                name = f"{call.op}-{backend}-{call.label}-B={clips}"
                yield parameter(device, call, backend, clips, name=name)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The CPU's tests, and the GPU's where they are wanted."""
    if "call" in metafunc.fixturenames:
        found = [one for device in devices(metafunc.config) for one in _cases(device)]
        metafunc.parametrize(("device", "call", "backend", "clips"), found)


@pytest.fixture
def memory(
    device: str, call: Instance, clips: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """One process at a time has the memory of large batches."""
    needed = BYTES_PER_ELEMENT * call.largest * clips
    if device == "cpu" or needed < 2**31:
        yield
        return
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if shared.name.startswith("popen-") else shared
    with (shared / "memory.lock").open("w") as file:
        _lock(file)
        torch.cuda.empty_cache()
        _require(needed, *torch.cuda.mem_get_info())
        yield
        _forget_failure()
        torch.cuda.empty_cache()


def _require(needed: int, free: int, total: int) -> None:
    """A device that is too small skips a test; one that is full of something else must not."""
    if free >= needed:
        return
    gib = [f"{size / 2**30:.0f}" for size in (needed, free, total)]
    text = f"needs about {gib[0]} GiB of GPU memory, {gib[1]} of {gib[2]} are free"
    if total < needed:
        pytest.skip(text)
    pytest.fail(text)


def _forget_failure() -> None:
    """Frees the tensors of a test that has failed: pytest keeps its frames until the next one runs."""
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        if hasattr(sys, name):
            setattr(sys, name, None)
    gc.collect()


def _lock(file: IO[str]) -> None:
    """Waits for the other processes; released when the file is closed."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            assert time.monotonic() < until, f"another process kept the GPU's memory for {PATIENCE} seconds"
            time.sleep(0.05)


def _batch(call: Instance, clips: int, device: str) -> tuple[Any, ...]:
    """Random clips, of which the first and the last are alike."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    args = call.sample(clips, dtype, device, seed=3).args
    for layout, arg in zip(call.args, args, strict=True):
        if isinstance(arg, Tensor) and layout.per_clip:
            arg[0].copy_(arg[-1])
    return args


def _alone(call: Instance, args: tuple[Any, ...], device: str) -> tuple[Any, ...]:
    """The last clip as a batch of its own, with the batch's strides."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    alone = call.empty(1, dtype, device)
    for layout, mine, arg in zip(call.args, alone, args, strict=True):
        if isinstance(mine, Tensor):
            mine.copy_(arg[-1:] if layout.per_clip else arg)
    return alone


def _run(
    entry: Entry, run: Any, call: Instance, args: tuple[Any, ...]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Results and gradients with an axis of clips, by name."""
    args = tuple(
        arg.detach().requires_grad_() if isinstance(arg, Tensor) and arg.is_floating_point() else arg
        for arg in args
    )
    count = next(a.shape[0] for layout, a in zip(call.args, args, strict=True) if _per_clip(layout))
    result = run(*args)
    outputs = {
        f"result {place}": out.detach()
        for place, out in enumerate(outputs_of(result))
        if out.dim() and out.shape[0] == count
    }
    if not has_gradients(entry):
        return outputs, {}
    differentiable = entry.differentiable(result)
    cotangents = [_cotangent(out, count) for out in differentiable]
    names = [argument.name for argument in entry.overload._schema.arguments]
    wanted = {
        name: arg
        for name, layout, arg in zip(names, call.args, args, strict=True)
        if _per_clip(layout) and arg.requires_grad
    }
    grads = torch.autograd.grad(differentiable, list(wanted.values()), cotangents)
    return outputs, dict(zip(wanted, grads, strict=True))


def _per_clip(layout: Any) -> bool:
    return bool(getattr(layout, "per_clip", False))


def _cotangent(out: Tensor, clips: int) -> Tensor:
    """The same random numbers for every clip: it does not matter how many there are."""
    generator = torch.Generator(out.device).manual_seed(7)
    per_clip = bool(out.dim()) and out.shape[0] == clips
    one = torch.empty((1, *out.shape[1:]) if per_clip else out.shape, dtype=out.dtype, device=out.device)
    return one.normal_(generator=generator).expand(out.shape).contiguous()


def _same(got: Tensor, wanted: Tensor, what: str) -> None:
    if not torch.equal(got, wanted):
        different = int((got != wanted).sum())
        raise AssertionError(f"{what}: {different} of {got.numel()} values differ")


def exact(op: str, backend: str, device: str) -> bool:
    """Whether equal clips of one call get equal bits."""
    return op not in LIBRARY_PRODUCTS and (device, backend) != ("cpu", "triton")


def same_alone(op: str, backend: str, device: str, name: str) -> bool:
    """Whether a clip gets the same bits, in a result or a gradient, however many others there are."""
    cut = CUT_BY_BATCH.get((op, backend), ()) if device == "cuda" else ()
    return exact(op, backend, device) and name not in cut


@pytest.mark.timeout(25, func_only=True)  # without the wait for its turn
def test_the_last_clip_of_a_batch_is_that_clip_alone(
    device: str, call: Instance, backend: str, clips: int, memory: None
) -> None:
    entry = REGISTRY[call.op]
    args = _batch(call, clips, device)
    dtype = args[0].dtype
    run = call_of(entry, backend, device, dtype)
    with full_float32(), poisoned_memory():
        together = _run(entry, run, call, args)
        alone = _run(entry, run, call, _alone(call, args, device))
    for kind, (found, single) in enumerate(zip(together, alone, strict=True)):
        assert found.keys() == single.keys()
        for name, value in found.items():
            what = f"{call.name}, {'gradient of ' if kind else ''}{name}, clip {clips - 1}"
            assert not value[-1].isnan().any(), f"{what}: NaN"
            if not same_alone(call.op, backend, device, name):
                factor = GRADIENT_FACTOR * entry.ulps
                error = relative_error(value[-1:], single[name])
                bound = precision_error_bound(value.dtype, factor)
                assert error <= bound, f"{what}: relative error {error:.2e}, allowed {bound:.2e}"
            else:
                _same(value[-1:], single[name], f"{what} and that clip alone")
            if exact(call.op, backend, device):
                _same(value[-1], value[0], f"{what} and its copy, clip 0")


def test_only_what_is_cut_by_the_batch_is_compared_by_size() -> None:
    """Each exception is of something that is there; a CPU makes none of them."""
    calls = {call.op: call for call in selection("cpu", min)}
    for (op, backend), names in CUT_BY_BATCH.items():
        entry, call = REGISTRY[op], calls[op]
        args = _batch(call, 1, "cpu")
        results, grads = _run(entry, call_of(entry, "reference", "cpu", args[0].dtype), call, args)
        assert set(names) <= {*results, *grads}, op
        for name in (*results, *grads):
            assert same_alone(op, backend, "cuda", name) == (name not in names)
            assert same_alone(op, "native", "cpu", name)


def test_the_batch_decides_how_triton_cuts_sums() -> None:
    """As the table says; where that ends, so should the exception."""
    attention = pytest.importorskip("ifdd_kernels.triton._attention", reason="Triton is not installed")
    pooled = pytest.importorskip("ifdd_kernels.triton.pooled_attention", reason="Triton is not installed")
    (call,) = (call for call in selection("cuda") if call.op == "pooled_attention")
    rows, chunks = [], []
    for clips in (1, CLIPS):
        query, key, *_, q_grid, _, _ = call.empty(clips, torch.bfloat16, "meta")
        rows.append(pooled._rows(query, q_grid))
        chunks.append(attention._query_chunk(clips * query.shape[2], query.shape[1], key.shape[1]))
    assert rows[0] < rows[1]
    assert chunks[0] < chunks[1]


FAILS = """
import gc, weakref, pytest
from gpu import test_batch
kept = []
class Large: pass
@pytest.fixture
def memory():
    yield
    gc.collect()
    assert kept[0]() is not None, "pytest does not keep what failed any more"
    test_batch._forget_failure()
    print("still there:", kept[0]() is not None)
def test_it(memory):
    large = Large()
    large.itself = large
    kept.append(weakref.ref(large))
    assert large is None
"""


def test_a_failure_does_not_keep_its_memory(tmp_path: Path) -> None:
    """Else the next process that wants it finds none."""
    (tmp_path / "test_it.py").write_text(FAILS)
    words = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", "/dev/null", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        capture_output=True,
        text=True,
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(TESTS)])},
    )
    assert "still there: False" in done.stdout, done.stdout + done.stderr
    assert "1 failed" in done.stdout


@pytest.mark.parametrize(
    ("free", "total", "outcome"),
    [(5, 9, None), (4, 9, pytest.fail.Exception), (4, 4, pytest.skip.Exception)],
)
def test_a_device_that_is_full_is_no_device_that_is_small(
    free: int, total: int, outcome: type[BaseException] | None
) -> None:
    if outcome is None:
        _require(5 * 2**30, free * 2**30, total * 2**30)
        return
    either = (pytest.skip.Exception, pytest.fail.Exception)
    with pytest.raises(either, match=f"about 5 GiB of GPU memory, {free} of {total} are free") as found:
        _require(5 * 2**30, free * 2**30, total * 2**30)
    assert found.type is outcome


def test_large_batches_are_large_where_offsets_could_be_short() -> None:
    """On a GPU some call of each op with large tensors has more than 2^31 elements in one of them."""
    sizes = {call.op: call.largest * clips_of(call, "cuda") for call in instances(NETWORKS["cuda"])}
    large = {call.op for call in instances(NETWORKS["cuda"]) if call.largest * CLIPS * 4 > ELEMENTS}
    assert large >= {"pool_tokens", "pooled_attention", "max_pool_tokens"}
    beyond = {call.op for call in selection("cuda") if call.largest * clips_of(call, "cuda") > ELEMENTS}
    assert beyond >= large, sizes
