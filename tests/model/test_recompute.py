"""Recomputation in backward: from the tensors of the forward pass, however a network is called."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from ifdd import IFDD, IFDDConfig
from ifdd.modules import MultiscaleBackbone, MultiscaleBlock

IN_PLACE = "modified by an inplace operation"


def make_block() -> MultiscaleBlock:
    return MultiscaleBlock((2, 4, 4), 16, 16, 2).double()


def make_backbone() -> MultiscaleBackbone:
    """With activation checkpointing, in training."""
    return MultiscaleBackbone((2, 4, 4), (16, 16, 16, 16), (1, 1, 1, 1), 0.0, True).double().train()


def tokens(rows: int = 33) -> Tensor:
    return torch.randn(2, rows, 16, dtype=torch.float64)


def out_of(module: nn.Module, x: Tensor) -> Tensor:
    """The tokens that a block or a backbone returns."""
    found = module(x)
    return found[3].tokens if isinstance(found, dict) else found[0]


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(out_of(module, x).square().sum(), list(module.parameters())))


def same(got: list[Tensor], wanted: list[Tensor]) -> None:
    largest = max(float(grad.abs().max()) for grad in wanted)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13 * largest)


@pytest.mark.parametrize("make", [make_block, make_backbone])
def test_functional_call(make: Callable[[], nn.Module]) -> None:
    """Backward runs after `functional_call` has put the module's own parameters back."""
    module, x = make(), tokens(33 if make is make_block else 32)
    other = {n: p.detach() + 0.5 * torch.randn_like(p) for n, p in module.named_parameters()}
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in other.items()}
    found = functional_call(module, leaves, (x,))
    out = found[3].tokens if isinstance(found, dict) else found[0]
    got = torch.autograd.grad(out.square().sum(), list(leaves.values()), retain_graph=True)
    again = torch.autograd.grad(out.square().sum(), list(leaves.values()))
    plain = copy.deepcopy(module)
    plain.load_state_dict(other)
    wanted = gradients(plain, x)
    same(list(got), wanted)
    same(list(again), wanted)
    own = dict(module.named_parameters())
    assert not any(own[name] is leaf for name, leaf in leaves.items())


@pytest.mark.parametrize("what", ["weight", "bias"])
def test_a_norm_changed_in_place_is_noticed(what: str) -> None:
    """Also where the norm itself has no gradient, so that nothing else would look at its weight."""
    block = make_block().requires_grad_(False)
    block.mlp_expand.requires_grad_()
    out, _ = block(tokens())
    with torch.no_grad():
        getattr(block.mlp_norm, what).mul_(2)
    with pytest.raises(RuntimeError, match=IN_PLACE):
        out.sum().backward()


def test_checkpointed_parameters_changed_in_place_are_noticed() -> None:
    backbone = make_backbone()
    loss = out_of(backbone, tokens(32)).sum()
    with torch.no_grad():
        backbone.blocks[0].attention.table_h.mul_(2)  # type: ignore[union-attr, operator]
    with pytest.raises(RuntimeError, match=IN_PLACE):
        loss.backward()


def test_normed_tokens_changed_in_place_are_kept() -> None:
    """A hook may scale what the norm returned; backward must see that."""
    block, x = make_block(), tokens()
    scaled = copy.deepcopy(block)

    def double(module: nn.Module, inputs: tuple[Tensor]) -> None:
        inputs[0].mul_(2)

    block.mlp_expand.register_forward_pre_hook(double)
    with torch.no_grad():
        scaled.mlp_norm.weight.mul_(2)
        scaled.mlp_norm.bias.mul_(2)
    names = [name for name, _ in block.named_parameters()]
    got, wanted = gradients(block, x), gradients(scaled, x)
    place = names.index("mlp_expand.weight")
    torch.testing.assert_close(got[place], wanted[place])


def test_where_hooks_on_saved_tensors_are_disabled() -> None:
    block, backbone = make_block(), make_backbone()
    x, y = tokens(), tokens(32)
    wanted = gradients(block, x), gradients(backbone, y)
    with torch.autograd.graph.disable_saved_tensors_hooks("none here"):
        same(gradients(block, x), wanted[0])
        same(gradients(backbone, y), wanted[1])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints_around_a_block(use_reentrant: bool) -> None:
    block, x = make_block(), tokens().requires_grad_()
    wanted = torch.autograd.grad(block(x)[0].square().sum(), [x, *block.parameters()])
    out = checkpoint(lambda x: block(x)[0], x, use_reentrant=use_reentrant)
    out.square().sum().backward()
    got = [p.grad for p in (x, *block.parameters())]
    same([grad for grad in got if grad is not None], list(wanted))


def test_hooks_of_others_see_every_tensor() -> None:
    """Offloading of saved tensors, and checkpoints, do without the block's own hooks."""
    block, x = make_block(), tokens()
    seen: list[int] = []
    made: list[Tensor] = []
    block.mlp_expand.register_forward_pre_hook(lambda module, inputs: made.append(inputs[0]))
    plain = gradients(block, x)

    def keep(tensor: Tensor) -> Tensor:
        seen.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out, _ = block(x)
    assert made[-1].data_ptr() in seen
    same(list(torch.autograd.grad(out.square().sum(), list(block.parameters()))), plain)


def test_gradients_by_torch_func() -> None:
    block, backbone = make_block(), make_backbone()
    for module, x in ((block, tokens()), (backbone, tokens(32))):

        def loss(parameters: dict[str, Tensor], module: nn.Module = module, x: Tensor = x) -> Tensor:
            found = functional_call(module, parameters, (x,))
            return (found[3].tokens if isinstance(found, dict) else found[0]).square().sum()

        got = torch.func.grad(loss)({n: p.detach() for n, p in module.named_parameters()})
        same(list(got.values()), gradients(module, x))


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def small() -> IFDD:
    fields: dict[str, Any] = {"backbone": "mvit_nano", "clip_frames": 8, "image_size": 32, "embed_dim": 8}
    fields["depths"] = (1, 1, 1, 1)
    return IFDD(IFDDConfig(**fields, drop_path=0.0, dropout=0.0, activation_checkpointing=True)).double()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
def test_distributed_wrappers(group: None) -> None:
    """DDP, FSDP2 of every block, and of single layers whose weights fused ops read otherwise."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    model, clips = small(), torch.rand(1, 3, 8, 32, 32, dtype=torch.float64)

    def run(model: nn.Module) -> dict[str, Tensor]:
        out = model(clips)
        (out.logits.sum() + out.lifting_residual.square().sum()).backward()
        found = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
        return {
            name: grad.full_tensor() if isinstance(grad, DTensor) else grad
            for name, grad in found.items()
            if grad is not None
        }

    wanted = run(copy.deepcopy(model))
    blocks, layers = copy.deepcopy(model), copy.deepcopy(model)
    for block in blocks.backbone.blocks:
        fully_shard(block)
    fully_shard(blocks.lifting)
    fully_shard(blocks)
    for name, module in list(layers.named_modules()):
        if not name.startswith("backbone.blocks.1") and name.endswith(
            ("mlp_norm", "mlp_contract", "pool_q", "norm_k", "qkv", "query", "compress", "static_offset")
        ):
            fully_shard(module)
    for wrapped in (nn.parallel.DistributedDataParallel(copy.deepcopy(model)), blocks, layers):
        got = run(wrapped)
        assert got.keys() == wanted.keys()
        same(list(got.values()), list(wanted.values()))
