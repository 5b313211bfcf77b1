"""torchvision's MViTv2-S on the ops of this library, in place; needs torchvision.

python examples/faster_mvit.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import ifdd


def main(model: nn.Module, clip: Tensor) -> float:
    """Replaces what can be replaced, and returns the largest difference from torchvision's own result."""
    model.eval()
    with torch.inference_mode():
        before = model(clip)
        report = ifdd.accelerate(model)
        after = model(clip)
    difference = (after - before).abs().max().item()
    print(f"{len(report.replaced)} modules replaced, largest difference {difference:.1e}")
    report.undo()
    return difference


if __name__ == "__main__":
    from torchvision.models.video import mvit_v2_s

    main(mvit_v2_s(), torch.rand(1, 3, 16, 224, 224))
