"""The `ifdd` command; its commands are listed in `ifdd.cli._commands`."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ifdd._interrupt import EXIT_INTERRUPTED
from ifdd.cli._commands import COMMANDS, EXIT_FAILED, EXIT_TERMINATED, EXIT_USAGE, UsageError
from ifdd.cli._imports import failed_import
from ifdd.cli._warnings import one_line_warnings
from ifdd.text import one_line

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

DESCRIPTION = (
    "IFDD recognises facial expressions in video. To train a network of your own: `prepare` cuts the faces "
    "out of raw videos, `check` looks for faults in a data set, `fit` trains and `test` measures. To use a "
    "network: `predict` writes the probabilities of videos, `annotate` draws them into a video, `live` shows "
    "those of a camera, `app` opens a page in the browser and `explain` draws what the network looked at. "
    "`doctor` checks the installation."
)


_REPORTS = ("doctor", "completion")
"""Commands that do nothing but print."""


def _command(name: str) -> ModuleType:
    return importlib.import_module(f"ifdd.cli.{COMMANDS[name]}")


def build_parser() -> ArgumentParser:
    """The parser of the whole command line."""
    import ifdd_kernels
    from ifdd.cli.common import Parser

    parser = Parser(prog="ifdd", description=DESCRIPTION, version=ifdd_kernels.__version__)
    commands = parser.add_subcommands(
        dest="command",
        required=True,
        title="commands",
        description="ifdd COMMAND --help lists the options of a command.",
        metavar="COMMAND",
    )
    for name in COMMANDS:
        commands.add_subcommand(name, _command_parser(name), help=_command(name).SUMMARY)
    return parser


def _command_parser(name: str) -> ArgumentParser:
    from ifdd.cli.common import Parser

    command = _command(name)
    parser = Parser(prog=f"ifdd {name}", description=command.__doc__, usage=f"ifdd {name} {command.USAGE}")
    command.configure(parser)
    if name not in _REPORTS:
        parser.add_argument(
            "--quiet",
            action="store_true",
            help="print nothing but errors and warnings, and what an option sends to stdout",
        )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        0 if all went well; 1 if something failed in a right call: a video, a training, the content of a file;
        2 for a wrong call: options that do not go together, a file or folder named by an option that is not
        there or cannot be written, results of another run; then nothing was begun and no file touched. 130
        after Ctrl-C, 143 after SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in COMMANDS:
            # By its own parser: its complaints name an option as it was typed, without the command in front.
            command, parser = _command(arguments[0]), _command_parser(arguments[0])
            parse = getattr(command, "parse", type(parser).parse_args)
            options = parse(parser, arguments[1:])
            with one_line_warnings(), _silence(options.get("quiet", False) and arguments[0] != "predict"):
                return int(command.run(options))
        # Without a command in front there is only help, the version or a complaint, and each of them exits.
        build_parser().parse_args(arguments)
        return EXIT_USAGE
    except SystemExit as stop:
        # No code: Lightning leaves a training or a test like this after SIGTERM (its SIGTERMException).
        code = stop.code if isinstance(stop.code, int) else EXIT_TERMINATED
        if code == EXIT_TERMINATED:
            print("ifdd: terminated", file=sys.stderr)
        return code
    except KeyboardInterrupt:
        print("ifdd: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) went away: nothing is wrong, and nothing more can be written.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        print(f"ifdd: error: {_explanation(error)}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED


@contextlib.contextmanager
def _silence(quiet: bool) -> Iterator[None]:
    """Nothing reaches stdout; `predict`, which may send results there, holds its tables back itself."""
    if not quiet:
        yield
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _explanation(error: Exception) -> str:
    """One line that a user can act on."""
    text = one_line(error)
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is not installed: pip install 'ifdd-kernels[all]'"
    if failed := failed_import(error):
        return failed[1]
    if isinstance(error, OSError) and error.strerror:
        # Without its number.
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        return one_line(f"{where}{error.strerror}")
    if isinstance(error, (ValueError, OSError, RuntimeError, ImportError)):
        return text
    return f"{type(error).__name__}: {text} (run again with --debug for the traceback)"
