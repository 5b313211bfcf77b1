"""Lists that are damaged at random: entries, or an error of one line."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from ifdd.data.datasets import ListDataset
from ifdd.data.errors import DatasetError
from ifdd.data.lists import read_dfew, read_dfew_votes, read_ferv39k, read_mafw

pytestmark = pytest.mark.filterwarnings("ignore::ifdd.data.errors.DatasetWarning")

NAMES = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")
VOTES = "1happy,2sad,3neutral,4angry,5surprise,6disgust,7fear,order,label"
LISTS = [
    "".join(f"clips/{index:05d} {index % 7}\n" for index in range(9)).encode(),
    "".join(f"/data/x y/{index:05d} 16 {index % 7}\r\n" for index in range(9)).encode(),
    ("video_name,label\n" + "".join(f'"a, {index}.mp4",{index % 7}\n' for index in range(9))).encode(),
    ("path\temotion\n" + "".join(f"é{index}.mp4\tsad\n" for index in range(9))).encode("utf-16"),
    "".join(f"f/{index} s/{index}.wav {index % 7}\n" for index in range(9)).encode(),
    "".join(f"Crime/Angry/{index:04d} Angry\n" for index in range(9)).encode(),
    "".join(f"{index:05d}.mp4\tanger\t中文\ttext\n" for index in range(9)).encode("gbk"),
    (VOTES + "\n" + "".join(f"1,2,3,4,0,0,0,{index},4\n" for index in range(9))).encode(),
]
PIECES = [
    b"\0",
    b'"',
    b"'",
    b",",
    b"\t",
    b"\n",
    b"\r",
    b"#",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"99999999999999999999",
    b" ",
]
PIECES += [b"label", b"nan", b"-1", b"1e9", b"\\", b"/", b"..", b"%s", b"{}", b"\xe2\x80\xa8", b"a" * 5000]


def mutated(numbers: random.Random) -> bytes:
    content = bytearray(numbers.choice(LISTS))
    for _ in range(numbers.randint(1, 6)):
        place, length = numbers.randrange(len(content) + 1), numbers.randint(0, 12)
        match numbers.randrange(5):
            case 0:
                content[place:place] = numbers.choice(PIECES)
            case 1:
                del content[place : place + length]
            case 2:
                content[place : place + 1] = bytes([numbers.randrange(256)])
            case 3:
                content[place:place] = content[place : place + 10 * length]
            case 4:
                del content[place:]
    return bytes(content)


def outcome(read: Callable[[Path], object], file: Path) -> str:
    """The text of the error, nothing where the list can be read; any other exception is a failure."""
    try:
        read(file)
    except DatasetError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.nightly)])
def test_damaged_lists(tmp_path: Path, count: int) -> None:
    file = tmp_path / "list.txt"
    readers: list[Callable[[Path], object]] = [read_dfew, read_ferv39k, read_mafw, read_dfew_votes]
    refused = 0
    for seed in range(count):
        file.write_bytes(mutated(random.Random(seed)))

        def as_list(path: Path, seed: int = seed) -> object:
            option = ({"format": "csv"}, {"label_column": "2"}, {"first_label": 0}, {}, {})[seed % 5]
            return ListDataset(path, NAMES, must_exist=bool(seed % 2), **option)  # type: ignore[arg-type]

        for read in (as_list, *readers):
            text = outcome(read, file)
            assert "\n" not in text
            assert text.isprintable(), text
            refused += bool(text)
    assert refused > count, "most damage is noticed by some reader"
