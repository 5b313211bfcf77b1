"""The host emulator of CUDA kernels: what it computes, and that it catches what is broken on purpose."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emulator import build
from emulator.build import HERE, Library, Plant, compile_source, load, sanitizer_environment
from emulator.compare import SEEDS
from ops.cases import nightly

pytestmark = pytest.mark.skipif(build.compiler is None, reason="the emulator needs a C++ compiler")

SCHEMAS = {
    "transpose": "(Tensor x) -> Tensor",
    "mirror": "(Tensor x) -> Tensor",
    "meet": "(Tensor x, int mode) -> Tensor",
    "row_sum": "(Tensor x) -> Tensor",
    "exchange": "(Tensor x) -> Tensor",
    "pipeline": "(Tensor x) -> Tensor",
    "matmul": "(Tensor a, Tensor b) -> Tensor",
    "matrices": "(Tensor x, bool transposed) -> Tensor",
    "last_block": "(Tensor x, Tensor(a!) arrived) -> Tensor",
    "memory": "(Tensor x, int mode, int shared_bytes) -> Tensor",
}


def features(*plants: Plant) -> tuple[Library, Any]:
    """The kernels of features.cu, changed by plants."""
    library = compile_source(HERE / "kernels" / "features.cu", plants)
    return library, load(library, SCHEMAS)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=SEEDS)
def ops(request: pytest.FixtureRequest) -> Any:
    """The sound kernels, under each schedule."""
    library, ops = features()
    library.configure(request.param)
    return ops


def pipeline_exact(x: Tensor) -> Tensor:
    return x.view(-1, 128).sum(0)


def mirrored(x: Tensor) -> Tensor:
    return x.view(-1, 32).flip(1).flatten()


@pytest.mark.parametrize("shape", [(1, 1), (32, 32), (33, 70), (100, 5)], ids=str)
def test_block_barrier(ops: Any, shape: tuple[int, int]) -> None:
    x = numbers(*shape)
    assert torch.equal(ops.transpose(x), x.T)


def test_warp_barrier_and_dynamic_shared_memory(ops: Any) -> None:
    x = numbers(384)
    assert torch.equal(ops.mirror(x), mirrored(x))


@pytest.mark.parametrize("columns", [1, 5, 16, 31, 32])
def test_shuffle_with_a_mask(ops: Any, columns: int) -> None:
    x = numbers(3, columns)
    expected = torch.stack([x[:, i] for i in range(columns)], 1).double().sum(1, keepdim=True)
    torch.testing.assert_close(ops.row_sum(x).double(), expected.expand(3, columns), rtol=1e-5, atol=1e-5)


def test_exchanges(ops: Any) -> None:
    x = numbers(32)
    lane = torch.arange(32)
    result = ops.exchange(x)
    assert torch.equal(result[0], x[torch.where(lane >= 3, lane - 3, lane)])
    assert torch.equal(result[1], x[torch.where(lane < 29, lane + 3, lane)])
    assert torch.equal(result[2], x[lane ^ 5])
    assert torch.equal(result[3], x[lane // 8 * 8 + 2])
    assert torch.equal(result[4], (x > 0).sum().float().expand(32))
    assert torch.equal(result[5], torch.full((32,), 2.0))
    torch.testing.assert_close(result[6], x.view(4, 8).sum(1).repeat_interleave(8))
    assert torch.equal(result[7], x.max().expand(32))


def test_asynchronous_copies(ops: Any) -> None:
    x = numbers(5 * 128)
    torch.testing.assert_close(ops.pipeline(x), pipeline_exact(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_tensor_cores(ops: Any, dtype: torch.dtype) -> None:
    a, b = numbers(32, 48).to(dtype), numbers(48, 24, seed=1).to(dtype)
    if dtype == torch.float32:  # to the 11 significant bits of TF32, so that its products are exact
        a, b = (t.half().float() for t in (a, b))
    result = ops.matmul(a, b)
    expected = a.double() @ b.double()
    # 48 exact products in 6 or 12 steps, which cut 9 or 5 addends and a sum off.
    steps, addends = (6, 9) if dtype != torch.float32 else (12, 5)
    bound = steps * (addends * 2**-24 + 2**-23) * (a.abs().double() @ b.abs().double())
    assert bool(((result - expected).abs() <= bound).all())


def matmul_of(ops: Any, a: Sequence[float], b: Sequence[float], dtype: torch.dtype) -> float:
    """a . b on the tensor cores."""
    row, column = torch.zeros(16, 16 * (len(a) // 16 + 1)), torch.zeros(16 * (len(a) // 16 + 1), 8)
    row[3, : len(a)], column[: len(b), 5] = torch.tensor(a), torch.tensor(b)
    return float(ops.matmul(row.to(dtype), column.to(dtype))[3, 5])


@pytest.mark.parametrize(("dtype", "together"), [(torch.bfloat16, 8), (torch.float16, 8), (torch.float32, 4)])
def test_tensor_cores_cut_off(ops: Any, dtype: torch.dtype, together: int) -> None:
    """As published of Ampere: addends one binary place below a float of the largest, sums as a float."""

    def dot(*factors: tuple[float, float]) -> float:
        return matmul_of(ops, [x for x, _ in factors], [y for _, y in factors], dtype)

    one, place, below = (1.0, 1.0), (2.0**-12, 2.0**-12), (2.0**-12, 2.0**-13)
    negative = [(-x, y) for x, y in (one, place, below)]
    # 2^-24 is an addend's last place, of which a float keeps nothing; two of them are its last.
    assert dot(one, place) == 1.0
    assert dot(one, place, place) == 1.0 + 2.0**-23
    assert dot(one, below, below, below, below) == 1.0  # each is cut off, not their sum
    assert dot(*negative) == -1.0  # toward zero
    assert dot(one, (-(2.0**-12), 2.0**-13)) == 1.0  # an addend of the other sign too
    assert dot(one, (-(2.0**-12), 2.0**-12)) == 1.0 - 2.0**-24
    # Small numbers before the large one are a step of their own, and add up.
    apart = [below] * together
    assert dot(*apart, one) == 1.0 + together * 2.0**-25
    assert dot(*apart[1:], one) == 1.0


def test_tensor_cores_pass_on_what_is_not_finite(ops: Any) -> None:
    infinity = float("inf")
    assert matmul_of(ops, [1.0, infinity], [1.0, 1.0], torch.float16) == infinity
    assert math.isnan(matmul_of(ops, [infinity, -infinity], [1.0, 1.0], torch.float16))
    assert matmul_of(ops, [3e38, 3e38], [1.0, 1.0], torch.float32) == infinity
    assert matmul_of(ops, [0.0], [1.0], torch.bfloat16) == 0.0
    assert matmul_of(ops, [2.0**-100, 2.0**-100], [1.0, 1.0], torch.bfloat16) == 2.0**-99


def test_tf32_drops_what_the_tensor_cores_drop(ops: Any) -> None:
    a, b = torch.full((16, 8), 1 + 2**-12 + 2**-11), torch.eye(8)
    # 1 + 3 * 2^-12 rounds to the nearest multiple of 2^-10, which is 1 + 2^-10.
    assert torch.equal(ops.matmul(a, b), torch.full((16, 8), 1 + 2**-10))


@pytest.mark.parametrize("transposed", [False, True])
def test_matrix_loads(ops: Any, transposed: bool) -> None:
    x = torch.randint(0, 2**15, (4, 8, 8), generator=torch.Generator().manual_seed(2)).to(torch.int16)
    expected = x.transpose(1, 2) if transposed else x
    assert torch.equal(ops.matrices(x, transposed), expected)


def test_atomics_and_blocks(ops: Any) -> None:
    x = numbers(7 * 32)
    total = ops.last_block(x, torch.zeros(1, dtype=torch.int32))
    torch.testing.assert_close(total[0].double(), x.double().sum(), rtol=1e-5, atol=1e-5)


def test_barriers_of_some_threads(ops: Any) -> None:
    x = numbers(1)
    assert torch.equal(ops.meet(x, 0), torch.ones(64))
    assert torch.equal(
        ops.meet(x, 3), torch.cat([torch.ones(32), torch.zeros(32)])
    )  # ended ones do not count
    assert torch.equal(ops.meet(x, 4), torch.full((64,), 22.0))
    with pytest.raises(
        RuntimeError, match=r"__syncthreads \(tests/emulator/kernels/features.cu:\d+\): .* different"
    ):
        ops.meet(x, 1)
    with pytest.raises(
        RuntimeError, match=r"threads 0-39 wait at __syncthreads .* threads 40-40 wait at __syncwarp"
    ):
        ops.meet(x, 2)
    assert torch.equal(ops.meet(x, 0), torch.ones(64))  # an error leaves nothing behind


def test_unwritten_shared_memory_is_nan(ops: Any) -> None:
    assert bool(ops.memory(numbers(32), 0, 128).isnan().all())


def test_misaligned_access_is_refused(ops: Any) -> None:
    with pytest.raises(RuntimeError, match=r"read_word .*vector.h:.* not a multiple of 16"):
        ops.memory(numbers(32), 1, 128)


def test_shared_memory_is_limited() -> None:
    library, ops = features()
    library.configure(0, shared_bytes=1024)
    ops.memory(numbers(32), 0, 1024)
    with pytest.raises(RuntimeError, match="1028 bytes of dynamic shared memory, the device has 1024"):
        ops.memory(numbers(32), 0, 1028)


def test_more_than_48_kb_of_shared_memory_must_be_allowed() -> None:
    """As run() does; a launch without it fails, and so does one above what an earlier call allowed."""
    x, (most, more, device) = numbers(32), (48 * 1024, 48 * 1024 + 4, 60 * 1024)
    library, ops = features()
    library.configure(0)
    ops.memory(x, 0, most)
    ops.memory(x, 0, device)
    library, ops = features(
        in_run(Plant("shared_bytes > kWithoutAsking", "shared_bytes > kWithoutAsking + 12 * 1024"))
    )
    library.configure(0)
    ops.memory(x, 0, most)
    with pytest.raises(RuntimeError, match=r"49156 bytes .* limit is 49152: it must be raised before"):
        ops.memory(x, 0, more)
    ops.memory(x, 0, device + 4)
    ops.memory(x, 0, device)  # the limit stays
    library, ops = features(
        in_run(Plant("allow_shared_bytes(kernel, shared_bytes)", f"allow_shared_bytes(kernel, {more})"))
    )
    library.configure(0)
    ops.memory(x, 0, more)
    with pytest.raises(RuntimeError, match=r"61440 bytes .* limit is 49156"):
        ops.memory(x, 0, device)
    library.configure(0, shared_bytes=most)
    with pytest.raises(RuntimeError, match="49156 bytes of dynamic shared memory, the device has 49152"):
        ops.memory(x, 0, more)


def test_static_shared_memory_counts_toward_the_48_kb() -> None:
    """Dynamic memory of 48 KB needs no leave; with a kernel's static memory beside it it does."""
    both = Plant("cell[i + 1] = 0;", "static_shared<Tile>().cell[0][0] = 0;")
    library, ops = features(both)
    library.configure(0)
    ops.memory(numbers(32), 3, 32 * 1024)
    with pytest.raises(RuntimeError, match="more than 48 KB of static and dynamic shared memory"):
        ops.memory(numbers(32), 3, 48 * 1024)
    ops.memory(numbers(32), 3, 48 * 1024 + 4)


def test_a_global_store_to_shared_memory_is_refused() -> None:
    """Written out for global memory, which on a GPU would go elsewhere."""
    library, ops = features(
        Plant("store<4>(y + 4 * other, sum);", "store<4>(x != y ? &stages.cell[0][0] : y, sum);")
    )
    library.configure(0)
    with pytest.raises(RuntimeError, match=r"write_global .*vector.h:.* address in shared memory"):
        ops.pipeline(numbers(512))


def in_run(plant: Plant) -> Plant:
    """A plant in run(), whose header becomes part of the source."""
    header = "cuda/common/operator.h"
    text = (
        (build.ROOT / "csrc" / header)
        .read_text()
        .replace("#pragma once", "")
        .replace("../../common/", "common/")
    )
    return Plant(f'#include "{header}"', plant.apply(text))


def seen(ops: Any, library: Library, run: Callable[[Any], Tensor], expected: Tensor) -> list[int]:
    """The schedules under which a result is not what it should be."""
    found = []
    for seed in SEEDS:
        library.configure(seed)
        try:
            result = run(ops)
        except RuntimeError:
            found.append(seed)
        else:
            if not torch.allclose(result, expected, rtol=1e-5, atol=1e-5):
                found.append(seed)
    return found


X = numbers(40, 50)
LINE = numbers(512)
ROW = numbers(2, 20)

#: What is broken, how it is called, what it should give.
PLANTS: dict[str, tuple[Plant, Callable[[Any], Tensor], Tensor]] = {
    "a removed block barrier": (Plant("__syncthreads();"), lambda ops: ops.transpose(X), X.T),
    "a row too few": (Plant("row0 + i < rows", "row0 + i < rows - 1"), lambda ops: ops.transpose(X), X.T),
    "a removed warp barrier": (Plant("__syncwarp();"), lambda ops: ops.mirror(LINE), mirrored(LINE)),
    "a mask with lanes that are gone": (
        Plant("i < columns; ++i) sum", "i < kWarp; ++i) sum"),
        lambda ops: ops.row_sum(ROW),
        ROW.sum(1, keepdim=True).expand(2, 20),
    ),
    "a lane outside of its mask": (
        Plant("(1u << columns) - 1", "(1u << columns) - 2"),
        lambda ops: ops.row_sum(ROW),
        ROW.sum(1, keepdim=True).expand(2, 20),
    ),
    "a removed wait": (Plant("copy_async_wait<1>();"), lambda ops: ops.pipeline(LINE), pipeline_exact(LINE)),
    "a wait for too little": (
        Plant("copy_async_wait<1>", "copy_async_wait<2>"),
        lambda ops: ops.pipeline(LINE),
        pipeline_exact(LINE),
    ),
    "a removed barrier behind the wait": (
        Plant("copy_async_wait<1>();\n    __syncthreads();", "copy_async_wait<1>();"),
        lambda ops: ops.pipeline(LINE),
        pipeline_exact(LINE),
    ),
    "a removed barrier before the next copy": (
        Plant("__syncthreads();  // the next copy overwrites what was read"),
        lambda ops: ops.pipeline(LINE),
        pipeline_exact(LINE),
    ),
    "a removed barrier before a matrix load": (
        Plant("__syncwarp();", occurrence=2),
        lambda ops: ops.matrices(torch.arange(256, dtype=torch.int16).view(4, 8, 8), False).float(),
        torch.arange(256).view(4, 8, 8).float(),
    ),
}


#: One of each kind by day.
DAILY = {
    "a wait for too little",
    "a removed barrier before a matrix load",
    "no block barrier",
    "a row too many",
}


@pytest.mark.parametrize("name", [nightly(name, id=name, when=name not in DAILY) for name in PLANTS])
def test_what_is_broken_is_caught(name: str) -> None:
    plant, run, expected = PLANTS[name]
    library, ops = features()
    assert seen(ops, library, run, expected) == [], "the sound kernel"
    library, ops = features(plant)
    assert seen(ops, library, run, expected), "the broken kernel"


def test_a_plant_must_change_something() -> None:
    with pytest.raises(AssertionError, match="occurs 0 times"):
        features(Plant("no such text"))


#: Sanitizer, plant (None: the kernel itself is wrong), call, what the report says.
SANITIZED: dict[str, tuple[str, Plant | None, str, str]] = {
    "no block barrier": ("thread", Plant("__syncthreads();"), "transpose(x)", "data race"),
    "no warp barrier": ("thread", Plant("__syncwarp();"), "mirror(x.flatten())", "data race"),
    "no fence between blocks": (
        "thread",
        Plant("__threadfence();"),
        "last_block(x.flatten(), torch.zeros(1, dtype=torch.int32))",
        "data race",
    ),
    "a row too many": (
        "address,undefined",
        Plant("row0 + i < rows", "row0 + i <= rows"),
        "transpose(x[:40].clone())",
        "heap-buffer-overflow",
    ),
    "a read behind a tensor": ("address,undefined", None, "memory(x[:1].clone(), 2, 128)", "READ of size 4"),
    "a write behind shared memory": ("address,undefined", None, "memory(x, 3, 128)", "WRITE of size 4"),
}
SOUND = [
    "transpose(x)",
    "mirror(x.flatten())",
    "row_sum(x[:, :20].contiguous())",
    "exchange(x[0])",
    "pipeline(x.flatten())",
    "matmul(x, x.T.contiguous())",
    "matmul(x.half(), x.half().T.contiguous())",
    "matrices(x[:8].to(torch.int16).clone(), True)",
    "last_block(x.flatten(), torch.zeros(1, dtype=torch.int32))",
]

SCRIPT = """
import torch
from emulator.build import Plant
from emulator.test_emulator import features, numbers
x = numbers(64, 32)
library, ops = features(*{plants})
for seed in range(2):
    library.configure(seed)
    for call in {calls}:
        eval("ops." + call)
"""


def reports(folder: Path, sanitize: str, plant: Plant | None, calls: Sequence[str]) -> str:
    """Calls kernels of features.cu under a sanitizer; returns its reports."""
    script = SCRIPT.format(plants=[] if plant is None else [plant], calls=list(calls))
    environment = sanitizer_environment(sanitize, folder / "report")
    environment["PYTHONPATH"] = f"{build.ROOT}:{HERE.parent}:{environment.get('PYTHONPATH', '')}"
    process = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=280
    )
    report = "".join(file.read_text() for file in sorted(folder.glob("report*")))
    assert report or process.returncode == 0, process.stderr
    return report


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [nightly(name, id=name, when=name != "a row too many") for name in SANITIZED]
)
def test_sanitizers_report_what_is_broken(name: str, tmp_path: Path) -> None:
    sanitize, plant, call, expected = SANITIZED[name]
    report = reports(tmp_path, sanitize, plant, [call])
    assert expected in report
    assert "features.cu:" in report


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("sanitize", ["address,undefined", "thread"])
def test_sanitizers_are_silent_on_sound_kernels(sanitize: str, tmp_path: Path) -> None:
    assert reports(tmp_path, sanitize, None, SOUND) == ""
