"""Ctrl-C while modules are imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ifdd
from ifdd._interrupt import on_interrupt

IMPORT = """
import signal
signal.raise_signal(signal.SIGINT)
raise AttributeError("half a module")
"""


@pytest.mark.parametrize("program", ["-m ifdd", "ifdd", "other.py"])
def test_one_line_and_no_traceback_from_the_command_and_no_change_elsewhere(
    tmp_path: Path, program: str
) -> None:
    """A `torch` that is interrupted stands in for the one that takes seconds."""
    (tmp_path / "torch.py").write_text(IMPORT)
    (tmp_path / "ifdd").write_text("from ifdd.cli import main\nmain()\n")
    (tmp_path / "other.py").write_text("import ifdd\n")
    call = program.split() if program.startswith("-m") else [str(tmp_path / program)]
    sources = [str(tmp_path), *(str(Path(part).parents[0]) for part in ifdd.__path__), *sys.path]
    result = subprocess.run(
        [sys.executable, *call, "live"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sources)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if program == "other.py":
        assert "KeyboardInterrupt" in result.stderr
    else:
        assert (result.returncode, result.stdout, result.stderr) == (130, "", "ifdd: interrupted\n")


def test_it_is_a_keyboard_interrupt_once_modules_are_there() -> None:
    with pytest.raises(KeyboardInterrupt):
        on_interrupt(signal.SIGINT, None)
