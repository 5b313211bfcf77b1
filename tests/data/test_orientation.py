"""Pictures are the way round a player shows them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from ifdd.data.orientation import UPRIGHT, Orientation
from ifdd.data.video import read_video

PICTURE = np.arange(6 * 4, dtype=np.uint8).reshape(6, 4)
LYING = {
    "rows": ((1, 0, 0, 1), PICTURE),
    "mirrored": ((-1, 0, 0, 1), PICTURE[:, ::-1]),
    "flipped": ((1, 0, 0, -1), PICTURE[::-1]),
    "half": ((-1, 0, 0, -1), PICTURE[::-1, ::-1]),
    "quarter": ((0, 1, -1, 0), np.rot90(PICTURE, -1)),
    "three quarters": ((0, -1, 1, 0), np.rot90(PICTURE)),
    "transposed": ((0, 1, 1, 0), PICTURE.T),
    "transversed": ((0, -1, -1, 0), PICTURE[::-1, ::-1].T),
}


def matrix(a: float, b: float, c: float, d: float) -> bytes:
    return struct.pack("=9i", *(round(v * 65536) for v in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)


@pytest.mark.parametrize("name", LYING)
def test_every_matrix(name: str) -> None:
    values, expected = LYING[name]
    assert np.array_equal(Orientation.of_matrix(matrix(*values)).apply(PICTURE), expected)
    scaled = matrix(*(0.5 * v for v in values))
    assert np.array_equal(Orientation.of_matrix(scaled).apply(PICTURE), expected)


def test_matrices_that_say_nothing() -> None:
    for data in (b"", bytes(36), b"\0" * 20, matrix(1, 1, 1, 1)):
        assert Orientation.of_matrix(data) == UPRIGHT
    tilted = matrix(np.cos(0.2), np.sin(0.2), -np.sin(0.2), np.cos(0.2))
    assert Orientation.of_matrix(tilted) == UPRIGHT


@pytest.mark.parametrize("degrees", ["0", "90", "180", "270", "-90", "450", "90.4"])
def test_rotation_in_the_metadata(degrees: str) -> None:
    turns = -round(float(degrees) / 90)
    assert np.array_equal(Orientation.of_rotation(degrees).apply(PICTURE), np.rot90(PICTURE, turns))


@pytest.mark.parametrize("degrees", ["", "left", "nan", "inf"])
def test_rotation_that_says_nothing(degrees: str) -> None:
    assert Orientation.of_rotation(degrees) == UPRIGHT


@pytest.mark.parametrize("name", LYING)
def test_matrix_of_a_file(tmp_path: Path, write_video, name: str) -> None:
    write_video(tmp_path / "a.mp4", count=2, size=(32, 48), codec="libx264")
    stored = read_video(tmp_path / "a.mp4").frames[0]
    values, _ = LYING[name]
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    data[place : place + 36] = struct.pack(">9i", *struct.unpack("=9i", matrix(*values)))
    (tmp_path / "a.mp4").write_bytes(data)
    expected = Orientation.of_matrix(matrix(*values)).apply(stored)
    shown = read_video(tmp_path / "a.mp4").frames[0]
    assert np.array_equal(shown, expected)
    assert np.array_equal(read_video(tmp_path / "a.mp4", "3,5,20,10").frames[0], expected[5:15, 3:23])


def test_rotate_in_the_metadata_of_a_file(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    for rotate in (None, "90"):
        with av.open(str(tmp_path / f"{rotate}.mkv"), "w") as container:
            stream = container.add_stream("ffv1", rate=25)
            stream.width, stream.height, stream.pix_fmt = 16, 8, "bgr0"
            if rotate:
                stream.metadata["rotate"] = rotate
            pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format="bgr0")))
            container.mux(stream.encode(None))
    turned, stored = (read_video(tmp_path / f"{name}.mkv").frames[0] for name in ("90", "None"))
    assert np.array_equal(turned, np.rot90(stored, -1))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_images(tmp_path: Path, suffix: str, orientation: int) -> None:
    from PIL import Image, ImageOps

    rows, columns = np.mgrid[0:32, 0:48]
    picture = Image.fromarray(np.stack([rows * 7, columns * 5, rows * 0], -1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {"tif": {}, "png": {}, "jpg": {"quality": 95}, "webp": {"quality": 95}}[suffix]
    (tmp_path / "a").mkdir()
    for name in ("a/1", "a/2"):
        picture.save(tmp_path / f"{name}.{suffix}", exif=exif, **options)
    expected = np.array(ImageOps.exif_transpose(Image.open(tmp_path / "a" / f"1.{suffix}")).convert("RGB"))
    assert expected.shape[:2] == ((48, 32) if orientation > 4 else (32, 48))
    assert np.array_equal(read_video(tmp_path / "a").frames, [expected, expected])
    assert np.array_equal(read_video(tmp_path / "a" / f"1.{suffix}").frames[0], expected)
    cut = read_video(tmp_path / "a", "4,2,20,10").frames[0]
    assert np.array_equal(cut, expected[2:12, 4:24])


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])  # PyAV does not tell the mirrored ones
def test_exif_orientation_that_ffmpeg_reads(tmp_path: Path, orientation: int) -> None:
    """A camera's JPEG by another name, which FFmpeg decodes, lies as the same one among the images."""
    from PIL import Image

    rows, columns = np.mgrid[0:32, 0:48]
    exif = Image.Exif()
    exif[0x112] = orientation
    picture = Image.fromarray(np.stack([rows * 7, columns * 5, rows * 0], -1).astype(np.uint8))
    picture.save(tmp_path / "a.jpg", quality=95, exif=exif)
    (tmp_path / "a.mjpeg").write_bytes((tmp_path / "a.jpg").read_bytes())
    image, video = (read_video(tmp_path / f"a.{suffix}").frames[0] for suffix in ("jpg", "mjpeg"))
    assert video.shape == image.shape
    assert np.abs(video.astype(int) - image).mean() < 4
