"""Faults of a file or folder that an option names are reported first; nothing is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ifdd.cli import paths

Run = Callable[..., Any]


@pytest.fixture
def place(tmp_path: Path, video: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Named without their folder: a video, weights, a list, a run, a file and a folder in the way."""
    (tmp_path / "v.mp4").symlink_to(video)
    (tmp_path / "w.safetensors").symlink_to(checkpoint)
    (tmp_path / "l.csv").write_text("v.mp4,x\nv.mp4,y\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.ckpt").symlink_to(checkpoint)
    (tmp_path / "a_file").write_text("mine")
    for suffix in ("", ".safetensors", ".png", ".onnx"):
        (tmp_path / f"a_folder{suffix}").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


PREDICT = ("predict", "v.mp4", "--checkpoint", "w.safetensors", "--overwrite")
LIST = ("--data", "list", "--classes", "x,y")
CHECK = ("check", *LIST, "--train_list", "l.csv")
FIT = ("fit", *LIST, "--train_list", "l.csv")
TEST = ("test", "--checkpoint", "w.safetensors", *LIST, "--test_list", "l.csv")
EXPLAIN = ("explain", "v.mp4", "--checkpoint", "w.safetensors")
EXPORT = ("export", "w.safetensors", "--format", "onnx")
FOLDS = ("folds", "--data", "dfew", "--root", ".")
WRITES = [
    *((PREDICT, option) for option in ("--jsonl", "--csv", "--json")),
    *((CHECK, option) for option in ("--csv", "--json")),
    *((call, "--out") for call in (EXPLAIN, EXPORT, FIT, TEST, FOLDS)),
    (("convert", "w.safetensors"), "OUT"),
]
FOLDERS = (FIT, TEST, FOLDS)


def wrong(call: tuple[str, ...]) -> str:
    """A name that is taken by something of the other kind."""
    suffix = {EXPLAIN: ".png", EXPORT: ".onnx"}.get(call, ".safetensors" if call[0] == "convert" else "")
    return "a_file" if call in FOLDERS else f"a_folder{suffix}"


@pytest.mark.parametrize(
    ("call", "option"), WRITES, ids=lambda value: value if isinstance(value, str) else value[0]
)
def test_an_output_that_cannot_be_written_is_refused_first(
    ifdd: Run, place: Path, call: tuple[str, ...], option: str
) -> None:
    # Another output of the same call, which would be replaced.
    other = {PREDICT: "--csv" if option == "--jsonl" else "--jsonl", CHECK: "--csv"}.get(call)
    more = () if other in (None, option) else (other, "a_file")
    before = contents(place)
    result = ifdd(*call, *((wrong(call),) if option == "OUT" else (option, wrong(call))), *more)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result
    assert result.err.startswith(f"ifdd: error: {option}: {wrong(call)} is "), result.err
    assert contents(place) == before


@pytest.mark.parametrize("call", [(*PREDICT, "--csv"), (*FIT, "--out")], ids=["file", "folder"])
def test_a_folder_that_is_locked_is_refused_first(
    ifdd: Run, place: Path, monkeypatch: pytest.MonkeyPatch, call: tuple[str, ...]
) -> None:
    # Who runs this as root may write everywhere.
    monkeypatch.setattr(paths.os, "access", lambda *_: False)
    expected = f"ifdd: error: {call[-1]}: folder {place} cannot be written\n"
    assert ifdd(*call, "new") == (2, "", expected)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ((*PREDICT[:3], "no.safetensors"), "--checkpoint: no.safetensors does not exist"),
        ((*EXPLAIN[:3], "no.ckpt", "--out", "e.png"), "--checkpoint: no.ckpt does not exist"),
        (("export", "no.ckpt", "--format", "onnx"), "CHECKPOINT: no.ckpt does not exist"),
        (("convert", "no.pth", "o.safetensors", "--classes", "x,y"), "IN: no.pth does not exist"),
        ((*FIT, "--out", "o", "--init", "no.ckpt"), "--init: no.ckpt does not exist"),
        ((*FIT[:5], "--out", "o", "--train_list", "no.csv"), "--train_list: no.csv does not exist"),
        ((*TEST[:-1], "no.csv"), "--test_list: no.csv does not exist"),
        ((*CHECK, "--root", "no"), "--root: no: no such folder"),
        (
            ("test", "--checkpoint", "run", *LIST),
            "--checkpoint: run is a folder; name a file in it, such as run/last.ckpt",
        ),
        (
            ("test", "--checkpoint", "run/model.safetensors", *LIST),
            "--checkpoint: run/model.safetensors does not exist (a training writes it at its end); "
            "run/last.ckpt is there",
        ),
    ],
)
def test_a_file_that_is_not_there_is_a_wrong_call(
    ifdd: Run, place: Path, call: tuple[str, ...], says: str
) -> None:
    before = contents(place)
    assert ifdd(*call) == (2, "", f"ifdd: error: {says}\n")
    assert contents(place) == before
