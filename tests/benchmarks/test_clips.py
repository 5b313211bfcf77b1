"""The benchmark of the data path: both pipelines agree before they are timed, or nothing is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.clips import __main__ as command
from benchmarks.clips import published


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    monkeypatch.setattr(command, "FRAMES", 2)
    monkeypatch.setattr(command, "SIZE", 32)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


def test_rows_of_both_pipelines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    assert command.main(["--sides", "40", "--budget-s", "0", "--out", str(file)]) == 0
    assert capsys.readouterr().out.count("both pipelines agree") == 2
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {row["label"] for row in rows} == {"JPEG folder, 40 px", "H.264 file, 40 px"}
    assert {row["pass"] for row in rows if row["contender"] == "published"} == {
        *("all", "decode", "resize", "to floats", "augment")
    }
    assert all(row["seconds"] > 0 for row in rows)


def test_a_wrong_pipeline_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turn = published._turn_hue
    monkeypatch.setattr(published, "_turn_hue", lambda frames, shift: turn(frames, -shift))
    assert command.main(["--sides", "32", "--budget-s", "0"]) == 1
    printed = capsys.readouterr().out
    assert "augmented clips differ by" in printed
    assert " ms " not in printed
    assert command.main(["--sides", "31"]) == 2
