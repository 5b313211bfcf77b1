"""``augment_clips``: random resized crop, flip and colour jitter of training clips in one op."""

from __future__ import annotations

import torch
from torch import Tensor

from ifdd_kernels import _check, _cuda_limits, reference
from ifdd_kernels._operator import register
from ifdd_kernels.backends import run
from ifdd_kernels.triton import twin

#: Longest sides of frames and results: distances are 32-bit integers, up to six times the product of both.
LONGEST_SIDE = 2**17
LARGEST_SIZE = 2048


def _check_arguments(
    frames: Tensor, crop: Tensor, flip: Tensor, strengths: Tensor, steps: Tensor, size: int
) -> None:
    op = "augment_clips"
    _check.shape(op, "frames", frames, ("B", "T", "H", "W", 3))
    batch, length, height, width, _ = frames.shape
    _check.positive(op, size=size)
    for name, value, expected in (
        ("crop", crop, (batch, 4)),
        ("flip", flip, (batch,)),
        ("strengths", strengths, (batch, 4)),
        ("steps", steps, (batch, 4)),
    ):
        _check.shape(op, name, value, expected)
    for name, value, dtype in (
        ("frames", frames, torch.uint8),
        ("crop", crop, torch.int64),
        ("flip", flip, torch.bool),
        ("steps", steps, torch.int64),
    ):
        if value.dtype != dtype:
            raise TypeError(f"{op}: {name} must be {dtype}, got {value.dtype}")
    _check.floating(op, "strengths", strengths)
    for name, side, most in (
        ("H of frames", height, LONGEST_SIDE),
        ("W of frames", width, LONGEST_SIDE),
        ("size", size, LARGEST_SIZE),
    ):
        if not 1 <= side <= most:
            raise ValueError(f"{op}: {name} must be 1 to {most}, got {side}")
    _check.extent(op, "size", (batch, length, 3, size, size))


def _fake(frames: Tensor, strengths: Tensor, size: int) -> Tensor:
    return strengths.new_empty(frames.shape[0], 3, frames.shape[1], size, size)


def _sizes(frames: Tensor, size: int) -> tuple[int, ...]:
    return (*frames.shape[:4], size)


OPERATOR = register(
    "augment_clips",
    # Strengths come first: of a call's first argument the dtype decides which kernels there are.
    "(Tensor strengths, Tensor frames, Tensor crop, Tensor flip, Tensor steps, int size) -> Tensor clips",
    reference=reference.augment_clips,
    fake=_fake,
    check=_check_arguments,
    backends={"triton": twin("augment_clips")},
    cuda_limit=_cuda_limits.resized,
    non_differentiable=("clips",),
    sizes=_sizes,
)


def augment_clips(
    frames: Tensor,
    crop: Tensor,
    flip: Tensor,
    strengths: Tensor,
    steps: Tensor,
    size: int,
    *,
    backend: str = "auto",
) -> Tensor:
    r"""Flips, crops, resizes and changes the colours of clips, all frames of a clip alike.

    The crop of the flipped frame, in [0, 1], is resized by antialiased bilinear interpolation, which is
    that of ``torch.nn.functional.interpolate(mode="bilinear", antialias=True)``: pixel j of an axis of n
    has in pixel i of the result the weight

    .. math:: w_{ij} \propto \max(0,\ 1 - |j + 1/2 - (i + 1/2)\,n/S|\ /\ \max(1, n/S))

    Then up to four steps are taken, in any order, with the result of each clamped to [0, 1]:

    .. math::
        a_0\,x, \qquad a_1\,x + (1 - a_1)\,\overline{y}, \qquad a_2\,x + (1 - a_2)\,y

    for brightness, contrast and saturation, with the luma y = 0.299 R + 0.587 G + 0.114 B of a pixel and its
    mean over a frame. The fourth step turns the hue by a_3 of the circle, in HSV. These are the
    definitions of torchvision's ``ColorJitter`` (and of kornia's ``adjust_contrast``,
    ``adjust_contrast_with_mean_subtraction``, ``adjust_saturation_with_gray_subtraction``, ``adjust_hue``).

    Args:
        frames: uint8 (B, T, H, W, 3), any strides.
        crop: int64 (B, 4): top, left, height and width, in the flipped frame.
        flip: bool (B,): horizontally.
        strengths: (B, 4): a_0 to a_3; float16, bfloat16, float32 or float64. Its dtype is the result's.
        steps: int64 (B, 4): the steps in their order, 0 brightness, 1 contrast, 2 saturation, 3 hue, each at
            most once; -1 means no step.
        size: S, the side of the result.
        backend: see :mod:`ifdd_kernels.backends`.

    Returns:
        (B, 3, T, S, S) in [0, 1], in the dtype of strengths; arithmetic in float32 (float64 for float64).

    No gradient flows through it. Deterministic. A clip whose crop is not inside the frame, whose strengths
    are not finite or whose steps are not such numbers is NaN; the native CPU kernel raises instead.

    Raises:
        ValueError: a shape, size or device that does not fit.
        TypeError: a dtype that does not.
        NotImplementedError: strengths require a gradient.
        RuntimeError: values as above (native, on a CPU).

    Source: the recipe of Wang & Chai, AAAI 2025, arXiv:2412.13168.
    """
    if isinstance(strengths, Tensor) and strengths.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError("augment_clips: strengths require a gradient, which the op does not have")
    clips: Tensor = run(OPERATOR, backend, strengths, frames, crop, flip, steps, size)
    return clips
