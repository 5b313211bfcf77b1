from __future__ import annotations

import math

import pytest

from ifdd.training.config import OptimConfig
from ifdd.training.schedule import Schedule, scaled_rate


@pytest.mark.parametrize("base", [1e-4, 5e-5])
def test_the_original_schedule_epoch_by_epoch(base: float) -> None:
    schedule = Schedule(base)
    for epoch in range(100):
        if epoch < 10:
            expected = 1e-6 + epoch * (9.80e-5 - 1e-6) / 10
        else:
            expected = 0.01 * base + 0.99 * base * 0.5 * (1 + math.cos(math.pi * (epoch - 10) / 90))
        assert schedule(epoch) == pytest.approx(expected, rel=1e-12), epoch


def test_the_quirk_the_rate_drops_when_warm_up_ends_at_batch_16() -> None:
    schedule = OptimConfig().schedule(16)
    assert schedule(0) == pytest.approx(1e-6)
    assert schedule(9) == pytest.approx(8.83e-5)
    assert schedule(10) == pytest.approx(5e-5)
    assert schedule(55) == pytest.approx(5e-5 * (0.01 + 0.99 * 0.5))


def test_the_standard_warm_up_climbs_to_the_rate_and_never_drops_before_it() -> None:
    schedule = Schedule(5e-5, warmup="standard")
    climb = [schedule(epoch) for epoch in range(11)]
    assert climb == sorted(climb)
    assert climb[0] == pytest.approx(1e-6)
    assert climb[10] == pytest.approx(5e-5)


def test_without_warm_up_the_cosine_starts_at_once() -> None:
    schedule = Schedule(1e-3, epochs=4, warmup="none", warmup_epochs=10)
    assert schedule(0) == pytest.approx(1e-3)
    assert schedule(2) == pytest.approx(1e-3 * 0.505)
    assert schedule(4) == pytest.approx(1e-5)
    assert schedule(9) == pytest.approx(1e-5)


def test_the_rate_scales_with_all_clips_of_a_step() -> None:
    assert scaled_rate(1e-4, 16) == pytest.approx(5e-5)
    assert OptimConfig(accumulate=4).schedule(8).base == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"base": 0.0}, "learning rate must be positive, got 0.0"),
        ({"base": math.nan}, "learning rate must be positive"),
        ({"base": 1.0, "warmup": "linear"}, "warmup must be one of"),
        ({"base": 1.0, "epochs": 0}, "epochs must be at least 1, got 0"),
        ({"base": 1.0, "warmup_epochs": -1}, "warmup_epochs must not be negative, got -1"),
    ],
)
def test_impossible_schedules_are_refused(settings: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Schedule(**settings)
