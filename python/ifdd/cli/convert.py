"""Convert published weights into a checkpoint of this package.

IN may be weights of the original implementation (.pth), torchvision's mvit_v2_s (embedding and backbone
only), a checkpoint, or last.ckpt or best.ckpt of a training. OUT is one safetensors file: the weights, the
configuration and the class list. Tensors that were not used are printed. Projects order the classes
differently, so weights from elsewhere need --classes, and --model.* if their network is not the default one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from ifdd.cli._commands import UsageError
from ifdd.cli.common import add_network_options, network_options
from ifdd.cli.paths import require_file, require_writable_file
from ifdd.cli.spare import spare
from ifdd.config import IFDDConfig

SUMMARY = "convert published weights into a checkpoint"
USAGE = "IN OUT [--classes CLASSES] [options]"


def configure(parser: ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("input", metavar="IN", help="weights: .pth, .pt, .ckpt or .safetensors")
    parser.add_argument("output", metavar="OUT", help="checkpoint to write, .safetensors")
    parser.add_argument(
        "--classes",
        type=str | None,
        default=None,
        help="class names in the order of the logits: A,B,C, or dfew, ferv39k or mafw for those of that data "
        "set; default: those in the file, if this package wrote it",
    )
    add_network_options(parser)


def run(options: Namespace) -> int:
    """Runs the command; returns the exit code."""
    if Path(options.output).suffix != ".safetensors":
        raise UsageError(f"OUT: a checkpoint ends in .safetensors, got {options.output}")
    require_writable_file("OUT", options.output)
    spare([("OUT", Path(options.output))], [("the file", options.input)])
    names = None if options.classes is None else class_list(options.classes)
    require_file("IN", options.input)
    network = network_options(options)

    from ifdd.checkpoint import CheckpointError, ClassCountError, load_pretrained, save_checkpoint
    from ifdd.checkpoint.files import read_file
    from ifdd.checkpoint.format import settings_of
    from ifdd.model import IFDD

    file = read_file(options.input)
    own = settings_of(file)
    extra = {"source": file.path.name}
    if own is not None:
        if names not in (None, own.class_names):
            raise UsageError(
                f"--classes: those of {file.path} are {', '.join(own.class_names)}, in that order"
            )
        names = own.class_names
        config = _network_of(file.path, own.config, network)
        extra = {**own.extra, **extra}
    elif names is None:
        raise UsageError(f"--classes is missing: {file.path} does not say its class names")
    else:
        config = IFDDConfig.from_dict({**network, "num_classes": len(names)})
    model = IFDD(config)
    try:
        report = load_pretrained(model, file)
    except ClassCountError as error:
        raise CheckpointError(
            f"{file.path}: the classifier has {error.found} classes, --classes names {error.wanted}"
        ) from error
    save_checkpoint(options.output, model, names, {**extra, "kind": report.kind})
    print(report)
    for title, tensors in (("not used", report.dropped), ("initial values kept", report.untouched)):
        for name in tensors:
            print(f"  {title}: {name}")
    print(f"written: {options.output} ({', '.join(names)})")
    return 0


def _network_of(path: Path, stated: IFDDConfig, options: dict[str, Any]) -> IFDDConfig:
    """The network that a file states, unless the options ask for another one.

    Raises:
        UsageError: an option that was changed from its default is not what the file states.
    """
    default, inside = IFDDConfig().to_dict(), stated.to_dict()
    for name, value in options.items():
        if value not in (default[name], inside[name]):
            raise UsageError(f"--model.{name} {value}: the network in {path} has {inside[name]}")
    return stated


def class_list(text: str) -> tuple[str, ...]:
    """Class names from a data set's name or a comma-separated list."""
    from ifdd.data.labels import class_list as parsed

    try:
        return parsed(text)
    except ValueError as error:
        raise UsageError(f"--classes: {error}") from None
