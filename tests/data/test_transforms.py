"""Augmentation of clips and mixing of batches."""

from __future__ import annotations

import colorsys
import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ifdd.data.transforms import Augmentation, BatchMix, ClipAugment

LUMA = torch.tensor([0.299, 0.587, 0.114])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_clip(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=generator(seed))


def only(**settings: float) -> ClipAugment:
    """An augmentation with everything off but `settings`, for frames of 12 x 12."""
    off = {"flip": 0.0, "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "brightness": 0.0, "contrast": 0.0}
    return ClipAugment(**{"size": 12, **off, "saturation": 0.0, "hue": 0.0, **settings})


def test_result_is_a_function_of_the_generator_and_lies_in_the_unit_interval() -> None:
    augment = ClipAugment(20)
    clip = random_clip(3, 5, 31, 40)
    before = clip.clone()
    first, again, other = (augment(clip, generator(seed)) for seed in (1, 1, 2))
    assert first.shape == (3, 5, 20, 20)
    assert first.dtype == torch.float32
    assert first.is_contiguous()
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(clip, before)


def test_a_batch_of_bytes_is_augmented_as_each_of_its_clips_is() -> None:
    augment = ClipAugment(20)
    frames = torch.randint(256, (6, 4, 24, 24, 3), dtype=torch.uint8, generator=generator(0))
    drawn = [augment.draw(24, 24, generator(seed)) for seed in range(6)]
    assert len({one.steps for one in drawn}) > 3
    batch = augment.apply(frames, drawn)
    for seed, clip in enumerate(frames):
        alone = augment(clip.permute(3, 0, 1, 2).float() / 255, generator(seed))
        torch.testing.assert_close(batch[seed], alone, atol=2e-6, rtol=0)
    plain = only(flip=1.0)
    flipped = plain.apply(frames[:1, :, :12, :12], [plain.draw(12, 12)])
    expected = frames[0, :, :12, :12].permute(3, 0, 1, 2).float() / 255
    torch.testing.assert_close(flipped[0].flip(-1), expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="the crop of clip 1 is not inside its frames of 20 x 24"):
        augment.apply(frames[:2, :, :20], [drawn[0]._replace(top=0, height=9), drawn[1]._replace(top=12)])
    with pytest.raises(ValueError, match="one entry per clip, got 2 for 6"):
        augment.apply(frames, drawn[:2])
    with pytest.raises(ValueError, match=r"must be uint8 \(B, T, H, W, 3\), got torch.float32"):
        augment.apply(frames.float(), drawn)


def test_global_generator_is_used_without_one() -> None:
    clip = random_clip(3, 2, 16, 16)
    results = []
    for _ in range(2):
        torch.manual_seed(11)
        results.append(ClipAugment(8)(clip))
    assert torch.equal(results[0], results[1])


def test_all_frames_share_the_draw() -> None:
    still = random_clip(3, 1, 24, 24).expand(3, 6, 24, 24)
    for seed in range(5):
        result = ClipAugment(16)(still, generator(seed))
        assert torch.equal(result, result[:, :1].expand_as(result))


def test_nothing_drawn_leaves_the_clip() -> None:
    clip = random_clip(3, 2, 12, 12)
    torch.testing.assert_close(only()(clip, generator(0)), clip, atol=1e-6, rtol=0)


def test_flip_mirrors_the_width() -> None:
    clip = random_clip(3, 2, 12, 12)
    torch.testing.assert_close(only(flip=1.0)(clip, generator(0)), clip.flip(-1), atol=1e-6, rtol=0)
    flipped = sum(
        torch.allclose(only(flip=0.5)(clip, generator(seed)), clip.flip(-1), atol=1e-5) for seed in range(100)
    )
    assert 30 < flipped < 70


def test_crop_boxes_keep_to_scale_and_ratio_and_reach_everywhere() -> None:
    augment = ClipAugment(8)
    draws = generator(0)
    boxes = [augment.crop_box(90, 100, draws) for _ in range(600)]
    for top, left, height, width in boxes:
        assert 0 <= top <= 90 - height
        assert 0 <= left <= 100 - width
        assert 0.48 < height * width / 9000 < 1.02
        assert 0.73 < width / height < 1.37
    areas = torch.tensor([height * width / 9000 for _, _, height, width in boxes])
    assert areas.min() < 0.53
    assert areas.max() > 0.93
    assert min(box[1] for box in boxes) == 0
    assert any(top + height == 90 for top, _, height, _ in boxes)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(10, 100, (0, 43, 10, 13)), (100, 10, (43, 0, 13, 10))]
)
def test_crop_of_an_extreme_frame_is_the_largest_centred_one(
    height: int, width: int, expected: tuple[int, ...]
) -> None:
    assert ClipAugment(8, scale=(1.0, 1.0)).crop_box(height, width, generator(3)) == expected


def test_crop_is_resized_with_antialiasing() -> None:
    # A fine checkerboard averages to grey when it is shrunk with antialiasing, and else stays 0 and 1.
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2
    clip = board.float().expand(3, 2, 64, 64)
    result = only(size=9)(clip, generator(0))
    assert (result - 0.5).abs().max() < 0.05


def jitter_reference(clip: Tensor, kind: str, factor: float) -> Tensor:
    """Torchvision's definitions, written out: (3, T, H, W) -> the same."""
    luma = torch.einsum("cthw,c->thw", clip, LUMA)
    if kind == "brightness":
        result = clip * factor
    elif kind == "contrast":
        result = factor * clip + (1 - factor) * luma.mean((1, 2))[None, :, None, None]
    elif kind == "saturation":
        result = factor * clip + (1 - factor) * luma
    else:
        result = torch.empty_like(clip)
        for t, y, x in itertools.product(*map(range, clip.shape[1:])):
            hue, saturation, value = colorsys.rgb_to_hsv(*clip[:, t, y, x].tolist())
            result[:, t, y, x] = torch.tensor(colorsys.hsv_to_rgb((hue + factor) % 1, saturation, value))
    return result.clamp(0, 1)


@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation", "hue"])
def test_colour_jitter_is_torchvisions(kind: str) -> None:
    # The drawn factor is not known, but one factor within the range must explain all pixels of all frames.
    clip = random_clip(3, 2, 12, 12, seed=4) * 0.5 + 0.2
    result = only(**{kind: 0.4})(clip, generator(9))
    assert (result - clip).abs().max() > 0.01
    low, high = (-0.4, 0.4) if kind == "hue" else (0.6, 1.4)
    small, expected_small = clip[..., :3, :3], result[..., :3, :3]
    if kind == "contrast":  # depends on the whole frame
        small, expected_small = clip, result

    def error(factor: float) -> float:
        return float((jitter_reference(small, kind, factor) - expected_small).abs().max())

    # A coarse search, then a finer one around the best.
    best, width = (low + high) / 2, (high - low) / 2
    for _ in range(5):
        candidates = torch.linspace(max(low, best - width), min(high, best + width), 41).tolist()
        best = min(candidates, key=error)
        width /= 15
    assert error(best) < 1e-4
    torch.testing.assert_close(jitter_reference(clip, kind, best), result, atol=2e-4, rtol=0)


def test_shifts_of_hue_fill_their_range() -> None:
    """On a red of full saturation the shift can be read off: 40 draws come within a tenth of both ends."""
    red = torch.zeros(3, 1, 12, 12)
    red[0] = 1.0
    shifts = []
    for seed in range(40):
        hue, _, _ = colorsys.rgb_to_hsv(*only(hue=0.4)(red, generator(seed))[:, 0, 0, 0].tolist())
        shifts.append(hue - round(hue))
    assert -0.401 < min(shifts) < -0.36
    assert 0.36 < max(shifts) < 0.401


def test_contrast_uses_the_mean_of_each_frame() -> None:
    clip = torch.cat([torch.full((3, 1, 12, 12), 0.2), torch.full((3, 1, 12, 12), 0.8)], dim=1)
    torch.testing.assert_close(only(contrast=0.4)(clip, generator(1)), clip, atol=1e-5, rtol=0)


def test_order_of_the_jitter_is_random() -> None:
    class Fixed(ClipAugment):
        """Factors always the same, so that only the order is left to vary."""

        @staticmethod
        def _factor(strength: float, generator: torch.Generator | None) -> float:
            return 1.4

    augment = Fixed(12, flip=0, scale=(1, 1), ratio=(1, 1), hue=0)
    clip = random_clip(3, 1, 12, 12)
    results = {round(float(augment(clip, generator(seed)).mean()), 5) for seed in range(60)}
    # The three factors do not commute because each result is clamped: at most 3! orders, all of which occur.
    assert 4 <= len(results) <= 6


STRENGTHS = (1.35, 0.65, 1.3, -0.31)


def kornias(frames: Tensor, drawn: Augmentation, size: int) -> Tensor:
    """The augmentation as this project computed it with kornia: (1, T, H, W, 3) -> (1, 3, T, S, S)."""
    enhance = pytest.importorskip("kornia").enhance
    pixels = frames[0].permute(0, 3, 1, 2).float() / 255
    if drawn.flip:
        pixels = pixels.flip(-1)
    pixels = pixels[..., drawn.top : drawn.top + drawn.height, drawn.left : drawn.left + drawn.width]
    pixels = functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    # kornia's `adjust_contrast` is the multiplication, its hue is in radians.
    steps = (
        enhance.adjust_contrast,
        enhance.adjust_contrast_with_mean_subtraction,
        enhance.adjust_saturation_with_gray_subtraction,
        lambda image, factor: enhance.adjust_hue(image, 2 * math.pi * factor),
    )
    for step in drawn.steps:
        pixels = steps[step](pixels, drawn.strengths[step])
    return pixels.clamp(0, 1).transpose(0, 1)[None]


@pytest.mark.parametrize("left_out", [None, 0, 1, 2, 3])
def test_every_order_of_the_steps_gives_what_kornia_gives(left_out: int | None) -> None:
    """Within 1/255, and in fact within some ulps: the two differ by rounding alone."""
    frames = colourful(2, 40, 52)
    augment = ClipAugment(24)
    for order in itertools.permutations(number for number in range(4) if number != left_out):
        padded = (*order, *[-1] * (4 - len(order)))
        drawn = Augmentation(len(order) % 2 == 0, 3, 5, 35, 44, STRENGTHS, padded)
        clips = augment.apply(frames, [drawn])
        expected = kornias(frames, drawn._replace(steps=order), 24)
        assert (clips - expected).abs().max() < 1e-5, order
        half = augment.apply(frames, [drawn], torch.bfloat16)
        assert half.dtype == torch.bfloat16
        # Strengths of 8 bits, and a result of 8.
        assert (half.float() - expected).abs().max() < 0.03, order


def colourful(length: int, height: int, width: int) -> Tensor:
    """Bytes of (1, T, H, W, 3): smooth colours, a part of noise, a grey part, black and white."""
    smooth = torch.rand(length, 3, 5, 6, generator=generator(0))
    smooth = functional.interpolate(smooth, (height, width), mode="bicubic").clamp(0, 1)
    frames = (255 * smooth).round().byte().permute(0, 2, 3, 1)[None].contiguous()
    noise = torch.randint(256, (1, length, 12, 15, 3), dtype=torch.uint8, generator=generator(1))
    frames[:, :, 8:20, 8:23] = noise
    frames[:, :, 22:30, 8:23] = frames[:, :, 22:30, 8:23, :1]
    frames[:, :, 30:, :20], frames[:, :, 30:, 20:30] = 0, 255
    return frames


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"size": 0}, "size"),
        ({"flip": 1.5}, "flip"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (0.9, 0.5)}, "scale"),
        ({"ratio": (2.0, 1.0)}, "ratio"),
        ({"saturation": -0.1}, "saturation"),
        ({"hue": 0.6}, "hue"),
    ],
)
def test_bad_augmentation_settings_are_named(settings: dict, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be "):
        ClipAugment(**settings)


@pytest.mark.parametrize(
    "clip", [torch.zeros(3, 4, 4), torch.zeros(4, 3, 8, 8), torch.zeros(3, 2, 8, 8).byte()]
)
def test_bad_clips_are_refused(clip: Tensor) -> None:
    with pytest.raises(ValueError, match=r"clip must be floating point \(3, T, H, W\), got"):
        ClipAugment(8)(clip, generator(0))


@pytest.mark.parametrize("batch", [1, 2, 5, 8])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_pairs_a_batch_with_its_reverse(batch: int, kind: str) -> None:
    clips = random_clip(batch, 3, 4, 16, 20)
    before = clips.clone()
    labels = torch.arange(batch) % 7
    mix = BatchMix(
        7, mixup_alpha=0.8 * (kind == "mixup"), cutmix_alpha=1.0 * (kind == "cutmix"), label_smoothing=0
    )
    mixed, targets = mix(clips, labels, generator(21))
    assert torch.equal(clips, before)
    assert mixed.shape == clips.shape
    assert targets.shape == (batch, 7)
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets.sum(1), torch.ones(batch))
    for b in range(batch):
        partner = batch - 1 - b
        if labels[b] == labels[partner]:
            share = None
            assert targets[b, labels[b]] == pytest.approx(1)
        else:
            share = float(targets[b, labels[b]])
            assert float(targets[b, labels[partner]]) == pytest.approx(1 - share, abs=1e-6)
        if partner == b:
            torch.testing.assert_close(mixed[b], clips[b])
        elif kind == "mixup" and share is not None:
            assert 0 < share < 1
            torch.testing.assert_close(mixed[b], share * clips[b] + (1 - share) * clips[partner])
        elif share is not None:
            foreign = (mixed[b] == clips[partner]).all(0)
            own = (mixed[b] == clips[b]).all(0)
            assert (foreign ^ own).all()
            assert float(foreign.float().mean()) == pytest.approx(1 - share, abs=1e-6)
            box = foreign[0].nonzero()
            top, left = box.min(0).values.tolist()
            bottom, right = box.max(0).values.tolist()
            assert foreign[:, top : bottom + 1, left : right + 1].all(), "one box, the same in every frame"


def test_label_smoothing() -> None:
    mix = BatchMix(5, mixup_alpha=0, cutmix_alpha=0, label_smoothing=0.1)
    clips = random_clip(3, 3, 2, 4, 4)
    mixed, targets = mix(clips, torch.tensor([4, 0, 2]), generator(0))
    assert torch.equal(mixed, clips)
    expected = torch.full((3, 5), 0.02)
    expected[torch.arange(3), torch.tensor([4, 0, 2])] = 0.92
    torch.testing.assert_close(targets, expected)


def test_soft_labels_are_mixed_and_smoothed() -> None:
    soft = torch.softmax(torch.randn(4, 7, generator=generator(3)), 1)
    mix = BatchMix(7, cutmix_alpha=0)
    clips = random_clip(4, 3, 2, 4, 4)
    mixed, targets = mix(clips, soft, generator(8))
    share = float(((mixed[0] - clips[3]) / (clips[0] - clips[3])).median())
    smooth = 0.9 * soft + 0.1 / 7
    torch.testing.assert_close(targets, share * smooth + (1 - share) * smooth.flip(0), atol=1e-5, rtol=1e-4)


def test_switching_between_kinds_and_repeatability() -> None:
    clips = random_clip(2, 3, 2, 16, 16)
    labels = torch.tensor([0, 1])
    cut = 0
    for seed in range(200):
        mixed, targets = BatchMix(2)(clips, labels, generator(seed))
        again = BatchMix(2)(clips, labels, generator(seed))
        assert torch.equal(mixed, again[0])
        assert torch.equal(targets, again[1])
        cut += bool(((mixed == clips) | (mixed == clips.flip(0))).all())
    assert 70 < cut < 130


@pytest.mark.parametrize(("alpha", "spread"), [(0.8, 0.31), (10.0, 0.109)])
def test_share_follows_the_beta_distribution(alpha: float, spread: float) -> None:
    mix = BatchMix(2, mixup_alpha=alpha, cutmix_alpha=0, label_smoothing=0)
    draws = generator(2)
    clips, labels = random_clip(2, 3, 1, 2, 2), torch.tensor([0, 1])
    shares = torch.stack([mix(clips, labels, draws)[1][0, 0] for _ in range(1500)])
    # Standard deviation of Beta(a, a): 1 / (2 sqrt(2 a + 1)).
    assert spread == pytest.approx(1 / (2 * (2 * alpha + 1) ** 0.5), abs=2e-3)
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(shares.std()) == pytest.approx(spread, rel=0.06)


@pytest.mark.parametrize(
    ("clips", "labels", "message"),
    [
        (torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]), r"clips must be floating point \(B, 3, T, H, W\)"),
        (torch.zeros(2, 3, 1, 4, 4), torch.tensor([0, 1, 2]), "got 3 for 2 clips"),
        (torch.zeros(2, 3, 1, 4, 4), torch.tensor([0, 7]), r"labels must lie in 0\.\.6, got \[0, 7\]"),
        (torch.zeros(2, 3, 1, 4, 4), torch.tensor([-1, 2]), r"labels must lie in 0\.\.6"),
        (torch.zeros(2, 3, 1, 4, 4), torch.zeros(2, 6), r"labels must be int64 \(B,\) or .* \(B, 7\)"),
    ],
)
def test_bad_batches_are_refused(clips: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchMix(7)(clips, labels, generator(0))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 7, "mixup_alpha": -1}, "mixup_alpha"),
        ({"num_classes": 7, "cutmix_alpha": -1}, "cutmix_alpha"),
        ({"num_classes": 7, "switch_prob": 2}, "switch_prob"),
        ({"num_classes": 7, "label_smoothing": 1.0}, "label_smoothing"),
    ],
)
def test_bad_mixing_settings_are_named(settings: dict, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be "):
        BatchMix(**settings)
