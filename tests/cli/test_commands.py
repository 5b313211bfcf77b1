from __future__ import annotations

import builtins
import json
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ifdd import cli
from ifdd.checkpoint import load_checkpoint
from ifdd.cli import COMMANDS, main
from ifdd.cli.common import Parser, add_training_options, training_config
from ifdd.cli.evaluate import print_scores
from ifdd.training.config import OptimConfig, TrainingConfig
from ifdd.training.metrics import scores_from_confusion

from .conftest import CLASSES, TINY, make_checkpoint, write_video

Run = Callable[..., Any]
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(ifdd: Run, command: str) -> None:
    result = ifdd(command, "--help")
    assert result.code == 0
    assert f"usage: ifdd {command} " in result.out
    assert "(type:" not in result.out
    for phrase in ("default: null", "None", "True", "False", "class '", "Union", "`", "Namespace"):
        assert phrase not in result.out, phrase


def test_the_help_of_all_lists_the_commands(ifdd: Run) -> None:
    result = ifdd("--help")
    assert result.code == 0
    assert all(command in result.out for command in COMMANDS)
    assert "ifdd COMMAND --help lists the options of a command." in result.out
    assert "subcommand" not in result.out


def test_help_shows_no_forms_of_the_parsing_library(ifdd: Run) -> None:
    result = ifdd("fit", "--help")
    assert "  --classes CLASSES  " in result.out
    assert "  --print_config" in result.out
    for form in ("--classes+", "--path_map+", "[=flags]", "\b", "(default: )"):
        assert form not in result.out, form


@pytest.mark.parametrize("command", ["test", "check"])
def test_help_leaves_out_what_changes_nothing(ifdd: Run, command: str) -> None:
    shown = ifdd(command, "--help").out
    for option in (
        "--batch_size",
        "--validation",
        "--augment",
        "--on_error",
        "--posed",
        "--epochs",
        "--model.",
    ):
        assert f" {option}" not in shown, option
    for option in ("--eval_batch_size", "--device ", "--devices", "--num_nodes", "--strategy"):
        assert (f"  {option}" in shown) == (command == "test"), option
    assert "  --test_list" in shown


@pytest.mark.parametrize("columns", ["50", "80", "200"])
def test_command_lines_in_help_can_be_copied(
    ifdd: Run, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    result = ifdd("completion", "--help")
    assert "\n  ifdd completion zsh > ~/.zfunc/_ifdd\n" in result.out
    assert "\n\nPrint a completion script for a shell.\n\n" in result.out


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise RuntimeError('operator v::nms\\ndoes not exist')", "operator v::nms does not exist"),
        ("raise OSError('libcudart.so.13: cannot open')", "libcudart.so.13: cannot open"),
        ("{}['key']", "'key'"),
    ],
)
@pytest.mark.parametrize("below", [False, True])
def test_a_package_that_cannot_be_imported_is_named(
    ifdd: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, expected: str, below: bool
) -> None:
    """Its message alone ("operator torchvision::nms does not exist") often says nothing of it."""
    (tmp_path / "brokenvision").mkdir()
    (tmp_path / "brokenvision" / "__init__.py").write_text("from brokenvision import _core\n")
    (tmp_path / "brokenvision" / "_core.py").write_text(code)
    (tmp_path / "upper.py").write_text("import brokenvision\n")
    monkeypatch.syspath_prepend(tmp_path)

    def needs_it(*_: Any) -> None:
        __import__("upper" if below else "brokenvision")

    monkeypatch.setattr("ifdd.cli.completion.run", needs_it)
    result = ifdd("completion", "bash")
    assert result.code == 1
    beside = f"beside torch {metadata.version('torch')}"
    assert result.err == f"ifdd: error: the package brokenvision cannot be imported {beside}: {expected}\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "ifdd: error: "),
        (("dance",), "dance"),
        (("--debug", "doctor"), "ifdd: error: "),
        (("fit",), "missing --out"),
        (("fit", "--out", "x"), "--data is missing"),
        (("test", "--checkpoint", __file__), "--data is missing"),
        (("fit", "--out", "x", "--epoch", "2"), "unknown --epoch 2; did you mean --epochs?"),
        (("fit", "--out", "x", "--train-lists", "a"), "did you mean --train_list?"),
        (
            ("fit", "--out", "x", "--eval-batch-size", "a"),
            "--eval_batch_size: expected a whole number, got 'a'",
        ),
        (("fit", "--out", "x", "--gradient-clip=a"), "--gradient_clip: expected a number, got 'a'"),
        (("fit", "--out", "x", "--data", "cifar"), "--data: expected one of synthetic, "),
        (("fit", "--out", "x", "--model.image-size", "a"), "--model.image_size: expected a whole number"),
        (
            ("fit", "--out", "x", "--model.stages", "3"),
            "--model.stages: expected a list such as [1,2], got '3'",
        ),
        (("predict", "v.mp4"), "missing --checkpoint"),
        (("convert",), "missing IN, OUT"),
        (("completion", "dos"), "SHELL must be one of bash, zsh, fish, got 'dos'"),
        (("fit", "--out", "x", "--data", "list"), "error: --classes is missing: the class names"),
        (("fit", "--out", "x", "--posed", "true", "--data", "dfew", "--root", "."), "error: --posed is for"),
        (("fit", "--out", "x", "--epochs", "many"), "ifdd fit: error: "),
        (
            ("fit", "--out", "x", "--data", "synthetic", "--epochs", "0"),
            "error: --epochs must be at least 1, got 0",
        ),
        (("fit", "--out", "x", "--data", "dfew"), "error: --root is missing: the folder of dfew"),
        (
            ("fit", "--out", "x", "--data", "synthetic", "--model.backbone", "resnet"),
            "error: --model.backbone must be one of",
        ),
        (("fit", "--out", "x", "--resume"), "--resume: x: no such folder"),
        (("test", "--checkpoint", "/no/such.safetensors"), "/no/such.safetensors does not exist"),
        (("convert", "a.pth", "b.pth", "--classes", "dfew"), "ends in .safetensors"),
        (("convert", "a.pth", "b.safetensors", "--classes", "one"), "distinct names"),
    ],
)
def test_wrong_calls_exit_with_2_and_one_line(
    ifdd: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = ifdd(*arguments)
    assert result.code == 2
    assert text in result.err
    assert len(result.err.splitlines()) == 1
    assert not list(tmp_path.iterdir()), "a wrong call writes nothing"


@pytest.mark.parametrize("name", ["dfew", "ferv39k", "mafw", "synthetic"])
def test_the_committed_configurations_are_usable(name: str) -> None:
    parser = Parser(prog="test")
    add_training_options(parser)
    config = training_config(parser.parse_args(["--config", str(CONFIGS / f"{name}.yaml")]))
    assert config.data.name == name
    if name != "synthetic":
        # The published recipe, which is what the defaults are.
        assert config.optim == OptimConfig()
        assert config.optim.schedule(config.data.batch_size).base == pytest.approx(5e-5)
        expected = {"dfew": (16, 1), "ferv39k": (16, 1), "mafw": (32, 2)}[name]
        assert (config.model["clip_frames"], config.data.stride) == expected


def test_fit_and_test_on_a_list_of_videos(ifdd: Run, tmp_path: Path) -> None:
    lines = []
    for number in range(8):
        video = write_video(tmp_path / f"clip_{number}.mp4", frames=12 + number, size=32)
        lines.append(f"{video.name} {number % 2}")
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "test.txt").write_text("\n".join(lines[:3]) + "\n")
    settings = {
        "data": "list",
        "root": str(tmp_path),
        "train_list": str(tmp_path / "train.txt"),
        "test_list": str(tmp_path / "test.txt"),
        "classes": ["calm", "moved"],
        "sampling": "consecutive",
        "batch_size": 2,
        "workers": 0,
        "epochs": 1,
        "validation": 0.25,
        "device": "cpu",
        "model": {key: list(value) if isinstance(value, tuple) else value for key, value in TINY.items()},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    out = tmp_path / "run"
    result = ifdd("fit", "--config", tmp_path / "c.yaml", "--out", out, "--progress", "false")
    assert result.code == 0, result.err
    assert "held-out part of the training set: WAR" in result.out
    weights = out / "model.safetensors"
    assert load_checkpoint(weights).class_names == ("calm", "moved")

    again = ifdd("fit", "--config", tmp_path / "c.yaml", "--out", out)
    assert again.code == 2
    assert "already holds a training" in again.err
    result = ifdd("fit", "--config", out / "config.yaml", "--out", out, "--resume", "--progress", "false")
    assert result.code == 0, "what fit writes, fit can read"

    result = ifdd("test", "--config", out / "config.yaml", "--checkpoint", weights, "--progress", "false")
    assert result.code == 0, result.err
    scores = json.loads((out / "scores.json").read_text())
    assert scores["clips"] == 3, "a video of several windows counts once"
    assert (scores["classes"], scores["classes_in_uar"]) == (["calm", "moved"], 2)
    diagonal = [scores["confusion"][i][i] for i in range(2)]
    assert scores["war"] == pytest.approx(sum(diagonal) / 3)
    assert scores["uar"] == pytest.approx((diagonal[0] / 2 + diagonal[1] / 1) / 2)
    assert f"{100 * scores['war']:.2f} %" in result.out
    assert (out / "confusion.png").stat().st_size > 10_000


def test_the_headline_of_a_test_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_scores(scores_from_confusion(torch.tensor([[1, 1], [2, 2]]), ("a", "b")))
    assert capsys.readouterr().out.splitlines()[0] == "WAR 50.00 %   UAR 50.00 %   of 6 clips"


def test_uar_without_a_clip_of_a_class_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    scores = scores_from_confusion(torch.tensor([[1, 1, 0], [0, 2, 0], [0, 0, 0]]), ("x", "y", "z"))
    assert scores.to_dict()["classes_in_uar"] == 2
    print_scores(scores)
    assert "UAR is the mean of 2 of 3 classes: no clip of z\n" in capsys.readouterr().out


def test_a_checkpoint_of_other_classes_is_refused(ifdd: Run, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "other.safetensors", tuple(reversed(CLASSES)))
    data = ("--data", "synthetic", "--test_size", "7", "--workers", "0")
    result = ifdd("test", "--checkpoint", path, *data, "--progress", "false")
    assert result.code == 1
    assert "are not those of data set synthetic" in result.err
    assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "scores.json").exists()


def test_a_missing_data_set_is_one_line(ifdd: Run, tmp_path: Path) -> None:
    result = ifdd("fit", "--data", "dfew", "--root", tmp_path / "nothing", "--out", tmp_path / "run")
    assert result.code == 2
    assert f"--root: {tmp_path / 'nothing'}: no such folder" in result.err
    assert len(result.err.splitlines()) == 1


def test_unforeseen_errors_name_their_kind_and_debug_shows_where(
    ifdd: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ifdd.cli import predict

    def fail(options: object) -> int:
        raise KeyError("lost")

    monkeypatch.setattr(predict, "run", fail)
    result = ifdd("predict", "v.mp4", "--checkpoint", checkpoint)
    assert result.code == 1
    assert "KeyError: 'lost' (run again with --debug" in result.err
    assert "Traceback" not in result.err
    assert "Traceback" in ifdd("predict", "v.mp4", "--checkpoint", checkpoint, "--debug").err


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (ModuleNotFoundError("no", name="torchmetrics"), 1)]
)
def test_interruptions_and_missing_packages(
    ifdd: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    from ifdd.cli import predict

    def fail(options: object) -> int:
        raise error

    monkeypatch.setattr(predict, "run", fail)
    result = ifdd("predict", "v.mp4", "--checkpoint", checkpoint)
    assert result.code == code
    assert "interrupted" in result.err or "torchmetrics is not installed: pip install" in result.err


def test_a_terminated_training_says_so(ifdd: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytorch_lightning.utilities.exceptions import SIGTERMException

    def terminated(*_: Any) -> None:
        raise SIGTERMException

    monkeypatch.setattr("ifdd.cli.completion.run", terminated)
    assert ifdd("completion", "bash") == (143, "", "ifdd: terminated\n")


def test_without_the_command_line_packages_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "jsonargparse":
            raise ModuleNotFoundError("No module named 'jsonargparse'", name="jsonargparse")
        return real(name, *args, **options)

    monkeypatch.delitem(sys.modules, "ifdd.cli.common", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    code = main(["doctor"])
    monkeypatch.setattr(builtins, "__import__", real)
    assert code == 1
    assert "the package jsonargparse is not installed: pip install" in capsys.readouterr().err


def test_a_closed_pipe_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys; from ifdd.cli import main; sys.exit(main(['doctor', '--self_test', 'false']))"
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    assert child.wait(timeout=60) in (0, 1)
    assert b"Traceback" not in child.stderr.read()


def test_the_module_can_be_run() -> None:
    child = subprocess.run([sys.executable, "-m", "ifdd", "--version"], capture_output=True, text=True)
    assert child.returncode == 0
    assert child.stdout.startswith("ifdd ")
    assert cli.main is main


def test_the_flat_options_are_the_configuration(tmp_path: Path) -> None:
    config = TrainingConfig(model={"backbone": "mvit_nano", "image_size": 64}, seed=4)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.to_options()))
    parser = Parser(prog="test")
    add_training_options(parser)
    read = training_config(parser.parse_args(["--config", str(tmp_path / "c.yaml")]))
    assert (read.data, read.optim, read.seed) == (config.data, config.optim, 4)
    assert read.model["backbone"] == "mvit_nano"
    assert read.differences(config) == {}


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = (
        "import sys, ifdd, ifdd.cli; heavy = {'pytorch_lightning', 'matplotlib', 'av', 'rich'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert torch is not None
