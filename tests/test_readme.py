"""The README's Python runs, its command lines parse, and the files it names exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ifdd.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Fenced code blocks of a language; the empty one holds shell commands."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_blocks_run(number: int) -> None:
    code = "import torch\n" + blocks("python")[number]
    exec(compile(code, f"README.md, Python block {number}", "exec"), {})


def test_there_is_something_to_run() -> None:
    assert len(blocks("python")) >= 3
    assert any("make demo" in block for block in blocks(""))


def test_command_lines_use_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for block in blocks("") for line in block.splitlines() if line.startswith("ifdd ")]
    assert lines
    helps: dict[str, str] = {}
    for line in lines:
        command, *rest = shlex.split(line, comments=True)[1:]
        if command not in helps:
            assert main([command, "--help"]) == 0, f"`{line}`: no such command"
            helps[command] = capsys.readouterr().out
        for option in (word for word in rest if word.startswith("--")):
            assert re.search(rf"{option}\b", helps[command]), f"`{line}`: {option} is no option of {command}"


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), f"README links to {target}, which does not exist"
