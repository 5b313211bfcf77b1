"""The options that name a data set, as they are typed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ifdd
from ifdd.cli._commands import UsageError
from ifdd.cli.common import Parser, add_test_options, add_training_options, data_config

Run = Callable[..., Any]
SOURCES = Path(ifdd.__file__).parent


def parsed(*arguments: str) -> Any:
    parser = Parser(prog="test")
    add_test_options(parser, ())
    return data_config(parser.parse_args(list(arguments)))


@pytest.mark.parametrize(
    "words",
    [
        ["--classes", "A, B,C"],
        ["--classes", "[A,B,C]"],
        ["--classes+", "A", "--classes+", "B", "--classes+", "C"],
    ],
)
def test_forms_of_the_class_list(words: list[str]) -> None:
    assert parsed("--data", "list", *words).classes == ["A", "B", "C"]


def test_options_of_lists() -> None:
    words = "--data list --classes mafw --format csv --first_label 1 --strip_prefix /x/ --path_map a=b"
    data = parsed(*words.split(), "--label_column", "2", "--short", "repeat_each")
    assert (data.format, data.first_label, data.strip_prefix) == ("csv", 1, "/x/")
    assert (data.path_map, data.label_column, data.short) == (["a=b"], "2", "repeat_each")
    assert data.classes[0] == "anger"
    assert parsed("--data", "dfew", "--root", "r", "--first_label", "0").first_label == 0
    assert parsed("--data", "list", "--classes", "a,b", "--path_map", "[a=b,c=d]").path_map == ["a=b", "c=d"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--classes", "A,A"], "--classes must be distinct names separated by commas"),
        (["--classes", "A,B", "--first_label", "2"], "first_label"),
        (["--classes", "A,B", "--path_map", "x"], "--path_map must be OLD=NEW, got 'x'"),
        (["--classes", "A,B", "--short", "long"], "short"),
    ],
)
def test_wrong_options_are_one_line(ifdd: Run, words: list[str], text: str) -> None:
    result = ifdd("check", "--data", "list", "--train_list", "x", *words)
    assert result.code == 2
    assert text in result.err
    assert len(result.err.splitlines()) == 1


def test_no_error_about_data_advises_an_option_that_does_not_exist() -> None:
    parsers = []
    every_command = {"--debug"}
    for add in (add_training_options, lambda parser: add_test_options(parser, ())):
        parser = Parser(prog="test")
        add(parser)
        parsers.append(
            every_command | {option for action in parser._actions for option in action.option_strings}
        )
    advised = set()
    files = [
        *SOURCES.glob("data/**/*.py"),
        *(SOURCES / "training" / name for name in ("data.py", "loading.py")),
    ]
    for file in files:
        # Words in messages; `docker run --shm-size` is another program's.
        text = file.read_text().replace("docker run --shm-size", "")
        advised |= set(re.findall(r"--[a-z][a-z_]+", text))
    assert {"--first_label", "--strip_prefix", "--path_map", "--root"} <= advised
    for options in parsers:
        assert advised <= options


@pytest.mark.parametrize("command", ["fit", "test", "check"])
@pytest.mark.parametrize(
    ("data", "option", "sets"),
    [
        ("folder --root .", "--test_list missing.txt", "list"),
        ("folder --root .", "--fold 2", "dfew or mafw"),
        ("folder --root .", "--strip-prefix x", "list"),
        ("ferv39k --root .", "--first_label=1", "list or dfew"),
        ("synthetic", "--root .", "dfew, ferv39k, mafw, list or folder"),
        ("folder --root .", "--test_size 9", "synthetic"),
    ],
)
def test_options_of_another_data_set_are_refused(
    ifdd: Run, checkpoint: Path, tmp_path: Path, command: str, data: str, option: str, sets: str
) -> None:
    place = {"fit": ["--out", tmp_path / "run"], "test": ["--checkpoint", checkpoint], "check": []}[command]
    result = ifdd(command, *place, "--data", *data.split(), *option.split())
    name = re.split("[ =]", option)[0].replace("-", "_").replace("__", "--")
    assert (result.code, result.out) == (2, "")
    assert result.err == (f"ifdd: error: {name} is for data set {sets}, not for {data.split()[0]}: omit it\n")


def test_a_file_of_options_may_be_about_another_data_set(tmp_path: Path) -> None:
    file = tmp_path / "list.yaml"
    file.write_text("data: list\nclasses: [a, b]\ntest_list: t.txt\nformat: csv\n")
    beside = parsed("--config", str(file), "--data", "folder", "--root", "r")
    assert (beside.test_list, beside.format, beside.classes) == (None, "auto", ["a", "b"])
    file.write_text("data: folder\nroot: r\ntest_list: t.txt\n")
    with pytest.raises(UsageError, match="--test_list is for data set list, not for folder"):
        parsed("--config", str(file))


@pytest.mark.parametrize("option", ["--on_error skip", "--validation 0", "--epochs 3", "--model.dropout 0.1"])
def test_a_test_refuses_options_of_training(ifdd: Run, checkpoint: Path, option: str) -> None:
    result = ifdd("test", "--checkpoint", checkpoint, "--data", "synthetic", *option.split())
    assert (result.code, result.out) == (2, "")
    name = option.split()[0]
    assert result.err == f"ifdd: error: {name} is for training, a test does not use it: omit it\n"
