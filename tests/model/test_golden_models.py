"""The full-size networks against the stored outputs of the original implementation."""

from __future__ import annotations

import pytest
import torch

from golden_cases import MODEL_CASES, assert_close, golden_model, weights_from_names
from ifdd import IFDD, IFDDConfig, create_model
from ifdd.checkpoint import from_original

UNUSED_PER_MODEL = {
    "backbone.WaveLifts.spatial_pos",
    "backbone.WaveLifts.temporal_pos",
    "backbone.WaveLifts.class_pos",
    *(
        f"backbone.WaveLifts.adapt_split.time_project.{i}.{leaf}"
        for i in (0, 2)
        for leaf in ("weight", "bias")
    ),
}
# Largest relative error of any output. float32: 22 layers of rounding, about 2e-6 measured; float64: the
# stored values are rounded to float32.
PRECISION = [
    ("ifdd_dfew", torch.float32, 1e-5),
    ("ifdd_mafw", torch.float32, 1e-5),
    ("ifdd_dfew", torch.float64, 1e-6),
]


@pytest.mark.parametrize(("name", "dtype", "rtol"), PRECISION, ids=str)
def test_outputs(name: str, dtype: torch.dtype, rtol: float) -> None:
    case = golden_model(name)
    with torch.device("meta"):
        model = create_model("ifdd_xs", clip_frames=case.clip_frames, num_classes=case.num_classes)
    model = model.to(dtype).to_empty(device="cpu").eval()
    converted = from_original(weights_from_names(case.keys, dtype), target=model)
    assert set(converted.dropped) == UNUSED_PER_MODEL
    model.load_state_dict(converted.state_dict)
    with torch.no_grad():
        output = model(case.clips(dtype))
    assert set(case.outputs) == set(output._fields)
    for key, expected in case.outputs.items():
        assert_close(getattr(output, key), expected, rtol, label=key)


def test_cases_cover_both_recipes() -> None:
    assert {name for name, _, _ in PRECISION} == set(MODEL_CASES)


def test_parameter_counts() -> None:
    with torch.device("meta"):
        model = IFDD(IFDDConfig(num_classes=7))

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    # Published total 37,577,123, of which 44,625 are never used, all of them in the lifting.
    assert count(model) == 37_577_123 - 44_625
    assert count(model.embedding) == 42_432
    assert count(model.backbone) == 23_451_072
    assert count(model.pyramid) == 2_211_840
    assert count(model.lifting) == 11_866_396 - 44_625
    assert count(model.head) == 5_383
