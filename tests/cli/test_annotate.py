from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import ImageDraw

from ifdd import prediction
from ifdd.data.face import CropBox
from ifdd.data.video import VideoError
from ifdd.faces import Boxes
from ifdd.prediction import Predictor
from ifdd.view import annotate as annotating
from ifdd.view import film
from ifdd.view.annotate import annotate
from ifdd.view.overlay import COLOURS, Caption, Painter, Span

from .conftest import full_disk

Run = Callable[..., Any]
TIMES = [0, 40, 80, 150, 160, 200, 300, 310, 320, 360, 400, 440, 480, 520, 560, 600, 640, 680]
"""Of a variable rate, in milliseconds."""


class Squares:
    """Finds the red square on the left and the blue one on the right, 30 pixels wide."""

    def detect(self, frames: np.ndarray) -> list[Boxes]:
        found = []
        for frame in frames:
            boxes = []
            for channel, other in ((0, 2), (2, 0)):
                rows, columns = np.nonzero((frame[..., channel] > 120) & (frame[..., other] < 100))
                if len(rows):
                    boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            scores = np.ones(len(boxes), np.float32)
            found.append(Boxes(np.array(boxes, np.float32).reshape(-1, 4), scores))
        return found


def write_film(
    path: Path,
    size: tuple[int, int] = (120, 80),
    sound: str | None = "aac",
    rotate: str | None = None,
    key_frames: int = 250,
) -> Path:
    """Two squares that move apart, with a tone."""
    width, height = size
    rate = 48000 if sound == "libopus" else 44100  # Opus knows no other
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(
            "libx264",
            rate=25,
            options={"crf": "10", "g": str(key_frames), "bf": "0", "x264-params": "scenecut=0"},
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotate is not None:
            stream.metadata["rotate"] = rotate
        track: Any = None if sound is None else container.add_stream(sound, rate=rate)
        if track is not None:
            track.layout = "mono"
        for number, time in enumerate(TIMES):
            image = np.full((height, width, 3), 90, np.uint8)
            image[20:50, 25 - number // 2 : 55 - number // 2] = (200, 30, 30)
            image[30:60, 70 + number // 2 : 100 + number // 2] = (30, 30, 200)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if track is not None:
            wave = (8000 * np.sin(np.arange(28 * 1024) / 16)).astype(np.int16)
            for begin in range(0, len(wave), 1024):
                part = av.AudioFrame.from_ndarray(wave[None, begin : begin + 1024], "s16", "mono")
                part.sample_rate, part.pts, part.time_base = rate, begin, Fraction(1, rate)
                container.mux(track.encode(part))
            container.mux(track.encode(None))
    return path


def sound_of(path: Path) -> list[tuple[float, bytes]]:
    with av.open(str(path)) as container:
        packets = list(container.demux(container.streams.audio[0]))
        return [(float(p.pts * p.time_base), bytes(p)) for p in packets if p.size and p.pts is not None]


def frames_of(path: Path) -> tuple[list[float], list[np.ndarray]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [float(frame.time or 0) for frame in frames], [
        frame.to_ndarray(format="rgb24") for frame in frames
    ]


def near(pixel: np.ndarray, colour: tuple[int, ...]) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() < 40)


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "load_detector", lambda device: Squares())


@pytest.mark.usefixtures("detector")
def test_two_faces_with_their_boxes_classes_and_the_sound(
    ifdd: Run, checkpoint: Path, tmp_path: Path
) -> None:
    source, target = write_film(tmp_path / "two.mp4"), tmp_path / "out.mp4"
    result = ifdd("annotate", source, "--checkpoint", checkpoint, "--out", target, "--face", "all")
    assert (result.code, result.err) == (0, "")
    assert result.out == f"written: {target} (18 frames, 6 windows, 2 faces)\n"
    times, pictures = frames_of(target)
    np.testing.assert_allclose(times, np.array(TIMES) / 1000, atol=1e-4)
    copied = sound_of(target)
    assert len(copied) > 20
    assert copied == sound_of(source)

    predicted = Predictor(checkpoint).predict(source, face="all")
    factor = 480 // 120
    for number in (2, 12):
        now = TIMES[number] / 1000
        for window in predicted.windows:
            # A last window overlaps the one before and is shown from its own beginning on.
            last = [w for w in predicted.windows if w.face == window.face and w.start_seconds <= now]
            if window is not last[-1] or now >= window.stop_seconds:
                continue
            colour = COLOURS[int(np.argmax(window.probabilities))]
            # Where this frame's square is, enlarged by the margin of the one crop rule.
            x = 25 - number // 2 if window.face == 1 else 70 + number // 2
            y = 20 if window.face == 1 else 30
            left, middle = (x - 0.15 * 30) * factor, (y + 15) * factor
            row = pictures[number][round(middle), round(left) - 6 : round(left) + 7]
            assert any(near(pixel, colour) for pixel in row), (number, window)


def test_rotated_and_odd_sizes(checkpoint: Path, tmp_path: Path) -> None:
    """The picture is upright and even, frames are the ones that were filmed."""
    source = write_film(tmp_path / "turned.mkv", (603, 503), sound=None, rotate="90")
    written = annotate(Predictor(checkpoint), source, tmp_path / "out.mp4")
    assert (written.frames, written.windows, written.faces, written.remarks) == (18, 3, (), ())
    _, pictures = frames_of(tmp_path / "out.mp4")
    height, width = pictures[0].shape[:2]
    assert width == 504
    assert height > 603
    assert height % 2 == 0
    # The red square, 20 rows from the upper edge before, is 20 columns from the right edge now.
    assert near(pictures[0][40, 503 - 35], (200, 30, 30))


def test_a_failure_leaves_the_old_file(checkpoint: Path, tmp_path: Path) -> None:
    source = write_film(tmp_path / "two.mp4", sound=None)
    target = tmp_path / "out.mp4"
    target.write_bytes(b"before")
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 12:  # windows, then frames
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        annotate(Predictor(checkpoint), source, target, check=check)
    assert target.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mp4", "two.mp4"]


def test_sound_that_does_not_fit_is_left_out_with_a_word(ifdd: Run, checkpoint: Path, tmp_path: Path) -> None:
    source = write_film(tmp_path / "two.mkv", sound="pcm_s16le")
    result = ifdd("annotate", source, "--checkpoint", checkpoint, "--out", tmp_path / "out.mp4")
    assert result.code == 0
    assert "sound in the format pcm_s16le does not fit into .mp4, .mkv takes it" in result.err
    assert ifdd("annotate", source, "--checkpoint", checkpoint, "--out", tmp_path / "out.mkv").err == ""
    assert sound_of(tmp_path / "out.mkv") == sound_of(source)


@pytest.mark.parametrize(
    ("sound", "ending", "kept"),
    [
        ("libopus", ".mov", False),
        ("libopus", ".mp4", True),
        ("flac", ".mov", False),
        ("libmp3lame", ".mov", True),
    ],
)
def test_each_format_has_its_own_sounds(tmp_path: Path, sound: str, ending: str, kept: int) -> None:
    source, target = write_film(tmp_path / "two.mkv", sound=sound), tmp_path / f"out{ending}"
    with film.Film(target, (64, 64), 25.0, source) as written:
        written.write(np.zeros((64, 64, 3), np.uint8), 0.0, 0.7)
    with av.open(str(target)) as container:
        assert len(container.streams.audio) == kept
    assert (written.remark is None) == bool(kept)


def test_sound_stays_in_step_where_the_first_pictures_are_lost(checkpoint: Path, tmp_path: Path) -> None:
    """As in a file cut between key frames: the film begins with the first picture that can be shown."""
    whole, cut = write_film(tmp_path / "whole.mkv", key_frames=6), tmp_path / "cut.mkv"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as container:
        streams = {stream.index: container.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            first = packet.stream.type == "video" and packet.is_keyframe and packet.pts == 0
            if packet.size and not first:
                packet.stream = streams[packet.stream.index]
                container.mux(packet)
    written = annotate(Predictor(checkpoint), cut, tmp_path / "out.mkv")
    assert written.frames == 12
    copied = sound_of(tmp_path / "out.mkv")
    assert len(copied) > 10
    expected = sound_of(whole)[-len(copied) :]
    assert [data for _, data in copied] == [data for _, data in expected]
    # FFmpeg moves both together where one would begin below zero.
    begin = frames_of(tmp_path / "out.mkv")[0][0]
    np.testing.assert_allclose(
        [seconds - begin for seconds, _ in copied],
        [seconds - TIMES[6] / 1000 for seconds, _ in expected],
        atol=0.002,
    )


def test_the_face_of_a_damaged_video_is_looked_for_as_predict_does(
    video: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locate(path: Path, *, accept_partial: bool) -> CropBox:
        if not accept_partial:
            raise VideoError("damaged")
        return CropBox(0, 0, 20, 20)

    monkeypatch.setattr(annotating, "locate_face", locate)
    assert annotate(Predictor(checkpoint), video, tmp_path / "out.mp4", "auto").frames == 20
    with pytest.raises(VideoError, match="damaged"):
        annotate(Predictor(checkpoint), video, tmp_path / "out.mp4", "auto", strict=True)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--out", "x.avi"), 2, "--out: an annotated video ends in .mp4, .mov, .mkv, got x.avi"),
        (("--out", "face.mp4"), 2, "--out: face.mp4 is the video that this run reads"),
        (("--out", "there.mp4"), 2, "--out: there.mp4 is there already: --overwrite replaces it"),
        (("--out", "new.mp4", "--crop", "0,0,500,500"), 1, "reaches outside"),
        (("--out", "new.mp4", "--face", "some"), 2, "--face must be largest, all, off or a number"),
    ],
)
def test_what_cannot_be_annotated(
    ifdd: Run,
    video: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "face.mp4").write_bytes(video.read_bytes())
    (tmp_path / "there.mp4").touch()
    result = ifdd("annotate", "face.mp4", "--checkpoint", checkpoint, *arguments)
    assert (result.code, result.err.count("\n")) == (code, 1)
    assert text in result.err
    assert not (tmp_path / "new.mp4").exists()


def test_a_full_disk_is_named_with_the_file(tmp_path: Path) -> None:
    """An annotated video can be made again: nothing is left of it."""
    target, rng = tmp_path / "o.mp4", np.random.default_rng(0)

    def write() -> None:
        with film.Film(target, (96, 96), 25.0) as written:
            for number in range(100):
                picture = rng.integers(0, 255, (96, 96, 3), dtype=np.uint8)
                written.write(picture, number / 25, (number + 1) / 25)

    message = rf"^{re.escape(str(target))}: cannot be written \(File too large\)$"
    with full_disk(100_000), pytest.raises(film.FilmError, match=message):
        write()
    assert list(tmp_path.iterdir()) == []


def test_without_an_encoder_it_says_so(
    checkpoint: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(film, "_ENCODERS", ("no_such_encoder",))
    with pytest.raises(film.FilmError, match="none of the encoders no_such_encoder"):
        annotate(Predictor(checkpoint), video, tmp_path / "o.mp4")
    assert list(tmp_path.iterdir()) == []


def test_the_picture_has_room_for_names_of_any_kind() -> None:
    """Long names, other scripts and many faces neither fail nor leave the picture."""
    names = ("a" * 200, "\u7b11", "$x$ {}", "Sad")
    painter = Painter(names, 31, 17, bands=9)
    values = np.array([0.1, 0.6, 0.2, 0.1])
    captions = [Caption(n, (5.0 * n - 20, -3.0, 5.0 * n, 30.0), values) for n in range(9)]
    bands = [(str(n), [Span(0, 0.4, values)]) for n in range(9)]
    picture = painter.draw(np.zeros((17, 31, 3), np.uint8), captions, 0.2, bands, (0.0, 0.5), "status")
    assert picture.shape == (painter.size[1], painter.size[0], 3)
    assert painter.size[0] % 2 == painter.size[1] % 2 == 0
    band = [tuple(pixel) for pixel in picture.reshape(-1, 3)[::7]]
    assert COLOURS[1] in band


def test_a_face_at_the_upper_left_border_keeps_its_label() -> None:
    """It is written below the line of the live picture that stands there, and all of it inside."""
    painter = Painter(("a", "b"), 480, 360)
    values = np.array([0.2, 0.8])
    faces = [Caption(1, (0, 0, 90, 90), values), Caption(2, (400, 300, 480, 360), None)]
    blank = np.full((360, 480, 3), 99, np.uint8)
    alone = painter.draw(blank, [], 0.0, [], (0, 1), "25 frames/s")
    picture = painter.draw(blank, faces, 0.0, [], (0, 1), "25 frames/s")
    height, width = 2 + painter._line + 1, 60
    changed = (picture != alone).any(axis=2)
    assert not changed[2:height, 4:width].any(), "the line is covered"
    label = (picture[height : height + painter._line, 4:20] == COLOURS[1]).all(axis=2)
    assert label.mean() > 0.5


@pytest.mark.parametrize("name", ["long " * 40, "\u062d\u0632\u064a\u0646"])
def test_a_label_ends_with_its_number(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """However long the name is, and though it may be written from right to left."""
    written: list[tuple[float, str]] = []
    text = ImageDraw.ImageDraw.text

    def keep(self: Any, place: tuple[float, float], shown: str, *rest: Any, **more: Any) -> None:
        written.append((place[0], shown))
        text(self, place, shown, *rest, **more)

    painter = Painter((name, "b"), 480, 360)
    blank = np.zeros((360, 480, 3), np.uint8)
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", keep)
    painter.draw(blank, [Caption(7, (300, 100, 400, 200), np.array([0.83, 0.17]))], 0.0, [], (0, 1))
    number, shown, share = written[:3]
    assert (number[1], share[1]) == ("7", "83 %")
    assert shown[1][:4] == name[:4]
    assert number[0] < shown[0] < share[0] < 300


def test_bands_show_the_shares_of_each_window() -> None:
    """The first class at the bottom; what nothing is known of stays grey, and later windows lie above."""
    painter = Painter(("a", "b"), 480, 100)
    spans = [
        Span(0, 4, np.array([0.75, 0.25])),
        Span(2, 3, np.array([0.25, 0.75])),
        Span(9, 12, np.ones(2) / 2),
    ]
    picture = painter.draw(np.zeros((100, 480, 3), np.uint8), [], 20.0, [("1", spans)], (0.0, 10.0))
    left, right = painter._axis()
    top = 100 + painter._bands_top
    band = picture[top : top + 2 * painter._line - 3]
    for seconds, share in ((1.3, 0.75), (2.5, 0.25), (3.7, 0.75), (9.6, 0.5)):
        column = band[:, round(left + (right - left) * seconds / 10)]
        lower = (column == COLOURS[0]).all(axis=1)
        assert abs(lower.mean() - share) < 0.03
        assert lower[-1]
        assert (column[~lower] == COLOURS[1]).all()
    empty = band[:, round(left + (right - left) * 0.63)]  # 6.3 s
    assert not (empty == COLOURS[0]).all(axis=1).any()
