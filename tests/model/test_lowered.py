"""Weights cast together, norms in 16 bits and joined with the branch before: a GPU's ways, on the CPU."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from ifdd import IFDD, create_model
from ifdd.modules import backbone as backbone_module
from ifdd.modules import lowered
from ifdd.modules.backbone import MultiscaleBackbone, MultiscaleBlock
from ifdd.modules.drop_path import DropPath, drawn
from ifdd_kernels import record


@pytest.fixture
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast on the CPU counts as that of a GPU."""

    def dtype(x: Tensor) -> torch.dtype | None:
        return torch.bfloat16 if torch.is_autocast_enabled("cpu") else None

    monkeypatch.setattr(lowered, "lowered_dtype", dtype)
    monkeypatch.setattr(lowered, "eager_on_gpu", lambda x: True)


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


def test_gradients_are_about_as_far_from_float64(request: pytest.FixtureRequest) -> None:
    """With norms whose weights are not 1 and 0, which 16 bits hold exactly.

    The ratio of both errors is 1.1 on average over networks and varies by a quarter from one to the next.
    """
    networks = [_network(seed) for seed in range(6)]
    plain = [_gradients(*given) for given in networks]
    request.getfixturevalue("_as_on_a_gpu")
    together = [_gradients(*given) for given in networks]
    exact = [_gradients(network.double(), clips.double(), autocast=False) for network, clips in networks]
    ratios = []
    for one, other, right in zip(plain, together, exact, strict=True):
        assert len(one) == len(other) == len(right)
        assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True)), "the same ran twice"
        ratios.append(_error(other, right) / _error(one, right))
    assert torch.tensor(ratios).log().mean().exp() <= 1.35, ratios


def _network(seed: int) -> tuple[IFDD, Tensor]:
    torch.manual_seed(seed)
    network = create_model("ifdd_nano", image_size=32, drop_path=0.0, dropout=0.0).train()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.add_(0.3 * torch.randn(module.weight.shape))
                module.bias.add_(0.1 * torch.randn(module.bias.shape))
    return network, torch.rand(2, 3, 16, 32, 32)


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


def _backbone(drop_path: float = 0.0) -> MultiscaleBackbone:
    torch.manual_seed(3)
    return MultiscaleBackbone((2, 8, 8), (8, 16, 24, 32), (1, 2, 1, 1), drop_path).train()


def _outputs_and_gradients(backbone: MultiscaleBackbone, tokens: Tensor) -> tuple[list[Tensor], int]:
    """Outputs, then the gradients of all parameters; and how many branches were joined with a norm."""
    backbone.zero_grad()
    with record() as calls:
        outputs = [stage.tokens for stage in backbone(tokens).values()]
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    joined = sum(call.op == "add_layer_norm" for call in calls)
    grads = [parameter.grad for parameter in backbone.parameters() if parameter.grad is not None]
    return [*outputs, *grads], joined


def test_branches_are_joined_with_the_norms_behind_them(request: pytest.FixtureRequest) -> None:
    """The last with the backbone's own; with a hook on a block, those around it alone."""
    backbone, tokens = _backbone(), torch.randn(2, 128, 8)
    expected, none = _outputs_and_gradients(backbone, tokens)
    request.getfixturevalue("_as_on_a_gpu")
    found, joined = _outputs_and_gradients(backbone, tokens)
    assert (none, joined) == (0, 10)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)

    seen: list[torch.Size] = []
    hook = backbone.blocks[2].register_forward_hook(lambda module, args, out: seen.append(out[0].shape))
    found, joined = _outputs_and_gradients(backbone, tokens)
    assert (len(seen), joined) == (1, 8)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    hook.remove()

    backbone.blocks[1].attention_norm.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    changed, joined = _outputs_and_gradients(backbone, tokens)
    assert joined == 9
    assert not torch.allclose(changed[1], expected[1])


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_a_dropped_branch_is_left_out() -> None:
    """At a rate of nearly 1 every sample loses both branches of a block."""
    backbone, seen = _backbone(), []
    backbone.blocks[2].drop_path.rate = 1 - 1e-12
    tokens = torch.randn(2, 33, 16)
    handle = backbone.blocks[3].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    backbone.blocks[1].forward = lambda given, chain=None: (tokens, (2, 4, 4))  # type: ignore[method-assign]
    backbone(torch.randn(2, 128, 8))
    handle.remove()
    assert torch.equal(seen[0], tokens)


def test_samples_of_all_paths_are_drawn_together() -> None:
    paths = [DropPath(rate) for rate in (0.25, 0.0, 0.5)]
    torch.manual_seed(0)
    first, none, last = drawn(paths, torch.empty(4000, 3, dtype=torch.bfloat16))
    assert none is None
    for kept, keep in ((first, 0.75), (last, 0.5)):
        assert kept is not None
        assert abs(float(kept.double().mean()) - keep) < 0.03
    assert drawn([path.eval() for path in paths], torch.empty(2, 3)) == [None, None, None]


def test_weights_are_cast_once_for_several_blocks(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Those of a block with a hook apart, at the values that they have when it runs."""
    casts: list[int] = []
    copied = lowered._copied

    def counted(tensors: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
        if tensors and dtype != torch.float32:
            casts.append(len(tensors))
        return copied(tensors, dtype)

    monkeypatch.setattr(lowered, "_copied", counted)
    request.getfixturevalue("_as_on_a_gpu")
    network = create_model("ifdd_nano", image_size=32, drop_path=0.0, dropout=0.0).train()
    clips = torch.rand(1, 3, 16, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        expected = network(clips).dynamic
        groups, blocks = len(casts), len(network.backbone.blocks)
        assert groups == 2 + -(-blocks // 4)  # all behind the backbone, the embedding, four blocks each

        def doubled(block: torch.nn.Module, given: object) -> None:
            block.mlp_expand.weight.data.mul_(2)

        network.backbone.blocks[1].register_forward_pre_hook(doubled)
        casts.clear()
        changed = network(clips).dynamic
        assert len(casts) == groups + 1
        network.backbone.blocks[1]._forward_pre_hooks.clear()
        without = network(clips).dynamic
    # Norms that no hook keeps apart are rounded otherwise.
    assert (changed - without).norm() < 0.2 * (changed - expected).norm()


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_gradient_of_live_rows_is_added_to_that_of_all() -> None:
    tokens = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    at = torch.tensor([0, 4, 7])
    assert torch.autograd.gradcheck(lambda x: backbone_module._WithRows.apply(x, at), tokens)
    assert torch.autograd.gradgradcheck(lambda x: backbone_module._WithRows.apply(x.exp(), at), tokens)
    alone = backbone_module._WithRows.apply(tokens, at)[1].sum()
    (grad,) = torch.autograd.grad(alone, tokens)
    assert torch.equal(grad.sum((0, 2)), torch.zeros(9, dtype=torch.float64).index_fill(0, at, 6.0))


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_an_early_block_keeps_no_norm_of_its_input() -> None:
    """Its input and the live rows are kept; the norm of all tokens comes again, with the same gradients."""
    torch.manual_seed(0)
    block = MultiscaleBlock((2, 8, 8), 8, 8, 1, stride_kv=(1, 8, 8)).train()
    tokens = torch.randn(2, 129, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        all_kept = block(tokens)[0]  # with hooks of somebody else's everything is seen
    expected = torch.autograd.grad(all_kept.square().sum(), [tokens, *block.parameters()])
    normed: list[Tensor] = []
    apply_norm = backbone_module.apply_norm
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            backbone_module, "apply_norm", lambda n, x: normed.append(apply_norm(n, x)) or normed[-1]
        )
        out = block(tokens)[0]
    seen = weakref.ref(normed.pop().untyped_storage())
    assert seen() is None, "the norm is kept"
    found = torch.autograd.grad(out.square().sum(), [tokens, *block.parameters()])
    torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_weights_are_their_own_where_autocast_is_switched_off_inside() -> None:
    """A network whose features, or whose lifting and head, a subclass computes in float32."""

    class Wide(IFDD):
        def forward_features(self, clips: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return super().forward_features(clips)

    network = create_model("ifdd_nano", image_size=32, stages=(2, 3), drop_path=0.0, dropout=0.0).eval()
    clips = torch.rand(1, 3, 16, 32, 32)
    exact = network.forward_features(clips)
    network.__class__ = Wide
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network.forward_features(clips), exact)
        assert network(clips).dynamic.dtype == torch.bfloat16
        with lowered.lowered([network.head.classifier.weight], torch.bfloat16):
            assert lowered.lowered_weight(network.head.classifier.weight).dtype == torch.bfloat16
            with torch.autocast("cpu", torch.float16):
                assert lowered.lowered_weight(network.head.classifier.weight).dtype == torch.float32


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_the_last_norm_runs_where_the_last_stage_is_asked_for() -> None:
    backbone, seen = _backbone(), []
    backbone.norm.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    assert list(backbone(torch.randn(1, 128, 8), (0, 2))) == [0, 2]
    assert not seen
    backbone(torch.randn(1, 128, 8), (3,))
    assert len(seen) == 1
    backbone.norm._forward_hooks.clear()
    backbone.blocks = backbone.blocks[:-1]
    assert list(backbone(torch.randn(1, 128, 8), (0, 2))) == [0, 2]
