"""An error never advises an option that the command lacks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ifdd
from ifdd.cli import COMMANDS, _command_parser

SOURCES = Path(ifdd.__file__).parent
OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9_]*(?:[.-][a-z0-9_]+)*)(?![\w*])")
OTHERS = re.compile(r"(pip|uv|cmake|git|docker) [^;`]*|python -m ifdd\.demo[^;`]*")
"""Command lines of other programs."""


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Strings of a source that are not documentation; formatted values are left out of them."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    statements = [line for node in ast.walk(tree) if isinstance(node, documented) for line in node.body]
    left_out = {id(line.value) for line in statements if isinstance(line, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            left_out |= {id(part) for part in ast.walk(node) if part is not node}
            values = (str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
            yield node.lineno, "".join(values)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out:
            yield node.lineno, node.value


def advised(path: Path) -> Iterator[tuple[int, str]]:
    for line, text in texts(path):
        for match in OPTION.finditer(OTHERS.sub("", text)):
            if text[match.end() : match.end() + 1] != "\0":  # the rest of its name is known at run time only
                yield line, f"--{match[1]}"


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    return {name: set(_command_parser(name).option_strings()) for name in COMMANDS}


def test_options_in_messages_exist(options: dict[str, set[str]]) -> None:
    commands = {module: name for name, module in COMMANDS.items()}
    everywhere = set().union(*options.values())
    seen, wrong = 0, []
    for path in sorted(SOURCES.rglob("*.py")):
        if path.name == "demo.py":
            continue  # has a command line of its own
        own = commands.get(path.stem) if path.parent.name == "cli" else None
        for line, option in advised(path):
            seen += 1
            # What is said in other modules reaches people through several commands.
            if option not in (options[own] if own else everywhere):
                wrong.append(f"{path.relative_to(SOURCES)}:{line}: {option}")
    assert wrong == []
    assert seen > 30, "the search finds nothing"


def test_the_search_sees_what_it_must(tmp_path: Path) -> None:
    source = '''
"""Says --documented."""
def f(x):
    """Says --documented."""
    raise ValueError(f"{x}: lower --rate or --model.depth={x}, " "--train-list; pip install --no-deps y")
'''
    (tmp_path / "m.py").write_text(source)
    assert [option for _, option in advised(tmp_path / "m.py")] == ["--rate", "--model.depth", "--train-list"]
