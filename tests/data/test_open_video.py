"""Videos frame by frame: times, headers that are wrong, damage, and memory."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ifdd.data.ffmpeg import to_rgb
from ifdd.data.timing import Clock
from ifdd.data.truncation import missing_bytes
from ifdd.data.video import STILL, VideoError, VideoStream, count_frames, open_video, read_video

av = pytest.importorskip("av")
VideoReformatter = av.video.reformatter.VideoReformatter


def drain(stream: VideoStream) -> list[tuple[float, float]]:
    return [(frame.seconds, frame.stop_seconds) for frame in stream]


def write_times(path: Path, times: list[float], codec: str = "libx264", **options: str) -> None:
    """A video whose frames are shown at these seconds, to the millisecond."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number, seconds in enumerate(times):
            picture = np.full((48, 64, 3), 60 + 3 * (number % 50), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(seconds * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def box(data: bytes, *names: bytes) -> int:
    """Start of a box of an MP4 file."""
    start, end = 0, len(data)
    for name in names:
        while True:
            length = int.from_bytes(data[start : start + 4], "big")
            if data[start + 4 : start + 8] == name:
                break
            start += length
            assert start < end
        start, end = start + 8, start + length
    return start - 8


def test_frames_one_by_one_are_those_of_read_video(tmp_path: Path, write_video, write_folder) -> None:
    write_video(tmp_path / "a.mp4")
    write_folder(tmp_path / "b", [f"{k}.png" for k in range(6)])
    for path, rate in ((tmp_path / "a.mp4", 25.0), (tmp_path / "b", 5.0)):
        whole = read_video(path, (2, 2, 16, 12), size=(9, 8), folder_fps=5).frames
        with open_video(path, "2,2,16,12", size=(9, 8), folder_fps=5) as stream:
            assert stream.path == path
            assert stream.fps == pytest.approx(rate)
            assert stream.frames_announced == len(whole)
            for number, frame in enumerate(stream):
                assert frame.number == number == stream.frames_read - 1
                assert np.array_equal(frame.image(), whole[number])
                assert frame.seconds == pytest.approx(number / rate)
                assert frame.stop_seconds == pytest.approx((number + 1) / rate) == stream.end_seconds
        assert stream.frames_read == len(whole)
        assert stream.damage is None
        assert stream.remarks == []


def test_a_stream_is_read_once(tmp_path: Path, write_video) -> None:
    write_video(tmp_path / "a.mp4")
    stream = open_video(tmp_path / "a.mp4")
    next(iter(stream))
    with pytest.raises(RuntimeError, match=r"a\.mp4: a video stream can be iterated once"):
        iter(stream)
    with open_video(tmp_path / "a.mp4") as closed:
        pass
    with pytest.raises(RuntimeError, match="once"):
        iter(closed)
    for rate in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="folder_fps must be positive"):
            open_video(tmp_path, folder_fps=rate)


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
@pytest.mark.parametrize("frames_between", ["0", "2"])
def test_seconds_are_those_of_the_time_stamps(tmp_path: Path, name: str, frames_between: str) -> None:
    times = [float(k) for k in range(10)] + [9 + k / 20 for k in range(1, 20)]
    write_times(tmp_path / name, times, bf=frames_between)
    with open_video(tmp_path / name) as stream:
        spans = drain(stream)
    assert [start for start, _ in spans] == pytest.approx(times, abs=0.002)
    assert [stop for _, stop in spans[:-1]] == pytest.approx(times[1:], abs=0.002)
    assert spans[-1][1] > times[-1]


def test_gif_pictures_are_shown_as_long_as_they_say(tmp_path: Path) -> None:
    from PIL import Image

    pictures = [Image.new("P", (8, 8), k) for k in range(4)]
    for picture in pictures:
        picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    pictures[0].save(
        tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=[100, 500, 200, 1000]
    )
    with open_video(tmp_path / "a.gif") as stream:
        shown = [(frame.seconds, tuple(frame.image()[0, 0])) for frame in stream]
    assert [seconds for seconds, _ in shown] == pytest.approx([0, 0.1, 0.6, 0.8])
    assert [colour for _, colour in shown] == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)]
    assert stream.end_seconds == pytest.approx(1.8)


@pytest.mark.parametrize("name", ["a.webp", "a.png", "default.png", "gif.jpg"])
def test_animated_images_are_videos(tmp_path: Path, name: str) -> None:
    from PIL import Image

    first, *others = (Image.new("RGB", (8, 8), (40 * k, 0, 0)) for k in range(5))
    kind = {"webp": {"lossless": True}, "png": {"default_image": name == "default.png"}}.get(
        name[-4:].strip(".")
    )
    lengths = [100, 500, 0, 1000] if kind and kind.get("default_image") else [50, 100, 500, 0, 1000]
    with (tmp_path / name).open("wb") as file:
        first.save(
            file, "GIF" if kind is None else name.split(".")[1].upper(),
            save_all=True, append_images=others, duration=lengths, **(kind or {}),
        )  # fmt: skip
    with open_video(tmp_path / name) as stream:
        shown = [(frame.seconds, int(frame.image()[0, 0, 0])) for frame in stream]
    assert [colour for _, colour in shown] == [0, 40, 80, 120, 160][-len(lengths) :]
    # A picture that states no length is shown for 1/25 second.
    spans = np.cumsum([(length or 40) / 1000 for length in lengths])
    assert [seconds for seconds, _ in shown] == pytest.approx([0, *spans[:-1]])
    assert stream.end_seconds == pytest.approx(spans[-1])
    assert (stream.frames_announced, stream.damage, stream.remarks) == (len(lengths), None, [])
    assert stream.fps == pytest.approx(len(lengths) / spans[-1])


def test_a_damaged_animation_costs_its_end(tmp_path: Path) -> None:
    from PIL import Image

    first, *others = (Image.new("RGB", (8, 8), (40 * k, 0, 0)) for k in range(5))
    first.save(tmp_path / "a.png", save_all=True, append_images=others)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: [k for k in range(len(data)) if data[k : k + 4] == b"fcTL"][3]])
    with open_video(tmp_path / "a.png") as stream:
        assert len(drain(stream)) == 3
    assert str(stream.damage).startswith("damaged or cut off after 3 readable frames (picture 4: ")


def test_an_animation_is_no_frame_of_a_folder(tmp_path: Path) -> None:
    from PIL import Image

    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    first.save(tmp_path / "1.webp", save_all=True, append_images=[second])
    with pytest.raises(
        VideoError, match=r"\(1\.webp: an animation of 2 pictures, expected one; name the file"
    ):
        read_video(tmp_path)
    first.save(tmp_path / "1.tif", save_all=True, append_images=[second])
    with open_video(tmp_path / "1.tif") as stream:
        assert len(drain(stream)) == 1
    assert stream.remarks == ["holds 2 pages; the first is read", STILL]


@pytest.mark.parametrize(
    ("stamps", "seconds", "remark"),
    [
        ([5.0, 5.1, 5.3], [0, 0.1, 0.3], None),
        ([None, None, None], [0, 0.1, 0.2], "3 frames without a time stamp"),
        ([2.0, None, 2.15], [0, 0.1, 0.15], "1 frames without"),
        ([None, 7.0, 7.1], [0, 0.1, 0.2], "1 frames without"),
        ([0.0, 0.2, 0.1, 0.3], [0, 0.2, 0.2, 0.3], "1 time stamps are out of order"),
        ([0.0, 50.0, 0.0, 0.1], [0, 50, 50.1, 50.2], "time stamps start anew 1 times"),
        ([0.0, 3600.0, 3600.1], [0, 3600, 3600.1], None),
    ],
)
def test_odd_time_stamps(stamps: list[float | None], seconds: list[float], remark: str | None) -> None:
    clock = Clock(10.0)
    assert [clock.start(stamp) for stamp in stamps] == pytest.approx(seconds)
    assert (clock.remarks() == []) if remark is None else (remark in clock.remarks()[0])
    assert clock.stop(1.0, None) == clock.stop(1.0, 0.0) == pytest.approx(1.1)
    assert clock.stop(1.0, 4.0) == 5.0


@pytest.mark.parametrize("edit", ["end", "start", "late"])
def test_edit_lists_show_what_a_player_shows(tmp_path: Path, write_video, edit: str) -> None:
    write_video(tmp_path / "whole.mp4", count=50, codec="libx264")
    whole = read_video(tmp_path / "whole.mp4").frames
    data = bytearray((tmp_path / "whole.mp4").read_bytes())
    place = box(data, b"moov", b"trak", b"edts", b"elst") + 16
    length, start = struct.unpack(">Ii", data[place : place + 8])
    ticks = 512  # of a frame in the track's time, FFmpeg's 12800 a second
    length, start, expected = {
        "end": (length * 3 // 5, start, whole[:30]),
        "start": (length * 2 // 5, start + 30 * ticks, whole[30:]),
        "late": (length * 1 // 5, start + 25 * ticks, whole[25:35]),
    }[edit]
    data[place : place + 8] = struct.pack(">Ii", length, start)
    (tmp_path / "a.mp4").write_bytes(data)
    with open_video(tmp_path / "a.mp4", strict=True) as stream:
        frames = [(frame.seconds, frame.image()) for frame in stream]
    shown = np.stack([image for _, image in frames])
    assert len(shown) == len(expected)
    assert np.array_equal(shown, expected)
    assert [seconds for seconds, _ in frames] == pytest.approx([k / 25 for k in range(len(shown))])
    assert stream.remarks == [f"the header announces 50 frames, {len(shown)} are shown"]
    assert count_frames(tmp_path / "a.mp4") == len(expected)


@pytest.mark.parametrize(
    ("name", "codec"), [("mkv", "libx264"), ("webm", "libvpx"), ("avi", "mpeg4"), ("mp4", "libx264")]
)
def test_segments_of_a_recording(tmp_path: Path, name: str, codec: str) -> None:
    target = f"{tmp_path}/%d.{name}"
    with av.open(target, "w", format="segment", options={"segment_time": "1"}) as container:
        stream = container.add_stream(codec, rate=25, options={"g": "25"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(75):
            picture = np.full((48, 64, 3), 40 + number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    counts = []
    for path in sorted(tmp_path.glob(f"*.{name}")):
        with open_video(path, strict=True) as video:
            starts = [start for start, _ in drain(video)]
        counts.append(len(starts))
        assert starts[0] == 0.0
        if name != "avi":  # there the first frame stands for all those that went to other segments
            assert starts == pytest.approx([k / 25 for k in range(len(starts))], abs=0.003)
    assert sum(counts) == 75
    assert len(counts) > 1


def test_counts_in_the_header_are_not_trusted(tmp_path: Path, write_video) -> None:
    write_video(tmp_path / "a.avi")
    data = bytearray((tmp_path / "a.avi").read_bytes())
    for announced in (19, 21, 1000):
        place = data.index(b"avih") + 8 + 16
        data[place : place + 4] = struct.pack("<I", announced)
        place = data.index(b"strh") + 8 + 32
        data[place : place + 4] = struct.pack("<I", announced)
        (tmp_path / "b.avi").write_bytes(data)
        assert count_frames(tmp_path / "b.avi") == 20
        with open_video(tmp_path / "b.avi") as stream:
            assert len(drain(stream)) == 20
        assert stream.damage is None
        assert stream.remarks == [f"the header announces {announced} frames, 20 are shown"]


def test_recordings_one_behind_the_other(tmp_path: Path, write_video) -> None:
    """`cat a.ts b.ts`: time stamps start anew, and packets are counted anew."""
    for name in "ab":
        write_video(tmp_path / f"{name}.ts", count=40, codec="libx264", seed=ord(name))
    joined = tmp_path / "joined.ts"
    joined.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    with open_video(joined, strict=True) as stream:
        starts = [start for start, _ in drain(stream)]
    assert len(starts) == 80
    assert np.diff(starts) == pytest.approx(np.full(79, 0.04), abs=0.002)


def test_recording_that_starts_between_key_frames(tmp_path: Path) -> None:
    write_times(tmp_path / "a.ts", [k / 25 for k in range(50)], g="20", bf="0", sc_threshold="0")
    data = (tmp_path / "a.ts").read_bytes()
    tables, packets = data[: 3 * 188], len(data) // 188
    (tmp_path / "b.ts").write_bytes(tables + data[packets // 5 * 188 :])
    with open_video(tmp_path / "b.ts", strict=True) as stream:
        assert len(drain(stream)) == 30
    assert stream.damage is None


CUTS = [
    ("a.mp4", "libx264", {"movflags": "faststart"}),
    ("f.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
    ("a.mkv", "libx264", None),
    ("a.webm", "libvpx", None),
    ("a.avi", "mpeg4", None),
    ("a.gif", "gif", None),
    ("a.ts", "libx264", None),
    ("a.flv", "libx264", None),
]


@pytest.mark.parametrize(("name", "codec", "options"), CUTS)
def test_a_missing_end_is_noticed(tmp_path: Path, write_video, name: str, codec: str, options) -> None:
    pixels = "rgb8" if codec == "gif" else "yuv420p"
    path = tmp_path / name
    write_video(path, 25, codec=codec, options=options, noise=True, pix_fmt=pixels)
    whole = read_video(path).frames
    data = path.read_bytes()
    for part in (0.3, 0.55, 0.9):
        path.write_bytes(data[: int(len(data) * part)])
        with open_video(path) as stream:
            frames = np.stack([frame.image() for frame in stream])
        assert stream.damage is not None
        assert f"after {len(frames)} readable frames (" in stream.damage
        assert 0.3 * 25 * part < len(frames) < 25
        if codec != "gif":  # the last picture of a cut GIF is shown as far as it goes
            assert np.array_equal(frames, whole[: len(frames)])
        with pytest.raises(VideoError, match="readable frames"), open_video(path, strict=True) as stream:
            drain(stream)


@pytest.mark.parametrize(("name", "codec", "options"), CUTS[:1] + CUTS[2:5])
def test_a_missing_end_between_two_frames(
    tmp_path: Path, write_video, name: str, codec: str, options
) -> None:
    """Where the decoder notices nothing: every frame that is there is whole."""
    path = tmp_path / name
    write_video(path, 25, codec=codec, options=options, noise=True)
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    data = path.read_bytes()
    path.write_bytes(data[: places[20]])
    with open_video(path) as stream:
        count = len(drain(stream))
    assert count >= 19
    assert stream.damage is not None, "the bytes behind are missing"


def test_a_header_that_knows_of_more_bytes_is_a_remark(tmp_path: Path, write_video) -> None:
    """FLV: recorders and cutting tools leave the number as it was in another file."""
    path = tmp_path / "a.flv"
    write_video(path, 25, codec="libx264")
    with open_video(path) as stream:
        drain(stream)
    assert (stream.damage, stream.remarks) == (None, [])
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: places[20]])
    with open_video(path) as stream:
        drain(stream)
    assert stream.damage is None
    remark = f"the header announces a file of {size} bytes, it has {places[20]}: the end may be missing"
    assert stream.remarks == [remark]


@pytest.mark.parametrize("name", ["a.mkv", "a.avi"])
def test_a_missing_index_is_no_damage(tmp_path: Path, write_video, name: str) -> None:
    write_video(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:-8])
    with open_video(tmp_path / name) as stream:
        assert len(drain(stream)) == 20
    assert stream.damage is None


def test_damage_in_the_middle_costs_what_builds_on_it(tmp_path: Path) -> None:
    write_times(tmp_path / "a.mp4", [k / 25 for k in range(40)], g="10", bf="0", sc_threshold="0", qp="1")
    path = tmp_path / "a.mp4"
    whole = read_video(path).frames
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    data[packets[13][0] : sum(packets[13])] = b"\xff" * packets[13][1]
    path.write_bytes(data)
    with open_video(path) as stream:
        frames = [(frame.number, frame.seconds, frame.image()) for frame in stream]
    kept = [*range(13), *range(20, 40)]
    assert [number for number, _, _ in frames] == list(range(33))
    assert [seconds for _, seconds, _ in frames] == pytest.approx([k / 25 for k in kept], abs=0.002)
    assert np.array_equal(np.stack([image for _, _, image in frames]), whole[kept])
    assert stream.damage is not None
    assert stream.damage.startswith("damaged or cut off after 13 readable frames (")
    assert stream.damage.endswith("); 7 left out, 20 readable frames behind them")
    with pytest.raises(VideoError, match="after 13 readable frames"):
        count_frames(path)
    assert np.array_equal(read_video(path, indices=[12, 3]).frames, whole[[12, 3]])
    with pytest.raises(VideoError, match="frame 13 cannot be read"):
        read_video(path, indices=[15])


def test_a_damaged_image_in_a_folder_is_left_out(tmp_path: Path, write_folder) -> None:
    frames = write_folder(tmp_path / "a", [f"{k}.png" for k in range(5)])
    (tmp_path / "a" / "2.png").write_bytes(b"no image")
    with open_video(tmp_path / "a", folder_fps=10) as stream:
        shown = [(frame.seconds, frame.image()) for frame in stream]
    assert [seconds for seconds, _ in shown] == pytest.approx([0, 0.1, 0.3, 0.4])
    assert np.array_equal(np.stack([image for _, image in shown]), frames[[0, 1, 3, 4]])
    assert stream.damage is not None
    assert "after 2 readable frames (2.png: cannot identify" in stream.damage
    with open_video(tmp_path / "a", only={0, 4}) as stream:
        numbers = {frame.number: frame for frame in stream}
    assert stream.damage is None, "the image was not asked for"
    assert np.array_equal(numbers[4].image(), frames[4])
    with pytest.raises(VideoError, match=r"a: 2\.png: cannot identify"):
        numbers[2].image()


def test_titles_in_another_encoding(tmp_path: Path, write_video) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        container.metadata["title"] = "Gr__n"
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")))
        container.mux(stream.encode(None))
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data.replace(b"Gr__n", b"Gr\xfc\xdfn"))
    assert count_frames(tmp_path / "a.mkv") == 1


@pytest.mark.parametrize(
    ("codec", "pixels"),
    [
        ("ffv1", "yuv420p10le"),
        ("ffv1", "yuv422p"),
        ("ffv1", "yuv444p16le"),
        ("ffv1", "gray10le"),
        ("ffv1", "bgra"),
        ("libx264", "yuvj420p"),
        ("rawvideo", "nv12"),
    ],
)
def test_pixel_formats(tmp_path: Path, write_video, codec: str, pixels: str) -> None:
    frames = write_video(tmp_path / "a.mkv", count=3, codec=codec, pix_fmt=pixels)
    shown = read_video(tmp_path / "a.mkv").frames.astype(float)
    expected = frames.astype(float)
    if pixels.startswith("gray"):
        expected = (expected @ [0.299, 0.587, 0.114])[..., None]
    assert np.abs(shown - expected).mean() < 4


def test_only_files_are_opened(tmp_path: Path, write_video) -> None:
    """A playlist by the name of a video does not reach for other places."""
    (tmp_path / "a.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/b.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoError, match=r"a\.mp4"):
        count_frames(tmp_path / "a.mp4")


def patch(change: Callable[[bytearray], object], data: bytes) -> bytes:
    changed = bytearray(data)
    change(changed)
    return bytes(changed)


def test_bytes_that_prove_nothing(tmp_path: Path, write_video) -> None:
    for name, codec in (("a.mkv", "mpeg4"), ("a.avi", "mpeg4"), ("a.ts", "libx264"), ("a.gif", "gif")):
        write_video(tmp_path / name, 4, codec=codec, pix_fmt="rgb8" if codec == "gif" else "yuv420p")
    formats = {"mkv": "matroska,webm", "avi": "avi", "ts": "mpegts", "gif": "gif"}

    def found(suffix: str, data: bytes) -> str | None:
        (tmp_path / "x").write_bytes(data)
        return missing_bytes(tmp_path / "x", formats[suffix])

    for suffix in formats:
        data = (tmp_path / f"a.{suffix}").read_bytes()
        assert found(suffix, data) is None
        assert found(suffix, data + b"\0" * 7) is None, "more than announced"
        assert found(suffix, data[: len(data) * 2 // 3 - 1]) is not None
        assert found(suffix, b"") is None
    avi = (tmp_path / "a.avi").read_bytes()
    assert found("avi", patch(lambda b: b.__setitem__(slice(4, 8), bytes(4)), avi)[:-99]) is None
    mkv = (tmp_path / "a.mkv").read_bytes()
    live = mkv.index(b"\x18\x53\x80\x67") + 4
    unknown = patch(lambda b: b.__setitem__(slice(live, live + 8), b"\x01" + b"\xff" * 7), mkv)
    assert found("mkv", unknown[:-99]) is None, "written live"
    assert missing_bytes(tmp_path / "x", "flv") is None


def threads() -> int:
    task = Path("/proc/self/task")
    return len(list(task.iterdir())) if task.is_dir() else 0


def test_one_converter_serves_frames_of_any_size_and_format() -> None:
    made = np.random.default_rng(0).integers(0, 256, (2, 34, 50, 3), dtype=np.uint8)
    kinds = [(34, "yuv420p"), (20, "yuvj444p"), (34, "gray"), (20, "nv12"), (34, "rgb24")]
    frames = [
        VideoReformatter().reformat(av.VideoFrame.from_ndarray(picture[:height]), format=name)
        for picture in made
        for height, name in kinds
    ]
    before = threads()
    for frame in frames:
        alone = VideoReformatter().reformat(frame, format="rgb24").to_ndarray()
        np.testing.assert_array_equal(to_rgb(frame), alone)
    assert threads() == before, "threads of a converter for each frame, as long as the frames live"
    with pytest.raises((TypeError, AttributeError)):
        to_rgb("no frame")
    assert to_rgb(frames[0]).shape == (34, 50, 3), "a converter that failed is not used again"
