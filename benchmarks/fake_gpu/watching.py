"""A look at every op of a program on a fake GPU."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.fake_gpu.machine import architecture
from ifdd_kernels._schema import NAMESPACE
from ifdd_kernels.triton._runtime import captured_launches


def tensors(values: Any) -> list[Tensor]:
    """The tensors in nested values."""
    return [value for value in pytree.tree_leaves(values) if isinstance(value, Tensor)]


class WatchedOps(TorchDispatchMode):
    """Hands each op to its methods: PyTorch's own as the ops that they decompose into, those of this library
    whole.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "prim":  # questions about a tensor
            return NotImplemented
        if namespace == NAMESPACE:
            return self.own(func, name, args)
        note = self.before(func, name, args, kwargs)
        with self:
            decomposed = func.decompose(*args, **kwargs)
        if decomposed is not NotImplemented:
            return decomposed
        result = func(*args, **kwargs)
        self.after(func, name, args, kwargs, result, note)
        return result

    @abstractmethod
    def own(self, func: Any, name: str, args: tuple[Any, ...]) -> Any:
        """Runs an op of this library."""

    @abstractmethod
    def before(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Looks at a call of an op of PyTorch; :meth:`after` gets what this returns."""

    @abstractmethod
    def after(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, note: Any
    ) -> None:
        """Looks at the result."""

    def run(self, name: str, code: Callable[..., Any], args: tuple[Any, ...]) -> tuple[list[Any], Any]:
        """The launches and the results of an op of this library by its Python `code`: the host code of its
        Triton kernels, or its definition, whose ops are looked at.
        """
        with captured_launches(architecture()) as launches, self:
            result = code(*args)
            if not name.endswith("_triton"):  # as registered: results are contiguous
                result = pytree.tree_map_only(Tensor, Tensor.contiguous, result)
        return launches, result
