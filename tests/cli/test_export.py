from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ifdd.checkpoint import load_checkpoint

Run = Callable[..., Any]


def test_a_program_is_written_beside_the_checkpoint(ifdd: Run, checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(checkpoint, tmp_path / "face.v2.safetensors"))
    result = ifdd("export", copy, "--format", "pt2")
    steps = ("tracing the network", "writing face.v2.pt2", "comparing it with the network")
    assert result.err == "".join(f"ifdd export: {step} ...\n" for step in steps)
    assert result.code == 0, result.err
    target = tmp_path / "face.v2.pt2"
    assert result.out.startswith(f"written: {target} (")
    assert "largest difference from the network on random clips: " in result.out
    assert len(result.out.splitlines()) == 1
    clips = torch.rand(1, 3, 8, 32, 32)
    with torch.no_grad():
        wanted = load_checkpoint(copy).model(clips).logits
    torch.testing.assert_close(torch.export.load(target).module()(clips)["logits"], wanted)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ((), 2, "format"),
        (("--format", "tflite"), 2, "format"),
        (
            ("--format", "onnx", "--out", "net.pt2"),
            2,
            "--out: a file of format onnx ends in .onnx",
        ),
        (("--format", "pt2", "--out", "no/such/net.pt2"), 2, "no/such does not exist"),
        (("--format", "pt2", "--out", "folder.pt2"), 2, "folder.pt2 is a folder"),
    ],
)
def test_wrong_calls(
    ifdd: Run,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.pt2").mkdir()
    result = ifdd("export", checkpoint, *arguments)
    assert result.code == code
    assert text in result.err
    assert len(result.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder.pt2"]


def test_a_file_that_is_no_checkpoint(ifdd: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_text("nothing")
    result = ifdd("export", tmp_path / "bad.safetensors", "--format", "pt2")
    assert result.code == 1
    assert f"{tmp_path / 'bad.safetensors'}: " in result.err
    assert len(result.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]
