from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import Namespace

from ifdd.checkpoint import load_checkpoint, save_checkpoint
from ifdd.cli.common import shows_progress
from ifdd.data.resize import frames_to_clip
from ifdd.data.video import read_video
from ifdd.outcomes import VideoPrediction, path_of_dict
from ifdd.prediction import PredictionError, Predictor, VideoFailure

from .conftest import make_checkpoint, write_video

Run = Callable[..., Any]


def test_the_numbers_are_those_of_the_network(video: Path, checkpoint: Path) -> None:
    predictor = Predictor(checkpoint, batch=1)
    prediction = predictor.predict(video, tail="drop")
    frames = read_video(video, size=32).frames
    model = load_checkpoint(checkpoint).model
    with torch.no_grad():
        clips = torch.stack([frames_to_clip(frames[:8]), frames_to_clip(frames[8:16])])
        logits = model(clips).logits.double()
    assert len(prediction.windows) == 2
    for window, row in zip(prediction.windows, logits, strict=True):
        assert window.probabilities == pytest.approx(row.softmax(0).tolist(), abs=1e-5)
    assert prediction.probabilities == pytest.approx(logits.mean(0).softmax(0).tolist(), abs=1e-5)
    assert prediction.label == prediction.class_names[int(logits.mean(0).argmax())]
    spans = [(w.start_seconds, w.stop_seconds) for w in prediction.windows]
    assert spans == [pytest.approx((0.0, 0.8)), pytest.approx((0.8, 1.6))]
    assert (prediction.footage.frames_used, prediction.footage.frames_read) == (16, 20)
    with torch.no_grad():
        last = model(frames_to_clip(frames[12:])[None]).logits.double()
    whole = predictor.predict(video)
    assert whole.windows[:2] == prediction.windows
    assert whole.windows[2].probabilities == pytest.approx(last[0].softmax(0).tolist(), abs=1e-5)
    assert (whole.windows[2].start_seconds, whole.windows[2].stop_seconds) == pytest.approx((1.2, 2.0))
    mean = torch.cat([logits, last]).mean(0).softmax(0)
    assert whole.probabilities == pytest.approx(mean.tolist(), abs=1e-5)
    assert (whole.footage.frames_used, whole.footage.frames_announced) == (20, 20)
    centre = predictor.predict(video, windows="centre").windows
    assert [(w.start_seconds, w.stop_seconds) for w in centre] == [pytest.approx((0.6, 1.4))]


def test_json_and_csv_on_stdout_parse_and_sum_to_one(ifdd: Run, video: Path, checkpoint: Path) -> None:
    result = ifdd("predict", video, "--checkpoint", checkpoint, "--json", "-")
    assert (result.code, result.err) == (0, "")
    (entry,) = json.loads(result.out)
    assert entry["path"] == str(video)
    assert math.isclose(sum(entry["probabilities"].values()), 1, abs_tol=1e-9)
    assert entry["label"] == max(entry["probabilities"], key=entry["probabilities"].get)

    result = ifdd("predict", video, "--checkpoint", checkpoint, "--csv", "-")
    rows = list(csv.DictReader(io.StringIO(result.out)))
    assert [row["window"] for row in rows] == ["0", "1", "2", "mean"]
    for row in rows:
        assert math.isclose(sum(float(row[name]) for name in entry["probabilities"]), 1, abs_tol=1e-9)
    assert float(rows[-1]["Happy"]) == entry["probabilities"]["Happy"]
    assert (float(rows[-1]["start_seconds"]), float(rows[-1]["stop_seconds"])) == (0.0, pytest.approx(2.0))


def test_the_table_names_windows_classes_and_the_result(
    ifdd: Run, video: Path, checkpoint: Path, tmp_path: Path
) -> None:
    target = tmp_path / "p.json"
    result = ifdd("predict", video, "--checkpoint", checkpoint, "--crop", "8,8,32,32", "--json", target)
    assert result.code == 0
    label = json.loads(target.read_text())[0]["label"]
    for text in (f"{video}: {label}", "0.00 - 0.80", "0.80 - 1.60", "1.20 - 2.00", "whole video", "Surprise"):
        assert text in result.out


def test_broken_videos_cost_one_line_each_and_the_others_still_run(
    ifdd: Run, video: Path, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is no video\n" * 50)
    (tmp_path / "cut.mp4").write_bytes(video.read_bytes()[:1500])
    bad = [tmp_path / name for name in ("empty.mp4", "text.mp4", "cut.mp4", "missing.mp4")]
    target = tmp_path / "p.csv"
    result = ifdd("predict", *bad, video, "--checkpoint", checkpoint, "--csv", target)
    assert result.code == 1
    lines = result.err.splitlines()
    assert len(lines) == 4
    for line, path in zip(lines, bad, strict=True):
        assert line.startswith("ifdd: error: ")
        assert path.name in line
    assert len(target.read_text().splitlines()) == 5
    assert "1 predicted, 4 failed" in result.out
    assert "Traceback" not in result.err


def test_many_videos_have_one_line_each(
    ifdd: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.mp4", 20)
    write_video(tmp_path / "b.mp4", 5)
    monkeypatch.setattr("ifdd.cli.predict.TABLE_VIDEOS", 1)
    result = ifdd("predict", ".", "--checkpoint", checkpoint)
    first, second, last = result.out.splitlines()
    assert re.fullmatch(r"a\.mp4: \w+ [01]\.\d{3}, whole video", first)
    assert second.endswith(", whole video (short: 5 frames, stretched)")
    assert last == "2 predicted, 0 failed"


def test_a_short_video_still_gives_one_window(checkpoint: Path, tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(1)
    for number in range(3):
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(
            tmp_path / f"{number + 1}.png"
        )
    (window,) = Predictor(checkpoint).predict(tmp_path).windows
    assert (window.start_seconds, window.stop_seconds) == (0.0, pytest.approx(3 / 25))
    assert sum(window.probabilities) == pytest.approx(1)


@pytest.mark.parametrize(("short", "rows"), [("repeat_last", [0, 1, 2, 2, 2, 2, 2, 2]),
                                             ("repeat_each", [0, 0, 1, 1, 1, 2, 2, 2])])  # fmt: skip
def test_a_short_video_is_stretched_as_in_training(
    checkpoint: Path, tmp_path: Path, short: str, rows: list[int]
) -> None:
    from PIL import Image

    rng = np.random.default_rng(1)
    for number in range(3):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(
            tmp_path / f"{number + 1}.png"
        )
    saved = load_checkpoint(checkpoint)
    predictor = Predictor(replace(saved, extra={"short": short}))
    with torch.no_grad():
        clip = frames_to_clip(read_video(tmp_path, size=32).frames[rows])
        wanted = saved.model(clip[None]).logits.double().softmax(1)[0]
    assert predictor.predict(tmp_path).probabilities == pytest.approx(wanted.tolist(), abs=1e-5)


def test_a_checkpoint_that_names_no_usable_sampling_is_refused(checkpoint: Path) -> None:
    saved = load_checkpoint(checkpoint)
    with pytest.raises(PredictionError, match="checkpoint: stride must be at least 1, got 0"):
        Predictor(replace(saved, extra={"stride": 0}))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--crop", "1,2,3"), "error: --crop must be 'auto' or four integers x,y,w,h"),
        (("--json", "-", "--csv", "-"), "cannot both write to stdout"),
        (("--json", "/nowhere/at/all.json"), "--json: folder /nowhere/at does not exist"),
        (("--windows", "some"), "windows"),
        (("--jsonl", "x", "--json", "./x"), "--jsonl and --json name the same file"),
        (("--csv", "."), "--csv: . is a folder"),
        (("--batch", "0"), "--batch must be at least 1, got 0"),
        (("--workers", "-1"), "--workers must be at least 0, got -1"),
        (("--list", "/nowhere"), "--list: /nowhere: cannot read the list (No such file or directory)"),
        (("--resume",), "--resume needs the file to go on from"),
        (("--retry_failed",), "--retry_failed goes with --resume"),
        (("--json", "x", "--resume", "--overwrite"), "--resume keeps what --overwrite would replace"),
        (("--device", "cuda"), "--device cuda: this PyTorch sees no CUDA GPU"),
    ],
)
def test_wrong_calls_exit_with_2(
    ifdd: Run, video: Path, checkpoint: Path, arguments: tuple[str, ...], text: str
) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    result = ifdd("predict", video, "--checkpoint", checkpoint, *arguments)
    assert result.code == 2
    assert text in result.err
    assert len(result.err.splitlines()) == 1


def test_weights_that_are_not_numbers_are_refused(
    ifdd: Run, video: Path, checkpoint: Path, tmp_path: Path
) -> None:
    saved = load_checkpoint(checkpoint)
    saved.model.head.classifier.weight.data[1, 1] = math.nan
    broken = tmp_path / "nan.safetensors"
    save_checkpoint(broken, saved.model, saved.class_names)
    result = ifdd("predict", video, "--checkpoint", broken)
    assert result.code == 1
    assert "weight head.classifier.weight holds NaN or infinite values" in result.err
    assert len(result.err.splitlines()) == 1


def test_results_that_are_not_numbers_are_refused(video: Path, checkpoint: Path) -> None:
    saved = load_checkpoint(checkpoint)
    saved.model.head.classifier.weight.data.fill_(3e38)
    with pytest.raises(PredictionError, match="NaN or infinite values, so there is no prediction"):
        Predictor(replace(saved)).predict(video)


def test_files_that_are_no_checkpoints_are_refused(ifdd: Run, video: Path, tmp_path: Path) -> None:
    for name, content in (("none.safetensors", None), ("bad.safetensors", b"garbage")):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        result = ifdd("predict", video, "--checkpoint", path)
        assert result.code == (2 if content is None else 1)
        assert name in result.err
        assert len(result.err.splitlines()) == 1


def test_unknown_windows_are_refused(video: Path, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="windows must be one of"):
        Predictor(checkpoint).predict(video, windows="first")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [write_video(folder / f"{length}.mp4", frames=length) for length in (20, 8, 3, 41, 16, 9)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_many_videos_share_batches_and_keep_their_results(
    clips: list[Path], checkpoint: Path, batch: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(checkpoint, batch=batch)
    alone = [predictor.predict(clip) for clip in clips]
    sizes: list[int] = []
    logits = Predictor.logits

    def counted(self: Predictor, frames: list[np.ndarray]) -> torch.Tensor:
        sizes.append(len(frames))
        return logits(self, frames)

    monkeypatch.setattr(Predictor, "logits", counted)
    missing = clips[0].with_name("missing.mp4")
    results = list(predictor.predict_many([clips[0], missing, *clips[1:]], workers=workers))
    windows = sum(len(prediction.windows) for prediction in alone)
    assert sizes == [batch] * (windows // batch) + [windows % batch] * (windows % batch > 0)
    failure = results.pop(1)
    assert isinstance(failure, VideoFailure)
    assert (failure.path, "missing.mp4" in str(failure.error)) == (str(missing), True)
    for result, single in zip(results, alone, strict=True):
        assert isinstance(result, VideoPrediction)
        assert (result.path, result.footage) == (single.path, single.footage)
        assert result.probabilities == pytest.approx(single.probabilities, abs=1e-5)
    again = predictor.predict_many([clips[0], missing, *clips[1:]], workers=2 - workers)
    assert [r for r in again if isinstance(r, VideoPrediction)] == results


def test_a_video_for_which_the_network_fails_does_not_end_the_others(
    clips: list[Path], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(checkpoint, batch=4)
    alone = [predictor.predict(clip) for clip in clips]
    logits = Predictor.logits
    calls: list[int] = []

    def spoiled(self: Predictor, frames: list[np.ndarray]) -> torch.Tensor:
        values = logits(self, frames).clone()
        calls.append(len(frames))
        if len(calls) == 2:  # its second window is the first of the video of 41 frames
            values[1] = math.nan
        return values

    monkeypatch.setattr(Predictor, "logits", spoiled)
    results = list(predictor.predict_many(clips))
    assert isinstance(results[3], VideoFailure)
    assert "NaN or infinite" in str(results[3].error)
    assert results[3].windows == 3  # those that were in the batch; no other is read
    assert calls == [4, 4, 4]
    for number in (0, 1, 2, 4, 5):
        result = results[number]
        assert isinstance(result, VideoPrediction)
        assert result.probabilities == pytest.approx(alone[number].probabilities, abs=1e-5)


ODD_NAMES = (
    "clip [dQw4w9WgXcQ].mp4",
    "take[/b].mp4",
    "$x$ :smile:.mp4",
    "a\\.mp4",
    "n\nl.mp4",
    os.fsdecode(b"\xff.mp4"),
)


def test_any_name_is_shown_and_kept(ifdd: Run, video: Path, tmp_path: Path) -> None:
    classes = ("[red]", "$x$", "[/]", "Sad", ":smile:", "", "笑い")[:5]
    weights = make_checkpoint(tmp_path / "w.safetensors", classes)
    for name in ODD_NAMES:
        place = tmp_path / "in" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, place)
    target = tmp_path / "o.json"
    call = ("predict", tmp_path / "in", "--recursive", "--checkpoint", weights, "--json", target)
    result = ifdd(*call)
    assert (result.code, result.err) == (0, "")
    for name in (*ODD_NAMES[:4], r"n\nl.mp4", r"\xff.mp4"):
        assert result.out.count(f"{tmp_path / 'in'}/{name}: ") == 1
    for name in classes:
        assert result.out.count(name) >= len(ODD_NAMES)
    entries = json.loads(target.read_bytes())
    assert {path_of_dict(entry) for entry in entries} == {str(tmp_path / "in" / name) for name in ODD_NAMES}
    assert all(tuple(entry["probabilities"]) == classes for entry in entries)


def test_what_a_result_is_of_stands_in_its_table(
    ifdd: Run, clips: list[Path], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ifdd.cli import predict

    monkeypatch.setattr(predict, "TABLE_WINDOWS", 4)
    out = ifdd("predict", *clips, "--checkpoint", checkpoint).out
    assert out.count("whole video ") == 6
    assert "whole video (short: 3 frames, stretched)" in out
    # 41 frames: six windows, of which the table shows two from each end.
    assert out.count("2 more windows") == 1
    assert "2.40 - 3.20" not in out
    assert "6 predicted, 0 failed" in out
    out = ifdd("predict", clips[3], "--checkpoint", checkpoint, "--tail", "drop").out
    assert "40 of 41 frames" in out
    assert "predicted" not in out


def test_damage_is_said_or_refused(ifdd: Run, checkpoint: Path, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(20):
        Image.new("RGB", (20, 20), (12 * number,) * 3).save(folder / f"{number:02}.png")
    (folder / "19.png").write_bytes(b"no image")
    target = tmp_path / "o.jsonl"
    result = ifdd("predict", folder, "--checkpoint", checkpoint, "--jsonl", target)
    assert result.code == 0
    (warning,) = result.err.splitlines()
    assert warning.startswith(f"ifdd: warning: {folder}: ")
    assert "19.png" in warning
    assert "readable 19 frames" in result.out
    line = json.loads(target.read_text().splitlines()[-1])
    assert (line["kind"], line["frames_read"], line["frames_announced"]) == ("video", 19, 20)
    assert "19.png" in line["damage"]
    result = ifdd("predict", folder, "--checkpoint", checkpoint, "--jsonl", target, "--strict", "--overwrite")
    assert result.code == 1
    (error,) = result.err.splitlines()
    assert error.startswith(f"ifdd: error: {folder}: ")
    assert [json.loads(line)["kind"] for line in target.read_text().splitlines()] == ["run", "failed"]


def test_json_lines_go_to_stdout(ifdd: Run, clips: list[Path], checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("\n".join(map(str, clips[:2])))
    result = ifdd("predict", "--list", tmp_path / "list", "--checkpoint", checkpoint, "--jsonl", "-")
    assert result.code == 0
    kinds = [json.loads(line)["kind"] for line in result.out.splitlines()]
    assert kinds == ["run", *["window"] * 3, "video", "window", "video"]
    assert result.err == "2 predicted, 0 failed\n"


def test_lower_precision_is_near(video: Path, checkpoint: Path) -> None:
    exact = Predictor(checkpoint).predict(video)
    near = Predictor(checkpoint, precision="bf16-mixed").predict(video)
    assert near != exact
    assert near.probabilities == pytest.approx(exact.probabilities, abs=0.1)
    with pytest.raises(ValueError, match="precision must be one of"):
        Predictor(checkpoint, precision="8")  # type: ignore[arg-type]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_is_drawn_on_a_terminal_and_pipes_stay_clean(
    ifdd: Run, clips: list[Path], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """stderr is a terminal, stdout is not."""
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    result = ifdd("predict", *clips, clips[0].with_name("missing"), "--checkpoint", checkpoint, "--json", "-")
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert len(json.loads(result.out)) == 6
    assert "7 of 7 videos" in shown
    assert "windows/s" in shown
    assert "missing:Nosuchfile" in "".join(shown.split())  # broken into lines where the terminal ends


def test_without_a_terminal_there_is_no_bar(
    ifdd: Run, video: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ifdd("predict", video, "--checkpoint", checkpoint).err == ""
    shown = Namespace(progress=True, quiet=False)
    assert not shows_progress(shown), "those of a training"
    monkeypatch.setattr("sys.stdout", Terminal())
    assert shows_progress(shown)
    assert not shows_progress(Namespace(progress=True, quiet=True))


def test_quiet_commands_print_what_was_asked_for_only(
    ifdd: Run, video: Path, checkpoint: Path, tmp_path: Path
) -> None:
    call = ("predict", video, tmp_path / "none.mp4", "--checkpoint", checkpoint, "--quiet")
    error = f"ifdd: error: {tmp_path / 'none.mp4'}: No such file or directory\n"
    assert ifdd(*call) == (1, "", error)
    result = ifdd(*call, "--csv", "-")
    assert (result.err, result.out.splitlines()[0][:6], result.out.count("\n")) == (error, "path,w", 5)
    assert ifdd("convert", checkpoint, tmp_path / "c.safetensors", "--quiet") == (0, "", "")
    assert (tmp_path / "c.safetensors").exists()
