"""Weights of a block cast together and norms in 16 bits: a GPU's way under autocast, here on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ifdd import IFDD, create_model
from ifdd.modules import lowered
from ifdd.modules.backbone import MultiscaleBlock


@pytest.fixture
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast on the CPU counts as that of a GPU."""

    def dtype(x: Tensor) -> torch.dtype | None:
        return torch.bfloat16 if torch.is_autocast_enabled("cpu") else None

    monkeypatch.setattr(lowered, "lowered_dtype", dtype)


def _gradients(network: IFDD, clips: Tensor, autocast: bool = True) -> list[Tensor]:
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = network(clips)
    (output.logits.double().square().sum() + output.lifting_residual.double().square().sum()).backward()
    return [parameter.grad.double() for parameter in network.parameters() if parameter.grad is not None]


def _error(found: list[Tensor], exact: list[Tensor]) -> float:
    """Relative to each parameter's gradient, the mean over parameters."""
    pairs = zip(found, exact, strict=True)
    return float(torch.stack([(a - b).norm() / b.norm() for a, b in pairs if b.norm() > 1e-6]).mean())


def test_gradients_are_no_further_from_float64(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """With norms whose weights are not 1 and 0, which 16 bits hold exactly."""
    network = create_model("ifdd_nano", image_size=32, drop_path=0.0, dropout=0.0).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.add_(0.3 * torch.randn(module.weight.shape, generator=generator))
                module.bias.add_(0.1 * torch.randn(module.bias.shape, generator=generator))
    clips = torch.rand(2, 3, 16, 32, 32, generator=generator)
    plain = _gradients(network, clips)
    request.getfixturevalue("_as_on_a_gpu")
    together = _gradients(network, clips)
    exact = _gradients(network.double(), clips.double(), autocast=False)
    assert len(together) == len(plain) == len(exact)
    assert any(not torch.equal(a, b) for a, b in zip(plain, together, strict=True)), "the same ran twice"
    assert _error(together, exact) <= 1.05 * _error(plain, exact)


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_frozen_weights_get_no_gradient() -> None:
    block = MultiscaleBlock((2, 2, 2), 8, 8, 1)
    block.mlp_expand.weight.requires_grad_(False)
    seen: list[bool] = []
    original = lowered.lowered_weight

    def watched(tensor: Tensor) -> Tensor:
        found = original(tensor)
        if tensor is block.mlp_expand.weight and found is not tensor:
            seen.append(found.requires_grad)
        return found

    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr(lowered, "lowered_weight", watched)
        block(torch.rand(1, 9, 8))[0].sum().backward()
    assert seen
    assert not any(seen)
    assert block.mlp_expand.weight.grad is None
    assert block.mlp_contract.weight.grad is not None
    assert block.mlp_contract.weight.grad.dtype == torch.float32


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_nothing_is_lowered_outside() -> None:
    block = MultiscaleBlock((2, 2, 2), 8, 8, 1)
    with torch.autocast("cpu", torch.bfloat16):
        block(torch.rand(1, 9, 8))
        assert lowered.lowered_weight(block.mlp_expand.weight) is block.mlp_expand.weight
