"""DFEW, FERV39k and MAFW, on tiny trees of the same shape."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ifdd.data.datasets import DFEW, MAFW, FERV39k
from ifdd.data.datasets.official import CLIPS
from ifdd.data.errors import DatasetError, DatasetWarning
from ifdd.data.lists import (
    DFEW_CLASSES,
    FERV39K_CLASSES,
    MAFW_CLASSES,
    Entry,
    read_dfew,
    read_ferv39k,
    read_mafw,
)
from ifdd.data.transforms import ClipAugment

from .conftest import small

pytestmark = pytest.mark.filterwarnings("ignore:.*the official .* list:ifdd.data.errors.DatasetWarning")


def test_dfew_training(dfew: Path) -> None:
    data = DFEW(dfew, fold=2, **small())
    assert len(data) == 7
    assert data.class_names == DFEW_CLASSES
    assert data.labels == list(range(7))
    for index in range(7):
        clip, label = data[index]
        assert clip.shape == (3, 8, 16, 16)
        assert clip.dtype == torch.float32
        assert label == index
        assert clip.min() >= 0
        assert clip.max() <= 1
        assert clip.std() > 0.01
    assert data.videos[1].path.name == "00012"
    assert isinstance(data[0][1], int)
    assert torch.equal(data[-1][0], data[6][0])
    with pytest.raises(IndexError):
        data[7]


def test_dfew_test_set_is_fixed(dfew: Path) -> None:
    data = DFEW(dfew, split="test", **small(clip_frames=16))
    assert data.labels == [2, 3, 4]
    assert data.augment is None
    first = data[0][0]
    data.set_epoch(5)
    assert torch.equal(data[0][0], first)
    assert first.shape == (3, 16, 16, 16)
    # The frames in time order: brightness rises from frame to frame.
    assert (first.mean((0, 2, 3)).diff() > 0).all()


def test_dfew_native_clips_give_all_windows(dfew: Path) -> None:
    data = DFEW(dfew, split="test", clips="native", **small())
    # 11 + 9 k frames for k = 2, 3, 4: 29, 38, 47, so 3, 4 and 5 whole windows of 8.
    assert [tuple(data[i][0].shape) for i in range(3)] == [(w, 3, 8, 16, 16) for w in (3, 4, 5)]
    windows = data[0][0]
    levels = windows.mean((1, 3, 4)).flatten()
    assert (levels.diff() > 0).all(), "windows are consecutive, frames in order"
    single = DFEW(dfew, split="test", clips="native", sampling="centre", **small())
    assert single[0][0].shape == (3, 8, 16, 16)
    dense = DFEW(dfew, split="test", clips="native", sampling="dense", stride=2, views=2, **small())
    assert dense[0][0].shape == (2, 3, 8, 16, 16)
    assert torch.equal(dense[0][0][0, :, :4], windows[0, :, ::2])


def test_dfew_original_videos(dfew: Path) -> None:
    data = DFEW(dfew, split="test", clips="original", **small())
    assert data.videos[0].path.name == "345.mp4"
    assert data[0][0].shape == (1, 3, 8, 16, 16)


def test_dfew_short_video_repeats_its_last_frame(dfew: Path) -> None:
    data = DFEW(dfew, clips="native", augment=False, **small(clip_frames=16))
    clip = data[0][0]  # 11 frames
    assert (clip[:, 10:] == clip[:, 10:11]).all()
    assert not torch.equal(clip[:, 9], clip[:, 10])


def test_dfew_soft_labels(dfew: Path) -> None:
    data = DFEW(dfew, soft_labels=True, **small())
    expected = torch.zeros(7)
    expected[2], expected[3] = 0.7, 0.3
    torch.testing.assert_close(data[2][1], expected)
    names = tuple(reversed(DFEW_CLASSES))
    turned = DFEW(dfew, soft_labels=True, class_names=names, **small())
    torch.testing.assert_close(turned[2][1], expected.flip(0))
    assert turned.labels == list(range(6, -1, -1))
    assert turned.class_names == names


def test_dfew_other_folder_names_headers_and_line_ends(dfew: Path, tmp_path: Path) -> None:
    (tmp_path / "Clip").symlink_to(dfew / "Clip")
    folder = tmp_path / "EmoLabel_DataSplit" / "train_single-labeled"
    folder.mkdir(parents=True)
    (folder / "set_1.csv").write_bytes(b"\xef\xbb\xbf00001,1\r\n00012,0\r\n\r\n16372,7\r\n")
    with pytest.warns(DatasetWarning, match=r"1 clips without a single emotion \(label 0\) are left out"):
        data = DFEW(tmp_path, **small())
    assert data.labels == [0, 6]
    assert data.dropped == 1
    (folder / "set_1.csv").write_text("video_name\tlabel\n1.mp4\t0\n345.mp4\t6\n")
    assert DFEW(tmp_path, first_label=0, **small()).labels == [0, 6]


def test_labels_that_count_from_zero_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "set_1.csv").write_text("1,0\n2,6\n3,3\n")
    with pytest.raises(DatasetError, match=r"set_1.csv: labels 0 to 6 and none of 7.* --first_label 0"):
        read_dfew(tmp_path / "set_1.csv")


def test_missing_videos_are_reported_at_once(dfew: Path, tmp_path: Path) -> None:
    (tmp_path / "Clip").symlink_to(dfew / "Clip")
    folder = tmp_path / "train(single-labeled)"
    folder.mkdir()
    rows = [f"{number},{1 + number % 7}" for number in range(1, 10)]
    (folder / "set_3.csv").write_text("video_name,label\n" + "\n".join(rows))
    with pytest.raises(DatasetError) as info:
        DFEW(tmp_path, fold=3, **small())
    message = str(info.value)
    assert "DFEW: 8 of 9 videos are missing: " in message
    assert "\n" not in message
    assert all(f"{number:05d}" in message for number in (2, 3, 4, 5, 6))
    assert "00007" not in message
    assert message.endswith(", ...; `ifdd check` also finds those that cannot be read")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fold": 6}, "fold must be 1 to 5, got 6"),
        ({"split": "val"}, "split must be 'train', 'validation' or 'test', got 'val'"),
        ({"clips": "8f"}, "clips must be '16f', 'native' or 'original', got '8f'"),
        ({"class_names": DFEW_CLASSES[:6]}, "class_names must be Happy, .* in some order, got"),
        ({"split": "validation"}, "split 'validation' needs a part of the training set, got validation=0.0"),
        ({"validation": 1.0}, "validation must be at least 0 and below 1, got 1.0"),
        ({"sampling": "middle"}, "sampling must be one of"),
        ({"split": "test", "sampling": "random"}, "'random' would make the score vary"),
        ({"on_error": "ignore"}, "on_error must be 'raise' or 'skip', got 'ignore'"),
        ({"seed": -1}, "seed must be at least 0 .* got -1 and 224"),
        ({"augment": ClipAugment(32), "image_size": 16}, "augment makes clips of 32, image_size is 16"),
        ({"crop": "left"}, "crop must be 'auto' or four integers"),
    ],
)
def test_bad_arguments_are_named(dfew: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DFEW(dfew, **arguments)


def test_missing_folders_and_lists_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere: no such folder"):
        FERV39k(tmp_path / "nowhere")
    with pytest.raises(
        DatasetError, match=r"found none of EmoLabel_DataSplit/train\(single-labeled\)/set_4.csv, "
    ):
        DFEW(tmp_path, fold=4)
    with pytest.raises(DatasetError, match=r"found none of 4_setups/All_scenes/test_All.csv"):
        FERV39k(tmp_path, "test")
    with pytest.raises(
        DatasetError, match=r"found none of Train & Test Set/single/no_caption/set_2/train.txt"
    ):
        MAFW(tmp_path, 2)


def test_dfew_annotation_errors(dfew: Path, tmp_path: Path) -> None:
    for name in ("Clip", "EmoLabel_DataSplit"):
        (tmp_path / name).symlink_to(dfew / name)
    with pytest.raises(DatasetError, match=r"found none of Annotation/annotation.csv"):
        DFEW(tmp_path, soft_labels=True)
    header = "1happy,2sad,3neutral,4angry,5surprise,6disgust,7fear,order,label"
    file = tmp_path / "annotation.csv"
    for content, message in (
        ("", r"columns .* are missing"),
        ("1happy,order\n1,2", r"columns \['2sad', .*'7fear'\] are missing"),
        (f"{header}\n1,2,x,0,0,0,0,3,1", "line 2: expected numbers in 9 columns"),
        (f"{header}\n1,2,3", "line 2: expected numbers in 9 columns"),
        (f"{header}\n0,0,0,0,0,0,0,3,1", "line 2: clip 3 has no votes"),
        (f"{header}\n0,0,0,0,0,0,10,3,7", "clip 1 has no votes in the annotation"),
    ):
        file.write_text(content)
        with pytest.raises(DatasetError, match=message):
            DFEW(tmp_path, soft_labels=True)


@pytest.fixture(scope="session")
def ferv39k(tmp_path_factory: pytest.TempPathFactory, write_folder) -> Path:
    root = tmp_path_factory.mktemp("FERV39k")
    rows = []
    for k, emotion in enumerate(("Sad", "Angry", "Surprise", "Happy")):
        name = f"Daily Life/{emotion}/{63 + k:04d}" if k == 0 else f"Crime/{emotion}/{63 + k:04d}"
        write_folder(root / "2_ClipsforFaceCrop" / name, [f"{i:03d}.jpg" for i in range(5 + 3 * k)], seed=k)
        rows.append(f"{name} {emotion}")
    (root / "4_setups/All_scenes").mkdir(parents=True)
    (root / "4_setups/All_scenes/train_All.csv").write_text("\n".join(rows) + "\n")
    (root / "4_setups/All_scenes/test_All.csv").write_text("\r\n".join(rows[:2]) + "\r\n")
    return root


def test_ferv39k(ferv39k: Path) -> None:
    data = FERV39k(ferv39k, **small())
    assert data.class_names == FERV39K_CLASSES
    assert data.labels == [5, 0, 6, 3]
    assert data[0][0].shape == (3, 8, 16, 16)
    test = FERV39k(ferv39k, "test", class_names=DFEW_CLASSES, **small())
    assert test.labels == [1, 3]
    assert test.class_names == DFEW_CLASSES
    # 5 frames to 8: the last three twice.
    clip = test[0][0]
    assert [bool(torch.equal(clip[:, t], clip[:, t + 1])) for t in range(7)] == [0, 0, 1, 0, 1, 0, 1]


@pytest.fixture(scope="session")
def mafw(tmp_path_factory: pytest.TempPathFactory, write_folder, write_video) -> Path:
    root = tmp_path_factory.mktemp("MAFW")
    captioned = []
    plain = []
    for k, emotion in enumerate(("anger", "helplessness", "disappointment", "contempt", "anger")):
        name = f"{3747 + k:05d}"
        write_folder(root / "data/frames" / name, [f"{name}_{i}.png" for i in range(1, 21)], seed=k)
        (root / "data/clips").mkdir(exist_ok=True)
        write_video(root / "data/clips" / f"{name}.mp4", count=9)
        plain.append(f"{name}.mp4 {emotion}".encode())
        # GB18030 text with bytes that look like line ends to text tools, and no UTF-8.
        caption = "一个女人皱着眉头".encode("gb18030") + b"\x85\x0b\x1c"
        captioned.append(f"{name}.mp4\t{emotion}\t".encode() + caption + b"\tA woman frowns.")
    for kind, rows in (("no_caption", plain), ("with_caption", captioned)):
        folder = root / "Train & Test Set/single" / kind / "set_1"
        folder.mkdir(parents=True)
        (folder / "train.txt").write_bytes(b"\r\n".join(rows) + b"\r\n")
        (folder / "test.txt").write_bytes(b"\r\n".join(rows[1:3]) + b"\r\n")
    return root


def test_mafw(mafw: Path, tmp_path: Path) -> None:
    data = MAFW(mafw)
    assert data.class_names == MAFW_CLASSES
    assert len(data.class_names) == 11
    assert data.labels == [0, 9, 10, 7, 0]
    assert (data.sampling.frames, data.sampling.stride, data.sampling.short) == (32, 2, "repeat_each")
    clip, label = MAFW(mafw, split="test", image_size=16)[0]
    assert clip.shape == (3, 32, 16, 16)
    assert label == 9
    # 20 frames to 64: three times each, the last four once more; every other one of those is taken.
    steps = (clip.mean((0, 2, 3)).diff() > 0).sum()
    assert steps == 19
    original = MAFW(mafw, clips="original", **small(stride=1))
    assert original.videos[0].path == mafw / "data/clips/03747.mp4"
    assert original[0][0].shape == (3, 8, 16, 16)
    # The other layout: label/, frames/, and lists with captions only.
    (tmp_path / "frames").symlink_to(mafw / "data/frames")
    (tmp_path / "label/with_caption").mkdir(parents=True)
    (tmp_path / "label/with_caption/set_1").symlink_to(mafw / "Train & Test Set/single/with_caption/set_1")
    assert MAFW(tmp_path, **small()).labels == data.labels
    with pytest.raises(ValueError, match="clips must be 'frames' or 'original'"):
        MAFW(mafw, clips="16f")


@pytest.mark.parametrize("captions", ["no_caption", "with_caption"])
def test_mafw_lists(mafw: Path, captions: str) -> None:
    entries = read_mafw(mafw / "Train & Test Set/single" / captions / "set_1/train.txt")
    assert entries[0] == Entry("03747.mp4", 0)
    assert [entry.label for entry in entries] == [0, 9, 10, 7, 0]


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_dfew, b"video_name,label\n", "the list is empty"),
        (read_dfew, b"1,1\n2,8\n", "line 2: label 8 is not in 1..7"),
        (read_dfew, b"1,1\n2\n", "line 2: expected `video_name,label`"),
        (read_dfew, b"1,1\n2,Sad\n", "line 2: expected `video_name,label`"),
        (read_ferv39k, b"Crime/Angry/0063\n", "line 1: expected `scene/emotion/number emotion`"),
        (
            read_ferv39k,
            b"Crime/Angry/0063 Angry\n\nCrime/Angry/0064 Cross\n",
            "line 3: label 'Cross' is none of Angry",
        ),
        (read_ferv39k, b"Crime/\xff\xfe/0063 Angry\n", "line 1: not UTF-8"),
        (read_ferv39k, b"\n", "the list is empty"),
        (read_mafw, b"00001.mp4\n", "line 1: expected `name emotion`"),
        (read_mafw, b"00001.mp4 bored\n", "line 1: label 'bored' is none of anger"),
    ],
)
def test_bad_lists_are_named(tmp_path: Path, read, content: bytes, message: str) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=message) as info:
        read(file)
    assert str(file) in str(info.value)


def test_unreadable_list(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none.csv: cannot read the list \(No such file"):
        read_dfew(tmp_path / "none.csv")


def test_clip_names_must_be_numbers(dfew: Path, tmp_path: Path) -> None:
    (tmp_path / "Clip").symlink_to(dfew / "Clip")
    (tmp_path / "train(single-labeled)").mkdir()
    (tmp_path / "train(single-labeled)/set_1.csv").write_text("video_name,label\nabc,3\n")
    with pytest.raises(DatasetError, match=r"clip names are numbers, got 'abc'"):
        DFEW(tmp_path)


def test_labels_are_what_they_are_said_to_be(tmp_path: Path) -> None:
    file = tmp_path / "set_1.csv"
    file.write_text("1,0\n2,6\n3,3\n")
    assert [entry.label for entry in read_dfew(file, 0).entries] == [0, 6, 3]
    listed = read_dfew(file, 1)
    assert [entry.label for entry in listed.entries] == [5, 2]
    assert listed.dropped == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig"])
def test_benchmark_lists_of_other_programs(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "list.csv"
    file.write_bytes('"video_name";"label"\r\n"00001";"7"\r\n'.encode(encoding))
    assert read_dfew(file).entries == [Entry("00001", 6)]
    file.write_bytes("Crime/Angry/0063,Angry\r\n".encode(encoding))
    assert read_ferv39k(file) == [Entry("Crime/Angry/0063", 0)]


def test_a_subset_of_the_official_clips_is_told(dfew: Path) -> None:
    with pytest.warns(
        DatasetWarning, match=r"set_2.csv: 3 clips, the official test list of DFEW fold 2 holds 2341"
    ):
        data = DFEW(dfew, 2, "test", **small())
    assert len(data.remarks) == 1


def test_official_numbers_add_up() -> None:
    assert {train + test for train, test in zip(*CLIPS["DFEW"].values(), strict=True)} == {11697}
    assert {train + test for train, test in zip(*CLIPS["MAFW"].values(), strict=True)} == {9172}
    assert CLIPS["FERV39k"] == {"train": (31088,), "test": (7847,)}
