"""Predictions and frames for training, of faces that are followed."""

from __future__ import annotations

import csv
import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from faces.conftest import found, person, picture
from ifdd import streaming
from ifdd.cli import main
from ifdd.data.datasets.list_file import ListDataset
from ifdd.data.resize import resize_frame
from ifdd.data.sampling import SamplingPolicy
from ifdd.data.video import VideoError, read_video
from ifdd.faces import Boxes, FaceDetector, FaceTrack, FaceTracks, Segment
from ifdd.faces.plan import PlannedWindow
from ifdd.prepare import Preparation, PrepareOptions, prepare_video
from ifdd.streaming import Reading, Window, read_windows

FramesIn = Callable[[str, Sequence[np.ndarray]], Path]


def two_people(frames: int, number: int = 0) -> list[np.ndarray]:
    """The one on the left is larger and stays, the other one goes to the left and is gone in the end."""
    large = person(number).repeat(2, axis=1).repeat(2, axis=2)
    small = person(number + 3)
    return [
        picture(
            [(large[t % 4], (4 + t // 4, 8)), (small[t % 4], (180 + (t > frames - 10) * 200, 40))], 144, 256
        )
        for t in range(frames)
    ]


class Everywhere:
    """Finds a face in every frame; counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def detect(self, frames: np.ndarray) -> list[Boxes]:
        self.asked += len(frames)
        return [found((10, 10, 40, 40)) for _ in frames]


class Nowhere:
    """Breaks at the first frame."""

    def detect(self, frames: np.ndarray) -> list[Boxes]:
        raise RuntimeError("broken\ndetector")


def reading(detector: FaceDetector | None, face: str | int | None, size: int = 32, **more: object) -> Reading:
    return Reading(8, size, SamplingPolicy(1, "repeat_last"), face=face, detector=detector, **more)  # type: ignore[arg-type]


def all_windows(path: Path, how: Reading, skip: int = 0) -> list[Window]:
    return list(read_windows(path, how, skip))


def test_each_face_has_windows_of_its_own(detector: FaceDetector, frames_in: FramesIn) -> None:
    path = frames_in("two", two_people(30))
    windows = all_windows(path, reading(detector, "all"))
    assert [window.number for window in windows] == list(range(len(windows)))
    large, small = ([window for window in windows if window.face == face] for face in (1, 2))
    if large[0].box is not None and large[0].box.x > 100:
        large, small = small, large
    assert [round(window.start_seconds * 25) for window in large] == [0, 8, 16, 22]
    assert len(small) in (3, 4)
    assert small[-1].stop_seconds < 1.1
    # What a window shows is what the crop rule cuts out of the frame at its box.
    frames = read_video(path).frames
    for window in windows:
        assert len(window.boxes) == 8
        first = round(window.start_seconds * 25)
        for place, box in enumerate(window.boxes):
            cut = frames[first + place, box.y : box.y + box.height, box.x : box.x + box.width]
            assert np.array_equal(window.frames[place], resize_frame(cut, (32, 32)))
    (only,) = {window.face for window in all_windows(path, reading(detector, "largest"))}
    assert only == large[0].face
    rest = all_windows(path, reading(detector, "all"), skip=2)
    for window, same in zip(rest, windows[2:], strict=True):
        assert (window.number, window.face, window.boxes) == (same.number, same.face, same.boxes)
        assert np.array_equal(window.frames, same.frames)


def test_work_for_a_frame_does_not_grow_with_the_faces_of_the_video(
    frames_in: FramesIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only those in sight are looked at; each of these is so for eight frames."""
    box = np.array([[10, 10, 40, 40]], np.float32)
    starts = range(0, 160, 8)
    tracks = [
        FaceTrack(number, (Segment(start, start + 8, np.array([start]), box),))
        for number, start in enumerate(starts, 1)
    ]
    monkeypatch.setattr(streaming, "find_tracks", lambda *_, **__: FaceTracks(tuple(tracks), 160, 32))
    path = frames_in("many", [np.full((60, 80, 3), 90, np.uint8)] * 160)
    asked: list[int] = []
    takes = PlannedWindow.takes
    monkeypatch.setattr(PlannedWindow, "takes", lambda self, n: asked.append(n) or takes(self, n))
    windows = all_windows(path, reading(Nowhere(), "all"))
    assert [(window.face, round(window.start_seconds * 25)) for window in windows] == list(
        enumerate(starts, 1)
    )
    assert len(asked) == 160


def test_without_a_face(detector: FaceDetector, frames_in: FramesIn) -> None:
    path = frames_in("empty", [np.full((60, 80, 3), 90, np.uint8)] * 12)
    with pytest.raises(VideoError) as info:
        all_windows(path, reading(detector, "largest"))
    message = str(info.value)
    assert "no face found in the 4 frames looked at of 12" in message
    assert "--crop x,y,w,h names the region, --face off reads whole frames" in message
    with pytest.raises(ValueError, match="face and crop both say what is cut out"):
        reading(detector, "all", crop="auto")
    with pytest.raises(ValueError, match="face needs a detector"):
        reading(None, "all")


def test_results_name_the_face_and_the_box(
    detector: FaceDetector,
    frames_in: FramesIn,
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = frames_in("two", two_people(30))
    call = [
        "predict",
        str(path),
        "--checkpoint",
        str(tiny),
        "--face",
        "all",
        "--batch",
        "2",
        "--device",
        "cpu",
    ]
    files = {form: tmp_path / f"a.{form}" for form in ("jsonl", "csv", "json")}
    outputs = [word for form, file in files.items() for word in (f"--{form}", str(file))]
    assert main([*call, *outputs]) == 0
    table = capsys.readouterr().out
    assert "face" in table
    lines = [json.loads(line) for line in files["jsonl"].read_text().splitlines()]
    windows = [line for line in lines if line["kind"] == "window"]
    assert {line["face"] for line in windows} == {1, 2}
    assert all(len(line["box"]) == 4 for line in windows)
    (video,) = json.loads(files["json"].read_text())
    largest, other = video["faces"]
    assert (largest["label"], largest["probabilities"]) == (video["label"], video["probabilities"])
    areas = {line["face"]: line["box"][2] for line in windows}
    assert areas[largest["face"]] > areas[other["face"]]
    rows = list(csv.DictReader(files["csv"].open()))
    means = [row for row in rows if row["window"] == "mean"]
    assert [int(row["face"]) for row in means] == [largest["face"], other["face"]]
    assert rows[0]["box"] == ",".join(map(str, windows[0]["box"]))
    # Stopped in the middle: the same files, byte for byte.
    whole = {form: file.read_bytes() for form, file in files.items()}
    cut = whole["jsonl"].splitlines(keepends=True)[:4]
    files["jsonl"].write_bytes(b"".join(cut) + b'{"kind": "win')
    for form in ("csv", "json"):
        files[form].unlink()
    assert main([*call, *outputs, "--resume"]) == 0
    assert {form: file.read_bytes() for form, file in files.items()} == whole
    assert main([*call, "--crop", "auto"]) == 2
    assert "--face and --crop both say" in capsys.readouterr().err


def test_prepared_frames_are_what_prediction_sees(
    detector: FaceDetector, frames_in: FramesIn, tmp_path: Path
) -> None:
    """Pixel for pixel, whether frames are resized when they are prepared or when they are read."""
    raw = frames_in("raw clip", two_people(20))
    seen = all_windows(raw, reading(detector, "largest"))
    for name, size in (("cut", None), ("resized", 32)):
        out = tmp_path / name
        out.mkdir()
        prepared = prepare_video(raw, out, PrepareOptions(size=size), detector)
        (folder,) = prepared.folders
        assert prepared.frames == 20
        again = all_windows(out / folder, reading(None, None))
        assert len(again) == len(seen) == 3
        for window, same in zip(again, seen, strict=True):
            assert np.array_equal(window.frames, same.frames)


def test_prepare_folders_of_classes(
    detector: FaceDetector, frames_in: FramesIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    videos = {
        label: frames_in(f"raw/{label}/clip", two_people(18, n)) for label, n in (("Sad", 0), ("Happy", 1))
    }
    (tmp_path / "raw" / "Sad" / "broken.mp4").write_bytes(b"nothing")
    out = tmp_path / "faces, prepared"
    call = ["prepare", str(tmp_path / "raw"), "--recursive", "--out", str(out), "--jobs", "2"]
    assert main(call) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "broken.mp4" in captured.err
    assert "2 videos prepared, 1 failed; 2 faces, 36 frames" in captured.out
    assert "Happy 1, Sad 1" in captured.out
    assert "--classes Happy,Sad" in captured.out
    rows = list(csv.DictReader((out / "list.csv").open()))
    assert sorted(row["label"] for row in rows) == ["Happy", "Sad"]
    first = out / rows[0]["path"]
    frames = sorted(first.iterdir())
    assert [file.name for file in frames[:2]] == ["000000.png", "000001.png"]
    # What is done is not done again.
    Image.new("RGB", (1, 1)).save(frames[0])
    assert main(call) == 1
    assert Image.open(frames[0]).size == (1, 1)
    assert main([*call, "--overwrite"]) == 1
    assert Image.open(frames[0]).size != (1, 1)
    capsys.readouterr()
    assert main([*call, "--format", "jpg"]) == 2
    assert "was prepared with other settings: --quality was None, now 95" in capsys.readouterr().err
    assert main(["prepare", str(videos["Sad"]), "--out", str(tmp_path)]) == 2
    assert "holds files that `ifdd prepare` did not write" in capsys.readouterr().err
    assert main([*call[:4], str(tmp_path / "raw" / "x")]) == 2
    assert "is in" in capsys.readouterr().err
    # Training reads the pixels that prediction sees in the raw videos.
    clips = ListDataset(
        out / "list.csv", ("Happy", "Sad"), split="test", clip_frames=8, image_size=32, sampling="consecutive"
    )
    for number, label in enumerate(sorted(videos)):
        raw = clips.raw(number)
        assert raw.label == number
        window = all_windows(videos[label], reading(detector, "largest"))[0]
        assert np.array_equal(raw.frames.numpy().reshape(-1, 8, 32, 32, 3)[0], window.frames)


@pytest.mark.nightly
def test_train_on_what_was_prepared(
    detector: FaceDetector, frames_in: FramesIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = [frames_in(f"raw/{label}/clip", two_people(18, n)) for label, n in (("Sad", 0), ("Happy", 1))]
    out = tmp_path / "out"
    assert main(["prepare", str(tmp_path / "raw"), "--recursive", "--out", str(out)]) == 0
    lists = ["--data", "list", "--train_list", str(out / "list.csv"), "--classes", "Happy,Sad"]
    network = "--model.backbone mvit_nano --model.embed_dim 8 --model.depths [1,1,1,1] --model.image_size 32"
    short = "--model.clip_frames 8 --model.split_pool 2 --epochs 1 --batch_size 2 --workers 0 --validation 0"
    run = tmp_path / "run"
    extra = ["--out", str(run), "--limit_steps", "1", "--progress", "false", "--device", "cpu"]
    assert main(["fit", *lists, *network.split(), *short.split(), *extra]) == 0
    checkpoint = str(run / "model.safetensors")
    assert main(["predict", *map(str, videos), "--checkpoint", checkpoint, "--face", "largest"]) == 0
    assert "2 predicted, 0 failed" in capsys.readouterr().out


def test_a_list_says_the_labels(
    detector: FaceDetector, frames_in: FramesIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames_in("a clip", two_people(24))
    (tmp_path / "train.txt").write_text("a clip 1\nmissing 0\n")
    call = ["prepare", "--list", str(tmp_path / "train.txt"), "--out", str(tmp_path / "out"), "--face", "all"]
    assert main(call) == 2
    assert "--list needs --classes" in capsys.readouterr().err
    assert main([*call, "--classes", "No,Yes", "--format", "jpg", "--size", "24"]) == 1
    captured = capsys.readouterr()
    assert "missing: " in captured.err
    rows = list(csv.DictReader((tmp_path / "out" / "train.csv").open()))
    assert [row["label"] for row in rows] == ["Yes", "Yes"]
    assert all((tmp_path / "out" / row["path"] / "000000.jpg").is_file() for row in rows)
    assert main([*call, str(tmp_path)]) == 2
    assert "name either VIDEOS" in capsys.readouterr().err


def test_wrong_calls_of_prepare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the detector is loaded or a file is touched."""
    monkeypatch.setattr("ifdd.faces.detector.load_detector", pytest.fail)
    listed = tmp_path / "train.csv"
    listed.write_text("a,0\n")
    before = sorted(tmp_path.iterdir())
    for more, message in (
        (["--list", "gone.csv", "--out", "new"], "--list: gone.csv does not exist"),
        (["--list", str(listed), "--root", "gone", "--out", "new"], "--root: gone: no such folder"),
        (["--list", str(listed), "--out", str(tmp_path)], f"--out: {listed} is the list that this run reads"),
        (["--list", str(listed), "--out", str(listed)], f"--out: {listed} is not a folder"),
        (["--list", str(listed), "--out", "new", "--classes", "a\x1b,b"], "--classes: a\\x1b: no list can"),
    ):
        assert main(["prepare", *more, *(() if "--classes" in more else ("--classes", "a,b"))]) == 2
        assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_classes_that_no_list_can_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ifdd.faces.detector.load_detector", lambda device: None)
    for name in (b"no utf-8 \xff", b"one, two"):
        folder = tmp_path / "raw" / os.fsdecode(name)
        folder.mkdir(parents=True)
        (folder / "a.mp4").write_bytes(b"nothing")
    assert main(["prepare", str(tmp_path / "raw"), "--recursive", "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("no list can name this class") == captured.err.count("\n") == 2
    assert "0 videos prepared, 2 failed; 0 faces, 0 frames" in captured.out


def test_a_stopped_preparation_leaves_no_halves(
    detector: FaceDetector, frames_in: FramesIn, tmp_path: Path
) -> None:
    stopped = threading.Event()
    stopped.set()
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InterruptedError):
        prepare_video(frames_in("raw", two_people(8)), out, PrepareOptions(), detector, stopped)
    assert list(out.iterdir()) == []
    # Before the frames are read for their faces: the broken detector is never asked.
    with pytest.raises(InterruptedError):
        prepare_video(frames_in("other", two_people(1)), out, PrepareOptions(), Nowhere(), stopped)
    for wrong, message in (
        ({"size": 0}, "size"),
        ({"quality": 101}, "quality"),
        ({"min_frames": 0}, "min_fr"),
    ):
        with pytest.raises(ValueError, match=message):
            PrepareOptions(**wrong)
    with Preparation(out, PrepareOptions()) as preparation:
        assert preparation.done == {}


def test_a_video_that_is_named_twice(frames_in: FramesIn, tmp_path: Path) -> None:
    """Is written once, whether the first of the two is under way or done."""
    path, detector = frames_in("raw", [np.full((60, 80, 3), 90, np.uint8)] * 10), Everywhere()
    with Preparation(tmp_path / "out", PrepareOptions()) as preparation:
        results = list(preparation.run([path] * 5, detector, jobs=2))
    assert [(result.error, result.frames) for result in results] == [(None, 10)] * 5
    assert detector.asked == 3
    assert len((tmp_path / "out" / "prepared.jsonl").read_text().splitlines()) == 2


def test_no_video_ends_the_run(frames_in: FramesIn, tmp_path: Path) -> None:
    path = frames_in("raw", [np.full((60, 80, 3), 90, np.uint8)])
    with Preparation(tmp_path / "out", PrepareOptions()) as preparation:
        (result,) = preparation.run([path], Nowhere())
    assert str(result.error) == f"{path}: RuntimeError: broken detector"


def test_a_folder_that_cannot_be_made_leaves_no_others(
    frames_in: FramesIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = frames_in("raw", [np.full((60, 80, 3), 90, np.uint8)] * 2)
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr("ifdd.prepare.folder_name", lambda path, face, segment: "x" * (240 + 8 * face))
    box = np.array([[10, 10, 40, 40]], np.float32)
    tracks = [FaceTrack(number, (Segment(0, 2, np.array([0]), box),)) for number in (1, 2)]
    monkeypatch.setattr("ifdd.prepare.find_tracks", lambda *_, **__: FaceTracks(tuple(tracks), 2, 1))
    with pytest.raises(OSError, match="name too long"):
        prepare_video(path, out, PrepareOptions("all"), Nowhere())
    assert list(out.iterdir()) == []


def test_overwrite_removes_what_was_written_before(
    frames_in: FramesIn, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But nothing else, whatever the record says."""
    path, out = frames_in("raw", [np.full((60, 80, 3), 90, np.uint8)] * 10), tmp_path / "out"
    with Preparation(out, PrepareOptions()) as preparation:
        ((folder,),) = [result.folders for result in preparation.run([path], Everywhere())]
    mine = out / "mine"
    mine.mkdir()
    with (out / "prepared.jsonl").open("a") as record:
        record.write(json.dumps({"folders": ["mine", "../raw", "..", "", 7]}) + "\nnonsense\n[]\n")
    monkeypatch.setattr("ifdd.faces.detector.load_detector", lambda device: None)
    assert main(["prepare", str(out / folder), "--out", str(out), "--overwrite"]) == 2
    assert "which is read" in capsys.readouterr().err
    assert (out / folder).is_dir()
    with Preparation(out, PrepareOptions(quality=90), overwrite=True) as preparation:
        assert preparation.done == {}
    assert sorted(file.name for file in out.iterdir()) == ["mine", "prepared.jsonl"]
    assert path.is_dir()
