"""Print a completion script for a shell.

Shells look for it in these places, zsh in every folder of $fpath:

    ifdd completion bash > ~/.local/share/bash-completion/completions/ifdd
    ifdd completion zsh > ~/.zfunc/_ifdd
    ifdd completion fish > ~/.config/fish/completions/ifdd.fish
"""

from __future__ import annotations

import argparse
import typing
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from ifdd.cli._commands import UsageError

SUMMARY = "print a completion script for a shell"
USAGE = "{bash,zsh,fish}"
_SHELLS = ("bash", "zsh", "fish")
_PLACES = frozenset({"checkpoint", "config", "init", "input", "out", "output", "root", "video", "videos"})


def configure(parser: ArgumentParser) -> None:
    """Adds the argument."""
    parser.add_argument("shell", metavar="SHELL", help=f"one of {', '.join(_SHELLS)}")


def run(options: Namespace) -> int:
    """Runs the command; returns the exit code."""
    if options.shell not in _SHELLS:
        raise UsageError(f"SHELL must be one of {', '.join(_SHELLS)}, got {options.shell!r}")
    import shtab

    if options.shell not in shtab.SUPPORTED_SHELLS:
        raise UsageError(f"SHELL: this version of shtab knows {', '.join(shtab.SUPPORTED_SHELLS)} only")
    from ifdd.cli import build_parser

    parser = build_parser()
    _add_values(parser, shtab.FILE)
    print(shtab.complete(parser, options.shell))
    return 0


def _add_values(parser: argparse.ArgumentParser, file: Any) -> None:
    """Tells the values of options: those of a fixed set, and names of files."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _add_values(command, file)
            continue
        hint = getattr(action, "_typehint", None)
        if typing.get_origin(hint) is Literal:
            action.choices = [str(value) for value in typing.get_args(hint)]
        elif hint is bool:
            action.choices = ["true", "false"]
        elif action.dest in _PLACES or action.dest.endswith("_list"):
            action.complete = file  # type: ignore[attr-defined]
