"""Two ops in a network of your own: learned sampling in time, and a loss that keeps a group of frames still.

python examples/op_in_a_network.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import ifdd_kernels


class KeyFrames(nn.Module):
    """Frame tokens (B, T, N, C) -> logits (B, classes) from a few frames at learned positions."""

    def __init__(self, frames: int, channels: int, classes: int, picks: int = 2) -> None:
        super().__init__()
        self.still = nn.Parameter(torch.linspace(0, frames - 1, picks))
        self.moving = nn.Parameter(torch.linspace(0, frames - 1, picks) * 0.9 + 0.4)
        self.head = nn.Linear(channels, classes)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, classes), and what the still group keeps apart from the mean frame, (B, N)."""
        batch = len(tokens)
        still, moving = ifdd_kernels.split_frames(
            tokens, self.still.expand(batch, -1), self.moving.expand(batch, -1)
        )
        return self.head(moving.mean((1, 2))), ifdd_kernels.lifting_residual(tokens, still)


def main() -> float:
    """One training step; returns the loss."""
    torch.manual_seed(0)
    network = KeyFrames(frames=8, channels=32, classes=3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    logits, residual = network(torch.randn(4, 8, 49, 32))
    loss = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])) + ifdd_kernels.lifting_loss(
        residual
    )
    loss.backward()
    optimizer.step()
    print(f"loss {loss.item():.3f}, gradient of the positions {network.moving.grad}")
    return loss.item()


if __name__ == "__main__":
    main()
