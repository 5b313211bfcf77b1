"""Which frames make a clip."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ifdd.data.sampling import (
    SAMPLERS,
    SHORT_POLICIES,
    Sampling,
    SamplingPolicy,
    repeat_each,
    repeat_last,
)


def test_repeat_last_appends_the_last_frame() -> None:
    assert repeat_last(3, 5).tolist() == [0, 1, 2, 2, 2]


def test_repeat_each_gives_the_last_frames_one_more() -> None:
    # 16 = 3 * 5 + 1: five times each, the last frame once more.
    assert repeat_each(3, 16).tolist() == [0] * 5 + [1] * 5 + [2] * 6
    # 16 = 11 * 1 + 5: the last five twice.
    assert repeat_each(11, 16).tolist() == [0, 1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10]


@given(length=st.integers(1, 100), window=st.integers(1, 100))
@settings(max_examples=60, deadline=None)
def test_repeat_each_follows_its_rule(length: int, window: int) -> None:
    if length >= window:
        length = max(1, window - 1)
    indexes = repeat_each(length, window)
    assert len(indexes) == window
    assert (np.diff(indexes) >= 0).all()
    times = np.bincount(indexes, minlength=length)
    extra = window % length
    assert (times[: length - extra] == window // length).all()
    assert (times[length - extra :] == window // length + 1).all() or extra == 0


@given(
    name=st.sampled_from(sorted(SAMPLERS)),
    short=st.sampled_from(sorted(SHORT_POLICIES)),
    length=st.integers(1, 200),
    frames=st.integers(1, 40),
    stride=st.integers(1, 5),
    views=st.integers(1, 4),
    seed=st.integers(0, 99),
)
@settings(max_examples=200, deadline=None)
def test_every_sampler_gives_valid_ascending_windows(
    name: str, short: str, length: int, frames: int, stride: int, views: int, seed: int
) -> None:
    sampling = Sampling(name, frames, stride, short, views)
    indexes = sampling.indices(length, np.random.default_rng(seed))
    assert indexes.dtype == np.int64
    assert indexes.ndim == 2
    assert indexes.shape[1] == frames
    assert indexes.min() >= 0
    assert indexes.max() < length
    assert (np.diff(indexes, axis=1) >= 0).all()
    expected = 1
    if name == "consecutive":
        expected = max(1, length // (frames * stride))
    elif name == "dense":
        expected = views
    assert len(indexes) == expected
    assert sampling.single == (name not in ("consecutive", "dense"))


def test_random_reaches_every_window_and_no_other() -> None:
    sampling = Sampling("random", 4, 2)
    generator = np.random.default_rng(5)
    starts = set()
    for _ in range(200):
        window = sampling.indices(11, generator)[0]
        assert np.diff(window).tolist() == [2, 2, 2]
        starts.add(int(window[0]))
    assert starts == {0, 1, 2, 3}


def test_random_is_a_function_of_the_generator() -> None:
    sampling = Sampling("random", 16)
    drawn = [sampling.indices(500, np.random.default_rng(seed)).tolist() for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(ValueError, match="needs a generator"):
        sampling.indices(500)


def test_consecutive_windows_drop_a_partial_last_one() -> None:
    windows = Sampling("consecutive", 16).indices(47)
    assert windows.tolist() == [list(range(16)), list(range(16, 32))]
    assert Sampling("consecutive", 16).indices(11).tolist() == [[*range(11), 10, 10, 10, 10, 10]]


def test_consecutive_windows_with_stride_tile_the_video() -> None:
    windows = Sampling("consecutive", 4, 2).indices(17)
    assert windows.tolist() == [[0, 2, 4, 6], [8, 10, 12, 14]]


def test_centre_window_is_in_the_middle() -> None:
    assert Sampling("centre", 4).indices(10).tolist() == [[3, 4, 5, 6]]
    assert Sampling("centre", 4).indices(9).tolist() == [[2, 3, 4, 5]], "of two middles the earlier"
    assert Sampling("centre", 4, 2).indices(12).tolist() == [[2, 4, 6, 8]]


def test_short_video_is_stretched_before_the_stride() -> None:
    # 8 = 3 * 2 + 2: 0 0 1 1 1 2 2 2, every other one of them.
    assert Sampling("centre", 4, 2, "repeat_each").indices(3).tolist() == [[0, 1, 1, 2]]
    assert Sampling("centre", 4, 2, "repeat_last").indices(3).tolist() == [[0, 2, 2, 2]]


def test_segments_take_middles_and_in_training_any_frame_of_a_segment() -> None:
    sampling = Sampling("segments", 4)
    assert sampling.indices(16).tolist() == [[2, 6, 10, 14]]
    seen = [set() for _ in range(4)]
    generator = np.random.default_rng(1)
    for _ in range(200):
        for segment, index in enumerate(sampling.training().indices(16, generator)[0]):
            seen[segment].add(int(index))
    assert seen == [set(range(4 * k, 4 * k + 4)) for k in range(4)]


def test_dense_views_reach_from_beginning_to_end() -> None:
    views = Sampling("dense", 16, 4, views=2).indices(100)
    assert views[0].tolist() == list(range(0, 64, 4))
    assert views[1].tolist() == list(range(36, 100, 4))
    assert Sampling("dense", 4, 1, views=1).indices(10).tolist() == [[3, 4, 5, 6]]


def test_uniform_spans_the_video() -> None:
    assert Sampling("uniform", 5).indices(9).tolist() == [[0, 2, 4, 6, 8]]
    assert Sampling("uniform", 5).indices(2).tolist() == [[0, 0, 0, 1, 1]]


def test_training_form() -> None:
    for name in ("centre", "consecutive", "dense", "random"):
        assert Sampling(name, 8, 3).training() == Sampling("random", 8, 3)
    for name in ("segments", "uniform"):
        assert Sampling(name, 8, 3).training() == Sampling(name, 8, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "middle"}, "sampling must be one of .*'centre'.* got 'middle'"),
        ({"short": "loop"}, "short must be one of .*'repeat_each'.* got 'loop'"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"stride": -1}, "stride must be at least 1, got -1"),
        ({"views": 0}, "views must be at least 1, got 0"),
        ({"frames": 1.5}, "frames must be an integer, got 1.5"),
    ],
)
def test_bad_settings_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**arguments)


def test_a_checkpoint_holds_the_policy_of_its_training() -> None:
    assert SamplingPolicy.of_checkpoint({"epoch": 3, "short": None}) == SamplingPolicy(1, "repeat_last")
    policy = SamplingPolicy(2, "repeat_each")
    assert SamplingPolicy.of_checkpoint({"epoch": 3, **asdict(policy)}) == policy


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"stride": "2"}, "stride must be an integer, got '2'"),
        ({"stride": True}, "stride must be an integer, got True"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"short": ["repeat_last"]}, r"short must be one of .* got \['repeat_last'\]"),
    ],
)
def test_a_bad_policy_in_a_checkpoint_is_named(extra: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingPolicy.of_checkpoint(extra)


def test_empty_video_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 frame"):
        Sampling().indices(0)
