"""The whole network: inputs, modes, precision, compilation and export."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from golden_cases import assert_close
from ifdd import IFDD, IFDDConfig
from ifdd.losses import IFDDLoss
from ops.cases import nightly

Clips = Callable[..., torch.Tensor]
SmallConfig = Callable[..., IFDDConfig]


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("training", [False, True])
def test_any_batch(batch: int, training: bool, small_config: SmallConfig, clips: Clips) -> None:
    model = IFDD(small_config(drop_path=0.2, dropout=0.5)).train(training)
    output = model(clips(model.config, batch, torch.float32))
    assert output.logits.shape == (batch, 5)
    assert output.lifting_residual.shape == (batch, 2, 2)
    assert output.dynamic.shape == (batch, 128)
    sum(part.sum() for part in output).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_clip_does_not_depend_on_its_batch(small_config: SmallConfig, clips: Clips) -> None:
    model = IFDD(small_config()).double().eval()
    x = clips(model.config, 3)
    together = model(x)
    for index in range(3):
        for alone, batched in zip(model(x[index : index + 1]), together, strict=True):
            torch.testing.assert_close(alone[0], batched[index], rtol=1e-10, atol=1e-12)


def test_self_conditioned_residual_is_halved(small_config: SmallConfig, clips: Clips) -> None:
    model = IFDD(small_config(self_conditioned=True, image_size=96)).eval()
    assert model(clips(model.config, 1, torch.float32)).lifting_residual.shape == (1, 1, 1)


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (torch.rand(3, 8, 64, 64), r"\(B, 3, 8, 64, 64\); got \(3, 8, 64, 64\)"),
        (torch.rand(1, 1, 8, 64, 64), r"got \(1, 1, 8, 64, 64\)"),
        (torch.rand(1, 3, 16, 64, 64), r"got \(1, 3, 16, 64, 64\)"),
        (torch.rand(1, 3, 8, 32, 64), r"got \(1, 3, 8, 32, 64\)"),
        (torch.zeros(1, 3, 8, 64, 64, dtype=torch.uint8), "floating point RGB.*torch.uint8"),
    ],
)
def test_refuses_other_clips(clips: torch.Tensor, message: str, small_config: SmallConfig) -> None:
    model = IFDD(small_config())
    for method in (model, model.features):
        with pytest.raises(ValueError, match=message):
            method(clips)


def test_network_on_meta(small_config: SmallConfig) -> None:
    """Shapes of results and gradients without memory; loaded by assignment it is a real network."""
    config = small_config(image_size=32)
    with torch.device("meta"):
        model = IFDD(config)
        output = model(torch.rand(2, 3, 8, 32, 32))
    assert output.logits.is_meta
    assert output.logits.shape == (2, 5)
    (output.logits.sum() + output.lifting_residual.sum()).backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    good = IFDD(config).eval()
    model.load_state_dict(good.state_dict(), assign=True)
    x = torch.rand(2, 3, 8, 32, 32)
    assert torch.equal(model.eval()(x).logits, good(x).logits)


def test_training_differs_from_evaluation(small_config: SmallConfig, clips: Clips) -> None:
    model = IFDD(small_config(dropout=0.5, drop_path=0.2))
    x = clips(model.config, 2, torch.float32)
    assert not torch.equal(model.train()(x).logits, model(x).logits)
    assert torch.equal(model.eval()(x).logits, model(x).logits)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"split": "topk"},
        {"split": "even_odd", "lifting": "conv"},
        {"split": "even_odd", "lifting": "none"},
    ],
    ids=str,
)
def test_features(fields: dict[str, Any], small_config: SmallConfig, clips: Clips) -> None:
    model = IFDD(small_config(**fields)).eval()
    x = clips(model.config, 2, torch.float32)
    features = model.features(x)
    for a, b in zip(features.output, model(x), strict=True):
        assert torch.equal(a, b)
    assert features.static.shape == features.dynamic.shape == (2, 4, 2, 2, 128)
    assert features.static_index.shape == features.dynamic_index.shape == (2, 4)
    if model.config.split == "interpolate":
        assert features.correlation is not None
        assert features.correlation.shape == (2, 8, 8)
        assert features.static_index.is_floating_point()
    else:
        assert features.correlation is None
        assert features.static_index.dtype == torch.int64


def test_default_configuration_is_the_paper() -> None:
    with torch.device("meta"):
        assert IFDD().config == IFDDConfig(backbone="mvit_xs", num_classes=7, clip_frames=16, image_size=224)


def train_step(model: IFDD, x: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)  # the same dropout and stochastic depth in every call
    model.zero_grad()
    parts = IFDDLoss()(model.train()(x), torch.arange(len(x)) % model.config.num_classes)
    parts.total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_activation_checkpointing_changes_nothing(small_config: SmallConfig, clips: Clips) -> None:
    config = small_config(drop_path=0.3, dropout=0.5)
    plain = IFDD(config)
    frugal = IFDD(IFDDConfig.from_dict({**config.to_dict(), "activation_checkpointing": True}))
    frugal.load_state_dict(plain.state_dict())
    x = clips(config, 2, torch.float32)
    calls = []
    frugal.backbone.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    expected, actual = train_step(plain, x), train_step(frugal, x)
    assert len(calls) == 2  # once forward, once again in the backward pass
    assert expected.keys() == actual.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, msg=name)
    calls.clear()
    frugal.eval()(x)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "fields", [{}, {"split": "topk"}, {"split": "even_odd", "lifting": "conv"}, {"lifting": "none"}], ids=str
)
def test_bfloat16_autocast(fields: dict[str, Any], make_pair: Callable[..., Any], clips: Clips) -> None:
    """Ours may be no further from float64 than a few times the plain network under autocast."""
    ours, original = make_pair(torch.float32, **fields)
    x = clips(ours.config, 4, torch.float32)
    with torch.no_grad():
        exact = original.double().eval()(x.double())
        original.float()
        with torch.autocast("cpu", torch.bfloat16):
            ours_low, plain_low = ours.eval()(x), original(x)
    for key in exact._fields:
        scale = float(getattr(exact, key).abs().max())
        error = float((getattr(ours_low, key).double() - getattr(exact, key)).abs().max()) / scale
        allowed = float((getattr(plain_low, key).double() - getattr(exact, key)).abs().max()) / scale
        # 2^-8 is one rounding of the largest output: below it a smaller plain error would be luck.
        assert error <= 3 * max(allowed, 2**-8), key


def test_bfloat16_autocast_trains(small_config: SmallConfig, clips: Clips) -> None:
    model = IFDD(small_config())
    x = clips(model.config, 2, torch.float32)
    exact = train_step(model, x)
    exact = {name: gradient.clone() for name, gradient in exact.items()}
    with torch.autocast("cpu", torch.bfloat16):
        low = train_step(model, x)
    a = torch.cat([exact[name].flatten() for name in exact])
    b = torch.cat([low[name].flatten() for name in exact])
    assert b.dtype == torch.float32
    assert float(torch.nn.functional.cosine_similarity(a, b, dim=0)) > 0.98


@pytest.mark.parametrize(
    "fields",
    [
        nightly({}),
        {"split": "topk", "lifting": "predict_first", "activation_checkpointing": True},
        nightly({"split": "even_odd", "lifting": "conv", "clip_frames": 32}),
    ],
    ids=str,
)
def test_compiles_into_one_graph(fields: dict[str, Any], small_config: SmallConfig, clips: Clips) -> None:
    torch._dynamo.reset()
    model = IFDD(small_config(depths=(1, 1, 1, 1), **fields)).train()
    x = clips(model.config, 2, torch.float32)
    expected = {name: gradient.clone() for name, gradient in train_step(model, x).items()}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    actual = train_step(compiled, x)  # type: ignore[arg-type]
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert_close(actual[f"_orig_mod.{name}"], gradient, 1e-4, floor=1e-3 * scale, label=name)
    torch.testing.assert_close(compiled.eval()(x).logits, model(x).logits)


def test_exports_with_any_batch(small_config: SmallConfig, clips: Clips) -> None:
    model = IFDD(small_config()).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    example = clips(model.config, 2, torch.float32)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    for size in (1, 3):
        x = clips(model.config, size, torch.float32, seed=size)
        for a, b in zip(program.module()(x), model(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_gradients_per_clip_by_torch_func(small_config: SmallConfig, clips: Clips) -> None:
    config = small_config()
    model, x = IFDD(config).double().eval(), clips(config)
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, torch.Tensor], clip: torch.Tensor) -> torch.Tensor:
        output = torch.func.functional_call(model, parameters, (clip[None],))
        return output.logits.square().sum() + output.lifting_residual.square().sum()

    got = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for index, clip in enumerate(x):
        wanted = torch.autograd.grad(loss(parameters, clip), list(parameters.values()))
        largest = max(float(grad.abs().max()) for grad in wanted)
        for name, grad in zip(parameters, wanted, strict=True):
            torch.testing.assert_close(got[name][index], grad, rtol=1e-9, atol=1e-9 * largest)


def test_import_is_light() -> None:
    """Importing the package must not pull in the training, video or plotting libraries."""
    heavy = ("pytorch_lightning", "av", "matplotlib", "torchmetrics", "torchvision", "cv2")
    code = (
        f"import sys, ifdd, ifdd.checkpoint, ifdd.losses; print([m for m in {heavy!r} if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
