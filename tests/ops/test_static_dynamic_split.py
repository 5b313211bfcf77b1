"""``static_dynamic_split`` beyond the samples of the registry: the two ops in it, by clips and by threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ifdd_kernels as K
from ifdd.modules.issm import ISSM
from ifdd_kernels import _library, reference
from ifdd_kernels.testing import poisoned_memory, relative_error, thread_count
from ops.cases import forward_and_backward

native = pytest.mark.skipif(not _library.loaded(), reason=f"native library not loaded: {_library.failure()}")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def arguments(
    batch: int, frames: int, channels: int, dtype: torch.dtype, *, norms: bool = True, grid: int = 3
) -> tuple[Any, ...]:
    """Arguments of the registered op; parameters in float32 beside 16 bits."""
    generator = torch.Generator().manual_seed(batch + frames)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale + mean).to(wide)

    x = normal(batch, frames, grid * grid, channels).to(dtype)
    offsets = [normal(frames // 2, frames * frames, scale=0.3) for _ in range(2)]
    tokenizer = (normal(5, channels, scale=channels**-0.5), normal(5))
    both = [normal(channels, scale=0.3, mean=mean) if norms else None for mean in (1.0, 0.0, 1.0, 0.0)]
    return (x, *tokenizer, *offsets, *both, grid, grid, 2, 2.0, 1e-3, False)


def leaves(args: tuple[Any, ...], dtype: torch.dtype | None = None) -> tuple[Any, ...]:
    return tuple(a.detach().to(dtype).requires_grad_() if isinstance(a, Tensor) else a for a in args)


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "frames", "channels"), [(1, 8, 96), (3, 2, 5), (4, 6, 33), (9, 16, 1)])
def test_is_the_two_ops_bit_for_bit(batch: int, frames: int, channels: int, dtype: torch.dtype) -> None:
    args = arguments(batch, frames, channels, dtype)
    with poisoned_memory():
        static, dynamic, *found, _, stats = torch.ops.ifdd.static_dynamic_split(*args)
    index = torch.ops.ifdd.split_index(*args[:5], *args[9:13])
    groups = torch.ops.ifdd.split_frames(args[0], *index[:2], *args[5:9], *args[13:])
    for got, wanted in zip((static, dynamic, stats, *found), (*groups, *index), strict=True):
        assert torch.equal(got, wanted)


@native
@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 5, 16, 70])
def test_gradients_of_clips_and_units_of_clips(batch: int, norms: bool) -> None:
    """More clips than partial sums, fewer clips than threads; in float64, where nothing is lost."""
    args = leaves(arguments(batch, 4, 9, torch.float64, norms=norms))
    inputs = [a for a in args if isinstance(a, Tensor)]
    outputs = torch.ops.ifdd.static_dynamic_split(*args)[:5]
    cotangents = [torch.randn_like(o) for o in outputs]
    with thread_count(2), poisoned_memory():
        grads = torch.autograd.grad(outputs, inputs, cotangents)
    exact = torch.autograd.grad(reference.static_dynamic_split(*args)[:5], inputs, cotangents)
    for got, wanted in zip(grads, exact, strict=True):
        assert relative_error(got, wanted) < 1e-11


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [1, 3, 8, 25, 70])
def test_bits_do_not_depend_on_threads(batch: int, dtype: torch.dtype) -> None:
    args = arguments(batch, 6, 70, dtype)
    cotangents = [torch.randn_like(o) for o in torch.ops.ifdd.static_dynamic_split(*args)[:5]]
    results = []
    for threads in (1, 2, 3, 5):
        with thread_count(threads):
            results.append(forward_and_backward("static_dynamic_split", args, cotangents))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@native
def test_the_gradient_of_x_is_rounded_once_per_op_at_most() -> None:
    """Both contributions are added up in x's dtype; two ops and an addition would round three times."""
    args = arguments(2, 8, 64, torch.bfloat16)
    outputs = torch.ops.ifdd.static_dynamic_split(*args)
    cotangents = [torch.randn_like(o) for o in outputs[:5]]
    got = forward_and_backward("static_dynamic_split", args, cotangents)[len(outputs)]
    wide = leaves(args, torch.float64)
    exact_outputs = reference.static_dynamic_split(*wide)[:5]
    exact = torch.autograd.grad(exact_outputs, wide[0], [c.double() for c in cotangents])[0]
    assert relative_error(got, exact) <= 2 * torch.finfo(torch.bfloat16).eps


def module() -> tuple[ISSM, nn.LayerNorm, nn.LayerNorm]:
    torch.manual_seed(0)
    norms = [nn.LayerNorm(24, eps=1e-3) for _ in range(2)]
    for parameter in (p for norm in norms for p in norm.parameters()):
        nn.init.normal_(parameter)
    return ISSM(8, (3, 3), 24, 2), *norms


@pytest.mark.parametrize("autocast", [False, True])
def test_the_module_does_what_its_two_steps_do(autocast: bool) -> None:
    """Under autocast the frames are lowered and the indexes are not, so it takes the two steps there."""
    split, *norms = module()
    x = torch.randn(2, 8, 9, 24)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        static, dynamic, indexes = split.split(x, *norms)
        expected = K.split_frames(
            x, *split.indexes(x)[:2], *((norm.weight, norm.bias) for norm in norms), eps=1e-3
        )
    assert static.dtype == (torch.bfloat16 if autocast else torch.float32)
    assert indexes.static.dtype == indexes.correlation.dtype == torch.float32
    for got, wanted in zip((static, dynamic), expected, strict=True):
        assert torch.equal(got, wanted)


def test_refusals_name_the_op_and_the_argument() -> None:
    split, norm, _ = module()
    x, both = torch.randn(2, 8, 9, 24), (norm.weight, norm.bias)
    parameters = (split.tokenizer.weight, split.tokenizer.bias)
    offsets = (split.static_offset.weight, split.dynamic_offset.weight)

    def call(x: Tensor = x, **changes: Any) -> Any:
        return K.static_dynamic_split(x, (3, 3), *parameters, *offsets, 2, **changes)

    name = "static_dynamic_split"
    with pytest.raises(ValueError, match=f"{name}: give both norms or none; missing: dynamic_norm"):
        call(static_norm=both)
    with pytest.raises(ValueError, match=f"{name}: eps must be positive, got 0"):
        call(static_norm=both, dynamic_norm=both, eps=0.0)
    with pytest.raises(ValueError, match=f"{name}: dynamic_norm_bias must have shape"):
        call(static_norm=both, dynamic_norm=(norm.weight, norm.bias[1:]))
    with pytest.raises(ValueError, match=f"{name}: the number of frames T must be even"):
        call(x[:, :7])
    with pytest.raises(TypeError, match=f"{name}: x"):
        call(x.long())
