"""The precisions that are compared: what each means for activations, autocast and matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """One precision; parameters are float32 in all of them."""

    name: str
    #: Of the activations of ops and modules; a whole network takes float32 clips.
    activations: torch.dtype
    #: Rounding of one product.
    eps: float
    tf32: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")

    @contextmanager
    def context(self, device: str) -> Iterator[None]:
        """Everything inside runs in this precision: 16-bit ones by autocast, as training uses them."""
        products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
        before = products.allow_tf32, convolutions.allow_tf32
        products.allow_tf32 = convolutions.allow_tf32 = self.tf32
        wide = self.activations == torch.float32
        try:
            with nullcontext() if wide else torch.autocast(device, self.activations):
                yield
        finally:
            products.allow_tf32, convolutions.allow_tf32 = before


PRECISIONS = {
    p.name: p
    for p in (
        Precision("fp32", torch.float32, torch.finfo(torch.float32).eps),
        Precision("tf32", torch.float32, 2.0**-10, tf32=True, devices=("cuda",)),
        Precision("bf16", torch.bfloat16, torch.finfo(torch.bfloat16).eps),
        Precision("fp16", torch.float16, torch.finfo(torch.float16).eps),
    )
}
