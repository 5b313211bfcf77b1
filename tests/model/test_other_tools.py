"""The network and its parts under PyTorch's other tools: regional compilation, tracing, copies, layouts."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ifdd import IFDD, IFDDConfig
from ifdd.modules import DropPath, MultiscaleBlock


def network(**fields: Any) -> IFDD:
    given: dict[str, Any] = {"backbone": "mvit_nano", "clip_frames": 8, "image_size": 32, "embed_dim": 8}
    return IFDD(IFDDConfig(**{**given, "dropout": 0.0, "drop_path": 0.0, **fields}))


def clips(batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 8, 32, 32)


def counter() -> Any:
    from torch._dynamo.testing import CompileCounterWithBackend

    return CompileCounterWithBackend("eager")


@pytest.mark.parametrize(
    ("depths", "limit"),
    [((1, 1, 2, 1), 3), pytest.param((1, 2, 5, 2), 8, marks=pytest.mark.nightly)],
)
def test_every_block_compiled_by_itself(depths: tuple[int, ...], limit: int) -> None:
    """More blocks than programs of one function are allowed, in training; then a batch of another size."""
    if "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
        pytest.skip("this PyTorch counts the programs of all blocks together")
    torch.compiler.reset()
    model, count = network(depths=depths, drop_path=0.2).train(), counter()
    with torch._dynamo.config.patch(recompile_limit=limit):
        for block in model.backbone.blocks:
            block.compile(fullgraph=True, backend=count)
        for batch in (2, 3):
            model(clips(batch))
        most = 2 * len(model.backbone.blocks)
        assert len(model.backbone.blocks) <= count.frame_count <= most + 2
        before = count.frame_count
        model(clips(4))
    assert count.frame_count == before


def test_rates_of_stochastic_depth_share_a_program() -> None:
    torch.compiler.reset()
    count = counter()
    kwargs: dict[str, Any] = {"grid": (1, 2, 2), "in_channels": 8, "out_channels": 8, "heads": 1}
    x = torch.randn(2, 5, 8)
    for rate in (0.1, 0.2, 0.3):
        torch.compile(MultiscaleBlock(**kwargs, drop_path=rate), fullgraph=True, backend=count)(x)
    assert count.frame_count == 1


def test_stochastic_depth() -> None:
    """Whole samples, at the rate, scaled; after a change of the rate, of the device and of the dtype."""
    path, x = DropPath(0.25), torch.ones(4000, 2, 3)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        out = path.to(dtype)(x.to(dtype))
        assert out.dtype == dtype
        values = out.float().flatten(1)
        assert torch.equal(values.amin(1), values.amax(1))
        assert set(values.unique().tolist()) == {0.0, float((torch.tensor(1.0, dtype=dtype) / 0.75).float())}
        assert abs(float((values[:, 0] == 0).float().mean()) - 0.25) < 0.05
    path.rate = 0.75
    assert abs(float((copy.deepcopy(path)(x)[:, 0, 0] == 0).float().mean()) - 0.75) < 0.05
    path.rate = 0.0
    assert path(x) is x
    path.rate = 0.5
    assert path.eval()(x) is x
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\)"):
        path.rate = 1.0
    with torch.device("meta"):
        made = DropPath(0.25)
    assert set(made(x).unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.75)}
    assert made.to("meta")(x.to("meta")).is_meta
    assert not made.state_dict()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("grad", [False, True])
def test_traced_network_is_saved_and_loaded(grad: bool) -> None:
    model, x = network().eval(), clips()
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(model, (x,), check_trace=False, strict=False)
    stored = io.BytesIO()
    torch.jit.save(traced, stored)
    stored.seek(0)
    loaded = torch.jit.load(stored)
    other = clips()
    for one, wanted in zip(loaded(other), model(other), strict=True):
        torch.testing.assert_close(one, wanted)


def test_copies_compute_the_same() -> None:
    model, x = network().eval(), clips()
    wanted = model(x).logits
    assert torch.equal(copy.deepcopy(model)(x).logits, wanted)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x).logits, wanted)
    assert torch.equal(model.share_memory()(x).logits, wanted)


def test_layouts_of_clips() -> None:
    model, x = network().eval(), clips()
    wanted = model(x).logits
    strided = torch.empty(2, 3, 8, 32, 64)[..., ::2].copy_(x)
    for given in (x.contiguous(memory_format=torch.channels_last_3d), strided):
        assert not given.is_contiguous()
        torch.testing.assert_close(model(given).logits, wanted)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_around_the_network(use_reentrant: bool) -> None:
    model, x = network().double(), clips().double().requires_grad_()

    def gradients(call: Any) -> list[Tensor]:
        model.zero_grad()
        x.grad = None
        sum(part.square().sum() for part in call(x)).backward()
        return [p.grad for p in (x, *model.parameters())]  # type: ignore[misc]

    wanted = gradients(model)
    for got, want in zip(
        gradients(lambda x: checkpoint(model, x, use_reentrant=use_reentrant)), wanted, strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_some_parameters_frozen() -> None:
    """Gradients of the others are the same, whichever inputs of an op need one."""
    model, x = network().double(), clips().double()

    def gradients() -> dict[str, Tensor | None]:
        model.zero_grad()
        sum(part.square().sum() for part in model(x)).backward()  # type: ignore[union-attr]
        return {name: p.grad for name, p in model.named_parameters()}

    wanted = gradients()
    names = list(wanted)
    for first in (0, 1):
        for place, parameter in enumerate(model.parameters()):
            parameter.requires_grad_(place % 2 == first)
        got = gradients()
        for place, name in enumerate(names):
            assert (got[name] is not None) == (place % 2 == first)
            if got[name] is not None:
                torch.testing.assert_close(got[name], wanted[name], rtol=1e-9, atol=1e-12)


def test_torchao_int8_weights() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model, x = network(embed_dim=16).eval(), clips()
    wanted = model(x).logits.detach()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    kinds = {type(layer.weight) for layer in model.modules() if isinstance(layer, nn.Linear)}
    assert nn.Parameter not in kinds
    with torch.no_grad():
        got = model(x).logits
    error = float((got - wanted).norm() / wanted.norm())
    assert 0 < error < 0.1
