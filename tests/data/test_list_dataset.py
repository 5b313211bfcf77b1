"""Finding the videos of lists and class folders, and saying what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from ifdd.data.datasets import FolderDataset, ListDataset
from ifdd.data.errors import DatasetError, DatasetWarning

from .conftest import small

NAMES = ("a", "b", "c")


def test_videos_are_found_however_they_are_named(tmp_path: Path, write_folder, write_video) -> None:
    write_folder(tmp_path / "videos/00007", [f"{i}.jpg" for i in range(1, 10)])
    write_video(tmp_path / "videos/00012.mp4", count=9)
    write_video(tmp_path / "videos/b.avi", count=9)
    file = tmp_path / "list.csv"
    file.write_text("video_name,label\n7,0\n12,1\nb.avi,2\n/far/away/videos/00007,1\n")
    data = ListDataset(file, NAMES, tmp_path / "videos", "test", strip_prefix="/far/away/videos", **small())
    assert [video.path.name for video in data.videos] == ["00007", "00012.mp4", "b.avi", "00007"]
    assert data.labels == [0, 1, 2, 1]
    assert data.class_names == NAMES
    assert all(data[i][0].shape == (3, 8, 16, 16) for i in range(4))
    (tmp_path / "videos/list.txt").write_text("00007 9 2\n")
    assert ListDataset(tmp_path / "videos/list.txt", NAMES, first_label=0, **small())[0][1] == 2
    with pytest.raises(DatasetError, match=r"list.csv: 3 of 4 videos are missing"):
        ListDataset(file, NAMES, **small(), strip_prefix="/far/away/")


def listed(tmp_path: Path, lines: str, **options) -> list[str]:
    (tmp_path / "list.txt").write_text(lines)
    data = ListDataset(tmp_path / "list.txt", NAMES, tmp_path / "d", **options, **small())
    return [str(video.path.relative_to(tmp_path)) for video in data.videos]


def test_spellings(tmp_path: Path) -> None:
    for name in ("d/a/clip 2", "d/a/x.webm", "d/a/y", "d/Smith, John"):
        (tmp_path / name).mkdir(parents=True)
    assert listed(tmp_path, "a\\clip 2 0\n") == ["d/a/clip 2"], "a blank in the name, no number of frames"
    assert listed(tmp_path, "a/x 0\na\\y.mp4 1\n") == ["d/a/x.webm", "d/a/y"]
    assert listed(tmp_path, "Smith, John,0\n") == ["d/Smith, John"]
    assert listed(tmp_path, "label,x,path\n0,1,Smith, John\n") == ["d/Smith, John"]


def test_folders_of_another_machine(tmp_path: Path) -> None:
    (tmp_path / "d/a/x").mkdir(parents=True)
    for lines, option in (
        ("/home/me/set/a/x 0\n", {"strip_prefix": "/home/me/set"}),
        ("/home/me/set/a/x 0\n", {"strip_prefix": "/home/me/set/"}),
        ("D:\\data\\set\\a\\x 0\n", {"strip_prefix": "D:\\data\\set"}),
        ("D:\\data\\set\\a\\x 0\n", {"path_map": "D:/data/set="}),
        ("/home/me/set/a/x 0\n", {"path_map": f"/home/me/set={tmp_path}/d"}),
        ("/home/me/set/x 0\n", {"path_map": ["/home/you=/nowhere", "/home/me/set=a"]}),
    ):
        assert listed(tmp_path, lines, **option) == ["d/a/x"]
    with pytest.raises(DatasetError, match="1 of 1 video is missing"):
        listed(tmp_path, "/home/me/settled/a/x 0\n", path_map="/home/me/set=")
    with pytest.raises(ValueError, match="path_map must be OLD=NEW, got '/home'"):
        listed(tmp_path, "x 0\n", path_map="/home")


def test_the_error_says_how_missing_videos_would_be_found(tmp_path: Path) -> None:
    for name in ("d/a/x", "d/a/y"):
        (tmp_path / name).mkdir(parents=True)
    lines = "/home/me/a/x 0\n/home/me/a/y 1\n/home/me/a/z 2\n"
    with pytest.raises(DatasetError) as info:
        listed(tmp_path, lines)
    assert str(info.value) == (
        f"{tmp_path / 'list.txt'}: 3 of 3 videos are missing: /home/me/a/x, /home/me/a/y, /home/me/a/z; "
        "2 of 3 are found with --strip_prefix /home/me/; `ifdd check` also finds those that cannot be read"
    )
    with pytest.raises(DatasetError, match="1 of 3 videos is missing"):
        listed(tmp_path, lines, strip_prefix="/home/me/")
    with pytest.raises(
        DatasetError, match="--strip_prefix /home/you is the beginning of none of their names"
    ):
        listed(tmp_path, lines, strip_prefix="/home/you")
    with pytest.raises(
        DatasetError, match=r"2 of 2 are found below .*/d without their first 2 folders: --path_map u/"
    ):
        listed(tmp_path, "u/v/a/x 0\nu/w/a/y 1\n")
    with pytest.raises(DatasetError, match=rf"1 of 1 are found with --root {tmp_path}"):
        listed(tmp_path, "d/a/../../list.txt 0\n".replace("d/a/../../", ""))


def test_the_advice_is_what_finds_most_and_loses_none(tmp_path: Path) -> None:
    """A folder too deep is the commonest mistake; cutting names off would find the videos of one class."""
    names = [f"{name}/{number}" for name in NAMES for number in range(3)]
    for name in names:
        (tmp_path / "videos" / name).mkdir(parents=True)
    lines = "".join(f"{name} {NAMES.index(name[0])}\n" for name in names)
    (tmp_path / "list.txt").write_text(lines)
    advice = rf"; 9 of 9 are found with --root {tmp_path / 'videos'}; `ifdd check`"
    for root in ("videos/a", "videos/a/0"):
        with pytest.raises(DatasetError, match=advice):
            ListDataset(tmp_path / "list.txt", NAMES, tmp_path / root, **small())
    (tmp_path / "videos/list.txt").write_text(lines + "a/x/9 0\n")
    # Only "a/9" is missing "x/", and what finds it would lose the others.
    (tmp_path / "videos/x/9").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"1 of 10 videos is missing: [^;]*; `ifdd check`"):
        ListDataset(tmp_path / "videos/list.txt", NAMES, **small())
    # The beginning of a list is often of one class, and says nothing about the rest.
    for number in range(3):
        (tmp_path / "only" / str(number)).mkdir(parents=True)
    (tmp_path / "list.txt").write_text("".join(f"b/{n % 3} 0\n" for n in range(200)) + "c/9 0\n" * 300)
    with pytest.raises(DatasetError, match=r"missing: [^;]*; `ifdd check`"):
        ListDataset(tmp_path / "list.txt", NAMES, tmp_path / "only", **small(), first_label=0)


def test_names_that_no_file_system_takes_are_missing(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(DatasetError, match="2 of 2 videos are missing"):
        listed(tmp_path, f"{'x' * 5000} 0\n/ 1\n".replace("/ 1", "no/such 1"))


def test_folders_of_classes(tmp_path: Path, write_folder, write_video) -> None:
    for name in ("sad/p1/2", "happy/1"):
        write_folder(tmp_path / name, [f"{i}.jpg" for i in range(9)])
    write_video(tmp_path / "sad/b.mp4", count=9)
    (tmp_path / "happy/notes.txt").touch()
    (tmp_path / ".cache").mkdir()
    data = FolderDataset(tmp_path, **small())
    assert data.class_names == ("happy", "sad")
    assert [str(v.path.relative_to(tmp_path)) for v in data.videos] == ["happy/1", "sad/b.mp4", "sad/p1/2"]
    assert data.labels == [0, 1, 1]
    assert data[1][0].shape == (3, 8, 16, 16)
    assert FolderDataset(tmp_path, class_names=("sad", "happy"), **small()).labels == [0, 0, 1]
    with pytest.warns(DatasetWarning, match="both splits are all of its videos"):
        assert len(FolderDataset(tmp_path, "test", **small())) == 3
    with pytest.raises(DatasetError, match="folder 'sad' is none of the classes happy, angry"):
        FolderDataset(tmp_path, class_names=("happy", "angry"), **small())


@pytest.mark.parametrize("names", [None, ("happy", "sad")])
def test_a_folder_without_folders_of_classes(tmp_path: Path, names: tuple[str, ...] | None) -> None:
    def says() -> str:
        with pytest.raises(DatasetError) as info:
            FolderDataset(tmp_path, "test", class_names=names, **small())
        return str(info.value).removeprefix(f"{tmp_path}: expected a folder of videos for each class, found ")

    assert says() == "0 folders, it is empty"
    (tmp_path / "a.mp4").touch()
    assert says() == "0 folders and 1 video: is the folder above meant?"


def test_folders_of_classes_in_two_parts(tmp_path: Path, write_folder) -> None:
    for name in ("train/a/1", "train/b/2", "test/b/3"):
        write_folder(tmp_path / name, ["1.jpg"])
    assert FolderDataset(tmp_path, **small()).labels == [0, 1]
    with pytest.warns(DatasetWarning, match="test: no test video of a"):
        assert FolderDataset(tmp_path, "test", **small()).labels == [1]


@pytest.mark.parametrize("names", [("train", "val"), ("Train", "Test"), ("train",)])
def test_parts_by_other_names_are_no_classes(tmp_path: Path, write_folder, names: tuple[str, ...]) -> None:
    for name in names:
        write_folder(tmp_path / name / "a" / "1", ["1.jpg"])
    with pytest.raises(
        DatasetError, match=rf"folders {', '.join(sorted(names))}; the two parts are called train"
    ):
        FolderDataset(tmp_path, class_names=("a", "b"))


def test_the_folder_of_one_class_is_not_the_data_set(tmp_path: Path) -> None:
    for name in ("1.mp4", "2.mp4"):
        (tmp_path / name).touch()
    with pytest.raises(DatasetError, match="found 0 folders and 2 videos: is the folder above meant"):
        FolderDataset(tmp_path)


def test_cover_pictures_do_not_make_a_folder_a_video(tmp_path: Path) -> None:
    for name in ("a/p/1.mp4", "a/p/2.mp4", "a/p/cover.jpg", "b/3.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    data = FolderDataset(tmp_path)
    assert [video.path.name for video in data.videos] == ["1.mp4", "2.mp4", "3.mp4"]


def test_folders_without_videos(tmp_path: Path, write_folder) -> None:
    with pytest.raises(DatasetError, match="expected a folder of videos for each class, found 0"):
        FolderDataset(tmp_path)
    write_folder(tmp_path / "a", ["1.jpg"])
    (tmp_path / "b").mkdir()
    with pytest.raises(
        DatasetError, match=r"found 0 folders \(.*/a: images, and no folder of .*/b: no video in"
    ):
        FolderDataset(tmp_path)
    with pytest.raises(DatasetError, match=r"no videos of a, b; .*/a: images, and no folder of frames"):
        FolderDataset(tmp_path, class_names=("a", "b"))


def test_a_folder_without_videos_is_no_class_unless_it_is_named(tmp_path: Path) -> None:
    for name in ("angry/1.mp4", "happy/2.mp4", "notes/read.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.warns(DatasetWarning, match=r"/notes: no video in it, so it is not a class and is left out"):
        assert FolderDataset(tmp_path).class_names == ("angry", "happy")
    with pytest.warns(DatasetWarning, match=r": no training video of notes$") as said:
        named = FolderDataset(tmp_path, class_names=("angry", "happy", "notes"))
    assert len(said) == 1
    assert (named.labels, named.missing_classes) == ([0, 1], ("notes",))


def test_folders_of_classes_in_any_case(tmp_path: Path) -> None:
    for name in ("train/Angry/1.mp4", "train/HAPPY/2.mp4", "test/angry/3.mp4", "test/happy/4.mp4"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    data = FolderDataset(tmp_path, "test", class_names=("happy", "angry"))
    assert [(video.path.name, video.label) for video in data.videos] == [("4.mp4", 0), ("3.mp4", 1)]
    assert FolderDataset(tmp_path, "test").class_names == ("Angry", "HAPPY"), "as the training part has them"
    assert FolderDataset(tmp_path, "test").labels == [0, 1]
    (tmp_path / "test/Happy").mkdir()
    with pytest.raises(DatasetError, match="folders 'Happy' and 'happy' differ in case only"):
        FolderDataset(tmp_path)


def test_a_list_without_a_video_of_a_class(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/x").touch()
    with pytest.warns(DatasetWarning, match="list.txt: no training video of b, c$"):
        listed(tmp_path, "x 0\n")
