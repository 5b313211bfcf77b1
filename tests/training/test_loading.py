"""Reports of the workers: errors as they are, skipped videos, and batches when shared memory is short."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch.multiprocessing.reductions import reduce_storage

import rank_program
from ifdd.config import IFDDConfig
from ifdd.data.datasets import LeftOut, Video
from ifdd.data.errors import DatasetError, DatasetWarning, VideoError
from ifdd.data.lists import hold_out
from ifdd.data.transforms import ClipAugment
from ifdd.training import loading
from ifdd.training.config import DataConfig, TrainingConfig
from ifdd.training.data import RecognitionData, sampling_policy
from ifdd.training.loading import WorkerTraceback
from ifdd.training.order import EpochOrder
from ifdd.training.pieces import Pieces
from ifdd.training.skipped import SkippedVideos
from ifdd.training.windows import RawWindows, finished

NETWORK = {"backbone": "mvit_nano", "image_size": 32, "clip_frames": 8, "split_pool": 2}
HELD = hold_out([index % 2 for index in range(12)], 0.34, 0)[1]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Twelve folders of ten frames, listed in two classes."""
    for index in range(12):
        folder = tmp_path / f"{index:05d}"
        folder.mkdir()
        for frame in range(10):
            Image.new("RGB", (16, 16), (20 * index, 10 * frame, 0)).save(folder / f"{frame}.png")
    (tmp_path / "list.txt").write_text("".join(f"{index:05d} {index % 2}\n" for index in range(12)))
    return tmp_path


def recognition_data(
    clips: Path, workers: int, skipped: Path | None = None, **options: Any
) -> RecognitionData:
    values = {"train_list": str(clips / "list.txt"), "test_list": str(clips / "list.txt"), "classes": "x,y"}
    values |= {"validation": 0.34, "batch_size": 4, "eval_batch_size": 2, "workers": workers, **options}
    config = TrainingConfig(data=DataConfig(name="list", **values), model=NETWORK)  # type: ignore[arg-type]
    return RecognitionData(config, IFDDConfig.from_dict({**NETWORK, "num_classes": 2}), skipped)


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_the_same_line_from_workers(clips: Path, workers: int) -> None:
    empty(clips / "00003")
    data = recognition_data(clips, workers)
    with pytest.raises(VideoError) as info:
        list(data.test_dataloader())
    assert str(info.value).startswith(f"{clips / '00003'}: ")
    assert "\n" not in str(info.value)
    assert isinstance(info.value.__cause__, WorkerTraceback if workers else type(None))


class _OddError(Exception):
    """Cannot be sent to another process."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def test_an_error_that_cannot_be_sent_keeps_its_text(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = recognition_data(clips, 1)

    def fail(self: object, index: int) -> None:
        raise _OddError("odd", "thing")

    monkeypatch.setattr(type(data.dataset("test")), "raw", fail)
    with pytest.raises(RuntimeError, match=r"^_OddError: odd thing$"):
        list(data.test_dataloader())


@pytest.mark.parametrize("workers", [0, 2])
def test_held_out_videos_are_left_out_and_listed(clips: Path, workers: int) -> None:
    empty(clips / f"{HELD[1]:05d}")
    shutil.rmtree(clips / f"{HELD[2]:05d}")
    data = recognition_data(clips, workers, clips / "skipped.csv", on_error="skip")
    with pytest.warns(DatasetWarning, match=r"1 of \d videos is missing and left out"):
        data.setup("fit")
    with nullcontext() if workers else pytest.warns(DatasetWarning, match="skipped a video"):
        batches = list(data.val_dataloader())
    assert sum(len(batch.labels) for batch in batches) == len(HELD) - 2
    assert all(isinstance(batch, RawWindows) for batch in batches)
    again = sum(len(batch.labels) for batch in data.val_dataloader())
    assert again == len(HELD) - 2
    rows = list(csv.DictReader((clips / "skipped.csv").open()))
    assert [(row["split"], Path(row["path"]).name) for row in rows] == [
        ("validation", f"{HELD[2]:05d}"),
        ("validation", f"{HELD[1]:05d}"),
    ]
    assert rows[0]["reason"] == "missing"
    with pytest.warns(DatasetWarning, match=r"2 videos were left out, listed in .*skipped.csv"):
        data.teardown("fit")


@pytest.mark.parametrize("workers", [0, 1])
def test_training_goes_on_without_a_broken_video(clips: Path, workers: int) -> None:
    kept = hold_out([index % 2 for index in range(12)], 0.34, 0)[0]
    empty(clips / f"{kept[0]:05d}")
    data = recognition_data(clips, workers, clips / "skipped.csv", on_error="skip")
    data.setup("fit")
    # A warning of a worker is shown there.
    with pytest.warns(DatasetWarning, match="skipped a video") if not workers else nullcontext():
        assert [len(batch.labels) for batch in data.train_dataloader()] == [4, 4]
    rows = list(csv.DictReader((clips / "skipped.csv").open()))
    assert [Path(row["path"]).name for row in rows] == [f"{kept[0]:05d}"]
    # A training that goes on adds nothing twice.
    resumed = recognition_data(clips, 0, clips / "skipped.csv", on_error="skip")
    with pytest.warns(DatasetWarning, match="skipped a video"):
        list(resumed.train_dataloader())
    assert len(list(csv.DictReader((clips / "skipped.csv").open()))) == 1


def test_nothing_left_of_the_held_out_part(clips: Path) -> None:
    for index in HELD:
        empty(clips / f"{index:05d}")
    data = recognition_data(clips, 0, on_error="skip")
    with (
        pytest.warns(DatasetWarning, match="skipped a video"),
        pytest.raises(DatasetError, match="no clip could be read"),
    ):
        list(data.val_dataloader())


@pytest.mark.parametrize("fits_at_first", [False, True])
def test_batches_that_do_not_fit_into_shared_memory_come_through_pipes(
    clips: Path, monkeypatch: pytest.MonkeyPatch, fits_at_first: bool
) -> None:
    """Seen before the workers start; or a batch is larger than its piece and other programs take the rest."""
    expected = list(recognition_data(clips, 0).test_dataloader())
    size = expected[0].frames.nbytes
    loader = recognition_data(clips, 2).test_dataloader()
    # Two batches of each worker, and three in use: one byte too little.
    needed = 7 * size
    monkeypatch.setattr(loading, "free_shared_memory", lambda: needed - (not fits_at_first))
    taken = iter([needed])
    if fits_at_first:
        loader._batch_bytes = size - 1
        monkeypatch.setattr(loading, "free_shared_memory", lambda: next(taken, 0))
    with pytest.warns(DatasetWarning, match="shared memory is short .* batches go through pipes") as caught:
        piped = list(loader)
    (text,) = (str(w.message) for w in caught if "pipes" in str(w.message))
    assert ("a batch takes" if fits_at_first else "2 workers may take") in text
    assert all(isinstance(batch, RawWindows) for batch in piped)
    assert not any(batch.frames.is_shared() for batch in piped)
    for one, other in zip(piped, expected, strict=True):
        assert torch.equal(one.frames, other.frames)
        assert torch.equal(one.labels, other.labels)


def test_batches_travel_in_the_same_pieces_again_and_again(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = recognition_data(clips, 1)
    expected = [batch.frames for batch in recognition_data(clips, 0).test_dataloader()]

    def refuse(*_: Any) -> None:
        raise AssertionError("a worker took memory of its own")

    # Workers are copies of this process.
    monkeypatch.setattr(loading, "share_memory", refuse)
    loader = data.test_dataloader()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Left after the first batch: the tasks under way keep no piece.
        kept = [next(iter(loader)).frames for _ in range(3)][-1]
        for _ in range(2):
            for batch, whole in zip(loader, expected, strict=True):
                assert batch.frames.is_shared()
                assert torch.equal(batch.frames, whole)
    assert torch.equal(kept, expected[0])


def test_a_batch_that_finds_no_piece_has_memory_of_its_own(clips: Path) -> None:
    expected = [batch.frames for batch in recognition_data(clips, 0).test_dataloader()]
    loader = recognition_data(clips, 1).test_dataloader()
    # Twelve batches that are kept; there are five pieces.
    kept = [batch.frames for _ in range(2) for batch in loader]
    assert all(torch.equal(one, other) for one, other in zip(kept, expected * 2, strict=True))
    assert all(frames.is_shared() for frames in kept)


def test_a_piece_is_lent_until_nothing_refers_to_its_batch() -> None:
    pieces = Pieces(2, 6)
    assert [pieces.lend() for _ in range(3)] == [0, 1, None]
    batch = torch.zeros(6, dtype=torch.uint8)
    part = batch[2:4]
    pieces.came_back(0, batch)
    pieces.came_back(1, None)
    assert [pieces.lend(), pieces.lend()] == [1, None]
    del batch
    assert pieces.lend() is None
    del part
    assert [pieces.lend(), pieces.lend()] == [0, None]
    pieces.forget_tasks()
    assert pieces.lend() == 0
    memory = pieces.tensor(0, (3,), torch.int16)
    assert memory is not None
    assert memory.is_shared()
    assert pieces.tensor(0, (7,), torch.uint8) is None


def test_pieces_that_were_sent_to_workers_are_lent_again() -> None:
    """As by spawn and forkserver: PyTorch finds what this process still holds when a batch comes back."""
    pieces = Pieces(1, 6)
    assert pieces._storages is not None
    rebuild, arguments = reduce_storage(pieces._storages[0])
    pieces.handed_over()
    assert pieces.lend() == 0
    batch = torch.empty(0, dtype=torch.uint8).set_(rebuild(*arguments))
    pieces.came_back(0, batch)
    assert pieces.lend() is None
    del batch
    assert pieces.lend() == 0


@pytest.mark.nightly
def test_forkserver_workers_are_lent_pieces_again(clips: Path) -> None:
    loader = recognition_data(clips, 1).test_dataloader()
    loader.multiprocessing_context = "forkserver"
    for _ in range(2):
        for _ in loader:
            pass
    assert isinstance(loader, loading.ClipLoader)
    assert loader._tasks.pieces is not None
    assert loader._tasks.pieces.lend() is not None


def test_windows_side_by_side_have_no_pieces(clips: Path) -> None:
    """Their number is not known in advance."""
    expected = [
        batch.frames for batch in recognition_data(clips, 0, sampling="consecutive").test_dataloader()
    ]
    loader = recognition_data(clips, 1, sampling="consecutive").test_dataloader()
    assert isinstance(loader, loading.ClipLoader)
    found = [batch.frames for batch in loader]
    assert loader._tasks.pieces is None
    assert all(frames.is_shared() for frames in found)
    assert all(map(torch.equal, found, expected))


def test_old_pieces_are_gone_before_free_memory_is_looked_at(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = recognition_data(clips, 1).test_dataloader()
    assert isinstance(loader, loading.ClipLoader)
    loader._look_for_memory()
    seen = []
    monkeypatch.setattr(loading, "free_shared_memory", lambda: seen.append(loader._tasks.pieces))
    loader._look_for_memory()
    assert seen == [None]
    assert loader._tasks.pieces is not None


SMALL_MOUNT = "mount -t tmpfs -o size=1m tmpfs /dev/shm"


@pytest.mark.filterwarnings("ignore")
def test_a_training_and_a_test_under_a_small_shared_memory(tmp_path: Path) -> None:
    """As in a container: `ifdd fit`, then `ifdd test`, whose batches need more than /dev/shm has."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, SMALL_MOUNT], capture_output=True).returncode
    ):
        pytest.skip("mounting a small /dev/shm in a namespace is not allowed here")
    for index in range(8):
        folder = tmp_path / f"{index:05d}"
        folder.mkdir()
        for frame in range(8):
            Image.new("RGB", (64, 64), (30 * index, 20 * frame, 0)).save(folder / f"{frame}.png")
    (tmp_path / "list.txt").write_text("".join(f"{index:05d} {index % 2}\n" for index in range(8)))
    network = {**rank_program.NETWORK, "image_size": 64}
    lists = str(tmp_path / "list.txt")
    common = ["--data", "list", "--root", str(tmp_path), "--first_label", "0", "--workers", "2"]
    common += ["--device", "cpu", "--progress", "false", "--eval_batch_size", "8"]
    training = ["fit", *common, "--train_list", lists, "--classes", "[x,y]", "--out", str(tmp_path / "run")]
    training += ["--epochs", "1", "--validation", "0.5", "--batch_size", "4", "--warmup", "none"]
    training += [f"--model.{name}={value}" for name, value in network.items()]
    testing = ["test", *common, "--test_list", lists, "--out", str(tmp_path / "tested")]
    testing += ["--checkpoint", str(tmp_path / "run/model.safetensors")]
    (tmp_path / "both.py").write_text(
        f"from ifdd.cli import main\nraise SystemExit(main({training}) or main({testing}))\n"
    )
    command = f"{SMALL_MOUNT} && exec {sys.executable} {tmp_path}/both.py"
    done = subprocess.run([*unshare, command], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "tested/scores.json").read_text())["clips"] == 8
    # Once by each command.
    assert done.stderr.count("shared memory is short (/dev/shm has 1 MiB free, 2 workers may take") == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_clips_travel_as_bytes_and_arrive_as_the_data_set_gives_them(clips: Path, workers: int) -> None:
    data = recognition_data(clips, workers)
    dataset = data.dataset("train")
    augment = ClipAugment(32)
    for epoch in (0, 1):
        # The same loader, with the same workers, in the order and with the draws of the epoch.
        data.trainer = SimpleNamespace(current_epoch=epoch)  # type: ignore[assignment]
        batches = list(data.train_dataloader())
        order = list(order_of(len(dataset), 4, 0, epoch))
        dataset.set_epoch(epoch)
        for batch, places in zip(batches, order, strict=True):
            assert batch.frames.dtype == torch.uint8
            arrived, labels = finished(batch, augment)
            for clip, label, place in zip(arrived, labels, places, strict=True):
                expected, true = dataset[place.clip]
                assert torch.equal(clip, expected)
                assert int(label) == true
    with pytest.raises(ValueError, match="the training has none"):
        finished(batches[0], None)
    held, whole = next(iter(data.val_dataloader())), data.dataset("validation")
    assert torch.equal(finished(held, None).clips[1], whole[1][0])


def order_of(size: int, batch: int, seed: int, epoch: int) -> EpochOrder:
    order = EpochOrder(size, batch, seed)
    order.epoch = epoch
    return order


def test_settings_of_lists() -> None:
    data = DataConfig(name="list", classes="a, b", path_map="x=y", short="repeat_each")
    assert data.classes == ["a", "b"]
    assert data.class_names == ("a", "b")
    assert data.path_map == ["x=y"]
    assert sampling_policy(data).short == "repeat_each"
    assert DataConfig(name="dfew", root="r", classes="ferv39k").class_names[0] == "Angry"  # type: ignore[index]
    for options, message in (
        ({"name": "list", "classes": "a"}, "data.classes must be distinct names"),
        ({"name": "list", "classes": "a,b", "path_map": "x"}, "data.path_map must be OLD=NEW, got 'x'"),
        (
            {"name": "mafw", "root": "r", "first_label": 0},
            "data.first_label is for data set list or dfew, not for mafw",
        ),
        ({"name": "folder"}, "data.root is missing: the folder that holds a folder of videos for each class"),
        ({"short": "stretch"}, "data.short must be one of"),
        ({"format": "yaml"}, "data.format must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            DataConfig(**options)  # type: ignore[arg-type]


def test_the_list_of_skipped_videos_waits_for_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "run" / "skipped.csv"
    skipped = SkippedVideos(file)
    skipped.add("train", [LeftOut(Video(tmp_path / "a,\n\udcff", 0), "missing")])
    file.parent.mkdir()
    assert skipped.summary() == f"1 video was left out, listed in {file}"
    skipped.add("train", [LeftOut(Video(tmp_path / "b", 1), "missing")], 1)
    rows = list(csv.DictReader(file.open(encoding="utf-8")))
    assert [row["path"] for row in rows] == [f"{tmp_path}/a,\\n\\xff", f"{tmp_path}/b"]
    assert [row["label"] for row in rows] == ["0", "2"], "as the list counts them"
    assert skipped.summary() == f"2 videos were left out, listed in {file}"
