"""``gelu_linear``: the second half of an MLP, which keeps only its argument for backward."""

from __future__ import annotations

from torch import Tensor

from ifdd_kernels import _check, reference
from ifdd_kernels._operator import Backward, register
from ifdd_kernels.backends import run
from ifdd_kernels.ops.linear import fake, fake_backward
from ifdd_kernels.triton import twin


def _check_arguments(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    _check.linear("gelu_linear", x, weight, bias)


OPERATOR = register(
    "gelu_linear",
    "(Tensor x, Tensor weight, Tensor bias) -> Tensor out",
    reference=reference.gelu_linear,
    fake=fake,
    check=_check_arguments,
    backward=Backward(
        schema="(Tensor grad_out, Tensor x, Tensor weight)"
        " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
        reference=reference.gelu_linear_backward,
        fake=fake_backward,
        missing={"bias": lambda weight: weight.new_empty(weight.shape[:1], device="meta")},
    ),
    backends={"triton": twin("gelu_linear")},
    # The parameters stay as they are: a copy would be kept for backward.
    autocast=("x",),
    parameters=("weight", "bias"),
)


def gelu_linear(x: Tensor, weight: Tensor, bias: Tensor, *, backend: str = "auto") -> Tensor:
    r"""Linear layer of GELU(x), the second half of an MLP.

    .. math:: y = W\,\mathrm{GELU}(x) + b, \qquad \mathrm{GELU}(x) = x\,\Phi(x)

    As ``F.linear(F.gelu(x), weight, bias)``, but backward computes GELU(x), which the weight's gradient
    needs, again beside GELU'(x), with which it shares the cumulative distribution. So x alone is kept, not
    both: with the usual ratio of 4, four times the tokens of the block.

    Args:
        x: (..., K); float16 to float64, any strides. Autocast casts it to its dtype.
        weight: (M, K) in x's dtype or float32 (float64 with float64).
        bias: (M,) in weight's dtype.
        backend: see :mod:`ifdd_kernels.backends`.

    Returns:
        (..., M) in x's dtype. The activation is rounded to that dtype before the product, which is that of
        :func:`linear`.

    Gradients flow to all three. As deterministic as PyTorch's matrix products.

    Raises:
        ValueError: a shape or device that does not fit.
        TypeError: a dtype that does not.

    Source: Hendrycks & Gimpel, "Gaussian Error Linear Units", arXiv:1606.08415.
    """
    result: Tensor = run(OPERATOR, backend, x, weight, bias)
    return result
