"""``python -m benchmarks.small_shapes``: every GPU kernel once on small shapes, for compute-sanitizer."""

from __future__ import annotations

import torch

from benchmarks.ours import backends
from ifdd_kernels.registry import REGISTRY, Maker, backward_arguments


def main(device: str = "cuda") -> int:
    """Forward and backward of each sample on each backend; returns the number of calls."""
    calls = 0
    for op, entry in REGISTRY.items():
        if entry.operator is None:
            continue
        for backend in backends(op, device):
            if backend == "reference":
                continue
            twin = "" if backend == "native" else backend
            for dtype in (torch.float32, torch.bfloat16):
                for sample in entry.samples(Maker(dtype, device)):
                    entry.operator.overload(twin)(*sample.args)
                    if entry.operator.backward is not None:
                        arguments = backward_arguments(entry.operator, sample.args)
                        entry.operator.overload(twin, backward=True)(*arguments)
                    calls += 1
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{calls} samples ran")
    return calls


if __name__ == "__main__":
    main()
