"""A run that was interrupted anywhere ends, when it goes on, with the files of one that was not."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ifdd.cli.signals import stoppable
from ifdd.journal import Journal, ResultsError, claim, run_header
from ifdd.outcomes import Begun, VideoFailure, VideoPrediction, path_of_dict
from ifdd.prediction import Predictor

from .conftest import make_checkpoint, write_video

Run = Callable[..., Any]

LENGTHS = (20, 3, 33, 9, 40)
ODD = (b"odd [1]\n\xff $.mp4", 12)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos of 1 to 5 windows, and a file that is none."""
    folder = tmp_path_factory.mktemp("clips")
    for number, length in enumerate(LENGTHS):
        write_video(folder / f"{number}.mp4", frames=length)
    shutil.copy(folder / "0.mp4", folder / os.fsdecode(ODD[0]))
    (folder / "2b.mp4").write_text("no video")
    return folder


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("long") / "long.mp4", frames=9000, size=32)


@pytest.fixture(scope="module")
def arguments(clips: Path, checkpoint: Path) -> list[str]:
    return ["predict", str(clips), "--checkpoint", str(checkpoint), "--batch", "4", "--workers", "1"]


def outputs(folder: Path) -> list[str]:
    return [f"--{kind}={folder / f'o.{kind}'}" for kind in ("jsonl", "csv", "json")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, arguments: list[str]) -> Path:
    """The files of a run that nothing interrupted."""
    from ifdd.cli import main

    folder = tmp_path_factory.mktemp("whole")
    assert main([*arguments, *outputs(folder)]) == 1
    return folder


def same(folder: Path, whole: Path) -> None:
    for kind in ("jsonl", "csv", "json"):
        assert (folder / f"o.{kind}").read_bytes() == (whole / f"o.{kind}").read_bytes(), kind


def test_the_three_files_say_the_same(whole: Path, clips: Path) -> None:
    lines = [json.loads(line) for line in (whole / "o.jsonl").read_text().splitlines()]
    videos = json.loads((whole / "o.json").read_text())
    with (whole / "o.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [line["kind"] for line in lines].count("run") == 1
    ended = [line for line in lines if line["kind"] in ("video", "failed")]
    assert [path_of_dict(line) for line in ended] == sorted(map(str, clips.iterdir()), key=Path)
    assert [line["path"] for line in ended if line["kind"] == "failed"] == [str(clips / "2b.mp4")]
    assert [path_of_dict(video) for video in videos] == [
        path_of_dict(line) for line in ended if line["kind"] == "video"
    ]
    odd = next(video for video in videos if "path_bytes" in video)
    assert bytes.fromhex(odd["path_bytes"]) == os.fsencode(clips) + b"/" + ODD[0]
    windows = [line for line in lines if line["kind"] == "window"]
    assert len(windows) == sum(len(video["windows"]) for video in videos)
    assert [float(row["Sad"]) for row in rows if row["window"] != "mean"] == [
        line["probabilities"]["Sad"] for line in windows
    ]
    means = [row for row in rows if row["window"] == "mean"]
    assert [int(row["frames_read"]) for row in means] == [20, 3, 33, 9, 40, 20]
    assert [video["frames_read"] for video in videos] == [20, 3, 33, 9, 40, 20]
    assert [video["stretched"] for video in videos] == [False, True, False, False, False, False]
    assert [row["path"] for row in means] == [video["path"] for video in videos]


def test_a_run_cut_anywhere_goes_on_to_the_same_files(
    ifdd: Run, arguments: list[str], whole: Path, tmp_path: Path
) -> None:
    complete = (whole / "o.jsonl").read_bytes()
    ends = [place for place, byte in enumerate(complete) if byte == ord("\n")]
    # After whole lines (in the middle of a video, of a batch, between videos) and in the middle of one.
    for cut in (0, 100, ends[0] + 1, ends[2] + 40, ends[5] + 1, ends[8] + 1, ends[-2] - 5, len(complete)):
        (tmp_path / "o.jsonl").write_bytes(complete[:cut])
        (tmp_path / "o.csv").write_bytes((whole / "o.csv").read_bytes()[: cut // 4])
        (tmp_path / "o.json").unlink(missing_ok=True)
        result = ifdd(*arguments, *outputs(tmp_path), "--resume")
        assert result.code == 1, result.err
        assert "6 predicted, 1 failed" in result.out
        same(tmp_path, whole)


def test_what_is_done_is_not_read_again(
    ifdd: Run, arguments: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ifdd import prediction

    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(prediction.Predictor, "logits", None)
    monkeypatch.setattr(prediction, "read_windows", None)
    assert ifdd(*arguments, *outputs(tmp_path), "--resume").code == 1
    same(tmp_path, whole)


@pytest.mark.parametrize("target", ["csv", "json"])
def test_without_json_lines_the_journal_lies_beside_the_file(
    ifdd: Run, arguments: list[str], whole: Path, tmp_path: Path, target: str
) -> None:
    file = tmp_path / f"o.{target}"
    call = [*arguments, f"--{target}={file}"]
    assert ifdd(*call).code == 1
    assert file.read_bytes() == (whole / file.name).read_bytes()
    journal = tmp_path / f"o.{target}.journal"
    assert journal.read_bytes() == (whole / "o.jsonl").read_bytes()
    with journal.open("r+b") as stream:
        stream.truncate(3000)
    file.unlink()
    assert ifdd(*call, "--resume").code == 1
    assert file.read_bytes() == (whole / file.name).read_bytes()
    journal.unlink()
    result = ifdd(*call, "--resume")
    assert result.code == 2
    assert f"is there, but not {journal} that --resume goes on from; --overwrite" in result.err


def test_failed_videos_are_tried_again_when_asked_to(
    ifdd: Run, clips: Path, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(clips / "0.mp4", folder / "b.mp4")
    (folder / "a.mp4").write_text("no video")
    call = ["predict", folder, "--checkpoint", checkpoint, f"--jsonl={tmp_path / 'o.jsonl'}"]
    assert ifdd(*call).code == 1
    shutil.copy(clips / "1.mp4", folder / "a.mp4")
    assert ifdd(*call, "--resume").code == 1
    result = ifdd(*call, "--resume", "--retry_failed")
    assert (result.code, result.err) == (0, "")
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    ended = [(Path(line["path"]).name, line["kind"]) for line in lines[1:] if line["kind"] != "window"]
    assert ended == [("b.mp4", "video"), ("a.mp4", "video")]


def test_more_videos_are_added(ifdd: Run, clips: Path, checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "o.jsonl"
    common = ["--checkpoint", checkpoint, f"--jsonl={target}"]
    assert ifdd("predict", clips / "0.mp4", clips / "2.mp4", *common).code == 0
    # In the middle of 2.mp4; it does not come next now, so its windows go.
    target.write_bytes(b"".join(target.read_bytes().splitlines(keepends=True)[:7]))
    result = ifdd("predict", clips / "1.mp4", clips / "2.mp4", clips / "0.mp4", *common, "--resume")
    assert (result.code, "3 predicted, 0 failed" in result.out) == (0, True)
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [Path(line["path"]).name for line in lines[1:]] == ["0.mp4"] * 4 + ["1.mp4"] * 2 + ["2.mp4"] * 6


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (
            ["--windows", "centre", "--tail", "drop"],
            "--windows was all, now centre; --tail was overlap, now drop",
        ),
        (["--crop", "0,0,8,8"], "--crop was not set, now 0,0,8,8"),
        (["--checkpoint", "other"], "was written with another checkpoint, tiny.safetensors"),
    ],
)
def test_another_run_is_not_gone_on_with(
    ifdd: Run, arguments: list[str], whole: Path, tmp_path: Path, option: list[str], text: str
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    if option[1] == "other":
        option = ["--checkpoint", str(make_checkpoint(tmp_path / "w.safetensors", lifting="none"))]
    # A killed run has left half a line, which stays as well.
    with (tmp_path / "o.jsonl").open("ab") as file:
        file.write(b"half")
    before = (tmp_path / "o.jsonl").read_bytes()
    result = ifdd(*arguments, *option, *outputs(tmp_path), "--resume")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert text in result.err
    assert (tmp_path / "o.jsonl").read_bytes() == before


def test_another_batch_goes_on_and_is_said(
    ifdd: Run, arguments: list[str], whole: Path, tmp_path: Path
) -> None:
    """Rounding depends on the batch, results do not."""
    lines = (whole / "o.jsonl").read_bytes().splitlines(keepends=True)
    target = tmp_path / "o.jsonl"
    target.write_bytes(b"".join(lines[:9]))
    result = ifdd(*arguments, "--batch", "3", f"--jsonl={target}", "--resume")
    assert result.code == 1, "a video fails"
    says = f"{target}: --batch was 4, now 3: the rest may differ from one unbroken run in the last digits"
    assert result.err.splitlines()[0] == f"ifdd: warning: {says}"
    for new, old in zip(target.read_text().splitlines()[1:], lines[1:], strict=True):
        one, other = json.loads(new), json.loads(old)
        assert {**one, "logits": 0, "probabilities": 0} == {**other, "logits": 0, "probabilities": 0}
        assert one.get("probabilities", {}) == pytest.approx(other.get("probabilities", {}), abs=1e-5)


def test_files_that_are_there_are_kept_unless_told(
    ifdd: Run, arguments: list[str], whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "o.csv").write_text("mine")
    result = ifdd(*arguments, f"--csv={tmp_path / 'o.csv'}")
    assert result.code == 2
    assert result.err.startswith(f"ifdd: error: --csv: {tmp_path / 'o.csv'} is there already; --overwrite")
    assert (tmp_path / "o.csv").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [tmp_path / "o.csv"]
    (tmp_path / "o.jsonl").write_text("other\n")
    result = ifdd(*arguments, f"--jsonl={tmp_path / 'o.jsonl'}", "--resume")
    assert (result.code, "o.jsonl: line 1 is not one of a file of" in result.err) == (2, True)
    assert (tmp_path / "o.jsonl").read_text() == "other\n"
    assert ifdd(*arguments, *outputs(tmp_path), "--overwrite").code == 1
    same(tmp_path, whole)


def test_a_damaged_journal_is_refused_by_line(checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    lines = (whole / "o.jsonl").read_bytes().splitlines(keepends=True)
    header = json.loads(lines[0])
    path = tmp_path / "o.jsonl"
    for broken in ([*lines[:3], b"{}\n", *lines[3:]], [*lines[:2], *lines[3:]], [*lines[:2], b"\0\0\n"]):
        path.write_bytes(b"".join(broken))
        with pytest.raises(ResultsError, match=r"o\.jsonl: line \d"):
            Journal(path, header)
        assert path.read_bytes() == b"".join(broken)
    assert run_header(checkpoint, header["classes"], header["settings"]) == header


def test_two_runs_do_not_write_to_one_file(whole: Path, tmp_path: Path) -> None:
    header = json.loads((whole / "o.jsonl").read_text().splitlines()[0])
    with Journal(tmp_path / "o", header), pytest.raises(ResultsError, match="another run is writing"):
        Journal(tmp_path / "o", header, overwrite=True)
    Journal(tmp_path / "o", header).__exit__(None, None, None)


def test_files_of_another_run_are_kept(
    ifdd: Run, arguments: list[str], clips: Path, checkpoint: Path, whole: Path, tmp_path: Path
) -> None:
    """Two runs, each with its own file of JSON Lines, and one name for CSV and JSON."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    other = ["predict", str(clips / "0.mp4"), "--checkpoint", str(checkpoint), f"--jsonl={tmp_path / 'b'}"]
    assert ifdd(*other).code == 0
    for kind in ("csv", "json"):
        result = ifdd(*other, f"--{kind}={tmp_path / f'o.{kind}'}", "--resume")
        assert result.code == 2
        assert f"o.{kind} holds results that {tmp_path / 'b'} does not, those of another run" in result.err
        assert result.err.count("\n") == 1
    with (tmp_path / "o.csv").open("ab") as file:
        claim(file, "o.csv")
        result = ifdd(*other, f"--csv={tmp_path / 'o.csv'}", "--overwrite")
        assert (result.code, "o.csv: another run is writing to this file" in result.err) == (2, True)
    same(tmp_path, whole)


def test_a_json_file_that_came_meanwhile_is_kept(
    ifdd: Run, clips: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Predictor.stream

    def other_run(*arguments: Any, **options: Any) -> Any:
        (tmp_path / "o.json").write_text("theirs")
        return stream(*arguments, **options)

    monkeypatch.setattr(Predictor, "stream", other_run)
    call = ["predict", str(clips / "0.mp4"), "--checkpoint", str(checkpoint), f"--jsonl={tmp_path / 'b'}"]
    result = ifdd(*call, f"--json={tmp_path / 'o.json'}")
    assert (result.code, "o.json was written by another program meanwhile, and is kept" in result.err) == (
        1,
        True,
    )
    assert (tmp_path / "o.json").read_text() == "theirs"
    assert ifdd(*call, f"--json={tmp_path / 'p.json'}", "--resume").code == 0
    assert len(json.loads((tmp_path / "p.json").read_text())) == 1


@pytest.mark.parametrize(
    "kind", [signal.SIGINT, signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.nightly)]
)
def test_a_run_ended_by_a_signal_has_what_was_done_and_goes_on(
    checkpoint: Path, clips: Path, long_clip: Path, tmp_path: Path, kind: signal.Signals
) -> None:
    """The last input would take a minute."""
    target = tmp_path / "o.jsonl"
    call = ["predict", str(clips / "2.mp4"), str(clips / "3.mp4"), str(long_clip)]
    call += [
        "--checkpoint",
        str(checkpoint),
        f"--jsonl={target}",
        f"--json={tmp_path / 'o.json'}",
        "--batch=1",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "ifdd", *call], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not (target.exists() and long_clip.name in target.read_text()):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(kind)
        sent = time.monotonic()
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - sent < 60  # one or two seconds on a machine with nothing else to do
    finally:
        process.kill()
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[kind]
    assert "Traceback" not in err
    if kind != signal.SIGKILL:
        assert f"2 videos are done, in {target}; the same command with --resume does the rest" in err
        assert len(json.loads((tmp_path / "o.json").read_text())) == 2
    assert [json.loads(line)["kind"] for line in target.read_text().splitlines()].count("video") == 2


def test_a_signal_is_answered_while_the_main_thread_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[float, str]] = []

    class Listening(io.StringIO):
        def write(self, text: str) -> int:
            said.append((time.monotonic(), text))
            return len(text)

    monkeypatch.setattr("sys.stderr", Listening())

    def compute() -> None:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000)  # half a second outside of Python

    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with stoppable() as check:
        with contextlib.suppress(SystemExit):
            compute()
        computed = time.monotonic()
        with pytest.raises(SystemExit):
            check()
    assert said[0][1].startswith("ifdd: SIGTERM: stopping")
    assert said[0][0] < computed


def test_a_signal_to_a_forked_process_is_none_to_the_command() -> None:
    with stoppable():
        child = os.fork()
        if child == 0:
            os._exit(signal.set_wakeup_fd(-1) != -1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_that_a_destructor_swallowed_is_not_lost(
    number: signal.Signals, error: type[BaseException]
) -> None:
    class Swallows:
        def __del__(self) -> None:
            signal.raise_signal(number)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stoppable() as check:
        check()
        gone = Swallows()
        del gone
        with pytest.raises(error):
            check()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_video_that_became_shorter_is_not_gone_on_with(video: Path, checkpoint: Path) -> None:
    """Of 20 frames come three windows of 8: an earlier run that had read four has read another video."""
    predictor = Predictor(checkpoint)
    known = predictor.predict(video).windows
    (whole,) = predictor.stream([Begun(video, known)], predictor.reading())
    assert isinstance(whole, VideoPrediction)
    (failed,) = predictor.stream([Begun(video, (*known, known[0]))], predictor.reading())
    assert isinstance(failed, VideoFailure)
    assert str(failed.error) == f"{video}: has 3 windows now and had at least 4: the file has changed"
