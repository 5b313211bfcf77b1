"""The parser of the commands: help without Python's phrases, complaints in the words of the command."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import textwrap
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from ifdd.cli._commands import EXIT_USAGE
from ifdd.text import one_line

_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


class _ShortHelp(DefaultHelpFormatter):
    """Help without type annotations; the text of an option says what it takes."""

    def _get_type_str(self, action: Any) -> None:
        return None

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        # Paragraphs stay apart, and indented ones (command lines to copy) stay as they are.
        paragraphs = re.split(r"\n[ \t]*\n", textwrap.dedent(text).strip("\n"))
        return "\n\n".join(
            textwrap.indent(textwrap.dedent(paragraph), f"{indent}  ")
            if paragraph.startswith(" ")
            else super(_ShortHelp, self)._fill_text(paragraph, width, indent)
            for paragraph in paragraphs
        )

    def _format_action(self, action: Any) -> str:
        if isinstance(action, argparse._SubParsersAction):
            # The heading above says what they are.
            return "".join(map(self._format_action, self._iter_indented_subactions(action)))
        return super()._format_action(action)

    def _format_action_invocation(self, action: Any) -> str:
        # An option for a list has a second form that appends, "--classes+", and that of printing the
        # configuration has flags: forms of the parsing library which are not part of this command line.
        text = re.sub(r", --\S+\+( \S+)?", "", super()._format_action_invocation(action))
        return re.sub(r"\s*\x08?\[=flags\]", "", text)  # the backspace would reach files and pagers

    def _expand_help(self, action: Any) -> str:
        text = super()._expand_help(action).replace("`", "")
        text = text.replace(" (default: null)", "").replace(" (default: )", "")
        for ours, theirs in (("false", "False"), ("true", "True"), (r"[\1]", r"\((.*)\)")):
            text = re.sub(rf"\(default: {theirs}\)", f"(default: {ours})", text)
        # The texts of Python's documentation are sentences, those of options are not.
        return re.sub(r"\.( \(default|$)", r"\1", text.strip())


class Parser(ArgumentParser):
    """A parser whose complaint is one line and exit code 2.

    An option may be typed with dashes (`--train-list`) as well as with underscores, and not abbreviated.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_ShortHelp, allow_abbrev=False, **options)

    def parse_args(self, args: Sequence[str] | None = None, **options: Any) -> Any:  # type: ignore[override]
        """Options of a command line; leaves with exit code 2 and one line where it is wrong.

        The destinations of the options that were typed, and not read from a file or left at their defaults,
        are in ``typed``.
        """
        arguments = [self._as_declared(text) for text in (sys.argv[1:] if args is None else args)]
        parsed = super().parse_args(arguments, **options)
        # Appending to a list, "--classes+", is a form of the parsing library.
        names = (text.partition("=")[0].removesuffix("+") for text in arguments)
        known = self._option_string_actions
        parsed["typed"] = sorted({known[name].dest for name in names if name in known})
        return parsed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the complaint and leaves."""
        prog = self.prog.replace(" [options]", "")
        text = one_line(self._complaint(one_line(message)))
        print(f"{prog}: error: {text} (see `{prog} --help`)", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)

    def option_strings(self) -> list[str]:
        """Every option of this parser, as it is typed."""
        return sorted(name for name in self._option_string_actions if name.startswith("--"))

    def is_hidden(self, destination: str) -> bool:
        """Whether an option is left out of the help."""
        action = self._by_destination(destination)
        return action is not None and action.help == argparse.SUPPRESS

    def _as_declared(self, argument: str) -> str:
        name, equals, value = argument.partition("=")
        declared = "--" + name[2:].replace("-", "_")
        known = name.startswith("--") and declared in self._option_string_actions
        return f"{declared}{equals}{value}" if known else argument

    def _complaint(self, message: str) -> str:
        """A message of the parsing libraries in the words of a command line."""
        if match := re.match(r"the following arguments are required: (.*)", message):
            return f"missing {', '.join(map(self._as_typed, match[1].split(', ')))}"
        if match := re.match(r"unrecognized arguments: (.*)", message):
            return f"unknown {match[1]}{self._similar(match[1].split()[0].partition('=')[0])}"
        if match := re.match(
            r"Option '([^']*)' is not accepted|Group '([^']*)' does not accept option '([^']*)'", message
        ):
            name = match[1] or f"{match[2]}.{match[3]}"
            return f"--config: there is no option {name!r}{self._similar(f'--{name}')}"
        if match := re.match(r"Problems parsing config: (.*)", message):
            return f"--config: no valid YAML: {match[1]}"
        if match := re.match(r'Parser key "([^"]*)": (.*)', message):
            return f"{self._as_typed(match[1])}: {self._plain(match[1], match[2])}"
        return message

    def _plain(self, key: str, text: str) -> str:
        given = re.search(r"(?:Got value|Given value): (.*)$", text)
        expected = describe_type(getattr(self._by_destination(key), "_typehint", None))
        if given and expected:
            return f"expected {expected}, got {given[1]!r}"
        return text[:1].lower() + text[1:]

    def _as_typed(self, destination: str) -> str:
        action = self._by_destination(destination)
        if action is None or action.option_strings:
            return f"--{destination}"
        return str(action.metavar or destination)

    def _by_destination(self, destination: str) -> argparse.Action | None:
        return next((action for action in self._actions if action.dest == destination), None)

    def _similar(self, option: str) -> str:
        close = difflib.get_close_matches(
            option.replace("-", "_"), [o.replace("-", "_") for o in self.option_strings()], 1
        )
        return f"; did you mean --{close[0][2:]}?" if close else ""


def describe_type(hint: Any) -> str:
    """The values that an option of a type accepts, in words; empty if there are no words for the type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(
            filter(None, (describe_type(part) for part in arguments if part is not type(None)))
        )
    if origin in (list, tuple) and arguments:
        return "a list such as [1,2]" if arguments[0] is int else "a list such as [a,b]"
    return _TYPES.get(hint, "")
