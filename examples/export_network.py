"""A checkpoint as a program of torch.export, loaded again.

python examples/export_network.py CHECKPOINT FILE.pt2
"""

from __future__ import annotations

import sys

import torch

import ifdd_kernels  # noqa: F401  defines the ops that the file calls
from ifdd.checkpoint import load_checkpoint
from ifdd.export import export_checkpoint


def main(checkpoint: str, target: str) -> torch.Tensor:
    """Writes the file and returns what it makes of a random clip."""
    loaded = load_checkpoint(checkpoint)
    written = export_checkpoint(loaded, target, "pt2")
    print(f"{target}: {written.bytes / 1e6:.1f} MB, difference from the network {written.difference:.1e}")
    network = torch.export.load(target).module()
    size = loaded.config.image_size
    logits: torch.Tensor = network(torch.rand(1, 3, loaded.config.clip_frames, size, size))["logits"]
    return logits


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
