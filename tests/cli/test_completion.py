"""Completion scripts complete."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
pytest.importorskip("shtab", reason="shtab, of the extra cli, is not installed")


def complete(script: Path, words: list[str]) -> set[str]:
    """The completions that bash offers for the last of the words."""
    typed = " ".join(repr(word) for word in words)
    position = f"COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}"
    code = f"source {script}; {position}; _shtab_ifdd; echo ${{COMPREPLY[@]}}"
    return set(subprocess.run(["bash", "-c", code], capture_output=True, text=True).stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_options_and_values(ifdd: Run, tmp_path: Path) -> None:
    result = ifdd("completion", "bash")
    assert result.code == 0, result.err
    script = tmp_path / "ifdd.bash"
    script.write_text(result.out)
    assert complete(script, ["ifdd", "pre"]) == {"predict", "prepare"}
    assert complete(script, ["ifdd", "fit", "--learn"]) == {"--learning_rate"}
    assert complete(script, ["ifdd", "fit", "--device", ""]) >= {"auto", "cpu", "cuda"}
    assert complete(script, ["ifdd", "fit", "--precision", "bf"]) == {"bf16-mixed"}


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_scripts(ifdd: Run, shell: str) -> None:
    import shtab

    result = ifdd("completion", shell)
    if shell in shtab.SUPPORTED_SHELLS:
        assert result.code == 0, result.err
        assert "learning_rate" in result.out
    else:
        assert result.code == 2
