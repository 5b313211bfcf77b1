"""The gate: a result is compared with float64 before it is timed, and a wrong one is not timed."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from benchmarks.rivals.contender import Gradients, Outputs
from ifdd_kernels.testing import relative_error

SLACK = 8.0
"""Times the eager original's error that is allowed: sums in another order, not another result."""
FLOOR = 32.0
"""Ulps that are always allowed: the original may be exact by chance (a copy, a small sum)."""


class WrongResultError(AssertionError):
    """A contender's result is not what it should be."""


@dataclass(frozen=True)
class Errors:
    """Largest difference from float64 relative to the largest value, of each output and each gradient."""

    outputs: dict[str, float]
    gradients: dict[str, float]

    @property
    def output(self) -> float:
        """The worst output."""
        return max(self.outputs.values())

    @property
    def gradient(self) -> float:
        """The worst gradient; 0 without any."""
        return max(self.gradients.values(), default=0.0)


@dataclass(frozen=True)
class Truth:
    """Outputs and gradients in float64."""

    outputs: Outputs
    gradients: Gradients

    def errors(self, names: tuple[str, ...], outputs: Outputs, gradients: Mapping[str, Tensor]) -> Errors:
        """Errors of a result; infinite for a missing one, a NaN or another shape."""
        if len(outputs) != len(self.outputs):
            found = {f"{len(outputs)} outputs instead of {len(self.outputs)}": math.inf}
        else:
            pairs = zip(names, outputs, self.outputs, strict=True)
            found = {name: relative_error(out, expected) for name, out, expected in pairs}
        wrong = dict.fromkeys(self.gradients.keys() ^ gradients.keys(), math.inf)
        shared = self.gradients.keys() & gradients.keys()
        # A gradient that is zero up to rounding has no relative error: it is compared with the rest.
        largest = max((float(g.abs().max()) for g in self.gradients.values() if g.numel()), default=0.0)
        return Errors(found, {**wrong, **{n: self._gradient_error(n, gradients[n], largest) for n in shared}})

    def _gradient_error(self, name: str, actual: Tensor, largest: float) -> float:
        expected = self.gradients[name]
        size = float(expected.abs().max()) if expected.numel() else 0.0
        if actual.shape == expected.shape and size < 1e-6 * largest:
            error = float((actual.double().to(expected.device) - expected).abs().max()) / largest
            return error if math.isfinite(error) else math.inf
        return relative_error(actual, expected)


@dataclass(frozen=True)
class Gate:
    """How large errors may be, for one case in one precision.

    - The eager original is the yardstick. In float32 it must keep half of the digits; in 16 bits what PyTorch
      makes of it counts (its sums of gradients can be off by half there), as long as it is finite.
    - Everybody else may err :data:`SLACK` times as much as the original, or :data:`FLOOR` ulps.
    - This library's kernels must keep half of the digits even where the original does not.
    - Where a maximum is pooled (``discontinuous``), a rounding can send a gradient to another element: a
      quarter of the digits of a gradient is all that can be asked there (the original itself was seen to lose
      more than half), and in 16 bits not even that. The ops inside have cases of their own with tight bounds.
    """

    eps: float
    eager: Errors | None = None
    discontinuous: bool = False

    @property
    def half(self) -> float:
        """Half of the digits."""
        return math.sqrt(self.eps)

    @property
    def _wide(self) -> bool:
        return self.eps < 1e-3

    def allowed(self, kind: str, yardstick: bool, ours: bool) -> float:
        """Largest error of an "output" or a "gradient"."""
        loose = kind == "gradient" and self.discontinuous
        if yardstick:
            wide = math.sqrt(self.half) if loose else self.half
            return wide if self._wide else sys.float_info.max
        if self.eager is None:
            quarter = math.sqrt(self.half) if self._wide else sys.float_info.max
            return quarter if loose else self.half
        reference = self.eager.output if kind == "output" else self.eager.gradient
        bound = max(SLACK * reference, FLOOR * self.eps)
        if loose:
            return max(bound, math.sqrt(self.half))
        return min(bound, self.half) if ours else bound

    def check(self, errors: Errors, what: str, yardstick: bool = False, ours: bool = False) -> None:
        """Refuses a wrong result.

        Raises:
            WrongResultError: names the worst output or gradient, its error and the bound.
        """
        for kind, found in (("output", errors.outputs), ("gradient", errors.gradients)):
            if not found:
                continue
            name = max(found, key=lambda key: found[key])
            allowed = self.allowed(kind, yardstick, ours)
            if not found[name] <= allowed:
                raise WrongResultError(
                    f"{what}: {kind} {name} is off by {found[name]:.1e} of its largest value, allowed are "
                    f"{allowed:.1e}; not timed"
                )
