"""The start of narrow networks: exactly the published one on normalised pixels, with unit gain behind it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ifdd import IFDD, IFDDConfig
from ifdd.initialisation import PIXEL_DEVIATION, PIXEL_MEAN, start_at_unit_gain
from ifdd.modules.embedding import ConvEmbedding

Small = Callable[..., IFDDConfig]


def test_the_embedding_is_the_old_one_on_normalised_pixels() -> None:
    embedding = ConvEmbedding(6, 8)
    plain = ConvEmbedding(6, 8)
    plain.load_state_dict(embedding.state_dict())
    torch.nn.init.zeros_(plain.conv.bias)
    start_at_unit_gain(embedding, torch.nn.Identity())
    clips = torch.rand(2, 3, 8, 32, 32)
    # Padding is zero before the normalisation in one and after it in the other: compare inside.
    inside = (..., slice(1, -1), slice(1, -1), slice(1, -1))
    wanted = plain((clips - PIXEL_MEAN) / PIXEL_DEVIATION)[inside]
    torch.testing.assert_close(embedding(clips)[inside], wanted, atol=1e-5, rtol=1e-5)


def test_the_backbone_keeps_the_size_of_a_signal(small_config: Small) -> None:
    model = IFDD(small_config(initialisation="unit_gain"))
    for name, module in model.backbone.named_modules():
        if isinstance(module, torch.nn.Linear):
            gain = float(module.weight.detach().std()) * module.in_features**0.5
            assert 0.8 < gain < 1.1, f"{name}: gain {gain}"


def test_published_is_the_default_and_others_are_refused(small_config: Small) -> None:
    model = IFDD(small_config())
    weight = model.backbone.blocks[0].mlp_expand.weight.detach()
    assert 0.015 < float(weight.std()) < 0.025
    with pytest.raises(ValueError, match=r"initialisation must be one of .*; got 'xavier'"):
        small_config(initialisation="xavier")


def test_batch_normalised_embeddings_are_left_alone(small_config: Small) -> None:
    torch.manual_seed(3)
    plain = IFDD(small_config(embedding="s3d", clip_frames=32)).embedding
    torch.manual_seed(3)
    scaled = IFDD(small_config(embedding="s3d", clip_frames=32, initialisation="unit_gain")).embedding
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), scaled.parameters(), strict=True))
