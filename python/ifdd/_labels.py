"""The one check of class numbers."""

from __future__ import annotations

import torch


def check_labels(labels: torch.Tensor, classes: int) -> None:
    """Refuses numbers outside 0..classes - 1, where they can be read without waiting.

    Reading labels that are on a GPU would wait for all the work queued there, twice a training step. Labels
    are checked on the host, where a loader makes them; on a GPU the kernels that use them as indexes stop
    with an assertion of the device ("index out of bounds").

    Raises:
        ValueError: a label outside.
    """
    # A tensor of another type may have no values to read: those of compilers and exporters that trace.
    if labels.device.type != "cpu" or type(labels) is not torch.Tensor or not labels.numel():
        return
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {labels.tolist()}")
