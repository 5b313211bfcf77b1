"""Functions that compilers run once, taking the answer for a constant instead of tracing them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def constant_result(function: F) -> F:
    """Does what ``torch.compiler.assume_constant_result`` does, without importing the whole compiler.

    That import takes longer than all others of this package together, and most processes never compile. The
    mark is TorchDynamo's own: a test compares the two.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
