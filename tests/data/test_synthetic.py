"""The synthetic expression set: drawn from its seed alone, balanced, disjoint people, visible expressions."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from ifdd.data.synthetic import EXPRESSIONS, IDENTITY_NUMBERS, Difficulty, SyntheticExpressions
from ifdd.data.synthetic import renderer as renderer_module
from ifdd.data.synthetic.face import make_identity
from ifdd.data.synthetic.motion import Unit

CALM = Difficulty(
    resting_resemblance=0.0,
    unit_variation=0.0,
    asymmetry=0.0,
    head_motion=0.0,
    camera_jitter=0.0,
    light_change=0.0,
    talk_probability=0.0,
    brow_flash_probability=0.0,
    blink_probability=0.0,
    occluder_probability=0.0,
    noise=0.0,
)
EMOTIONS = [label for label, expression in enumerate(EXPRESSIONS) if expression.units]
NEUTRAL = SyntheticExpressions.class_names.index("Neutral")


def test_class_names_are_in_the_order_of_dfew() -> None:
    names = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")
    assert SyntheticExpressions.class_names == names


@pytest.mark.parametrize(("frames", "size"), [(16, 64), (8, 33), (32, 16), (2, 112), (3, 224)])
@pytest.mark.parametrize("split", ["train", "test"])
def test_item_has_the_documented_form(split: str, frames: int, size: int) -> None:
    data = SyntheticExpressions(split, 9, clip_frames=frames, image_size=size, seed=5)
    assert len(data) == 9
    clip, label = data[8]
    assert isinstance(label, int)
    assert label == 1
    assert clip.shape == (3, frames, size, size)
    assert clip.dtype == torch.float32
    assert clip.is_contiguous()
    assert clip.min() >= 0
    assert clip.max() <= 1
    assert clip.std() > 0.05


def test_values_stay_in_range_under_extreme_knobs() -> None:
    wild = Difficulty(
        head_motion=12.0, camera_jitter=20.0, light_change=5.0, noise=0.5, occluder_probability=1.0
    )
    data = SyntheticExpressions("train", 14, image_size=32, difficulty=wild)
    for index in range(14):
        clip, _ = data[index]
        assert torch.isfinite(clip).all()
        assert clip.min() >= 0
        assert clip.max() <= 1


def test_the_same_seed_epoch_and_index_give_the_same_clip() -> None:
    first, second = (SyntheticExpressions("train", 20, image_size=32, seed=3) for _ in range(2))
    for data in (first, second):
        data.set_epoch(4)
    second[7]  # what was drawn before must not matter
    for index in (0, 11, 19):
        torch.testing.assert_close(first[index][0], second[index][0], rtol=0, atol=0)
    torch.testing.assert_close(first[-1][0], second[19][0], rtol=0, atol=0)


def test_every_clip_differs_and_so_do_seeds_epochs_and_splits() -> None:
    def clip(split: str = "train", seed: int = 0, epoch: int = 0, index: int = 0) -> torch.Tensor:
        data = SyntheticExpressions(split, 20, image_size=32, seed=seed)
        data.set_epoch(epoch)
        return data[index][0]

    base = clip()
    for other in (clip(index=7), clip(epoch=1), clip(seed=1), clip(split="test")):
        assert (base - other).abs().mean() > 0.02


def test_the_test_split_does_not_depend_on_the_epoch() -> None:
    data = SyntheticExpressions("test", 5, image_size=32)
    before = data[3][0]
    data.set_epoch(9)
    torch.testing.assert_close(data[3][0], before, rtol=0, atol=0)


def test_people_of_train_and_test_are_disjoint() -> None:
    assert not set(IDENTITY_NUMBERS["train"]) & set(IDENTITY_NUMBERS["test"])
    seen = {}
    for split in ("train", "test"):
        seen[split] = set()
        for seed in (0, 1):
            data = SyntheticExpressions(split, 300, seed=seed)
            seen[split] |= {data.truth(index).identity for index in range(300)}
        assert len(seen[split]) > 500
        assert seen[split] <= set(IDENTITY_NUMBERS[split])
    assert not seen["train"] & seen["test"]


def test_people_differ_and_a_person_stays_the_same() -> None:
    make_identity.cache_clear()
    one = make_identity(12)
    make_identity.cache_clear()
    again, other = make_identity(12), make_identity(13)
    assert one is not again
    np.testing.assert_array_equal(one.skin, again.skin)
    assert one.head_width == again.head_width
    assert not np.array_equal(one.skin, other.skin)
    assert one.mouth_width != other.mouth_width


def test_classes_are_balanced() -> None:
    data = SyntheticExpressions("train", 100)
    counts = np.bincount([data.truth(index).label for index in range(100)], minlength=7)
    assert len(counts) == 7
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("label", EMOTIONS)
def test_the_expression_runs_from_neutral_over_the_apex_to_neutral(label: int) -> None:
    data = SyntheticExpressions("train", 70, clip_frames=64, image_size=16)
    low, high = data.difficulty.active_fraction
    for index in range(label, 70, 7):
        truth = data.truth(index)
        intensity = truth.intensity
        assert truth.label == label
        assert truth.apex == int(intensity.argmax())
        assert intensity[truth.apex] > 0.7 * data.difficulty.intensity[0]
        assert intensity.max() <= 1
        active = (intensity > 0).nonzero()[:, 0]
        assert active[-1] - active[0] + 1 == len(active), "one event without a gap"
        assert low - 2 / 64 <= len(active) / 64 <= high + 2 / 64


def test_a_neutral_clip_has_no_apex() -> None:
    truth = SyntheticExpressions("train", 7).truth(NEUTRAL)
    assert truth.apex is None
    assert not truth.intensity.any()


def test_onsets_tell_sadness_from_surprise() -> None:
    data = SyntheticExpressions("train", 140, clip_frames=100, image_size=16)

    def rising(name: str) -> float:
        truths = [data.truth(index) for index in range(data.class_names.index(name), 140, 7)]
        return float(np.mean([(t.intensity[: t.apex] > 0).sum() / (t.intensity > 0).sum() for t in truths]))

    assert rising("Sad") > 2 * rising("Surprise")


@pytest.mark.parametrize("label", EMOTIONS)
def test_the_apex_differs_from_neutral_where_the_units_act(label: int) -> None:
    data = SyntheticExpressions("train", 70, difficulty=CALM)
    for index in range(label, 70, 7):
        clip, _ = data[index]
        truth = data.truth(index)
        assert truth.apex is not None
        quiet = int(truth.intensity.argmin())
        change = (clip[:, truth.apex] - clip[:, quiet]).abs().amax(0)
        assert change.max() > 0.1
        assert change[:8].max() < 0.02, "backdrop and hair do not move in a calm clip"
        # Intensity 0 must mean the same neutral face before and after (but for the gaze, inside the eyes).
        quiet_frames = clip[:, truth.intensity == 0]
        assert (quiet_frames - quiet_frames[:, :1]).abs()[:, :, 40:].max() < 1e-5


def test_a_calm_neutral_clip_stands_still() -> None:
    clip, _ = SyntheticExpressions("train", 7, difficulty=CALM)[NEUTRAL]
    assert (clip - clip[:, :1]).abs()[:, :, 40:].max() < 1e-5


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("resting_resemblance", 1.0),
        ("head_motion", 1.0),
        ("camera_jitter", 1.0),
        ("light_change", 1.0),
        ("talk_probability", 1.0),
        ("brow_flash_probability", 1.0),
        ("blink_probability", 1.0),
        ("occluder_probability", 1.0),
        ("noise", 0.05),
    ],
)
def test_every_distraction_knob_changes_the_picture(knob: str, value: float) -> None:
    hard = replace(CALM, **{knob: value})
    differences = [
        (
            SyntheticExpressions("train", 70, difficulty=hard)[index][0]
            - SyntheticExpressions("train", 70, difficulty=CALM)[index][0]
        ).abs()
        for index in range(NEUTRAL, 70, 7)
    ]
    # The calm clip is the same but for the knob: everything else is drawn before the distractions.
    assert max(float(d.amax()) for d in differences) > 0.05
    if knob == "noise":
        assert abs(float(torch.stack(differences).square().mean().sqrt()) - value) < 0.015


def test_drawing_in_groups_of_frames_gives_the_same_video(monkeypatch: pytest.MonkeyPatch) -> None:
    # Windows are the union over a group's frames: a shape reaching beyond its window would show up here.
    data = SyntheticExpressions(
        "train", 40, difficulty=replace(Difficulty(), noise=0.0, occluder_probability=0.5)
    )
    whole = [data[index][0] for index in range(40)]
    monkeypatch.setattr(renderer_module, "_CACHED_PIXELS", 1)
    for index, clip in enumerate(whole):
        torch.testing.assert_close(data[index][0], clip, rtol=0, atol=1e-5)


def test_works_in_data_loader_workers() -> None:
    data = SyntheticExpressions("train", 14, clip_frames=4, image_size=16)
    loader = torch.utils.data.DataLoader(data, batch_size=7, num_workers=1)
    clips = torch.cat([clip for clip, _ in loader])
    torch.testing.assert_close(clips, torch.stack([data[index][0] for index in range(14)]), rtol=0, atol=0)


def test_every_prototype_is_distinct_and_uses_known_units() -> None:
    vectors = np.stack([expression.vector() for expression in EXPRESSIONS])
    assert vectors.shape == (7, len(Unit))
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)
    assert distances[~np.eye(7, dtype=bool)].min() > 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "split must be one of"),
        ({"size": 0}, "size must be an integer >= 1, got 0"),
        ({"clip_frames": 1}, "clip_frames must be an integer >= 2, got 1"),
        ({"image_size": 8}, "image_size must be an integer >= 16, got 8"),
        ({"image_size": 64.0}, "image_size must be an integer >= 16, got 64.0"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticExpressions(**{"split": "train", "size": 7, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("active_fraction", (0.6, 0.4)),
        ("active_fraction", 0.5),
        ("intensity", (0.5, 1.5)),
        ("noise", -0.1),
        ("head_motion", float("nan")),
        ("talk_probability", 1.2),
        ("asymmetry", -0.1),
        ("resting_resemblance", 2.0),
    ],
)
def test_bad_knobs_are_named(knob: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"Difficulty\.{knob}"):
        Difficulty(**{knob: value})  # type: ignore[arg-type]


def test_bad_index_and_epoch() -> None:
    data = SyntheticExpressions("train", 7)
    with pytest.raises(IndexError, match="index 7 is out of range for 7 clips"):
        data[7]
    with pytest.raises(IndexError):
        data[-8]
    with pytest.raises(ValueError, match="epoch must be >= 0, got -1"):
        data.set_epoch(-1)


def test_a_clip_is_drawn_in_milliseconds() -> None:
    data = SyntheticExpressions("train", 70)
    data[0]
    times = []
    for index in range(20):
        start = time.process_time()
        data[index]
        times.append(time.process_time() - start)
    # About 5 ms on one idle core; the bound allows for slow and shared machines.
    assert min(times) < 0.05


def test_a_posed_set_is_nearly_always_at_full_intensity() -> None:
    posed = SyntheticExpressions("train", 14, difficulty=Difficulty.posed())
    diluted = SyntheticExpressions("train", 14)

    def shown(clips: SyntheticExpressions) -> float:
        active = [clips.truth(i).intensity for i in range(14) if clips.truth(i).apex is not None]
        return float(np.mean([(np.asarray(intensity) > 0.5).mean() for intensity in active]))

    assert shown(posed) > 0.5 > shown(diluted)
