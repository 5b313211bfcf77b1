"""The report of :func:`ifdd.accelerate` about a model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ifdd.acceleration.classes import is_accelerated, is_just_accelerated, restore


class Report:
    """The modules of a model that run on our kernels since a call of :func:`ifdd.accelerate`, and the others.

    Attributes:
        replaced: names of the modules that were replaced, as in ``model.named_modules()``; the model itself
            is ``""``.
        left: names of those that were left, each with the reason.
    """

    def __init__(self, replaced: Mapping[str, nn.Module], left: Mapping[str, str]) -> None:
        self.replaced: tuple[str, ...] = tuple(replaced)
        self.left: dict[str, str] = dict(left)
        self._modules = tuple(replaced.values())

    def undo(self) -> None:
        """Makes the modules in `replaced` what they were before; a second call does nothing.

        Parameters, buffers and hooks stay as they are now: they were never others.

        Raises:
            RuntimeError: a module is now of a subclass of the class it got here, as a parametrisation of the
                module itself or FSDP2 make one. Then nothing is changed.
        """
        for name, module in zip(self.replaced, self._modules, strict=False):
            if is_accelerated(module) and not is_just_accelerated(module):
                raise RuntimeError(
                    f"undo: {name or 'the model itself'} has become a {type(module).__name__} since, a "
                    "subclass of the class that would be taken back; nothing was changed"
                )
        for module in self._modules:
            restore(module)
        self._modules = ()

    def __str__(self) -> str:
        if not self.replaced and not self.left:
            return "no blocks of an MViT that is known (torchvision's, pytorchvideo's, SlowFast's)"
        lines = [f"replaced: {len(self.replaced)} modules"]
        lines += [f"  {name or '(the model itself)'}" for name in self.replaced]
        lines += [f"left: {len(self.left)} modules"] if self.left else []
        lines += [f"  {name or '(the model itself)'}: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Report(replaced={len(self.replaced)}, left={self.left})"
