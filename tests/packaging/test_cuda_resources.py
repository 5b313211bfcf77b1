"""The table of what the compiler made of the CUDA kernels, and the tool that writes it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu import cuda_resources, sources
from benchmarks.gpu.cuda_resources import ARCHITECTURES, Row, find_tool, load, read, source_hash, write
from emulator import build

KERNELS = """
#include "ifdd/cuda/mma.h"
namespace ifdd::cuda {
__global__ void __launch_bounds__(128) copy_kernel(const float* x, float* y) {
  store_vector<4>(y + 4 * threadIdx.x, load_vector<4>(x + 4 * threadIdx.x));
}
// A vector whose elements come apart by a choice of their own, and single elements.
__global__ void __launch_bounds__(128) widths_kernel(const float* x, __half* wide, float* one, __half* y) {
  float value[8] = {};
  for (int i = 0; i < 8; ++i) {
    if (x[threadIdx.x] > i) value[i] += x[i];
  }
  store<8>(wide + 8 * threadIdx.x, value);
  one[threadIdx.x] = value[0];
  for (int i = 0; i < 3; ++i) y[threadIdx.x + 1000 * i] = narrow<__half>(value[i]);
}
template <class T, int D>
__global__ void __launch_bounds__(32) product_kernel(const T* x, float* y) {
  struct Tile { alignas(16) T cell[16 * kRowStride<T, D>]; };
  Tile& tile = static_shared<Tile>();
  copy_async<16>(tile.cell + threadIdx.x * 8, x + threadIdx.x * 8, true);
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
  float d[2][4] = {};
  multiply_rows<T, D>(d, tile.cell, tile.cell, kRowStride<T, D>, threadIdx.x);
  y[threadIdx.x] = d[0][0] + d[1][0];
}
template __global__ void product_kernel<__half, 32>(const __half*, float*);
// 64 values a thread, and 32 registers.
__global__ void __launch_bounds__(1024, 2) spill_kernel(const float* x, float* y) {
  float value[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) value[i] = x[threadIdx.x * 64 + i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) y[threadIdx.x * 64 + i] = value[63 - i] * value[i * 7 % 64];
}
}
"""


#: Kernels that read, and kernels that write, rows in vectors of as many elements as 16 bytes hold, which is
#: their second template argument. The others in vectors write single numbers.
READERS = re.compile(r"(add_layer_norm|split_frames|topk|frame_tokens)\w*_kernel<\w+, [48]\b")
WRITERS = re.compile(
    r"(add_layer_norm|add_layer_norm_backward|split_frames|split_frames_backward|frame_tokens_input"
    r"|frame_tokens_weight|lifting_residual_backward)_kernel<\w+, [48]\b"
)
#: Attention chooses vectors where it runs. A tensor it writes has one store of an element, for heads that fit
#: no vector.
ATTENTION = {"forward": 1, "query": 1, "key_value": 2}


def broken_vectors(rows: Sequence[Row]) -> list[str]:
    """Evidence against reading and writing vectors in one access of 16 bytes.

    A launcher picks vectors only where all rows consist of them, so these kernels have no tails. Their single
    numbers (statistics, partial sums) are floats: eight elements of 16 bits admit no two-byte store, and
    four floats no more four-byte stores than the 16-bit instance of the kernel has.
    """
    by_key = {(row.kernel, row.architecture): row for row in rows}
    broken = []
    for row in rows:
        found = re.fullmatch(r"(\w+)_kernel<(\w+), (\d+)(.*)>", row.kernel)
        if found is None:
            continue
        name, dtype, number, rest = found.groups()
        short = dtype != "float"
        what = f"{row.kernel} on {row.architecture}: "
        if name in ATTENTION:
            if row.store_16_bytes != ATTENTION[name] or (short and row.store_2_bytes != ATTENTION[name]):
                broken.append(what + f"{row.store_16_bytes} 16-byte, {row.store_2_bytes} two-byte stores")
            continue
        if number != ("8" if short else "4"):
            continue
        if READERS.match(row.kernel) and row.load_16_bytes == 0:
            broken.append(what + "no 16-byte load")
        if WRITERS.match(row.kernel) and row.store_16_bytes == 0:
            broken.append(what + "no 16-byte store")
        if row.store_2_bytes > 0:
            broken.append(what + f"{row.store_2_bytes} two-byte stores")
        if not short:
            twin = by_key[f"{name}_kernel<__half, 8{rest}>", row.architecture]
            if row.store_4_bytes > twin.store_4_bytes:
                broken.append(
                    what + f"{row.store_4_bytes} four-byte stores, {twin.store_4_bytes} of single floats"
                )
    return broken


def test_table_belongs_to_these_sources() -> None:
    digest, rows = load()
    assert digest == source_hash(), (
        "CUDA sources have changed: build with IFDD_CUDA=ON and run python -m benchmarks.gpu.cuda_resources"
    )
    assert {row.architecture for row in rows} == set(ARCHITECTURES)
    assert not [row for row in rows if row.local_bytes]
    assert not [row for row in rows if row.blocks < 1]
    assert broken_vectors(rows) == []
    staged = [row for row in rows if row.kernel.startswith(("pool_tokens_kernel", "pool_tokens_norm_kernel"))]
    assert len(staged) == len(ARCHITECTURES) * 2 * 3  # forward and backward, dtypes
    assert all(row.copy_async > 0 for row in staged)
    attention = [row for row in rows if row.kernel.startswith(("forward_", "query_", "key_value_"))]
    assert len(attention) == len(ARCHITECTURES) * 3 * 3 * 4  # kernels, dtypes, head dimensions
    assert all(row.tensor_core > 0 and row.copy_async > 0 for row in attention)


@pytest.mark.slow
@pytest.mark.skipif(build.compiler is None, reason="the emulator needs a C++ compiler")
def test_table_has_the_launches_of_the_launchers() -> None:
    """At the network's shapes, forward and backward of every op."""
    launched = cuda_resources.network_launches()
    rows = {(row.kernel, row.architecture): row for row in load()[1]}
    for key, (threads, shared_bytes) in launched.items():
        if key in rows:
            assert (rows[key].threads, rows[key].dynamic_shared) == (threads, shared_bytes), key
    with_shared = {key for key, (_, shared_bytes) in launched.items() if shared_bytes > 0}
    assert with_shared <= set(rows)  # the names of both compilers agree
    # Attention: kernels, dtypes, head dimensions. Three of pool_tokens; split_frames backward; augment_clips;
    # for the widths of four stages, add_layer_norm backward.
    assert len(with_shared) == len(ARCHITECTURES) * (3 * 3 * 4 + 3 * 3 + 3 + 1 + 2 * 3 + 3 * 4)


@pytest.mark.parametrize(
    ("kernel", "counts", "message"),
    [
        # As the compiler made them before vectors were stored in one instruction.
        ("split_frames_backward_kernel<__nv_bfloat16, 8>", {"store_16_bytes": 0}, "no 16-byte store"),
        ("split_frames_backward_kernel<__nv_bfloat16, 8>", {"store_2_bytes": 32}, "32 two-byte stores"),
        ("split_frames_backward_kernel<float, 4>", {"store_4_bytes": 66}, "66 four-byte stores"),
        ("lifting_residual_backward_kernel<__half, 8>", {"store_2_bytes": 32}, "32 two-byte stores"),
        ("lifting_residual_kernel<__half, 8, 2, false>", {"store_2_bytes": 1}, "1 two-byte stores"),
        ("topk_products_kernel<float, 4>", {"load_16_bytes": 0}, "no 16-byte load"),
        ("query_kernel<__half, 96>", {"store_2_bytes": 9}, "9 two-byte stores"),
        ("forward_kernel<float, 96>", {"store_16_bytes": 0}, "0 16-byte"),
    ],
)
def test_a_vector_that_falls_apart_is_noticed(kernel: str, counts: dict[str, int], message: str) -> None:
    rows = load()[1]
    place = next(i for i, row in enumerate(rows) if row.kernel == kernel)
    rows[place] = replace(rows[place], **counts)  # type: ignore[arg-type]
    (broken,) = broken_vectors(rows)
    assert kernel in broken
    assert message in broken


def test_sources_decide_the_hash(tmp_path: Path) -> None:
    for name in sources.CUDA:
        source = cuda_resources.ROOT / name
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy(source, target)
    assert source_hash(tmp_path) == source_hash()
    changed = tmp_path / "csrc" / "include" / "ifdd" / "cuda" / "reduce.h"
    changed.write_text(changed.read_text() + "\n")
    assert source_hash(tmp_path) != source_hash()


@pytest.mark.parametrize(
    ("name", "threads", "registers", "shared", "blocks"),
    [
        ("sm_80", 128, 32, 0, 16),  # warps: 64 / 4
        ("sm_80", 32, 16, 0, 32),  # blocks
        ("sm_80", 128, 168, 0, 3),  # registers: 65536 / (168 * 32) is 12 warps
        ("sm_80", 128, 32, 53_248, 3),  # shared memory: 164 KB / (52 + 1) KB
        ("sm_86", 128, 32, 101_376, 1),
        ("sm_90a", 256, 255, 0, 1),
    ],
)
def test_occupancy(name: str, threads: int, registers: int, shared: int, blocks: int) -> None:
    assert ARCHITECTURES[name].blocks_per_multiprocessor(threads, registers, shared) == blocks


def test_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [
        Row("a_kernel<float, 2>", "sm_80", 40, 0, 1024, 0, 128, 12, 0.75, 0, 3, 1, 2, 5, 4),
        Row("b_kernel", "sm_90a", 255, 8, 0, 101376, 256, 1, 0.125, 7, 0, 0, 0, 0, 0),
    ]
    write(rows, tmp_path / "table.csv")
    assert load(tmp_path / "table.csv") == (source_hash(), rows)


@pytest.mark.slow
@pytest.mark.skipif(
    None in (find_tool("nvcc"), find_tool("cuobjdump"), find_tool("nvdisasm")),
    reason="needs nvcc, cuobjdump and nvdisasm",
)
def test_instructions_are_found(tmp_path: Path) -> None:
    source = tmp_path / "kernels.cu"
    source.write_text(KERNELS)
    command = [str(find_tool("nvcc")), "-std=c++17", "-c", str(source), "-o", str(tmp_path / "kernels.o")]
    for number in ("80", "90a"):
        command += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
    subprocess.run([*command, f"-I{cuda_resources.ROOT / 'csrc' / 'include'}"], check=True)
    rows = {(row.kernel, row.architecture): row for row in read([tmp_path / "kernels.o"], {})}
    assert set(rows) == {
        (name, architecture)
        for name in ("copy_kernel", "widths_kernel", "product_kernel<__half, 32>", "spill_kernel")
        for architecture in ("sm_80", "sm_90a")
    }
    for architecture in ("sm_80", "sm_90a"):
        copy = rows["copy_kernel", architecture]
        assert (copy.threads, copy.tensor_core, copy.copy_async, copy.static_shared) == (128, 0, 0, 0)
        stores = (copy.store_16_bytes, copy.store_4_bytes, copy.store_2_bytes)
        assert (copy.load_16_bytes, *stores) == (1, 1, 0, 0)
        widths = rows["widths_kernel", architecture]
        assert (widths.store_16_bytes, widths.store_4_bytes, widths.store_2_bytes) == (1, 1, 3)
        product = rows["product_kernel<__half, 32>", architecture]
        assert (product.threads, product.copy_async, product.static_shared) == (32, 1, 16 * 40 * 2)
        assert product.tensor_core == 4  # two steps of 16 for two tiles
        assert product.local_bytes == copy.local_bytes == 0
        assert rows["spill_kernel", architecture].local_bytes > 0
