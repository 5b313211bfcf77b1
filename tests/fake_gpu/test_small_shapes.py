"""Small shapes for the sanitizers: every native CUDA kernel, and nothing else."""

from __future__ import annotations

import pytest

from benchmarks.fake_gpu.machine import cuda_ops, fake_gpu
from benchmarks.gpu import small_shapes
from fake_gpu.marks import CPU_BUILD

pytestmark = CPU_BUILD


def test_every_native_kernel_runs_and_nothing_else() -> None:
    with fake_gpu() as machine:
        calls = small_shapes.main()
    assert set(machine.calls) == cuda_ops()
    assert calls > 2 * len(cuda_ops())
    assert not machine.launches


@pytest.mark.parametrize(
    ("library", "built", "reason"),
    [
        (frozenset(), (), "it was built without them"),
        (
            None,
            ("80-real",),
            "the native library was built for 80-real: build it with IFDD_CUDA_ARCHS=90a-real",
        ),
    ],
    ids=["no CUDA ops", "another GPU"],
)
def test_without_kernels_it_fails(
    library: frozenset[str] | None, built: tuple[str, ...], reason: str
) -> None:
    with fake_gpu(library=library, built=built) as machine:
        with pytest.raises(RuntimeError, match=f"^no native kernels run on cuda: .*{reason}"):
            small_shapes.main()
        assert not machine.calls
