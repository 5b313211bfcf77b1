"""``linear``: a linear layer that a CPU computes in float32 where its 16-bit products are slower."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ifdd_kernels import _check, _preferred, _products, recording, reference
from ifdd_kernels._constant import constant_result
from ifdd_kernels._operator import AUTOCAST_DEVICES, Backward, register
from ifdd_kernels.backends import run


def _check_arguments(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    _check.linear("linear", x, weight, bias)


def fake(x: Tensor, weight: Tensor) -> Tensor:
    """Shape and dtype of a linear layer's result."""
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def fake_backward(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Those of its gradients."""
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


# A constant of the process: compilers take the answer instead of tracing it.
@constant_result
def faster_in_float32(dtype: torch.dtype) -> bool:
    """Whether a CPU's products of this dtype are better computed in float32, as the native kernel does."""
    return _products.through_float32(dtype)


def _casts(x: Tensor) -> bool:
    """Whether autocast would cast x and the weights beside it."""
    device = x.device.type  # of others, such as meta, PyTorch refuses to say
    return device in AUTOCAST_DEVICES and x.dtype != torch.float64 and torch.is_autocast_enabled(device)


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype that PyTorch's linear would compute in: autocast's, or x's own."""
    return torch.get_autocast_dtype(x.device.type) if _casts(x) else x.dtype


def _is_library(x: Tensor, weight: Tensor) -> bool:
    """Whether ``auto`` is ``F.linear``."""
    dtype, on_cpu = product_dtype(x), x.device.type == "cpu"
    # On a CPU the op is faster than F.linear where x is in autocast's dtype already.
    cast = _casts(x) and weight.dtype != torch.float64 and not (on_cpu and dtype == x.dtype)
    return (weight.dtype == x.dtype or cast) and not (on_cpu and faster_in_float32(dtype))


def _instead(x: Tensor | None, weight: Tensor | None) -> str:
    if not isinstance(x, Tensor):
        return ""
    if not _is_library(x, weight if isinstance(weight, Tensor) else x):
        return ""
    return f"F.linear: products of {product_dtype(x)} on this {x.device.type} are PyTorch's own"


OPERATOR = register(
    "linear",
    "(Tensor x, Tensor weight, Tensor? bias) -> Tensor out",
    reference=reference.linear,
    fake=fake,
    check=_check_arguments,
    backward=Backward(
        schema="(Tensor grad_out, Tensor x, Tensor weight)"
        " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
        reference=reference.linear_backward,
        fake=fake_backward,
    ),
    # The parameters stay as they are: the kernel multiplies in their float32.
    autocast=("x",),
    instead=_instead,
    parameters=("weight", "bias"),
)


def _check_bias(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Refuses biases that ``F.linear`` accepts but that do not fit this weight: another rank, integers."""
    if bias.dim() != 1 or not bias.is_floating_point() or product_dtype(x) == x.dtype:
        OPERATOR.check(x, weight, bias)


def _library_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``, whose errors name neither op nor argument and which takes meta tensors beside others."""
    if torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    try:
        if weight.device == x.device and (bias is None or bias.device == x.device):
            if bias is not None and (bias.dim() != 1 or bias.dtype != weight.dtype):
                _check_bias(x, weight, bias)
            return F.linear(x, weight, bias)
    except (AttributeError, RuntimeError, TypeError):
        OPERATOR.check(x, weight, bias)
        raise
    OPERATOR.check(x, weight, bias)
    raise AssertionError("tensors on several devices were not refused")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    r"""Linear layer, on a CPU fast in 16 bits as well.

    .. math:: y = W x + b

    On CPUs where that was measured as faster (or ``IFDD_CPU_PRODUCTS`` says so), float16 and bfloat16
    tokens are widened to float32 by blocks of rows, multiplied by PyTorch's float32 library and rounded
    once, forward and backward. Everywhere else ``auto`` is ``F.linear`` itself, unless the weights have
    another dtype than x that autocast would not cast, or, on a CPU, x is in autocast's dtype already.

    Args:
        x: (..., K), at least two axes; float16 to float64, any strides. Autocast casts it to its dtype.
        weight: (M, K) in x's dtype or float32 (float64 with float64).
        bias: (M,) in weight's dtype, or None.
        backend: see :mod:`ifdd_kernels.backends`.

    Returns:
        (..., M) in x's dtype.

    Gradients flow to all three and are all computed. As deterministic as PyTorch's matrix products.

    Raises:
        ValueError: a shape or device that does not fit.
        TypeError: a dtype that does not. Where ``auto`` is
            ``F.linear``, its errors.
    """
    if not (isinstance(x, Tensor) and isinstance(weight, Tensor)):
        OPERATOR.check(x, weight, bias)  # type: ignore[unreachable]
    if backend == "auto" and _preferred.chosen != "auto":
        backend = _preferred.meant("linear", x.device.type)
    if backend == "auto" and _is_library(x, weight):
        out = _library_linear(x, weight, bias)
        if recording.active:
            recording.note("linear", "F.linear", (x, weight, bias))
        return out
    result: Tensor = run(OPERATOR, backend, x, weight, bias)
    return result
