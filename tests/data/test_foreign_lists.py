"""Lists of other projects: columns, separators, headers, encodings and the numbering of labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from ifdd.data.errors import DatasetError
from ifdd.data.foreign_lists import read_list, read_listing
from ifdd.data.labels import class_list

NAMES = ("a", "b", "c")


def names_and_labels(file: Path, *arguments, **options) -> list[tuple[str, int]]:
    return [(entry.name, entry.label) for entry in read_list(file, *arguments, **options)]


@pytest.mark.parametrize(
    ("content", "format", "expected"),
    [
        ("x/clip 1 2\ny/2 0\n", "auto", [("x/clip 1", 2), ("y/2", 0)]),
        ("x/1 16 2\r\ny/2 9 0\r\n", "auto", [("x/1", 2), ("y/2", 0)]),
        ("x/1 16 2\ny/2 9 0\n", "folder_label", [("x/1 16", 2), ("y/2 9", 0)]),
        ("x/1\t16\t2\ny\t9\t0\n", "folder_count_label", [("x/1", 2), ("y", 0)]),
        ("x y/1\t16\t2\ny\t9\t0\n", "auto", [("x y/1", 2), ("y", 0)]),
        ("video_name,label\n00001,2\n2,b\n3,0", "auto", [("00001", 2), ("2", 1), ("3", 0)]),
        ("00001,2\n00002,0\n", "csv", [("00001", 2), ("00002", 0)]),
        ("\n# made by hand\n\nx 0\n  \n#y 1\nz 2\n", "auto", [("x", 0), ("z", 2)]),
        ('"#1, a.mp4",0\n"say ""hi"".mp4",1\n"two\nlines.mp4",2\n', "auto", None),
        ("Smith, John/1 0\nSmith, John/2 1\n", "auto", [("Smith, John/1", 0), ("Smith, John/2", 1)]),
        ("Smith, John/1,0\nx,1\n", "auto", [("Smith, John/1", 0), ("x", 1)]),
        ("path;emotion\nx y;C\nz;a\n", "auto", [("x y", 2), ("z", 0)]),
        ("x|0\ny z|2\n", "auto", [("x", 0), ("y z", 2)]),
        ("sep=;\nx;0\ny;2\n", "auto", [("x", 0), ("y", 2)]),
        ("x,0,,\ny,2,,\n,,,\n", "auto", [("x", 0), ("y", 2)]),
        (",video_name,label\n0,x,1\n1,y,0\n", "auto", [("x", 1), ("y", 0)]),
        ("label,frames,path\n0,16,x, y\n1,16,z\n", "auto", [("x,y", 0), ("z", 1)]),
        ("x 1.0\ny 0.0\n", "auto", [("x", 1), ("y", 0)]),
        ("clip\tgt\nx\t1\ny\t0\n", "auto", [("x", 1), ("y", 0)]),
        ("'a b.mp4' 0\n\"c d.mp4\" 1\n", "auto", [("a b.mp4", 0), ("c d.mp4", 1)]),
        ("f/1 s/1.wav 0\nf/2 s/2.WAV 1\n", "auto", [("f/1", 0), ("f/2", 1)]),
        ("s/1.wav,f/1,0\ns/2.wav,f/2,1\n", "auto", [("f/1", 0), ("f/2", 1)]),
        ("x\r0\ry 1".replace("\r0", " 0"), "auto", [("x", 0), ("y", 1)]),
    ],
)
def test_forms(tmp_path: Path, content: str, format: str, expected: list | None) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(content.encode())
    expected = expected or [("#1, a.mp4", 0), ('say "hi".mp4', 1), ("two\nlines.mp4", 2)]
    assert names_and_labels(file, NAMES, format) == expected


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "list.csv"
    file.write_bytes("video_name,label\r\nSofía 笑,b\r\n".encode(encoding))
    assert names_and_labels(file, NAMES) == [("Sofía 笑", 1)]


def test_names_that_are_not_utf8_keep_their_bytes(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_bytes(b"Sof\xeda,b\n")
    assert names_and_labels(file, NAMES) == [("Sof\udceda", 1)]


def test_labels_of_several_words(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("x y Very Happy\nz sad\n")
    assert names_and_labels(file, ("Sad", "very happy")) == [("x y", 1), ("z", 0)]


def test_classes_that_are_called_numbers(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("x 2\ny 3\n")
    assert names_and_labels(file, ("1", "2", "3")) == [("x", 1), ("y", 2)]


def test_columns_can_be_chosen(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text("label,valence,file\n9,0,x\n9,1,y\n")
    assert names_and_labels(file, NAMES, label_column="valence", path_column="file") == [("x", 0), ("y", 1)]
    assert names_and_labels(file, NAMES, label_column="2", path_column="-1") == [("x", 0), ("y", 1)]
    with pytest.raises(DatasetError, match="--label_column mood: the list has columns label, valence, file"):
        read_list(file, NAMES, label_column="mood")
    file.write_text("0 x\n1 y\n")
    assert names_and_labels(file, NAMES, label_column="1") == [("x", 0), ("y", 1)]
    with pytest.raises(DatasetError, match="--label_column 3: the list has 2 columns and no header"):
        read_list(file, NAMES, label_column="3")


@pytest.mark.parametrize(
    ("content", "format", "message"),
    [
        ("", "auto", "the list is empty"),
        ("# x 0\n\n", "auto", "the list is empty"),
        ("video_name,label\n", "csv", "the list is empty but for its header"),
        (
            "nonsense\n",
            "auto",
            r"line 1: expected a path and a label, separated by a space or a comma; got 'nonsense'",
        ),
        ("x 0\ny 3\n", "auto", r"line 2: label 3 is not in 0\.\.2"),
        ("x -1\ny 2\n", "auto", r"line 1: label -1 is not in 0\.\.2"),
        (
            "x 0\n\ny\n",
            "auto",
            "line 3: expected a path and a label, separated by a space or a comma; got 'y'",
        ),
        ("x 0\ny d\n", "auto", "line 2: label 'd' is none of a, b, c"),
        ("x,a\ny,\n", "auto", "line 2: the label is empty"),
        ("x 1\n", "folder_count_label", "line 1: expected a path, a number of frames and a label; got 'x 1'"),
        ('"x,0\ny,1\n', "csv", "line 1: a quote that opens here is never closed"),
        ('x,0\n"y"z,1\n', "csv", "line 2: text after a closing quote"),
        ("x\0y 0\n", "auto", "no text file: a list is a text or CSV file"),
        ("PK\x03\x04\0\0", "auto", "an Excel workbook or another archive"),
        ("x 1\ny 2\n", "auto", "labels 1 to 2 for 3 classes: neither 0 nor 3 occurs, .* with --first_label"),
    ],
)
def test_errors_name_line_and_value(tmp_path: Path, content: str, format: str, message: str) -> None:
    file = tmp_path / "list.txt"
    file.write_text(content)
    with pytest.raises(DatasetError, match=message) as info:
        read_list(file, NAMES, format)
    assert str(file) in str(info.value)
    assert "\n" not in str(info.value)


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "video.mp4").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DatasetError, match=r"video.mp4: too large for a list"):
        read_list(tmp_path / "video.mp4", NAMES)


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"format must be one of auto, .* got 'yaml'"):
        read_list(tmp_path, NAMES, "yaml")
    with pytest.raises(ValueError, match=r"first_label must be 0, 1 or 'auto', got 2"):
        read_list(tmp_path, NAMES, first_label=2)


def test_numbers_are_never_shifted_in_silence(tmp_path: Path) -> None:
    file, other = tmp_path / "list.txt", tmp_path / "other.txt"
    file.write_text("x 1\ny 3\n")
    listing = read_listing(file, NAMES)
    assert [entry.label for entry in listing.entries] == [0, 2]
    assert listing.remarks == [f"{file}: labels count from 1: 1 is a, 3 is c"]
    file.write_text("x 1\ny 2\n")
    assert names_and_labels(file, NAMES, first_label=0) == [("x", 1), ("y", 2)]
    assert names_and_labels(file, NAMES, first_label=1) == [("x", 0), ("y", 1)]
    with pytest.raises(DatasetError, match="may count from 0 or from 1"):
        read_list(file, NAMES)
    # The other list of the data set knows more.
    for content, labels in (("z 0\n", [1, 2]), ("z 3\n", [0, 1])):
        other.write_text(content)
        assert [entry.label for entry in read_listing(file, NAMES, companions=[other]).entries] == labels
    file.write_text("x 0\ny 3\n")
    with pytest.raises(DatasetError, match=r"line 2: label 3 is not in 0\.\.2"):
        read_list(file, NAMES)


def test_remarks(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    for content, remark in (
        ("# x\nx 0\n", "1 line that begins with # is left out"),
        ("f s.wav 0\n", "lines name frames and sound: the sound is left aside"),
        ("x,y,0\n", "of 3 columns, the first is taken for the path and the last for the label"),
    ):
        file.write_text(content)
        assert read_listing(file, NAMES).remarks == [f"{file}: {remark}"]


def test_class_lists() -> None:
    assert class_list("a, b ,c") == NAMES
    assert class_list(["a,1", "b"]) == ("a,1", "b")
    assert class_list("DFEW")[:2] == ("Happy", "Sad")
    for wrong in ("a", "a,,b", "a,b,A", ""):
        with pytest.raises(ValueError, match="must be distinct names separated by commas, or one of dfew"):
            class_list(wrong)
