"""The code of docs/mvitv2.md on weights with torchvision's names, against the eager formulation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.original import OriginalIFDD
from ifdd_kernels.testing import relative_error

PAGE = (Path(__file__).parents[2] / "docs" / "mvitv2.md").read_text()
CODE = re.search(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SIZE = 64


def page() -> dict[str, Any]:
    assert CODE is not None
    names: dict[str, Any] = {}
    exec(compile(CODE[1], "docs/mvitv2.md", "exec"), names)
    return names


@pytest.mark.parametrize("frames", [8, 16])
def test_logits_are_those_of_the_eager_formulation(frames: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = OriginalIFDD(depths=(1, 2, 11, 2), clip_frames=frames, image_size=SIZE).eval()
    with torch.no_grad():
        for tensor in original.parameters():
            tensor.add_(torch.randn_like(tensor), alpha=0.02)  # biases and norms start at constants
    head = torch.nn.Linear(768, 400)
    weights = {f"head.1.{name}": tensor for name, tensor in head.state_dict().items()}
    for name, tensor in original.state_dict().items():
        for prefix in ("embed.", "backbone.backbone."):
            if name.startswith(prefix):
                weights[name.removeprefix(prefix)] = tensor
    torch.save(weights, tmp_path / "mvit_v2_s.pth")

    model = page()["MViTv2S"](frames=frames, size=SIZE).eval()
    model.load(tmp_path / "mvit_v2_s.pth")
    clips = torch.rand(2, 3, frames, SIZE, SIZE)
    with torch.inference_mode():
        tokens = original.backbone.backbone(original.embed(clips))[-1][0]
        wanted = head(tokens[:, 0])
        assert relative_error(model(clips), wanted) <= 1e-5


def test_other_sizes_and_gradients(tmp_path: Path) -> None:
    model = page()["MViTv2S"](frames=8, size=32, classes=3)
    model(torch.rand(1, 3, 8, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^):]+)\)", PAGE):
        assert (Path(__file__).parents[2] / "docs" / target).exists()
