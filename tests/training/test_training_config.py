from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import yaml

from ifdd.data.sampling import SamplingPolicy
from ifdd.training.config import DataConfig, OptimConfig, TrainingConfig
from ifdd.training.data import sampling_policy

Make = Callable[..., TrainingConfig]


def test_the_defaults_are_the_published_recipe() -> None:
    optim = OptimConfig()
    assert (optim.epochs, optim.warmup_epochs, optim.warmup) == (100, 10, "original")
    assert (optim.learning_rate, optim.weight_decay) == (1e-4, 1e-3)
    assert (optim.mixup, optim.cutmix, optim.label_smoothing) == (0.8, 1.0, 0.1)
    assert (optim.lifting_weight, optim.lifting_reduction) == (0.1, "sum")
    assert (optim.gradient_clip, optim.ema_decay, optim.accumulate) == (None, None, 1)


def test_a_configuration_survives_yaml(tiny_config: Make) -> None:
    config = tiny_config(ema_decay=0.9)
    assert TrainingConfig.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config


def test_differences_name_what_changes_the_weights(tiny_config: Make) -> None:
    config = tiny_config()
    assert config.differences(config) == {}
    other = replace(config, device="auto", data=replace(config.data, workers=3, eval_batch_size=1))
    assert config.differences(other) == {}
    other = replace(
        config, seed=9, optim=replace(config.optim, mixup=0.0), model={**config.model, "dropout": 0.1}
    )
    assert other.differences(config) == {
        "model.dropout": (0.5, 0.1),
        "optim.mixup": (0.8, 0.0),
        "seed": (3, 9),
    }


def test_defaults_places_and_the_number_of_epochs_are_no_differences(tiny_config: Make) -> None:
    config = replace(tiny_config(), data=DataConfig(name="list", classes="a,b"))
    written_out = replace(config, model={**config.model, "dropout": 0.5, "lifting": "update_first"})
    assert written_out.differences(config) == {}
    moved = replace(
        config,
        init="elsewhere.safetensors",
        data=replace(config.data, root="elsewhere", train_list="b.txt", test_list="c.txt"),
        optim=replace(config.optim, epochs=40, select="last"),
    )
    assert moved.differences(config) == {}


@pytest.mark.parametrize(
    ("name", "stride", "short"),
    [("dfew", 1, "repeat_last"), ("ferv39k", 1, "repeat_each"), ("mafw", 2, "repeat_each")],
)
def test_checkpoints_know_how_their_data_set_is_sampled(name: str, stride: int, short: str) -> None:
    data = DataConfig(name=name, root="somewhere")
    assert sampling_policy(data) == SamplingPolicy(stride, short)
    assert sampling_policy(replace(data, stride=3)) == SamplingPolicy(3, short)


def test_stored_settings_may_hold_what_earlier_versions_ignored() -> None:
    stored = TrainingConfig(data=DataConfig(name="folder", root="r")).to_dict()
    stored["data"] |= {"test_list": "t.txt", "fold": 3}
    assert TrainingConfig.from_dict(stored).data == DataConfig(name="folder", root="r")
    with pytest.raises(TypeError, match="colour"):
        TrainingConfig.from_dict({"data": {"colour": "red"}})


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"name": "cifar"}, "data.name must be one of"),
        ({"name": "dfew"}, "data.root is missing: the folder of dfew"),
        ({"name": "dfew", "root": "x", "fold": 6}, "data.fold must be 1 to 5, got 6"),
        ({"name": "list"}, "data.classes is missing: the class names"),
        ({"validation": 1.0}, "data.validation must be at least 0 and below 1"),
        ({"batch_size": 0}, "data.batch_size must be at least 1, got 0"),
        ({"stride": 0}, "data.stride must be at least 1"),
        ({"workers": -1}, "data.workers must be at least 0"),
        ({"on_error": "ignore"}, "data.on_error must be one of"),
        ({"soft_labels": True}, "data.soft_labels is for data set dfew, not for synthetic: omit it"),
        ({"name": "folder", "root": "x", "clips": "16f"}, "data.clips is for data set dfew or mafw, not for"),
    ],
)
def test_impossible_data_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        DataConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"epochs": 0}, "optim.epochs must be at least 1"),
        ({"learning_rate": -1.0}, "optim.learning_rate must be positive"),
        ({"warmup": "slow"}, "optim.warmup must be one of"),
        ({"label_smoothing": 1.0}, r"optim.label_smoothing must be in \[0, 1\)"),
        ({"ema_decay": 1.0}, "optim.ema_decay must be between 0 and 1"),
        ({"gradient_clip": 0.0}, "optim.gradient_clip must be positive"),
        ({"accumulate": 0}, "optim.accumulate must be at least 1"),
        ({"select": "first"}, "optim.select must be one of"),
    ],
)
def test_impossible_recipes_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        OptimConfig(**settings)


@pytest.mark.parametrize("settings", [{"precision": "64"}, {"device": "tpu"}, {"model": {"num_classes": 7}}])
def test_impossible_trainings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        TrainingConfig(**settings)
