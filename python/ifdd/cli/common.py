"""What the commands share: the parser, the options of data and model, short error lines."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings

from ifdd.cli._commands import EXIT_USAGE, UsageError
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
    TrainingConfig,
)

if TYPE_CHECKING:
    from rich.console import Console

set_parsing_settings(docstring_parse_attribute_docstrings=True)

_DATA_FIELDS = tuple(f.name for f in dataclasses.fields(DataConfig) if f.name != "name")
_OPTIM_FIELDS = tuple(f.name for f in dataclasses.fields(OptimConfig))


class _ShortHelp(DefaultHelpFormatter):
    """Help without type annotations; the text of an option says what it takes."""

    def _get_type_str(self, action: Any) -> None:
        return None

    def _expand_help(self, action: Any) -> str:
        text = super()._expand_help(action)
        return text.replace(" (default: null)", "").replace("(default: False)", "").strip()


class Parser(ArgumentParser):
    """A parser whose complaint is one line and exit code 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_ShortHelp, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the complaint and leaves."""
        prog = self.prog.replace(" [options]", "")
        print(f"{prog}: error: {one_line(message)} (see `{prog} --help`)", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def add_data_options(parser: ArgumentParser) -> None:
    """`--data`, `--root`, `--fold` and the rest of :class:`DataConfig`."""
    parser.add_argument(
        "--data",
        type=DatasetName,
        default="synthetic",
        help="dfew, ferv39k, mafw, list (your own list files), folder (a folder of videos for each class) or "
        "synthetic (drawn faces, needs no files)",
    )
    parser.add_class_arguments(DataConfig, skip={"name"}, as_group=True)


def add_training_options(parser: ArgumentParser) -> None:
    """All of :class:`TrainingConfig`, flat but for `--model.*`."""
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    add_data_options(parser)
    _add_recipe_options(parser)
    add_device_option(parser)


def add_test_options(parser: ArgumentParser) -> None:
    """Data and device; the recipe's options are accepted, so that one YAML file serves both commands."""
    parser.add_argument(
        "--config", action="config", help="YAML file, the one of `ifdd fit` or with options below"
    )
    add_data_options(parser)
    add_device_option(parser)
    before = len(parser._actions)
    _add_recipe_options(parser)
    for action in parser._actions[before:]:
        action.help = argparse.SUPPRESS


def _add_recipe_options(parser: ArgumentParser) -> None:
    parser.add_class_arguments(OptimConfig, as_group=True)
    parser.add_class_arguments(IFDDConfig, "model", skip={"num_classes"}, as_group=True)
    group = parser.add_argument_group("Running")
    group.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    group.add_argument(
        "--precision", type=Precision, default="32", help="arithmetic: 32, bf16-mixed or 16-mixed"
    )
    group.add_argument(
        "--init",
        type=str | None,
        default=None,
        help="weights to start from; their classifier is kept if it is for the same classes",
    )
    group.add_argument(
        "--init_part",
        type=InitPart,
        default="all",
        help="what to take of them: all, or backbone (embedding, backbone and pyramid)",
    )


def add_device_option(parser: ArgumentParser) -> None:
    """`--device`."""
    parser.add_argument("--device", type=Device, default="auto", help="auto takes the GPU if there is one")


def data_config(options: Namespace) -> DataConfig:
    """The checked :class:`DataConfig` of flat options."""
    with usage_errors():
        return DataConfig(name=options.data, **{name: options[name] for name in _DATA_FIELDS})


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
            init=options.init,
            init_part=options.init_part,
        )


def network_options(options: Namespace) -> dict[str, Any]:
    """Checked `--model.*` options: all of :class:`IFDDConfig` but the number of classes, as plain types."""
    plain = IFDDConfig.from_dict(options.model.as_dict()).to_dict()
    del plain["num_classes"]
    return plain


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turns a ValueError about a setting into a usage error about its option."""
    try:
        yield
    except SettingError as error:
        # Those of data and optimiser are flat, and the data set's name is called after what it names.
        option = "data" if error.setting == "data.name" else error.setting.rpartition(".")[2]
        raise UsageError(f"--{option} {one_line(error.rule)}") from error
    except ValueError as error:
        raise UsageError(one_line(error)) from error


def parent_exists(path: str | None, option: str) -> None:
    """Refuses an output path whose folder is missing, before any work is done."""
    if path is not None and path != "-" and not Path(path).absolute().parent.is_dir():
        raise UsageError(f"{option}: folder {Path(path).absolute().parent} does not exist")


def quiet_lightning() -> None:
    """Silences the remarks of the training library that do not concern a user of the command."""
    import pytorch_lightning  # noqa: F401  (sets the level of its loggers when it is imported)

    for name in ("pytorch_lightning", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|torchmetrics)\..*")
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")


def choose_device(device: Literal["auto", "cpu", "cuda"]) -> str:
    """The device that `auto` means here.

    Raises:
        UsageError: if CUDA is asked for and there is none.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this PyTorch sees no CUDA GPU (`ifdd doctor` tells more)")
    return device


def wide_console() -> Console:
    """A console for tables; a file or a pipe has no width, and must not lose columns to one."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=200)
