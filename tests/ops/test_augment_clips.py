"""Crop, flip and colours of clips: against PyTorch's resize, on its threads, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import ifdd_kernels as K
from ifdd_kernels import _arguments, backends
from ifdd_kernels.registry import REGISTRY, Maker
from ops.backend_checks import check_call
from ops.cases import nightly

pytestmark = pytest.mark.skipif(
    not backends.can_run("augment_clips", "native"), reason="the native library is not built"
)
ENTRY = REGISTRY["augment_clips"]


def arguments(
    frames: Tensor,
    crop: list[int],
    strengths: tuple[float, ...] = (1, 1, 1, 0),
    steps: tuple[int, ...] = (-1, -1, -1, -1),
    flip: bool = False,
) -> tuple[Tensor, ...]:
    """Those of one clip before `size`."""
    given = torch.tensor([strengths], dtype=torch.float32)
    return frames, torch.tensor([crop]), torch.tensor([flip]), given, torch.tensor([steps])


FRAMES = Maker(torch.float32).pixels(1, 2, 9, 8, 3)


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_samples(dtype: torch.dtype) -> None:
    """As in ``test_accuracy.py``, for the lower instruction sets too."""
    for sample in ENTRY.samples(Maker(dtype, seed=2)):
        check_call(ENTRY, sample, ENTRY.overload)


@pytest.mark.instruction_sets
@pytest.mark.parametrize(
    ("crop", "size"),
    [([0, 0, 60, 90], 32), ([3, 5, 17, 40], 32), nightly([1, 2, 58, 77], 7), nightly([4, 4, 2, 3], 19)],
)
@pytest.mark.parametrize("flip", [False, True])
def test_resize_is_pytorchs(crop: list[int], size: int, flip: bool) -> None:
    frames = Maker(torch.float32).pixels(1, 2, 60, 90, 3)
    top, left, height, width = crop
    pixels = frames[0].permute(0, 3, 1, 2).float() / 255
    pixels = (pixels.flip(-1) if flip else pixels)[..., top : top + height, left : left + width]
    expected = functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    for backend in ("native", "reference"):
        clips = K.augment_clips(*arguments(frames, crop, flip=flip), size, backend=backend)
        # PyTorch rounds the places of pixels of an axis of n to n / 2 ulps, and its weights by as much.
        torch.testing.assert_close(clips[0].transpose(0, 1), expected, atol=2e-5, rtol=0)


@pytest.mark.instruction_sets
def test_grey_has_no_hue() -> None:
    """Where red, green and blue are equal nothing is divided by their difference."""
    grey = FRAMES[..., :1].expand_as(FRAMES)
    plain = K.augment_clips(*arguments(grey, [0, 0, 9, 8]), 5)
    turned = K.augment_clips(*arguments(grey, [0, 0, 9, 8], (1, 1, 1, 0.3), (3, -1, -1, -1)), 5)
    torch.testing.assert_close(turned, plain, atol=1e-6, rtol=0)


def test_bits_do_not_depend_on_threads_or_on_other_clips() -> None:
    crops, steps = [[0, 0, 40, 44], [3, 1, 30, 20], [5, 5, 9, 9]], [[0, 1, 2, 3], [1, 0, 3, 2], [3, 2, 0, -1]]
    make = Maker(torch.float32)
    given = _arguments.augment_clips(make, make.pixels(3, 5, 40, 44, 3), crops, steps, 24).of("augment_clips")
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append(torch.ops.ifdd.augment_clips(*given))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)
    *tensors, size = given
    alone = torch.ops.ifdd.augment_clips(*(tensor[1:2] for tensor in tensors), size)
    assert torch.equal(alone[0], results[0][1])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "crop below the frame": (
        {"crop": [5, 0, 5, 8]},
        r"crop: .*frames of 9 x 8, got \(5, 0, 5, 8\) for clip 0",
    ),
    "crop right of the frame": ({"crop": [0, 3, 9, 6]}, "crop: "),
    "crop without height": ({"crop": [0, 0, 0, 8]}, "crop: "),
    "crop beyond 64 bits": ({"crop": [2**63 - 1, 0, 2**63 - 1, 8]}, "crop: "),
    "a step twice": ({"steps": (3, 1, 1, -1)}, "steps: .*each step at most once, got 1 as step 2 of clip 0"),
    "an unknown step": ({"steps": (0, 4, 1, -1)}, "steps: .*got 4 as step 1"),
    "a factor that is not a number": ({"strengths": (1, float("nan"), 1, 0)}, "strengths: .*finite"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_values_are_refused_and_are_nan_by_definition(what: str) -> None:
    changed, message = WRONG[what]
    given = arguments(FRAMES, **{"crop": [0, 0, 9, 8], **changed})
    with pytest.raises(RuntimeError, match=f"augment_clips: {message}"):
        K.augment_clips(*given, 4)
    assert K.augment_clips(*given, 4, backend="reference").isnan().all()


def test_strengths_have_no_gradient() -> None:
    given = list(arguments(FRAMES, [0, 0, 9, 8]))
    given[3] = given[3].requires_grad_()
    with pytest.raises(NotImplementedError, match="augment_clips: strengths require a gradient"):
        K.augment_clips(*given, 4)
    with torch.no_grad():
        K.augment_clips(*given, 4)
    frames, crop, flip, strengths, steps = given
    assert not torch.ops.ifdd.augment_clips(strengths, frames, crop, flip, steps, 4).requires_grad


@pytest.mark.parametrize(
    ("place", "value", "error", "message"),
    [
        (0, FRAMES.float(), TypeError, "frames must be torch.uint8, got torch.float32"),
        (0, FRAMES[..., :2], ValueError, r"frames must have shape \(B, T, H, W, 3\)"),
        (0, FRAMES[:, :, :0], ValueError, r"H of frames must be 1 to 131072, got 0"),
        (1, torch.zeros(2, 4, dtype=torch.int64), ValueError, r"crop must have shape \(1, 4\)"),
        (2, torch.zeros(1), TypeError, "flip must be torch.bool"),
        (3, torch.zeros(1, 4, dtype=torch.int64), TypeError, "strengths must be float16"),
        (5, 0, ValueError, "size must be positive, got 0"),
    ],
)
def test_wrong_arguments_are_named(place: int, value: Any, error: type[Exception], message: str) -> None:
    given: list[Any] = [*arguments(FRAMES, [0, 0, 9, 8]), 4]
    given[place] = value
    with pytest.raises(error, match=f"augment_clips: {message}"):
        K.augment_clips(*given)
