"""The messages before a training starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ifdd.config import IFDDConfig
from ifdd.training.config import DataConfig, OptimConfig, TrainingConfig
from ifdd.training.plan import TrainingPlan

Make = Callable[..., TrainingPlan]


def plan(
    clips: int = 640,
    held_out: int = 64,
    batch: int = 32,
    size: int = 64,
    init: str | None = None,
    **other: Any,
) -> TrainingPlan:
    optim = OptimConfig(**{"epochs": 40, "warmup_epochs": 4, "warmup": "standard", **other.pop("optim", {})})
    config = TrainingConfig(data=DataConfig(batch_size=batch), optim=optim, init=init)
    network = IFDDConfig(backbone="mvit_nano", image_size=size)
    return TrainingPlan(config, network, ("a", "b[/]\n"), clips, held_out, 1_230_000, "cpu", **other)


def row(found: TrainingPlan, heading: str) -> str:
    return next(line[15:] for line in found.lines() if line.startswith(heading))


def test_a_usual_training_has_its_numbers_and_no_warning() -> None:
    found = plan()
    assert found.warnings() == []
    assert row(found, "data set") == "synthetic (drawn faces)"
    assert row(found, "clips") == "640 for training; 64 held out (--validation 0.1)"
    assert row(found, "classes") == r"2: a, b[/]\n"
    assert row(found, "network") == "mvit_nano, 1.23 million parameters, 16 frames of 64 x 64 pixels"
    assert row(found, "steps") == "40 epochs of 20 steps of 32 clips: 800 steps, 80 of them in the warm-up"
    assert row(found, "learning rate") == "1e-06, up to 0.0001 in epoch 5, down to 1.2e-06"


def test_clips_of_each_class_are_counted() -> None:
    assert row(plan(class_clips=(640, 0)), "classes") == r"2, with training clips: a 640, b[/]\n 0"


def test_batches_that_are_added_make_fewer_and_larger_steps() -> None:
    found = plan(clips=650, batch=32, optim={"accumulate": 3})
    assert row(found, "clips").startswith("650 for training, 10 of them left out of each epoch; 64 held out")
    assert row(found, "steps").startswith("40 epochs of 7 steps of 96 clips: 280 steps")
    assert row(found, "learning rate").endswith("(--learning_rate 0.0001 for a batch of 32 is 0.0003 for 96)")


def test_a_resumed_training_says_what_is_done_and_what_was_planned() -> None:
    assert (
        row(plan(done=10, planned=40), "steps")
        == "epochs 11 to 40 (10 done); 30 epochs of 20 steps of 32 clips: 600 steps"
    )
    longer = plan(done=20, planned=20)
    assert row(longer, "steps").startswith("epochs 21 to 40 (20 done, planned for 20 before); ")
    assert row(longer, "start") == "the checkpoint of epoch 20"
    assert row(longer, "learning rate").startswith("5.9e-05, down to")
    assert row(plan(done=40, planned=40), "steps") == "none: 40 of 40 epochs are done"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"optim": {"epochs": 2, "learning_rate": 0.01}},
            "the warm-up of 4 epochs is not over after the 2 of this training: the learning rate ",
        ),
        (
            {"clips": 32, "optim": {"epochs": 5, "warmup": "none"}},
            "5 steps at a learning rate of at most 0.0001 ",
        ),
        (
            {"clips": 11, "optim": {"learning_rate": 0.01}},
            "--batch_size 32 is larger than the 11 training clips",
        ),
        (
            {"clips": 60, "optim": {"learning_rate": 0.01}},
            "28 of 60 training clips, other ones each time, are left out of an epoch",
        ),
        (
            {"held_out": 2},
            "with 2 held-out clips the best epoch is chosen largely by chance: one clip is 50 %",
        ),
        (
            {"held_out": 20},
            "; hold out more (--validation), or take the last epoch (--select last), or hold ",
        ),
        (
            {"clips": 32, "held_out": 4, "optim": {"learning_rate": 0.1}},
            "25 % of the score; take the last epoch (--select last), or hold out none (--validation 0)",
        ),
        ({"size": 224}, "224 pixels on a CPU take long; --model.backbone mvit_nano --model.image_size 64"),
    ],
)
def test_what_is_odd_is_said(settings: dict[str, Any], text: str) -> None:
    warnings = plan(**settings).warnings()
    assert len(warnings) == 1
    assert text in warnings[0]


def test_what_makes_it_less_odd_is_no_warning() -> None:
    assert plan(optim={"epochs": 2, "warmup": "none", "learning_rate": 1e-2}).warnings() == []
    assert plan(held_out=2, optim={"select": "last"}).warnings() == []
    assert plan(clips=32, optim={"epochs": 5, "warmup": "none"}, init="weights").warnings() == []
    assert plan(held_out=0).warnings() == []
    assert plan(clips=11, held_out=2, size=224, done=40).warnings() == [], "nothing is left to do"
    assert plan(clips=641).warnings() == [], "one clip of 641"
    assert replace(plan(size=224), device="NVIDIA H200").warnings() == []
