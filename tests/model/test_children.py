"""Children whose weights fused ops read: whatever is hung on one of them has its effect."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from ifdd import IFDD, IFDDConfig
from ifdd.modules import LADM, ConvEmbedding, MultiscaleBlock, NoLifting

Layers = (nn.Linear, nn.LayerNorm, nn.Conv3d)
Make = Callable[[], tuple[nn.Module, Tensor]]


def block() -> tuple[nn.Module, Tensor]:
    """Keys and values of live tokens only, another width behind it."""
    module = MultiscaleBlock((2, 9, 9), 8, 16, 2, stride_q=(1, 2, 2), stride_kv=(1, 8, 8))
    return module, torch.randn(2, 163, 8, dtype=torch.float64)


def ladm() -> tuple[nn.Module, Tensor]:
    return LADM(4, (2, 3), 16, 4, pool=2), torch.randn(2, 24, 16, dtype=torch.float64)


def no_lifting() -> tuple[nn.Module, Tensor]:
    return NoLifting(4, (2, 3), 16, pool=2), torch.randn(2, 24, 16, dtype=torch.float64)


def embedding() -> tuple[nn.Module, Tensor]:
    """Of 32 frames: the convolution and the mean behind it are folded."""
    return ConvEmbedding(4, 32), torch.rand(1, 3, 32, 8, 8, dtype=torch.float64)


def network() -> tuple[nn.Module, Tensor]:
    fields: dict[str, Any] = {"backbone": "mvit_nano", "clip_frames": 8, "image_size": 32, "embed_dim": 8}
    return IFDD(IFDDConfig(**fields)), torch.rand(2, 3, 8, 32, 32, dtype=torch.float64)


MODULES = (block, ladm, no_lifting, embedding)
every_module = pytest.mark.parametrize("make", MODULES, ids=lambda make: make.__name__)


def made(make: Make) -> tuple[nn.Module, Tensor]:
    """The module in evaluation with random weights everywhere."""
    module, x = make()
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for name, parameter in module.named_parameters():
            if name.endswith("_offset.weight"):
                # Positions inside of the clip: behind its ends samples stand still.
                rows, columns = parameter.shape
                inwards = torch.linspace(1, -1, rows, dtype=torch.float64).sign()[:, None]
                parameter.copy_(inwards * 0.4 / columns**0.5 + 0.02 * torch.randn(rows, columns))
    return module, x


def outputs(module: nn.Module, x: Tensor) -> list[Tensor]:
    found = module(x)
    found = (found,) if isinstance(found, Tensor) else found
    return [out for out in found if isinstance(out, Tensor)]


def same(got: list[Tensor], wanted: list[Tensor], bar: float = 1e-9) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert float((one - other).detach().abs().max()) <= bar * float(other.detach().abs().max())


def children(module: nn.Module, kinds: tuple[type[nn.Module], ...] = Layers) -> list[tuple[str, nn.Module]]:
    return [(name, child) for name, child in module.named_modules() if isinstance(child, kinds)]


def replace(module: nn.Module, name: str, child: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, child)


@torch.no_grad()
def double(child: nn.Module) -> None:
    for parameter in child.parameters(recurse=False):
        parameter.mul_(2)


def hook(root: nn.Module, name: str, child: nn.Module) -> None:
    child.register_forward_hook(lambda module, inputs, output: output * 2)


def pre_hook(root: nn.Module, name: str, child: nn.Module) -> None:
    """Doubles the result: linear children alone, and these without their bias."""
    if isinstance(child, nn.LayerNorm):
        return hook(root, name, child)
    child.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    bias = child.bias
    if bias is not None:
        child.register_forward_hook(
            lambda module, inputs, output: output + bias.view(-1, *(1,) * 3 * isinstance(child, nn.Conv3d))
        )
    return None


def own_forward(root: nn.Module, name: str, child: nn.Module) -> None:
    """As accelerate does: the instance has a forward of its own."""
    inner = child.forward
    child.forward = lambda x: inner(x) * 2  # type: ignore[method-assign]


def subclass(root: nn.Module, name: str, child: nn.Module) -> None:
    kind = type(child)
    forward = kind.forward
    child.__class__ = type("Twice", (kind,), {"forward": lambda self, x: forward(self, x) * 2})


def wrapper(root: nn.Module, name: str, child: nn.Module) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = child

        weight = property(lambda self: self.inner.weight)
        bias = property(lambda self: self.inner.bias)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * 2

    replace(root, name, Twice())


def parametrized(root: nn.Module, name: str, child: nn.Module) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    for leaf in list(dict(child.named_parameters(recurse=False))):
        parametrize.register_parametrization(child, leaf, Twice())


class Doubled(Tensor):
    """A tensor that layers see as twice its values: only calling the layer shows it to them."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func in (F.linear, F.layer_norm, F.conv3d, torch.conv3d):
                plain = [arg.as_subclass(Tensor) * 2 if isinstance(arg, cls) else arg for arg in args]
                given = {
                    k: v.as_subclass(Tensor) * 2 if isinstance(v, cls) else v
                    for k, v in (kwargs or {}).items()
                }
                return func(*plain, **given)
            return func(*args, **(kwargs or {}))


def weights_of_a_subclass(root: nn.Module, name: str, child: nn.Module) -> None:
    for leaf, parameter in list(child.named_parameters(recurse=False)):
        delattr(child, leaf)
        setattr(child, leaf, parameter.detach().as_subclass(Doubled))


WAYS = (pre_hook, own_forward, subclass, wrapper, parametrized, weights_of_a_subclass)


@every_module
def test_what_hangs_on_one_child_acts(make: Make) -> None:
    """A hook that doubles what one child returns is the same as doubling its parameters."""
    module, x = made(make)
    before = outputs(module, x)
    for name, _ in children(module):
        doubled, hung = copy.deepcopy(module), copy.deepcopy(module)
        double(doubled.get_submodule(name))
        hook(hung, name, hung.get_submodule(name))
        wanted = outputs(doubled, x)
        same(outputs(hung, x), wanted)
        moved = max(float((a - b).detach().abs().max()) for a, b in zip(wanted, before, strict=True))
        assert moved > 1e-6, f"{name} does not matter here"


@every_module
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_way_of_hanging_something_on_children_acts(make: Make, way: Callable[..., None]) -> None:
    module, x = made(make)
    doubled, hung = copy.deepcopy(module), copy.deepcopy(module)
    for name, _ in children(module):
        double(doubled.get_submodule(name))
        way(hung, name, hung.get_submodule(name))
    same(outputs(hung, x), outputs(doubled, x))


@every_module
def test_hooks_fire_with_results_and_gradients_of_the_fused_network(make: Make) -> None:
    module, x = made(make)
    watched, calls = copy.deepcopy(module), []
    for name, child in watched.named_modules():
        if name:
            child.register_forward_hook(lambda *_, name=name: calls.append(name))
    same(outputs(watched, x), outputs(module, x))
    assert set(calls) == {name for name, _ in watched.named_modules() if name}
    results = [
        torch.autograd.grad(sum(out.square().sum() for out in outputs(m, x)), list(m.parameters()))  # type: ignore[arg-type]
        for m in (module, watched)
    ]
    largest = max(float(grad.abs().max()) for grad in results[0])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11 * largest)


def test_hooks_on_all_modules_fire_too() -> None:
    module, x = made(block)
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, inputs, out: seen.append(m))
    try:
        module(x)
    finally:
        handle.remove()
    assert {child for _, child in children(module)} <= set(seen)


@pytest.mark.parametrize("batch", [0, 1])
def test_children_are_called_with_any_batch(batch: int) -> None:
    module, x = made(block)
    wanted = outputs(module, x[:batch])
    module.attention.pool_k.register_forward_hook(lambda *_: None)  # type: ignore[union-attr]
    same(outputs(module, x[:batch]), wanted) if batch else None
    assert outputs(module, x[:batch])[0].shape == wanted[0].shape


def test_other_settings_of_a_child_count() -> None:
    """Exactly the expected type, but not what the op computes: eps, a bias, dilation, none of the weights."""
    module, x = made(block)

    def changed(change: Callable[[Any], None]) -> list[Tensor]:
        other = copy.deepcopy(module)
        change(other.attention)
        wanted = copy.deepcopy(other)
        for _, child in children(wanted):
            child.register_forward_hook(lambda *_: None)
        got = outputs(other, x)
        same(got, outputs(wanted, x))
        assert not torch.allclose(got[0], outputs(module, x)[0])
        return got

    bias = torch.randn(8, dtype=torch.float64)
    changed(lambda attention: setattr(attention.norm_k, "eps", 1.0))
    changed(lambda attention: setattr(attention.pool_v, "bias", nn.Parameter(bias)))
    changed(lambda attention: setattr(attention.norm_q, "bias", None))
    changed(
        lambda attention: setattr(attention, "norm_q", nn.LayerNorm(8, elementwise_affine=False).double())
    )
    changed(lambda attention: setattr(attention, "norm_v", nn.Identity()))
    changed(lambda attention: setattr(attention.qkv, "bias", None))
    changed(lambda attention: (setattr(attention.pool_q, "dilation", (1, 2, 2)),
                               setattr(attention.pool_q, "padding", (1, 2, 2))))  # fmt: skip
    strided = copy.deepcopy(module)
    strided.attention.pool_q.stride = (1, 2, 2)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="a pool must keep the shape of its input"):
        strided(x)


@pytest.mark.parametrize("name", ["static_norm", "dynamic_norm", "mlp_dropout", "drop_path", "mlp_norm"])
def test_identities_in_ladm(name: str) -> None:
    module, x = made(ladm)
    setattr(module, name, nn.Identity())
    wanted = copy.deepcopy(module)
    for child in wanted.children():
        child.register_forward_hook(lambda *_: None)
    same(outputs(module, x), outputs(wanted, x))


def test_norms_of_two_eps_in_ladm() -> None:
    module, x = made(ladm)
    module.dynamic_norm.eps = 0.5  # type: ignore[union-attr]
    wanted = copy.deepcopy(module)
    wanted.static_norm.register_forward_hook(lambda *_: None)  # type: ignore[union-attr]
    same(outputs(module, x), outputs(wanted, x))


def test_dropout_left_on_in_evaluation_acts() -> None:
    """Monte Carlo dropout switches the dropout layers alone to training."""
    module = LADM(4, (2, 3), 16, 4, pool=2, attention_dropout=0.5).eval()
    x = torch.randn(2, 24, 16)
    assert torch.equal(module(x)[0], module(x)[0])
    module.mlp_dropout.train()
    assert not torch.equal(module(x)[0], module(x)[0])


def test_split_with_indexes_of_its_own() -> None:
    """A subclass of ISSM that decides otherwise is asked."""
    from ifdd.modules import ISSM, FrameIndexes

    class Still(ISSM):
        def indexes(self, frames: Tensor) -> FrameIndexes:
            zeros = frames.new_zeros(len(frames), self.frames // 2)
            return FrameIndexes(zeros, zeros, None)

    x = torch.randn(2, 4, 6, 16)
    static, _ = Still(4, (2, 3), 16, pool=2)(x)
    assert torch.equal(static, x[:, :1].expand_as(static))


class LoRA(nn.Module):
    """The mechanics of peft: a wrapper that shows weight and bias of the layer inside."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False, dtype=base.weight.dtype)
        self.up = nn.Linear(rank, base.out_features, bias=False, dtype=base.weight.dtype)
        self.in_features, self.out_features = base.in_features, base.out_features

    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.up(self.down(x))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        self.base_layer.weight += self.up.weight @ self.down.weight
        return self.base_layer


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("make", [block, ladm, no_lifting, network], ids=lambda make: make.__name__)
def test_adapters_learn_and_merge(make: Make, training: bool) -> None:
    """Evaluation and training without anything random are the same network, adapters included."""
    module, x = made(make)
    for child in module.modules():
        for rate in ("rate", "dropout", "p"):
            if isinstance(getattr(child, rate, None), float):
                setattr(child, rate, 0.0)
    names = [name for name, child in children(module, (nn.Linear,))]
    for name in names:
        replace(module, name, LoRA(module.get_submodule(name)))  # type: ignore[arg-type]
    before = outputs(module.train(training), x)
    same(outputs(module.train(not training), x), before, 1e-12)
    sum(out.square().sum() for out in before).backward()  # type: ignore[union-attr]
    for name in names:
        adapter: Any = module.get_submodule(name)
        assert float(adapter.down.weight.grad.abs().max()) > 0, name
        assert float(adapter.up.weight.grad.abs().max()) > 0, name
    for name in names:
        replace(module, name, module.get_submodule(name).merged())  # type: ignore[operator]
    same(outputs(module, x), before)


@pytest.mark.parametrize("make", [block, network], ids=lambda make: make.__name__)
def test_peft(make: Make) -> None:
    peft = pytest.importorskip("peft")
    module, x = made(make)
    names = [name for name, child in children(module, (nn.Linear,))]
    tuned = peft.get_peft_model(
        module, peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False)
    ).double().eval()  # fmt: skip
    before = outputs(tuned, x)
    sum(out.square().sum() for out in before).backward()  # type: ignore[union-attr]
    adapters = {name: p.grad for name, p in tuned.named_parameters() if "lora_" in name}
    assert len(adapters) == 2 * len(names)
    assert all(grad is not None and bool(grad.any()) for grad in adapters.values())
    same(outputs(tuned.merge_and_unload(), x), before, 1e-5)


def pruned(child: nn.Module) -> Callable[[], object]:
    prune.l1_unstructured(child, "weight", amount=0.5)
    return lambda: prune.remove(child, "weight")


def old_weight_norm(child: nn.Module) -> Callable[[], object]:
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(child)
    child.weight_g.data.mul_(1.5)  # type: ignore[union-attr, operator]
    return lambda: nn.utils.remove_weight_norm(child)


def old_spectral_norm(child: nn.Module) -> Callable[[], object]:
    nn.utils.spectral_norm(child).eval()
    return lambda: nn.utils.remove_spectral_norm(child)


def weight_norm(child: nn.Module) -> Callable[[], object]:
    parametrizations.weight_norm(child)
    child.parametrizations.weight.original0.data.mul_(1.5)  # type: ignore[union-attr, operator]
    return lambda: parametrize.remove_parametrizations(child, "weight")


def spectral_norm(child: nn.Module) -> Callable[[], object]:
    parametrizations.spectral_norm(child).eval()
    return lambda: parametrize.remove_parametrizations(child, "weight")


@every_module
@pytest.mark.parametrize(
    "way",
    [pruned, old_weight_norm, old_spectral_norm, weight_norm, spectral_norm],
    ids=lambda way: way.__name__,
)
def test_reparametrised_weights(make: Make, way: Callable[[nn.Module], Callable[[], object]]) -> None:
    """Results are those after the weights have been baked in; a stale copy of the weights would differ."""
    module, x = made(make)
    kinds = (nn.Linear, nn.Conv3d)
    undo = [way(child) for _, child in children(module, kinds)]
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(("weight_orig", "weight_g", "original", "original0")):
                parameter.mul_(1.25)
    before = outputs(module, x)
    sum(out.square().sum() for out in before).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in module.parameters())
    for back in undo:
        back()
    same(outputs(module, x), before)


def offload(module: nn.Module) -> None:
    """accelerate's cpu_offload: weights on meta until the forward that each instance is given."""
    for child in list(module.modules()):
        stored = {name: p.data for name, p in child.named_parameters(recurse=False)}
        if not stored:
            continue

        def hide(child: nn.Module = child, stored: dict[str, Tensor] = stored) -> None:
            for name, tensor in stored.items():
                child._parameters[name] = nn.Parameter(tensor.to("meta"))

        def run(
            *args: Any,
            inner: Callable[..., Any] = child.forward,
            child: nn.Module = child,
            stored: dict[str, Tensor] = stored,
            hide: Callable[[], None] = hide,
            **kwargs: Any,
        ) -> Any:
            for name, tensor in stored.items():
                child._parameters[name] = nn.Parameter(tensor)
            try:
                return inner(*args, **kwargs)
            finally:
                hide()

        hide()
        child.forward = functools.partial(run)  # type: ignore[method-assign]


@pytest.mark.parametrize("make", [*MODULES, network], ids=lambda make: make.__name__)
def test_offloaded_weights(make: Make) -> None:
    module, x = made(make)
    with torch.no_grad():
        wanted = outputs(module, x)
        offload(module)
        assert all(p.is_meta for p in module.parameters())
        same(outputs(module, x), wanted)


def test_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate")
    module, x = made(network)
    with torch.no_grad():
        wanted = outputs(module, x)
        offloaded = accelerate.cpu_offload(module, execution_device="cpu")
        same(outputs(offloaded, x), wanted)


@pytest.mark.filterwarnings("ignore:.*")
def test_quantize_dynamic() -> None:
    """Every linear layer is converted and called."""
    module, x = made(network)
    module, x = module.float(), x.float()
    wanted = module(x)
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(module), {nn.Linear}, dtype=torch.qint8)
    count = len(children(module, (nn.Linear,)))
    kinds = [type(child).__module__ for child in quantized.modules()]
    assert sum("quantized.dynamic" in kind and "linear" in kind for kind in kinds) >= count
    assert not children(quantized, (nn.Linear,))
    got = quantized(x)
    error = float((got.dynamic - wanted.dynamic).detach().norm() / wanted.dynamic.detach().norm())
    assert 0 < error < 0.25  # eight bits through thirty layers


def test_half_a_child_is_an_error_that_names_it() -> None:
    module, x = made(block)
    module.float().mlp_contract.half()  # type: ignore[operator, union-attr]
    with pytest.raises(TypeError, match=r"gelu_linear: weight must be torch.float32.*torch.float16"):
        module(x.float())


def test_tied_weights() -> None:
    module, x = made(block)
    contract: Any = module.mlp_contract
    other = copy.deepcopy(module)
    other.mlp_contract = nn.Linear(64, 16).double()
    other.mlp_contract.weight = contract.weight
    other.mlp_contract.bias = contract.bias
    (outputs(module, x)[0].sum() + outputs(other, x)[0].sum()).backward()
    twice = contract.weight.grad.clone()
    contract.weight.grad = None
    outputs(module, x)[0].sum().backward()
    torch.testing.assert_close(twice, 2 * contract.weight.grad)
