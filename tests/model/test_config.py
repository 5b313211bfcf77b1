"""The configuration: round trip, presets and refusals."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from ifdd import IFDD, IFDDConfig, create_model, list_models


def test_round_trip_through_json() -> None:
    config = IFDDConfig(num_classes=3, stages=(1, 3), depths=(1, 1, 1, 1), split="topk", dropout=0.25)
    assert IFDDConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert IFDDConfig.from_dict({}) == IFDDConfig()


def test_lists_become_tuples() -> None:
    config = IFDDConfig(stages=[2, 3], depths=[1, 1, 1, 1])  # type: ignore[arg-type]
    assert config.stages == (2, 3)
    assert config.depths == (1, 1, 1, 1)
    assert hash(config) == hash(IFDDConfig(stages=(2, 3), depths=(1, 1, 1, 1)))


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        IFDDConfig().num_classes = 3  # type: ignore[misc]


def test_presets() -> None:
    assert IFDDConfig().stage_channels == (96, 192, 384, 768)
    assert IFDDConfig().stage_depths == (1, 2, 5, 2)
    assert IFDDConfig(backbone="mvit_s").stage_depths == (1, 2, 11, 2)
    assert IFDDConfig(backbone="mvit_nano", embed_dim=24).stage_channels == (24, 48, 96, 192)
    assert IFDDConfig().embedded_grid == (8, 56, 56)
    assert IFDDConfig().lifting_grid == (7, 7)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_classes": 0}, ["num_classes", "at least 1", "0"]),
        ({"num_classes": 7.0}, ["num_classes", "integer"]),
        ({"num_classes": True}, ["num_classes", "integer"]),
        ({"clip_frames": 12}, ["clip_frames", "(8, 16, 32)", "12"]),
        ({"clip_frames": 16, "embedding": "s3d"}, ["clip_frames", "(32,)", "s3d"]),
        ({"image_size": 0}, ["image_size"]),
        ({"image_size": 112}, ["image_size", "multiple of 32", "112"]),
        ({"image_size": -32}, ["image_size"]),
        ({"backbone": "mvit_xl"}, ["backbone", "mvit_xs", "mvit_xl"]),
        ({"embed_dim": 0}, ["embed_dim"]),
        ({"depths": (1, 2)}, ["depths"]),
        ({"depths": (1, 2, 0, 1)}, ["depths"]),
        ({"depths": "1111"}, ["depths", "tuple of integers"]),
        ({"embedding": "patch"}, ["embedding", "conv", "patch"]),
        ({"stages": ()}, ["stages"]),
        ({"stages": (1, 2)}, ["stages", "end with 3"]),
        ({"stages": (3, 2)}, ["stages"]),
        ({"stages": (2, 2, 3)}, ["stages"]),
        ({"stages": (-1, 3)}, ["stages"]),
        ({"stages": (2, 4)}, ["stages"]),
        ({"stages": 3}, ["stages", "tuple of integers"]),
        ({"split": "random"}, ["split", "even_odd", "random"]),
        ({"split_pool": 0}, ["split_pool"]),
        ({"index_sampling": "nearest"}, ["index_sampling", "aligned"]),
        ({"index_sampling": "aligned", "split": "topk"}, ["index_sampling", "interpolate", "topk"]),
        ({"topk_order_prior": True}, ["topk_order_prior", "split='topk'"]),
        ({"lifting": "haar"}, ["lifting", "haar"]),
        ({"lifting": "conv"}, ["lifting='conv'", "even_odd"]),
        ({"lifting": "conv", "split": "topk"}, ["lifting='conv'", "even_odd"]),
        ({"lifting": "none", "self_conditioned": True}, ["self_conditioned", "none"]),
        ({"lifting": "conv", "split": "even_odd", "self_conditioned": True}, ["self_conditioned", "conv"]),
        ({"self_conditioned": True, "image_size": 32}, ["self_conditioned", "image_size", "64"]),
        ({"lifting_heads": 7}, ["lifting_heads", "768"]),
        ({"dropout": 1.0}, ["dropout", "[0, 1)"]),
        ({"drop_path": -0.1}, ["drop_path"]),
        ({"attention_dropout": "0"}, ["attention_dropout"]),
        ({"dropout": float("nan")}, ["dropout"]),
        ({"split_norm": 1}, ["split_norm", "True or False"]),
    ],
)
def test_refusals_name_the_field(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        IFDDConfig(**fields)
    for word in words:
        assert word in str(error.value)


def test_unknown_field() -> None:
    with pytest.raises(ValueError, match=r"unknown configuration fields \['heads', 'width'\]"):
        IFDDConfig.from_dict({"width": 3, "heads": 2})


def test_create_model() -> None:
    assert list_models() == ["ifdd_nano", "ifdd_s", "ifdd_xs"]
    model = create_model("ifdd_nano", num_classes=3, stages=(3,))
    assert isinstance(model, IFDD)
    assert (model.config.backbone, model.config.image_size, model.config.num_classes) == ("mvit_nano", 64, 3)
    assert create_model("ifdd_nano", image_size=32).config.image_size == 32


def test_create_model_refusals() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'ifdd_xl'.*ifdd_nano"):
        create_model("ifdd_xl")
    with pytest.raises(ValueError, match="fixes the backbone"):
        create_model("ifdd_nano", backbone="mvit_s")
    with pytest.raises(ValueError, match="unknown configuration fields"):
        create_model("ifdd_nano", classes=3)
