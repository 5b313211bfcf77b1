"""Every variant of the network against the plain formulation at small size, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from golden_cases import assert_close
from ifdd.checkpoint.foreign_names import original_names
from ops.cases import nightly

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "frames_16": {"clip_frames": 16},
    "frames_32": {"clip_frames": 32},
    "stages_3": {"stages": (3,)},
    "stages_1_2_3": {"stages": (1, 2, 3)},
    "stages_0_1_2_3": {"stages": (0, 1, 2, 3)},
    "stages_0_3": {"stages": (0, 3)},
    "backbone_s": {"backbone": "mvit_s"},
    "backbone_xs": {"backbone": "mvit_xs"},
    "larger_image": {"image_size": 96, "split_pool": 3},
    "topk": {"split": "topk"},
    "topk_prior": {"split": "topk", "topk_order_prior": True},
    "even_odd": {"split": "even_odd"},
    "predict_first": {"lifting": "predict_first"},
    "no_split_norm": {"split_norm": False},
    "conv": {"split": "even_odd", "lifting": "conv"},
    "none": {"lifting": "none"},
    "none_topk": {"split": "topk", "lifting": "none"},
    "none_even_odd": {"split": "even_odd", "lifting": "none"},
    "self_conditioned": {"self_conditioned": True},
    "self_conditioned_predict_first": {"self_conditioned": True, "lifting": "predict_first"},
    "s3d": {"embedding": "s3d", "clip_frames": 32},
    "four_heads": {"lifting_heads": 4, "num_classes": 11},
}
# Both run in float64 in another order of summation; the plain network has about 30 layers.
RTOL = 1e-9


def gradients(model: nn.Module, clips: torch.Tensor) -> tuple[Any, torch.Tensor]:
    clips = clips.clone().requires_grad_()
    output = model(clips)
    generator = torch.Generator().manual_seed(3)
    cotangents = [torch.randn(part.shape, generator=generator, dtype=torch.float64) for part in output]
    torch.autograd.backward(list(output), cotangents)
    assert clips.grad is not None
    return type(output)(*(part.detach() for part in output)), clips.grad


#: Of these every part is in another one.
REPEATS = (
    *("frames_16", "stages_3", "stages_1_2_3", "stages_0_3", "backbone_s", "topk"),
    *("none_topk", "none_even_odd", "self_conditioned"),
)


@pytest.mark.parametrize("name", [nightly(name, id=name, when=name in REPEATS) for name in VARIANTS])
def test_same_as_plain_formulation(
    name: str, make_pair: Callable[..., Any], clips: Callable[..., Any]
) -> None:
    ours, original = make_pair(**VARIANTS[name])
    # In training mode, with all dropout off, batch norm uses and updates its statistics.
    ours.train()
    original.train()
    x = clips(ours.config, seed=sum(map(ord, name)))
    actual, actual_grad = gradients(ours, x)
    expected, expected_grad = gradients(original, x)
    for key, value in actual._asdict().items():
        assert_close(value, getattr(expected, key), RTOL, label=key)
    assert_close(actual_grad, expected_grad, RTOL, label="grad of clips")

    parameters, theirs = dict(ours.named_parameters()), dict(original.named_parameters())
    names = original_names(original.state_dict(), "model").required
    scale = max(float(p.grad.abs().max()) for p in theirs.values() if p.grad is not None)
    compared = 0
    for their_name, our_name in names.items():
        if our_name not in parameters:
            continue
        gradient, wanted = parameters[our_name].grad, theirs[their_name].grad
        # Where nothing flows (no gradient through integer indexes), the plain network has no gradient at all.
        if wanted is None:
            assert gradient is None or not gradient.any(), our_name
            continue
        assert gradient is not None, our_name
        # Gradients that cancel to zero (bias of the keys' norm) keep only the rounding of larger terms.
        assert_close(gradient.view_as(wanted), wanted, RTOL, floor=1e-3 * scale, label=our_name)
        compared += 1
    assert compared == len(parameters)
    for their_name, our_name in names.items():
        if "running" in our_name:
            assert_close(ours.state_dict()[our_name], original.state_dict()[their_name], RTOL, label=our_name)


def test_evaluation_uses_running_statistics(make_pair: Callable[..., Any], clips: Callable[..., Any]) -> None:
    ours, original = make_pair(embedding="s3d", clip_frames=32)
    x = clips(ours.config)
    with torch.no_grad():
        actual, expected = ours.eval()(x), original.eval()(x)
        training = ours.train()(x)
    assert_close(actual.logits, expected.logits, RTOL)
    assert not torch.allclose(actual.logits, training.logits)


def test_aligned_sampling_differs(make_pair: Callable[..., Any], clips: Callable[..., Any]) -> None:
    ours, original = make_pair(index_sampling="aligned")
    x = clips(ours.config)
    with torch.no_grad():
        features, plain = ours.eval().features(x), original.eval()(x)
    assert not torch.allclose(features.output.logits, plain.logits)
    assert ours.lifting.split.aligned
