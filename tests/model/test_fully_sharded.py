"""FSDP2: two processes that hold half of every weight have the loss and gradients of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from ifdd import IFDD, IFDDConfig

SMALL = IFDDConfig(
    backbone="mvit_nano", embed_dim=16, depths=(1, 1, 1, 1), image_size=32, clip_frames=8, split_pool=2
)


def compare(rank: int, store: str, each: str) -> None:
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        torch.manual_seed(0)
        whole, sharded = IFDD(SMALL).train(), IFDD(SMALL).train()
        sharded.load_state_dict(whole.state_dict())
        blocks = list(sharded.backbone.blocks)
        parts: dict[str, list[nn.Module]] = {
            "network": [],
            "blocks": blocks,
            "linear": [part for part in sharded.modules() if isinstance(part, nn.Linear)],
        }
        for part in parts[each]:
            fully_shard(part)
        fully_shard(sharded)
        clips, labels = torch.rand(4, 3, 8, 32, 32), torch.randint(7, (4,))
        losses = []
        for network in (whole, sharded):
            torch.manual_seed(1)  # stochastic depth
            loss = nn.functional.cross_entropy(network(clips).logits, labels)
            loss.backward()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        wanted = {name: weight.grad for name, weight in whole.named_parameters()}
        worst = max(grad.abs().max() for grad in wanted.values() if grad is not None)
        for name, weight in sharded.named_parameters():
            assert weight.grad is not None, name
            got = weight.grad.full_tensor()  # type: ignore[attr-defined]
            assert (got - wanted[name]).abs().max() <= 1e-5 * worst, name
    finally:
        dist.destroy_process_group()


@pytest.mark.nightly
@pytest.mark.parametrize("each", ["network", "blocks", "linear"])
def test_sharded_weights_have_the_gradients_of_whole_ones(each: str, tmp_path: Path) -> None:
    mp.spawn(compare, (str(tmp_path / "store"), each), nprocs=2)
