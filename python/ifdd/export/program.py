"""From a checkpoint to a graph of PyTorch: any number of clips, named results, what its user must know."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import ifdd_kernels
from ifdd.checkpoint import Checkpoint
from ifdd.data.sampling import SamplingPolicy
from ifdd.model import IFDD, IFDDOutput
from ifdd_kernels import reference
from ifdd_kernels._operator import OPERATORS

if TYPE_CHECKING:
    from torch.export import ExportedProgram

INPUT = "clips"
OUTPUTS: tuple[str, ...] = IFDDOutput._fields
"""Names of the results, in order: `logits`, `lifting_residual`, `dynamic`."""


class _Named(nn.Module):
    """The network with its results in a dict: a file that holds no type of ours is loaded without ours."""

    def __init__(self, network: IFDD) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        output: IFDDOutput = self.network(clips)
        return output._asdict()


def trace(model: IFDD) -> ExportedProgram:
    """The network in evaluation mode as an exported program.

    Args:
        model: in evaluation mode, float32, on the CPU.

    Returns:
        A program of `clips` (B, 3, T, S, S) float32, any B >= 1, that returns a dict of :data:`OUTPUTS`. Its
        nodes call `torch.ops.ifdd.*`.

    Raises:
        ValueError: a network in training mode, not on the CPU, or not in float32.
    """
    _check(model)
    config = model.config
    example = torch.rand(2, 3, config.clip_frames, config.image_size, config.image_size)
    with torch.no_grad():
        program = torch.export.export(
            _Named(model), (example,), dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1)}}
        )
    # Paths of this machine, which every format would keep.
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _check(model: IFDD) -> None:
    if model.training:
        raise ValueError("export: the network must be in evaluation mode, call .eval()")
    for name, tensor in model.state_dict().items():
        if tensor.device.type != "cpu":
            raise ValueError(f"export: the network must be on the CPU, {name} is on {tensor.device}")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ValueError(f"export: the network must be float32, {name} is {tensor.dtype}")


def decomposed(program: ExportedProgram, ops: Iterable[str] | None = None) -> ExportedProgram:
    """The program with ops of this library (all by default) replaced by their definitions."""
    table = {}
    for name in OPERATORS if ops is None else ops:
        operator = OPERATORS[name]
        for backend in ("native", *operator.backends):
            table[operator.overload(backend)] = getattr(reference, name)
    return program.run_decompositions(table) if table else program


def metadata_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Facts of ``checkpoint`` that a program needs to prepare clips and to name classes; each value is JSON.

    `class_names` in the order of the logits; `clip_frames`, `image_size`: the clip's T and S; `stride`,
    `short`: which frames make a window (:class:`ifdd.data.sampling.SamplingPolicy`); `config`: the network's;
    `ifdd_kernels`: the version that wrote it.

    Raises:
        ValueError: the checkpoint's sampling policy cannot be used.
    """
    policy = SamplingPolicy.of_checkpoint(checkpoint.extra)
    config = checkpoint.config
    values = {
        "class_names": list(checkpoint.class_names),
        "clip_frames": config.clip_frames,
        "image_size": config.image_size,
        "stride": policy.stride,
        "short": policy.short,
        "config": config.to_dict(),
        "ifdd_kernels": ifdd_kernels.__version__,
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
