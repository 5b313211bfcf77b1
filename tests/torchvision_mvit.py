"""torchvision, whatever build of it is there, and small networks of its MViT."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

# Builds for CUDA do not load beside a torch for CPUs. Python code that is imported with the package describes
# these C++ operators; nothing here calls them.
_DESCRIBED = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_LIBRARIES: list[torch.library.Library] = []
#: Where `make test` puts it: apart from the packages that others find.
_FOLDER = Path(sys.prefix) / "torchvision"


def import_video() -> Any:
    """`torchvision.models.video`; skips the caller where torchvision is not installed."""
    if _FOLDER.is_dir() and str(_FOLDER) not in sys.path:
        sys.path.append(str(_FOLDER))
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        pytest.skip("torchvision is not installed")
    if not _LIBRARIES and not _loads(Path(spec.origin).parent):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _DESCRIBED:
            if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
                library.define(schema)
        _LIBRARIES.append(library)
    return pytest.importorskip("torchvision.models.video")


def _loads(folder: Path) -> bool:
    """Whether the C++ operators do."""
    for library in folder.glob("_C*.so"):
        try:
            torch.ops.load_library(library)
        except OSError:
            return False
        return True
    return False


def small(version: int, **options: Any) -> nn.Module:
    """Three blocks with torchvision's pooling of v1 or v2: widths, strides of queries and of keys change."""
    import_video()
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    three = [3, 3, 3]
    rows = [
        (1, 8, 16, [1, 1, 1], [1, 4, 4]),
        (2, 16, 32, [1, 2, 2], [1, 2, 2]),
        (2, 32, 32, [1, 1, 1], [1, 1, 1]),
    ]
    if version == 2:
        rows = [(1, 16, 16, *rows[0][3:]), rows[1], rows[2]]
    setting = [
        MSBlockConfig(
            heads,
            width,
            out,
            three if version == 2 or max(stride_q) > 1 else [],
            three,
            stride_q if version == 2 or max(stride_q) > 1 else [],
            stride_kv,
        )
        for heads, width, out, stride_q, stride_kv in rows
    ]
    second = version == 2
    defaults = {
        "spatial_size": (32, 48),
        "temporal_size": 4,
        "residual_pool": second,
        "residual_with_cls_embed": False,
        "rel_pos_embed": second,
        "proj_after_attn": second,
        "num_classes": 5,
        "dropout": 0.0,
    }
    torch.manual_seed(0)
    model: nn.Module = MViT(block_setting=setting, **{**defaults, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)  # biases and norms start at constants
    return model


def clips(
    batch: int = 2, frames: int = 4, height: int = 32, width: int = 48, dtype: Any = torch.float32
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, frames, height, width, generator=generator, dtype=dtype)
