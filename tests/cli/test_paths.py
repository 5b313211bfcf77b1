"""Faults of a file or folder that an option names are reported first; nothing is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

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
        ((*CHECK, "--root", "l.csv"), "--root: l.csv: is a file, expected a folder"),
        (
            ("prepare", "--list", "l.csv", "--root", "v.mp4", "--out", "o"),
            "--root: v.mp4: is a file, expected a folder",
        ),
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


RESUME = ("fit", "--resume", "--out")


def test_nothing_to_resume_names_the_trainings_that_are_near(ifdd: Run, place: Path) -> None:
    def says(out: str) -> str:
        result = ifdd(*RESUME, out)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        return result.err.removeprefix("ifdd: error: --resume: ").strip()

    assert says("rum") == "rum: no such folder; . holds run"
    assert says("elsewhere/rum") == "elsewhere/rum: no such folder"
    assert says(".") == ". is not a training but holds run; name one with --out"
    assert says("a_folder").startswith("a_folder holds no training to go on with (no last.ckpt)")


def test_a_saved_path_that_is_not_there_is_said_to_be_saved(ifdd: Run, place: Path) -> None:
    settings = {"data": "list", "classes": ["x", "y"], "train_list": "old/l.csv", "root": "old"}
    (place / "run" / "config.yaml").write_text(yaml.safe_dump(settings))

    def says(*more: str) -> str:
        result = ifdd(*RESUME, "run", *more)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        return result.err.removeprefix("ifdd: error: ").strip()

    from_there = (
        "(from run/config.yaml, seen from the folder that the training was started in: resume from there"
    )
    assert says() == f"--root: old: no such folder {from_there}, or give --root and --train_list anew)"
    assert says("--root", ".") == (
        f"--train_list: old/l.csv does not exist {from_there}, or give --train_list anew)"
    )
    assert says("--root", "typo", "--train_list", "l.csv") == "--root: typo: no such folder"
    (place / "run" / "config.yaml").write_text(yaml.safe_dump({**settings, "root": "/no/such"}))
    assert says("--train_list", "l.csv") == (
        "--root: /no/such: no such folder (from run/config.yaml: give --root anew)"
    )
