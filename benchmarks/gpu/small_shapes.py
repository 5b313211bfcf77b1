"""Every native GPU kernel once on small shapes: ``compute-sanitizer python -m benchmarks.gpu.small_shapes``.

Triton's kernels are left out: their memory accesses are masked by a compiler that the sanitizers cannot see
through, and compiling them under one would take the whole time there is.
"""

from __future__ import annotations

import torch

from benchmarks.suite.ours import backends
from ifdd_kernels import _library
from ifdd_kernels.registry import REGISTRY, Maker, backward_arguments


def main(device: str = "cuda") -> int:
    """Forward and backward of each sample on the native kernels; returns the number of calls.

    Raises:
        RuntimeError: the native library has no kernels for the device, so there is nothing to look at.
    """
    calls = 0
    for op, entry in REGISTRY.items():
        if entry.operator is None or "native" not in backends(op, device):
            continue
        for dtype in (torch.float32, torch.bfloat16):
            for sample in entry.samples(Maker(dtype, device)):
                entry.operator.overload()(*sample.args)
                if entry.operator.backward is not None:
                    arguments = backward_arguments(entry.operator, sample.args)
                    entry.operator.overload(backward=True)(*arguments)
                calls += 1
    if not calls:
        reason = _library.failure() or _library.without_code() or "it was built without them"
        raise RuntimeError(f"no native kernels run on {device}: {reason}")
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{calls} samples ran")
    return calls


if __name__ == "__main__":
    main()
