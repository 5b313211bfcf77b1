"""JPEG files by simplejpeg: Pillow's pixels, and Pillow's word on everything that is not plain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ifdd.data import folder, jpeg
from ifdd.data.folder import MAX_PIXELS, read_image
from ifdd.data.source import PictureError

pytest.importorskip("simplejpeg", reason="frames are read by Pillow where simplejpeg is not installed")

PICTURE = np.random.default_rng(0).integers(0, 256, (45, 61, 3), dtype=np.uint8)


@pytest.fixture
def by_pillow(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Reads a file as if simplejpeg were not there."""

    def read(path: Path) -> np.ndarray:
        with monkeypatch.context() as patch:
            patch.setattr(folder, "read_jpeg", lambda path, max_pixels: None)
            return read_image(path)

    return read


@pytest.mark.parametrize("options", [{"subsampling": s} for s in (0, 1, 2)] + [{"progressive": True}])
@pytest.mark.parametrize("quality", [30, 95])
def test_pixels_are_those_of_pillow(
    tmp_path: Path, by_pillow: Any, options: dict[str, Any], quality: int
) -> None:
    for name, image in (("c.jpg", Image.fromarray(PICTURE)), ("g.JPEG", Image.fromarray(PICTURE[..., 0]))):
        file = tmp_path / name
        image.save(file, "JPEG", quality=quality, **options)
        fast = jpeg.read_jpeg(file, MAX_PIXELS)
        assert fast is not None
        assert fast.shape == PICTURE.shape
        assert np.array_equal(fast, by_pillow(file))
        assert np.array_equal(read_image(file), fast)


def test_pillow_reads_what_is_not_plain(tmp_path: Path, by_pillow: Any) -> None:
    image = Image.fromarray(PICTURE)
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=turned)
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.save(tmp_path / "png.jpg", "PNG")
    for name in ("turned", "cmyk", "png"):
        file = tmp_path / f"{name}.jpg"
        assert jpeg.read_jpeg(file, MAX_PIXELS) is None
        assert np.array_equal(read_image(file), by_pillow(file))
    assert read_image(tmp_path / "turned.jpg").shape == (61, 45, 3)
    image.save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    assert jpeg.read_jpeg(tmp_path / "whole.jpg", PICTURE.shape[0] * PICTURE.shape[1] - 1) is None
    for count in (0, 1, 2, 40, 170, len(whole) // 2, len(whole) - 40):
        (tmp_path / "cut.jpg").write_bytes(whole[:count])
        assert jpeg.read_jpeg(tmp_path / "cut.jpg", MAX_PIXELS) is None
        with pytest.raises(PictureError) as ours:
            read_image(tmp_path / "cut.jpg")
        with pytest.raises(PictureError) as pillows:
            by_pillow(tmp_path / "cut.jpg")
        assert str(ours.value) == str(pillows.value)
