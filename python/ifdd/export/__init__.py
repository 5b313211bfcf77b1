"""Whole networks as files for other programs: ONNX, PyTorch's exported programs, AOTInductor packages.

`program` traces the network, `formats` writes and runs the files, `write` makes one of a checkpoint and
checks it before it takes its place. `docs/deploy.md` says how the files are used.
"""

from ifdd.export.formats import FORMATS, ExportError
from ifdd.export.program import OUTPUTS, metadata_of, trace
from ifdd.export.write import Exported, export_checkpoint

__all__ = ["FORMATS", "OUTPUTS", "ExportError", "Exported", "export_checkpoint", "metadata_of", "trace"]
