"""Ops on DTensors: two processes with half of the batch or the heads have values and gradients of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from ifdd_kernels._schema import outputs_of
from ifdd_kernels._sharding import HEADS
from ifdd_kernels.registry import REGISTRY, Entry, Maker

FEW = ("static_dynamic_split", "lifting_attention", "lifting_loss", "add_layer_norm")
#: Ops that decompose are their parts.
NAMES = tuple(name for name, entry in REGISTRY.items() if entry.operator is not None)


def run(entry: Entry, args: list[Any]) -> list[Tensor]:
    """Results and gradients."""
    found = entry.overload(*args)
    results = list(outputs_of(found))
    leaves = [arg for arg in args if isinstance(arg, Tensor) and arg.requires_grad]
    smooth = [part for part in entry.differentiable(found) if part.requires_grad]
    grads = torch.autograd.grad(sum(part.square().sum() for part in smooth), leaves) if smooth else ()  # type: ignore[arg-type]
    return [part.detach() for part in (*results, *grads)]


def whole(tensor: Tensor) -> Tensor:
    full: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return full


def compare(rank: int, store: str, names: tuple[str, ...]) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    try:
        for name in names:
            entry = REGISTRY[name]
            samples = entry.samples(Maker(torch.float64))
            sample = next(s for s in samples if s.args[0].shape[0] >= 2 and s.args[0].numel())
            for axis in (0, *({2} if name in HEADS else ())):
                args, split = [], []
                for argument, value in zip(entry.signature.arguments, sample.args, strict=True):
                    if not isinstance(value, Tensor):
                        args.append(value)
                        split.append(value)
                        continue
                    value = value.detach().clone()
                    if axis and argument in HEADS[name]:
                        value = torch.cat((value, value.flip(1)), 2)  # an even number of heads
                    learned = value.is_floating_point()
                    parameter = any(word in argument for word in ("weight", "bias", "table"))
                    place = Replicate() if parameter else Shard(axis)
                    args.append(value.clone().requires_grad_(learned))
                    split.append(distribute_tensor(value, mesh, [place]).requires_grad_(learned))
                wanted, got = run(entry, args), run(entry, split)
                assert len(got) == len(wanted), name
                first: Any = got[0]
                if name != "lifting_loss":
                    assert first.placements == (Shard(axis),), (name, axis, first.placements)
                if name == "add_layer_norm":  # results, then gradients of stream, branch, weight and bias
                    places = [part.placements for part in got[-4:]]  # type: ignore[attr-defined]
                    assert places == [(Shard(0),)] * 2 + [(Partial(),)] * 2, places
                for one, other in zip(got, wanted, strict=True):
                    torch.testing.assert_close(whole(one), other, rtol=1e-9, atol=1e-11)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("names", [FEW, pytest.param(NAMES, marks=pytest.mark.nightly)], ids=["few", "all"])
def test_two_processes(tmp_path: Path, names: tuple[str, ...]) -> None:
    mp.spawn(compare, args=(str(tmp_path / "store"), names), nprocs=2)  # type: ignore[no-untyped-call]
