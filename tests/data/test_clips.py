"""Clips of videos: what they are drawn from, parts of a training set, and videos that cannot be read."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ifdd.data.datasets import DFEW, ListDataset, Video, VideoDataset
from ifdd.data.errors import DatasetError, DatasetWarning, VideoError
from ifdd.data.lists import DFEW_CLASSES, hold_out
from ifdd.training.windows import collate_windows, mean_over_windows

from .conftest import small

pytestmark = pytest.mark.filterwarnings("ignore:.*the official .* list:ifdd.data.errors.DatasetWarning")

NAMES = ("a", "b", "c")


def test_validation_part_is_stratified_disjoint_and_seeded(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path / "v", ["1.jpg"])
    labels = [0] * 40 + [1] * 10 + [2] * 2
    lines = []
    for index, label in enumerate(labels):
        (tmp_path / f"v{index}").symlink_to(tmp_path / "v")
        lines.append(f"v{index} {label}")
    (tmp_path / "list.txt").write_text("\n".join(lines))

    def part(split: str, seed: int = 0) -> VideoDataset:
        return ListDataset(tmp_path / "list.txt", NAMES, None, split, validation=0.1, seed=seed, **small())

    train, held = part("train"), part("validation")
    assert train.training
    assert not held.training
    assert held.augment is None
    assert [held.labels.count(k) for k in range(3)] == [4, 1, 1]
    assert {v.path for v in train.videos} | {v.path for v in held.videos} == {
        tmp_path / f"v{i}" for i in range(52)
    }
    assert not {v.path for v in train.videos} & {v.path for v in held.videos}
    assert part("validation").videos == held.videos != part("validation", seed=1).videos
    assert len(part("test")) == 52


def test_hold_out_never_takes_a_whole_class() -> None:
    kept, held = hold_out([0, 1, 1, 2, 2, 2], 0.9, seed=3)
    assert sorted(kept + held) == list(range(6))
    assert {0, 1, 2} == {[0, 1, 1, 2, 2, 2][i] for i in kept}
    assert len(held) == 3
    assert hold_out([0, 1], 0.0, seed=0) == ([0, 1], [])


@pytest.mark.parametrize(("part", "counts"), [(0.1, [1, 1, 1]), (0.25, [2, 1, 1]), (0.5, [3, 2, 2])])
def test_hold_out_takes_the_part_of_few_clips(part: float, counts: list[int]) -> None:
    """14 clips: a class alone cannot give a quarter of its five."""
    labels = [0] * 5 + [1] * 5 + [2] * 4
    held = hold_out(labels, part, seed=0)[1]
    assert [sum(labels[index] == label for index in held) for label in range(3)] == counts


def test_items_depend_on_seed_epoch_and_index_only(dfew: Path) -> None:
    def read(seed: int, epoch: int, order: list[int]) -> dict[int, torch.Tensor]:
        data = DFEW(dfew, clips="native", seed=seed, **small())
        data.set_epoch(epoch)
        return {index: data[index][0] for index in order}

    forward = read(0, 3, list(range(7)))
    backward = read(0, 3, list(range(6, -1, -1)))
    assert all(torch.equal(forward[i], backward[i]) for i in range(7))
    for other in (read(0, 4, [6]), read(1, 3, [6])):
        assert not torch.allclose(forward[6], other[6])
    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        DFEW(dfew, **small()).set_epoch(-1)


def test_every_index_has_its_own_draw(dfew: Path) -> None:
    videos = [DFEW(dfew, clips="native", **small()).videos[6]] * 4
    data = VideoDataset(videos, DFEW_CLASSES, training=True, **small())
    clips = [data[index][0] for index in range(4)]
    assert all(not torch.allclose(clips[0], clip) for clip in clips[1:])


def test_windows_move_between_epochs(dfew: Path) -> None:
    data = DFEW(dfew, clips="native", augment=False, **small())
    starts = set()
    for epoch in range(12):
        data.set_epoch(epoch)
        starts.add(round(float(data[6][0][:, 0].mean()), 4))
    assert len(starts) > 6


def test_workers_make_no_difference_and_see_the_epoch(dfew: Path) -> None:
    alone = DFEW(dfew, clips="native", **small())
    shared = DFEW(dfew, clips="native", **small())
    loader = DataLoader(
        shared, batch_size=3, num_workers=2, persistent_workers=True, multiprocessing_context="fork"
    )
    for epoch in (0, 1):
        alone.set_epoch(epoch)
        shared.set_epoch(epoch)
        clips = torch.cat([batch[0] for batch in loader])
        assert torch.equal(clips, torch.stack([alone[i][0] for i in range(7)]))
    del loader


def videos_with_a_broken_one(tmp_path: Path, write_folder) -> list[Video]:
    for name in ("0", "1", "2"):
        write_folder(tmp_path / name, [f"{i}.jpg" for i in range(10)], seed=int(name))
    for file in (tmp_path / "1").iterdir():
        file.write_bytes(b"broken")
    return [Video(tmp_path / str(k), k) for k in range(3)]


def test_broken_video_raises_by_default(tmp_path: Path, write_folder) -> None:
    data = VideoDataset(videos_with_a_broken_one(tmp_path, write_folder), NAMES, training=True, **small())
    with pytest.raises(VideoError, match=str(tmp_path / "1")):
        data[1]


def test_broken_video_is_skipped_on_request_in_training_only(tmp_path: Path, write_folder) -> None:
    videos = videos_with_a_broken_one(tmp_path, write_folder)
    data = VideoDataset(videos, NAMES, training=True, on_error="skip", **small())
    with pytest.warns(UserWarning, match=f"skipped a video: {tmp_path / '1'}: frame . cannot be read"):
        clip, label = data[1]
    assert label == 2
    assert clip.shape == (3, 8, 16, 16)
    assert data.skipped == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(data[1][0], clip), "one warning a video, and the same substitute again"
    assert data[0][1] == 0
    assert data.skipped == 1
    evaluation = VideoDataset(videos, NAMES, training=False, on_error="skip", **small())
    with pytest.raises(VideoError):
        evaluation[1]
    hopeless = VideoDataset(videos[1:2], NAMES, training=True, on_error="skip", **small())
    with (
        pytest.warns(UserWarning, match="skipped a video"),
        pytest.raises(VideoError, match="like all 1 videos"),
    ):
        hopeless[0]


def test_skips_in_workers_are_counted(tmp_path: Path, write_folder) -> None:
    videos = videos_with_a_broken_one(tmp_path, write_folder)
    data = VideoDataset(videos, NAMES, training=True, on_error="skip", **small())
    labels = torch.cat(
        [batch[1] for batch in DataLoader(data, num_workers=1, multiprocessing_context="fork")]
    )
    assert labels.tolist() == [0, 2, 2]
    assert data.skipped == 1


def test_no_videos(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="VideoDataset: no videos"):
        VideoDataset([], NAMES, training=True)


def test_crops(tmp_path: Path, write_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = write_folder(tmp_path / "v", [f"{i}.png" for i in range(8)], size=(32, 32))
    videos = [Video(tmp_path / "v", 0)]
    options = small(image_size=10)
    clip = VideoDataset(videos, NAMES, training=False, crop="3,4,10,10", **options)[0][0]
    assert torch.equal(
        (clip * 255).round().byte(), torch.from_numpy(frames[:, 4:14, 3:13]).permute(3, 0, 1, 2)
    )
    from ifdd.data.datasets import videos as reading
    from ifdd.data.face import CropBox

    looked = []

    def locate(path: Path) -> CropBox:
        looked.append(path)
        return CropBox(3, 4, 10, 10)

    monkeypatch.setattr(reading, "locate_face", locate)
    data = VideoDataset(videos, NAMES, training=False, crop="auto", **options)
    assert torch.equal(data[0][0], clip)
    assert torch.equal(data[0][0], clip)
    assert looked == [tmp_path / "v"], "the face is looked for once"


def test_collating_windows(dfew: Path) -> None:
    data = DFEW(dfew, split="test", clips="native", **small())
    batch = collate_windows([data[i] for i in range(3)], classes=len(data.class_names))
    assert batch.clips.shape == (12, 3, 8, 16, 16)
    assert batch.windows.tolist() == [3, 4, 5]
    logits = torch.randn(12, 7)
    mean = mean_over_windows(logits, batch.windows)
    torch.testing.assert_close(mean[1], logits[3:7].mean(0))
    assert np.array_equal(batch.labels.numpy(), [2, 3, 4])


def part_of_broken(tmp_path: Path, write_folder, split: str, on_error: str) -> ListDataset:
    for index in range(8):
        write_folder(tmp_path / str(index), [f"{i}.jpg" for i in range(10)], seed=index)
    (tmp_path / "list.txt").write_text("".join(f"{i} {i % 2}\n" for i in (*range(8), 20, 21)))
    file = tmp_path / "list.txt"
    return ListDataset(file, ("x", "y"), None, split, validation=0.5, on_error=on_error, **small())


@pytest.mark.parametrize("split", ["train", "validation"])
def test_missing_videos_are_left_out_of_both_parts(tmp_path: Path, write_folder, split: str) -> None:
    kept, held = hold_out([i % 2 for i in range(10)], 0.5, 0)
    part = kept if split == "train" else held
    missing = sum(index >= 8 for index in part)
    if missing:
        with pytest.warns(
            DatasetWarning, match=rf"{missing} of {len(part)} videos (is|are) missing and left out"
        ):
            data = part_of_broken(tmp_path, write_folder, split, "skip")
    else:
        data = part_of_broken(tmp_path, write_folder, split, "skip")
    assert data.numbers == tuple(index for index in part if index < 8), "the parts stay as they were"
    assert [left.reason for left in data.left_out] == ["missing"] * missing


def test_test_sets_do_without_nothing(tmp_path: Path, write_folder) -> None:
    with pytest.raises(
        DatasetError, match=r"2 of 10 videos are missing: .* on_error skip leaves out training"
    ):
        part_of_broken(tmp_path, write_folder, "test", "skip")
    videos = videos_with_a_broken_one(tmp_path, write_folder)
    with pytest.raises(VideoError, match="a test set without this would have another score"):
        VideoDataset(videos, NAMES, training=False, on_error="skip", **small())[1]


def test_draws_belong_to_the_video_and_not_to_those_left_out(tmp_path: Path, write_folder) -> None:
    for index in range(3):
        write_folder(tmp_path / str(index), [f"{i}.jpg" for i in range(30)], seed=index)
    videos = [Video(tmp_path / str(index), 0) for index in range(3)]
    whole = VideoDataset(videos, NAMES, training=True, **small())
    videos[0] = Video(tmp_path / "none", 0)
    with pytest.warns(DatasetWarning, match="1 of 3 videos is missing and left out"):
        rest = VideoDataset(videos, NAMES, training=True, on_error="skip", **small())
    assert torch.equal(rest[0][0], whole[1][0])
    assert torch.equal(rest[1][0], whole[2][0])
