"""Write a checkpoint's network as a file for other programs.

onnx: standard ONNX operators, for ONNX Runtime and other programs. pt2: a torch.export program; import
ifdd_kernels in Python before loading it. aoti: a compiled AOTInductor package for Python or C++; it needs the
kernels of ifdd_kernels, and a CPU of the same kind as this one. All read float32 clips (B, 3, T, S, S) of RGB
in [0, 1], for any B, and hold the class names and the sampling of the checkpoint. Before the file appears it
is run and compared with the network. See docs/deploy.md.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from ifdd.cli._commands import UsageError
from ifdd.cli.paths import require_file, require_writable_file
from ifdd.text import one_line

SUMMARY = "write the network as an ONNX, torch.export or AOTInductor file"
USAGE = "CHECKPOINT --format FORMAT [--out FILE]"
SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "aoti": ".aoti.pt2"}
"""Ends of the default names; the last part is the format's."""


def configure(parser: ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="weights: model.safetensors, best.ckpt or last.ckpt of `ifdd fit`, or what `ifdd convert` wrote",
    )
    parser.add_argument(
        "--format",
        type=Literal["onnx", "pt2", "aoti"],
        required=True,
        help="onnx, pt2 (torch.export) or aoti (AOTInductor); see above",
    )
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        metavar="FILE",
        help="file to write, replaced if it exists; ends in .onnx or .pt2; default: the checkpoint's "
        "name with .onnx, .pt2 or .aoti.pt2",
    )


def _say(step: str) -> None:
    print(f"ifdd export: {one_line(step)} ...", file=sys.stderr, flush=True)


def run(options: Namespace) -> int:
    """Runs the command; returns the exit code."""
    out = options.out
    if out is None:
        out = str(Path(options.checkpoint).with_suffix(SUFFIXES[options.format]))
    suffix = Path(f"name{SUFFIXES[options.format]}").suffix
    if Path(out).suffix != suffix:
        raise UsageError(f"--out: a file of format {options.format} ends in {suffix}, got {out}")
    require_writable_file("--out", out)
    require_file("CHECKPOINT", options.checkpoint)

    from ifdd.export import export_checkpoint

    announce = (lambda step: None) if options.quiet else _say
    exported = export_checkpoint(options.checkpoint, out, options.format, announce=announce)
    difference = f"{exported.difference:.1e} of the largest value"
    print(
        f"written: {' and '.join(map(str, exported.files))} ({exported.bytes / 1e6:.1f} MB); "
        f"largest difference from the network on random clips: {difference}"
    )
    return 0
