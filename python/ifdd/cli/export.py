"""Write a checkpoint's network as a file for other programs.

onnx: for ONNX Runtime and others, plain ONNX operators. pt2: a program of torch.export, loaded in Python
where ifdd_kernels is imported. aoti: a compiled AOTInductor package, run from Python or C++ with the kernels
of ifdd_kernels on CPUs of the kind that wrote it. All take float32 clips (B, 3, T, S, S) of RGB in [0, 1],
any B, and hold the class names and the sampling of the checkpoint. The file is run and compared with the
network before it is put in place. See docs/deploy.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from ifdd.cli._commands import UsageError
from ifdd.cli.paths import require_file, require_free, require_writable_file

SUMMARY = "write the network as ONNX, torch.export program or AOTInductor package"
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
        help="file to write; ends in .onnx or .pt2; default: the checkpoint's name with .onnx, .pt2 or "
        ".aoti.pt2",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")


def run(options: Namespace) -> int:
    """Runs the command; returns the exit code."""
    out = options.out
    if out is None:
        out = str(Path(options.checkpoint).with_suffix(SUFFIXES[options.format]))
    suffix = Path(f"name{SUFFIXES[options.format]}").suffix
    if Path(out).suffix != suffix:
        raise UsageError(f"--out: a file of format {options.format} ends in {suffix}, got {out}")
    require_writable_file("--out", out)
    require_free("--out", out, options.overwrite)
    require_file("CHECKPOINT", options.checkpoint)

    from ifdd.export import export_checkpoint

    exported = export_checkpoint(options.checkpoint, out, options.format)
    difference = f"{exported.difference:.1e} of the largest value"
    print(
        f"written: {' and '.join(map(str, exported.files))} ({exported.bytes / 1e6:.1f} MB); "
        f"largest difference from the network on random clips: {difference}"
    )
    return 0
