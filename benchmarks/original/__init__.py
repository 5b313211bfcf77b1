"""IFDD as a plain eager PyTorch program: the rival of the benchmarks and the oracle of the variants.

Written the way such a network usually is: attention matrices in memory with the relative position bias added
in place, index tables built on the CPU in every forward, depthwise ``nn.Conv3d`` on permuted tokens, the
fractional frame sampling through ``F.grid_sample``, a loss that loops over the clips. Nothing here uses
``ifdd_kernels`` or ``ifdd``. Stored weights of the original load strictly: all parameter names are the
original's.

Source: Wang & Chai, "Lifting Scheme-Based Implicit Disentanglement of Emotion-Related Facial Dynamics in the
Wild", AAAI 2025, arXiv:2412.13168.
"""

from __future__ import annotations

from benchmarks.original.backbone import MultiscaleBackbone, MultiscaleBlock, PooledAttention
from benchmarks.original.embedding import ConvEmbedding, S3DEmbedding, SeparableConv3d
from benchmarks.original.lifting import LADM, ConvLifting, LiftingLoss, NoLifting
from benchmarks.original.model import OriginalIFDD, OriginalOutput, PyramidLifting
from benchmarks.original.split import EvenOddSplit, InterpolatedSplit, TopKSplit, make_split

__all__ = [
    "LADM",
    "ConvEmbedding",
    "ConvLifting",
    "EvenOddSplit",
    "InterpolatedSplit",
    "LiftingLoss",
    "MultiscaleBackbone",
    "MultiscaleBlock",
    "NoLifting",
    "OriginalIFDD",
    "OriginalOutput",
    "PooledAttention",
    "PyramidLifting",
    "S3DEmbedding",
    "SeparableConv3d",
    "TopKSplit",
    "make_split",
]
