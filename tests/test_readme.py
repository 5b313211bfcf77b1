"""README and the first pages of the documentation: Python runs, command lines parse, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from ifdd.cli import COMMANDS, _command_parser

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RUN = (README, ROOT / "docs" / "usage.md", ROOT / "docs" / "architecture.md")
LINKED = (
    README,
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "examples/README.md",
)


def blocks(page: Path, language: str) -> list[str]:
    """Fenced code blocks of a language; the empty one holds shell commands."""
    # Of every language at once: the end of one block must not pass for the beginning of another.
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [body for name, body in found if name == language]


PYTHON = [pytest.param(page, block, id=page.stem) for page in RUN for block in blocks(page, "python")]
COMMAND_LINES = [
    line
    for page in RUN
    for block in blocks(page, "")
    for line in block.splitlines()
    if line.startswith("ifdd ")
]


@pytest.mark.parametrize(("page", "code"), PYTHON)
def test_python_runs(page: Path, code: str) -> None:
    exec(compile(code, str(page), "exec"), {})


def test_there_is_something_to_run() -> None:
    assert {parameter.id for parameter in PYTHON} == {"README", "architecture"}
    assert {line.split()[1] for line in COMMAND_LINES} >= {"fit", "test", "predict", "export", "doctor"}


@cache
def options_of(command: str) -> set[str]:
    return set(_command_parser(command)._option_string_actions)


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_command_lines_use_options_that_exist(line: str) -> None:
    command, *rest = shlex.split(line, comments=True)[1:]
    assert command in COMMANDS
    options = {word for word in rest if word.startswith("--")}
    assert options <= options_of(command)


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 130


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\((?!https?:)([^)\s]+)\)", text) + re.findall(r'(?:srcset|src)="([^"]+)"', text)
    for target in targets:
        file, _, anchor = target.partition("#")
        where = (page.parent / file).resolve() if file else page
        assert where.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor and where.suffix == ".md":
            assert anchor in anchors(where), f"{page.name}: {target} has no such heading"
