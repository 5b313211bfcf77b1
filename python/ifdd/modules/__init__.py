"""The building blocks of IFDD, each usable alone."""

from __future__ import annotations

from ifdd.modules.backbone import MultiscaleAttention, MultiscaleBackbone, MultiscaleBlock, StageOutput
from ifdd.modules.drop_path import DropPath
from ifdd.modules.embedding import ConvEmbedding, S3DEmbedding
from ifdd.modules.head import ClassHead
from ifdd.modules.issm import ISSM, EvenOddSplit, FrameIndexes, TopKSplit
from ifdd.modules.ladm import LADM, ConvLifting, Lifted, NoLifting
from ifdd.modules.pyramid import PyramidAggregation

__all__ = [
    "ISSM",
    "LADM",
    "ClassHead",
    "ConvEmbedding",
    "ConvLifting",
    "DropPath",
    "EvenOddSplit",
    "FrameIndexes",
    "Lifted",
    "MultiscaleAttention",
    "MultiscaleBackbone",
    "MultiscaleBlock",
    "NoLifting",
    "PyramidAggregation",
    "S3DEmbedding",
    "StageOutput",
    "TopKSplit",
]
