"""Bring published weights into a checkpoint of this package.

Reads weights of the original implementation (.pth), torchvision's mvit_v2_s (embedding and backbone only) or
an older checkpoint, and writes one safetensors file with the configuration and the class list. What was not
used is printed. Class orders differ between projects, so the class list must be given.
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ifdd.cli._commands import UsageError
from ifdd.cli.common import network_options, parent_exists, usage_errors
from ifdd.config import IFDDConfig

SUMMARY = "bring published weights into a checkpoint"
USAGE = "IN OUT --classes CLASSES [options]"


def configure(parser: ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("input", metavar="IN", help="weights: .pth, .pt or .safetensors")
    parser.add_argument("output", metavar="OUT", help="checkpoint to write, .safetensors")
    parser.add_argument(
        "--classes",
        required=True,
        help="class names in the order of the logits, separated by commas, or dfew, ferv39k, mafw for theirs",
    )
    parser.add_class_arguments(IFDDConfig, "model", skip={"num_classes"}, as_group=True)


def run(options: Namespace) -> int:
    """Runs the command; returns the exit code."""
    if Path(options.output).suffix != ".safetensors":
        raise UsageError(f"OUT: a checkpoint ends in .safetensors, got {options.output}")
    parent_exists(options.output, "OUT")
    names = class_list(options.classes)
    with usage_errors():
        config = IFDDConfig.from_dict({**network_options(options), "num_classes": len(names)})

    from ifdd.checkpoint import load_pretrained, save_checkpoint
    from ifdd.model import IFDD

    model = IFDD(config)
    report = load_pretrained(model, options.input)
    save_checkpoint(options.output, model, names, {"source": Path(options.input).name, "kind": report.kind})
    print(report)
    for title, tensors in (("not used", report.dropped), ("initial values kept", report.untouched)):
        for name in tensors:
            print(f"  {title}: {name}")
    print(f"written: {options.output} ({', '.join(names)})")
    return 0


def class_list(text: str) -> tuple[str, ...]:
    """Class names from a data set's name or a comma-separated list."""
    from ifdd.data.labels import class_list as parsed

    try:
        return parsed(text)
    except ValueError as error:
        raise UsageError(f"--classes: {error}") from None
