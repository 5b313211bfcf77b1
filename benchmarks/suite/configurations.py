"""Every configuration of an op's Triton kernels as a contender of its own, checked and timed like any other.

Tuning keeps only who won. Here each kernel of an op, forward and backward, runs in each of its configurations
in turn while the others keep theirs: what a row differs by from the row "triton" is that one kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch

from benchmarks.rivals.contender import DeviceMaker, Inputs
from benchmarks.suite import ours
from benchmarks.suite.cases import Case
from ifdd_kernels.registry import REGISTRY


def with_configurations(case: Case, activations: torch.dtype) -> Case:
    """The case with a contender for each configuration; as it is where Triton does not take part."""
    triton = next((contender for contender in case.contenders if contender.name == "triton"), None)
    if triton is None or case.name not in REGISTRY:
        return case
    inputs = case.make(DeviceMaker(case.dtype or activations, "meta"))
    found = [
        replace(triton, name=name, around=_forced(kernel, config))
        for kernel, name, config in configurations(case.name, inputs)
    ]
    return replace(case, contenders=(*case.contenders, *found))


def configurations(op: str, inputs: Inputs) -> list[tuple[str, str, Any]]:
    """Kernel, name for people, configuration: of every kernel of the op that has a choice on this device."""
    # Where there is no Triton there is no contender of it.
    from benchmarks.suite.launches import launches_of
    from ifdd_kernels.triton._runtime import architecture

    operator = REGISTRY[op].operator
    assert operator is not None
    found: dict[str, tuple[str, str, Any]] = {}
    for launch in launches_of(operator, ours.meta_arguments(op, inputs), architecture()):
        for config in launch.configs if len(launch.configs) > 1 else ():
            tiles = " ".join(f"{tile}={size}" for tile, size in config.tiles.items())
            limit = "" if config.max_registers is None else f" registers={config.max_registers}"
            kernel = launch.kernel.name
            name = f"triton: {kernel} {tiles} warps={config.num_warps} stages={config.num_stages}{limit}"
            found[name] = kernel, name, config
    return list(found.values())


def _forced(kernel: str, config: Any) -> Callable[[], AbstractContextManager[None]]:
    from ifdd_kernels.triton._runtime import forced_configuration

    def choose(launched: Any, configs: Sequence[Any]) -> Any:
        # Launched again with other arguments, a kernel may have other configurations.
        return config if launched.name == kernel and config in configs else None

    return lambda: forced_configuration(choose)
