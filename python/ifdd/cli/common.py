"""Shared by the commands: the options of data and model, short error lines."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import re
import sys
import warnings
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from ifdd.cli._commands import EXIT_FAILED, UsageError
from ifdd.cli.parser import Parser
from ifdd.cli.paths import require_file, require_folder
from ifdd.config import IFDDConfig
from ifdd.text import one_line
from ifdd.training.config import (
    DataConfig,
    DatasetName,
    Device,
    InitPart,
    OptimConfig,
    Precision,
    SettingError,
    Strategy,
    TrainingConfig,
    uses,
)

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Parser",
    "add_data_options",
    "add_device_option",
    "add_launch_options",
    "add_network_options",
    "add_test_options",
    "add_training_options",
    "choose_device",
    "data_config",
    "leave_ranks",
    "network_options",
    "one_line",
    "option_of",
    "quiet_lightning",
    "require_data",
    "say_address",
    "setting_errors",
    "shows_progress",
    "training_config",
    "usage_errors",
    "wide_console",
]

set_parsing_settings(docstring_parse_attribute_docstrings=True)

_DATA_FIELDS = tuple(f.name for f in dataclasses.fields(DataConfig) if f.name != "name")
_OPTIM_FIELDS = tuple(f.name for f in dataclasses.fields(OptimConfig))


def add_data_options(parser: ArgumentParser) -> None:
    """`--data`, `--root`, `--fold` and the rest of :class:`DataConfig`."""
    parser.add_argument(
        "--data",
        type=DatasetName,
        default="synthetic",
        help="dfew, ferv39k, mafw, list (your own list files), folder (a folder of videos for each class) or "
        "synthetic (drawn faces, needs no files)",
    )
    # A data set that nobody named would train or test something else than was meant.
    parser.set_defaults(data=None)
    parser.add_class_arguments(DataConfig, skip={"name"}, as_group=True)


def add_training_options(parser: ArgumentParser) -> None:
    """All of :class:`TrainingConfig`, flat but for `--model.*`."""
    _add_config_option(parser, "YAML file with options of this command; the command line overrides it")
    add_data_options(parser)
    _add_recipe_options(parser)
    add_device_option(parser)
    add_launch_options(parser)


def add_test_options(parser: ArgumentParser, unused: Collection[str]) -> None:
    """Data and device. The options of a training are accepted, so that one YAML file serves all commands, but
    help shows neither those of the recipe nor the `unused` ones among the others.
    """
    _add_config_option(
        parser, "YAML file with options, such as OUT/config.yaml of `ifdd fit`; the command line overrides it"
    )
    add_data_options(parser)
    add_device_option(parser)
    add_launch_options(parser)
    before = len(parser._actions)
    _add_recipe_options(parser)
    for place, action in enumerate(parser._actions):
        if place >= before or action.dest in unused:
            action.help = argparse.SUPPRESS


def add_network_options(parser: ArgumentParser) -> None:
    """`--model.*`: all of :class:`IFDDConfig` but the number of classes, which the data decide."""
    parser.add_class_arguments(IFDDConfig, "model", skip={"num_classes"}, as_group=True)
    parser._action_groups[-1].title = "Network"
    parser._option_string_actions["--model"].help = "YAML file with the options of the network"


def _add_config_option(parser: ArgumentParser, text: str) -> None:
    parser.add_argument("--config", action="config", help=text)
    parser._option_string_actions["--print_config"].help = "print all options as such a YAML file, and exit"


def _add_recipe_options(parser: ArgumentParser) -> None:
    parser.add_class_arguments(OptimConfig, as_group=True)
    add_network_options(parser)
    group = parser.add_argument_group("Running")
    group.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    group.add_argument(
        "--precision", type=Precision, default="32", help="precision of the arithmetic, as Lightning names it"
    )
    group.add_argument(
        "--cuda_graph",
        action="store_true",
        help="replay forward and backward as CUDA graphs (one GPU): the same numbers, fewer calls",
    )
    group.add_argument(
        "--init",
        type=str | None,
        default=None,
        help="weights to start from: a checkpoint, last.ckpt of another run, or torchvision's mvit_v2_s; the "
        "classifier is kept if the classes are the same",
    )
    group.add_argument(
        "--init_part",
        type=InitPart,
        default="all",
        help="part of --init to use: all, or backbone (embedding, backbone and pyramid)",
    )


def add_device_option(parser: ArgumentParser) -> None:
    """`--device`."""
    parser.add_argument("--device", type=Device, default="auto", help="auto uses the GPU if there is one")


def add_launch_options(parser: ArgumentParser) -> None:
    """`--devices`, `--num_nodes` and `--strategy`."""
    parser.add_argument(
        "--devices",
        type=int | None,
        default=None,
        help="GPUs per machine that train together (on a CPU: processes); default: as many as torchrun or "
        "SLURM started, else 1",
    )
    parser.add_argument(
        "--num_nodes",
        type=int | None,
        default=None,
        help="machines that train together; default: as many as torchrun or SLURM started, else 1",
    )
    parser.add_argument(
        "--strategy",
        type=Strategy,
        default="auto",
        help="Lightning's strategy for several processes; auto: ddp if there are several",
    )


def data_config(options: Namespace) -> DataConfig:
    """The checked :class:`DataConfig` of flat options.

    A file of options may be about another data set than the one typed beside it, or have been written when
    options of other data sets were ignored (that of a run to resume): there they still are.

    Raises:
        UsageError: no data set was named, an option cannot be used, or the data set does not use it.
    """
    if options.data is None:
        raise UsageError(f"--data is missing: name the data set, one of {', '.join(get_args(DatasetName))}")
    values = {name: options[name] for name in _DATA_FIELDS}
    if "data" in options.typed or options.get("resume"):
        values = {name: v for name, v in values.items() if name in options.typed or uses(options.data, name)}
    with usage_errors():
        return DataConfig(name=options.data, **values)


def require_data(data: DataConfig) -> None:
    """Finds the folder and the lists of a data set; what is in them is not looked at.

    Raises:
        UsageError: one is not there.
    """
    if data.root is not None:
        require_folder("--root", data.root)
    for option, path in (("--train_list", data.train_list), ("--test_list", data.test_list)):
        if path is not None:
            require_file(option, path)


def training_config(options: Namespace) -> TrainingConfig:
    """The checked :class:`TrainingConfig` of flat options."""
    data = data_config(options)
    with usage_errors():
        return TrainingConfig(
            data=data,
            optim=OptimConfig(**{name: options[name] for name in _OPTIM_FIELDS}),
            model=network_options(options),
            seed=options.seed,
            precision=options.precision,
            device=options.device,
            devices=options.devices,
            num_nodes=options.num_nodes,
            strategy=options.strategy,
            cuda_graph=options.cuda_graph,
            init=options.init,
            init_part=options.init_part,
        )


def network_options(options: Namespace) -> dict[str, Any]:
    """Checked `--model.*` options: all of :class:`IFDDConfig` but the number of classes, as plain types.

    Raises:
        UsageError: an option has an impossible value.
    """
    try:
        plain = IFDDConfig.from_dict(options.model.as_dict()).to_dict()
    except ValueError as error:
        # Its messages begin with the name of the field.
        raise UsageError(f"--model.{one_line(error)}") from error
    del plain["num_classes"]
    return plain


def option_of(setting: str) -> str:
    """The option that sets a dotted setting: those of data and optimiser are flat."""
    # The data set's name is called after what it names.
    return "--data" if setting == "data.name" else f"--{re.sub(r'^(data|optim)[.]', '', setting)}"


@contextlib.contextmanager
def setting_errors() -> Iterator[None]:
    """Turns a :class:`SettingError` into a usage error about its option."""
    try:
        yield
    except SettingError as error:
        raise UsageError(f"{option_of(error.setting)} {one_line(error.rule)}") from error


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turns a ValueError about a setting into a usage error about its option."""
    try:
        with setting_errors():
            yield
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(one_line(error)) from error


def shows_progress(options: Namespace) -> bool:
    """Whether a bar is shown: on a terminal, unless an option says otherwise. Files and pipes get none."""
    return bool(options.progress) and not options.quiet and sys.stdout.isatty()


def leave_ranks() -> NoReturn:
    """Ends a rank after an error that the first one has shown.

    At once: what Python would still tidy up waits for ranks that are gone.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_FAILED)


def quiet_lightning(first: bool = True) -> None:
    """Silences the remarks of the training library that do not concern a user of the command, and with
    `first` False all others, too: the first rank makes the same.
    """
    if not first:
        warnings.simplefilter("ignore")
    import pytorch_lightning  # noqa: F401  (sets the level of its loggers when it is imported)

    for name in ("pytorch_lightning", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|torchmetrics)\..*")
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
    # The number of processes is an option with a default, and more of them than cores do no harm.
    warnings.filterwarnings("ignore", message=r"This DataLoader will create \d+ worker processes")


def choose_device(device: Literal["auto", "cpu", "cuda"]) -> str:
    """The device that `auto` means here.

    Raises:
        UsageError: if CUDA is asked for and there is none.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this PyTorch sees no CUDA GPU (see `ifdd doctor`)")
    return device


def say_address(url: str, quiet: bool) -> None:
    """Tells where the page is; with --quiet on stderr, or nobody could find it."""
    # At once, also into a pipe: nobody can look before.
    print(f"open {url} in a browser; Ctrl-C ends", file=sys.stderr if quiet else None, flush=True)


def wide_console() -> Console:
    """A console for tables; a file or a pipe has no width, and must not lose columns to one."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=200)
