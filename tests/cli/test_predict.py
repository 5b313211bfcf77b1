from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ifdd.checkpoint import load_checkpoint, save_checkpoint
from ifdd.data.resize import frames_to_clip
from ifdd.data.video import read_video
from ifdd.prediction import PredictionError, Predictor

Run = Callable[..., Any]


def test_the_numbers_are_those_of_the_network(video: Path, checkpoint: Path) -> None:
    predictor = Predictor(checkpoint, batch=1)
    prediction = predictor.predict(video)
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
    assert [row["window"] for row in rows] == ["0", "1", "mean"]
    for row in rows:
        assert math.isclose(sum(float(row[name]) for name in entry["probabilities"]), 1, abs_tol=1e-9)
    assert float(rows[-1]["Happy"]) == entry["probabilities"]["Happy"]
    assert (float(rows[-1]["start_seconds"]), float(rows[-1]["stop_seconds"])) == (0.0, pytest.approx(1.6))


def test_the_table_names_windows_classes_and_the_result(
    ifdd: Run, video: Path, checkpoint: Path, tmp_path: Path
) -> None:
    target = tmp_path / "p.json"
    result = ifdd("predict", video, "--checkpoint", checkpoint, "--crop", "8,8,32,32", "--json", target)
    assert result.code == 0
    label = json.loads(target.read_text())[0]["label"]
    for text in (f"{video}: {label}", "0.00 - 0.80", "0.80 - 1.60", "whole video", "Surprise"):
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
    assert len(target.read_text().splitlines()) == 4
    assert "Traceback" not in result.err


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
        (("--crop", "1,2,3"), "four integers x,y,w,h"),
        (("--json", "-", "--csv", "-"), "cannot both write to stdout"),
        (("--json", "/nowhere/at/all.json"), "--json: folder /nowhere/at does not exist"),
        (("--windows", "some"), "windows"),
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
        assert result.code == 1
        assert name in result.err
        assert len(result.err.splitlines()) == 1


def test_unknown_windows_are_refused(video: Path, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="windows must be one of"):
        Predictor(checkpoint).predict(video, windows="first")  # type: ignore[arg-type]
