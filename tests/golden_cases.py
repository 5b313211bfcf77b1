"""The stored values of the original IFDD implementation, as test cases.

``golden(name)`` loads one module case, ``golden_model(name)`` one whole-model case; ``weights_from_names``
rebuilds the weights of a whole model, which are a function of their names and are not stored.
``tests/golden/README.md`` describes the files.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

GOLDEN_DIR = Path(__file__).parent / "golden"
MODEL_CASES = ("ifdd_dfew", "ifdd_mafw")
INTEGER_BUFFERS = ("index_even", "index_odd", "num_batches_tracked")
CASES = tuple(sorted(path.stem for path in GOLDEN_DIR.glob("*.safetensors") if path.stem not in MODEL_CASES))


GRADIENT_FLOOR = 1e-3
"""Part of a case's largest gradient below which no gradient is taken as the scale of its own error."""


def cases(prefix: str) -> tuple[str, ...]:
    """Names of the module cases that begin with ``prefix``, sorted; never empty."""
    found = tuple(name for name in CASES if name.startswith(prefix))
    if not found:
        raise ValueError(f"no golden case begins with {prefix!r}; there are {', '.join(CASES)}")
    return found


@dataclass(frozen=True)
class GoldenCase:
    """One module case; ``params``, ``buffers`` and ``grads`` have the original's names without the module's.

    ``grads`` holds parameter gradients only; ``input_grads[i]`` belongs to ``inputs[i]``. A parameter without
    effect on the outputs is in ``params`` and not in ``grads``. ``extra`` holds what else the file carries
    (``correlation``, ``static_index`` and ``dynamic_index`` of the ``issm`` cases). ``meta`` has the sizes.
    """

    name: str
    meta: Mapping[str, Any]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    cotangents: tuple[Tensor, ...]
    input_grads: tuple[Tensor, ...]
    params: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    grads: Mapping[str, Tensor]
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and buffers together, ready for ``load_state_dict(strict=True)``."""
        return {**self.params, **self.buffers}

    @property
    def gradient_scale(self) -> float:
        """Largest absolute gradient of the case, 0 where none is stored."""
        return max((float(g.abs().max()) for g in (*self.input_grads, *self.grads.values())), default=0.0)


@dataclass(frozen=True)
class GoldenModel:
    """One whole-model case: ``keys`` maps stored names to shapes, ``outputs`` the three results to values."""

    name: str
    batch: int
    clip_frames: int
    num_classes: int
    input_seed: int
    keys: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, Tensor]

    def clips(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Input clips (B, 3, T_in, 224, 224): drawn in float32, then cast."""
        generator = torch.Generator().manual_seed(self.input_seed)
        return torch.rand(self.batch, 3, self.clip_frames, 224, 224, generator=generator).to(dtype)


def _numbered(tensors: Mapping[str, Tensor], prefix: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    count = sum(key.startswith(prefix) and key[len(prefix) :].isdigit() for key in tensors)
    return tuple(tensors[f"{prefix}{i}"].to(dtype) for i in range(count))


def _named(tensors: Mapping[str, Tensor], prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value.to(dtype) if value.is_floating_point() else value
        for key, value in tensors.items()
        if key.startswith(prefix)
    }


def _load(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = GOLDEN_DIR / f"{name}.safetensors"
    if not path.is_file():
        known = ", ".join((*CASES, *MODEL_CASES))
        raise ValueError(f"no golden case named {name!r}; there are {known}")
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a file, not a dict)
        meta = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
    return tensors, meta


def golden(name: str, dtype: torch.dtype = torch.float64) -> GoldenCase:
    """Module case ``name`` with all floating-point tensors cast to ``dtype``; ValueError if there is none."""
    if name in MODEL_CASES:
        raise ValueError(f"{name!r} is a whole-model case: use golden_model")
    tensors, meta = _load(name)
    grads = _named(tensors, "grad.", dtype)
    outputs = _numbered(tensors, "out.", dtype)
    # The loss stores no cotangent: it is 1.
    cotangents = _numbered(tensors, "cotangent.", dtype) or tuple(torch.ones_like(out) for out in outputs)
    prefixes = ("in.", "out.", "cotangent.", "grad.", "param.", "buffer.")
    return GoldenCase(
        name=name,
        meta=meta,
        inputs=_numbered(tensors, "in.", dtype),
        outputs=outputs,
        cotangents=cotangents,
        input_grads=_numbered(tensors, "grad.in.", dtype),
        params=_named(tensors, "param.", dtype),
        buffers=_named(tensors, "buffer.", dtype),
        grads={key: value for key, value in grads.items() if not key.startswith("in.")},
        extra={key: value.to(dtype) for key, value in tensors.items() if not key.startswith(prefixes)},
    )


def golden_model(name: str) -> GoldenModel:
    """Whole-model case ``name``, its outputs in float32 as stored; ValueError if there is none."""
    if name not in MODEL_CASES:
        raise ValueError(f"no whole-model case named {name!r}; there are {', '.join(MODEL_CASES)}")
    outputs, meta = _load(name)
    keys = json.loads((GOLDEN_DIR / f"{name}.keys.json").read_text(encoding="utf-8"))
    return GoldenModel(
        name=name,
        batch=meta["B"],
        clip_frames=meta["build"]["T"],
        num_classes=meta["build"].get("num_classes", 7),
        input_seed=meta["input_seed"],
        keys={key: tuple(shape) for key, shape in keys.items()},
        outputs=outputs,
    )


def weight_from_name(name: str, shape: tuple[int, ...]) -> Tensor:
    """The float32 weight that the whole-model cases use for the stored name ``name`` and ``shape``.

    Depends on nothing else, so a model under other names needs only a map of names.
    """
    values = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if len(shape) == 1:
        values = 1 + 0.1 * values if name.endswith("weight") else 0.1 * values
    else:
        values = values * values[0].numel() ** -0.5
    if "rel_pos" in name:
        values = values * (0.5 * shape[1] ** 0.5)
    return values


def weights_from_names(
    keys: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """State dict of the floating-point entries of ``keys`` (stored name -> shape), cast to ``dtype``.

    Integer buffers (``INTEGER_BUFFERS``) keep the values a model is built with, so they are left out.
    """
    return {
        name: weight_from_name(name, tuple(shape)).to(dtype)
        for name, shape in keys.items()
        if name.rpartition(".")[2] not in INTEGER_BUFFERS
    }


def assert_close(
    actual: Tensor, expected: Tensor, rtol: float, *, floor: float = 0.0, label: str = "value"
) -> None:
    """Fail unless ``max|actual - expected| <= rtol * max(max|expected|, floor)``.

    The error is relative to the largest element of the tensor, not to each element. Some stored gradients are
    exactly or analytically zero: there, only the rounding of larger terms that cancel is left to compare, so
    gradients take ``floor = GRADIENT_FLOOR * case.gradient_scale``.
    """
    assert tuple(actual.shape) == tuple(expected.shape), (
        f"{label}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    )
    # Written so that NaN fails.
    error = float((actual.detach().double() - expected.double()).abs().max())
    limit = rtol * max(float(expected.abs().max()), floor)
    assert error <= limit, f"{label}: largest error {error:.3e}, allowed {limit:.3e} (rtol {rtol:g})"


def assert_outputs(case: GoldenCase, outputs: tuple[Tensor, ...], rtol: float) -> None:
    """Compare all outputs of a module case."""
    assert len(outputs) == len(case.outputs), f"{case.name}: {len(outputs)} outputs, not {len(case.outputs)}"
    for i, (actual, expected) in enumerate(zip(outputs, case.outputs, strict=True)):
        assert_close(actual, expected, rtol, label=f"{case.name} out.{i}")


def assert_gradients(
    case: GoldenCase,
    input_grads: tuple[Tensor | None, ...],
    grads: Mapping[str, Tensor | None],
    rtol: float,
) -> None:
    """Compare all gradients of a module case; ``grads`` maps the original's parameter names to gradients.

    A parameter that has no stored gradient must have none here either (None or zeros): it has no effect.
    """
    floor = GRADIENT_FLOOR * case.gradient_scale
    assert len(input_grads) == len(case.input_grads), f"{case.name}: number of input gradients"
    for i, (actual, expected) in enumerate(zip(input_grads, case.input_grads, strict=True)):
        assert actual is not None, f"{case.name} grad.in.{i} is missing"
        assert_close(actual, expected, rtol, floor=floor, label=f"{case.name} grad.in.{i}")
    missing = [name for name in case.grads if grads.get(name) is None]
    assert not missing, f"{case.name}: no gradient for {', '.join(missing)}"
    for name, actual in grads.items():
        if name in case.grads:
            assert actual is not None
            assert_close(actual, case.grads[name], rtol, floor=floor, label=f"{case.name} grad.{name}")
        else:
            assert actual is None or not actual.any(), f"{case.name}: {name} must have no gradient"


def check_module(case: GoldenCase, module: nn.Module, *, output_rtol: float, grad_rtol: float) -> None:
    """Run ``module``, whose parameter names are the original's, on a case; compare outputs and gradients.

    Loads the case's weights strictly, runs in eval mode in the dtype of the case, and goes backward from the
    cotangents (not where the case stores no gradients). The module returns a tensor or a tuple of them.
    """
    module.to(case.inputs[0].dtype).load_state_dict(case.state_dict, strict=True)
    module.eval()
    leaves = tuple(x.clone().requires_grad_(True) for x in case.inputs)
    result = module(*leaves)
    outputs = tuple(result) if isinstance(result, tuple | list) else (result,)
    assert_outputs(case, outputs, output_rtol)
    if not case.input_grads:
        return
    torch.autograd.backward(outputs, case.cotangents)
    parameters = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert_gradients(case, tuple(x.grad for x in leaves), parameters, grad_rtol)
