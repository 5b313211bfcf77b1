"""Weights on disk: this package's checkpoints, and those of the original implementation and of torchvision.

`format` writes and reads checkpoints (`training`: those of a run), `foreign` brings weights from elsewhere
under our names (`foreign_names`), `pretrained` fills a network from any of them, `files` reads files,
`wrappers` removes what training scripts put around weights, `kinds` finds out whose they are.
"""

from ifdd.checkpoint.files import CheckpointError, read_weights
from ifdd.checkpoint.foreign import ConvertedWeights, from_original, from_torchvision_mvit
from ifdd.checkpoint.format import FORMAT, FORMAT_VERSION, Checkpoint, load_checkpoint, save_checkpoint
from ifdd.checkpoint.pretrained import ClassCountError, PretrainedReport, load_pretrained

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "Checkpoint",
    "CheckpointError",
    "ClassCountError",
    "ConvertedWeights",
    "PretrainedReport",
    "from_original",
    "from_torchvision_mvit",
    "load_checkpoint",
    "load_pretrained",
    "read_weights",
    "save_checkpoint",
]
