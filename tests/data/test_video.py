"""Reading videos and frame folders, and what is said when that fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ifdd.data.face import CropBox
from ifdd.data.resize import frames_to_clip, resize_frame
from ifdd.data.video import VideoError, count_frames, frame_files, locate_face, read_video

FASTSTART = {"movflags": "faststart"}


def check_message(error: BaseException, path: Path) -> str:
    """Every message is one line that names the path."""
    message = str(error)
    assert isinstance(error, VideoError)
    assert isinstance(error, ValueError)
    assert "\n" not in message
    assert str(path) in message
    assert "av." not in message
    assert "Errno" not in message
    return message


def failure(path: Path, **arguments) -> str:
    with pytest.raises(VideoError) as info:
        read_video(path, **arguments)
    return check_message(info.value, path)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "mpeg4"), ("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.ts", "libx264")],
)
@pytest.mark.parametrize("size", [(48, 64), (50, 62)])
def test_reads_a_video(tmp_path: Path, write_video, name: str, codec: str, size: tuple[int, int]) -> None:
    frames = write_video(tmp_path / name, count=20, size=size, codec=codec, fps=30)
    video = read_video(str(tmp_path / name))
    assert video.frames.dtype == np.uint8
    assert video.frames.shape == (20, *size, 3)
    assert video.fps == pytest.approx(30)
    assert video.path == tmp_path / name
    # Lossy coding, but the right frame, the right way round and RGB, not BGR.
    assert np.abs(video.frames.astype(int) - frames).mean() < 6
    assert np.abs(video.frames[..., ::-1].astype(int) - frames).mean() > 8
    assert count_frames(tmp_path / name) == 20


def test_odd_size(tmp_path: Path, write_video) -> None:
    # Codecs with halved colour planes take even sizes only.
    frames = write_video(tmp_path / "a.mkv", size=(37, 51), codec="ffv1", pix_fmt="yuv444p")
    assert read_video(tmp_path / "a.mkv").frames.shape == frames.shape
    assert read_video(tmp_path / "a.mkv", size=(31, 17)).frames.shape == (20, 31, 17, 3)


def test_grey_video_has_three_equal_channels(tmp_path: Path, write_video) -> None:
    write_video(tmp_path / "a.mkv", codec="ffv1", pix_fmt="gray")
    frames = read_video(tmp_path / "a.mkv").frames
    assert frames.shape == (20, 48, 64, 3)
    assert frames.std() > 5
    assert (frames[..., 0] == frames[..., 1]).all()
    assert (frames[..., 0] == frames[..., 2]).all()


def test_name_like_a_protocol(tmp_path: Path, write_video, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "plain.mp4")
    (tmp_path / "plain.mp4").rename(tmp_path / "a:b %02d.mp4")
    monkeypatch.chdir(tmp_path)
    assert len(read_video("a:b %02d.mp4").frames) == 20


def rotate_in_header(path: Path, matrix: tuple[int, ...]) -> None:
    """Writes the display matrix of an MP4's video track (16.16 fixed point, ISO/IEC 14496-12 `tkhd`)."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    fixed = [round(value * 65536) for value in matrix]
    for place, value in zip((0, 1, 3, 4), fixed, strict=True):
        data[start + 4 * place : start + 4 * place + 4] = (value & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("matrix", "turns"),
    # (a, b, c, d) maps (x, y) to (a x + c y, b x + d y), y downwards: (0, 1, -1, 0) turns clockwise.
    [((0, 1, -1, 0), -1), ((0, -1, 1, 0), 1), ((-1, 0, 0, -1), 2)],
)
def test_rotation_in_the_header_is_applied(tmp_path: Path, write_video, matrix, turns: int) -> None:
    write_video(tmp_path / "a.mp4", size=(32, 64))
    lying = read_video(tmp_path / "a.mp4").frames
    rotate_in_header(tmp_path / "a.mp4", matrix)
    upright = read_video(tmp_path / "a.mp4").frames
    assert np.array_equal(upright, np.rot90(lying, turns, axes=(1, 2)))
    # A crop is given in the upright picture.
    height, width = upright.shape[1:3]
    assert np.array_equal(
        read_video(tmp_path / "a.mp4", (0, height - 8, width, 8)).frames, upright[:, height - 8 :]
    )


def test_indices_select_order_and_repeat(tmp_path: Path, write_video) -> None:
    write_video(tmp_path / "a.mp4")
    all_frames = read_video(tmp_path / "a.mp4").frames
    wanted = np.array([7, 2, 2, 19, 0])
    assert np.array_equal(read_video(tmp_path / "a.mp4", indices=wanted).frames, all_frames[wanted])
    message = failure(tmp_path / "a.mp4", indices=[3, 20])
    assert "frame 20 was asked for, but it has only 20 frames" in message


def test_max_frames(tmp_path: Path, write_video) -> None:
    write_video(tmp_path / "a.mp4")
    all_frames = read_video(tmp_path / "a.mp4").frames
    assert np.array_equal(read_video(tmp_path / "a.mp4", max_frames=6).frames, all_frames[:6])
    assert len(read_video(tmp_path / "a.mp4", max_frames=60).frames) == 20


def test_size_resizes_while_decoding_like_resizing_afterwards(tmp_path: Path, write_video) -> None:
    write_video(tmp_path / "a.mp4")
    whole = read_video(tmp_path / "a.mp4").frames
    small = read_video(tmp_path / "a.mp4", size=24).frames
    assert small.shape == (20, 24, 24, 3)
    assert np.array_equal(small, np.stack([resize_frame(frame, (24, 24)) for frame in whole]))
    assert read_video(tmp_path / "a.mp4", size=(10, 30)).frames.shape == (20, 10, 30, 3)


def test_memory_is_bounded_by_what_is_kept(tmp_path: Path, write_video) -> None:
    write_video(tmp_path / "a.mp4")
    full = 20 * 48 * 64 * 3
    message = failure(tmp_path / "a.mp4", max_bytes=full - 1)
    assert "GiB of 64x48 frames; pass size= to resize while decoding, or max_frames=" in message
    assert len(read_video(tmp_path / "a.mp4", max_bytes=full).frames) == 20
    assert len(read_video(tmp_path / "a.mp4", size=16, max_bytes=20 * 16 * 16 * 3).frames) == 20


def test_crop(tmp_path: Path, write_video) -> None:
    write_video(tmp_path / "a.mp4")
    whole = read_video(tmp_path / "a.mp4").frames
    expected = whole[:, 4:34, 10:50]
    for crop in ("10,4,40,30", (10, 4, 40, 30), CropBox(10, 4, 40, 30)):
        assert np.array_equal(read_video(tmp_path / "a.mp4", crop).frames, expected)
    assert "crop 30,0,40,10 reaches outside the 64x48 frame" in failure(tmp_path / "a.mp4", crop="30,0,40,10")


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": 0},
        {"size": (4, -1)},
        {"indices": []},
        {"indices": [-1]},
        {"indices": [0.5]},
        {"max_frames": 0},
        {"max_frames": 3, "indices": [1]},
    ],
)
def test_unusable_arguments_are_named(tmp_path: Path, write_video, arguments: dict) -> None:
    write_video(tmp_path / "a.mp4", count=2)
    with pytest.raises(ValueError, match=next(iter(arguments))) as info:
        read_video(tmp_path / "a.mp4", **arguments)
    assert not isinstance(info.value, VideoError)


def test_what_is_not_a_video(tmp_path: Path) -> None:
    assert "No such file or directory" in failure(tmp_path / "nothing.mp4")
    (tmp_path / "empty.mp4").touch()
    assert "the file is empty" in failure(tmp_path / "empty.mp4")
    (tmp_path / "text.mp4").write_text("not a video\n" * 40)
    assert "not a readable video (Invalid data found" in failure(tmp_path / "text.mp4")
    (tmp_path / "folder").mkdir()
    assert "images in this folder" in failure(tmp_path / "folder")
    with pytest.raises(VideoError) as info:
        count_frames(tmp_path / "nothing")
    check_message(info.value, tmp_path / "nothing")
    with pytest.raises(VideoError, match="cannot list the folder"):
        frame_files(tmp_path / "nowhere")


def write_audio(path: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_audio_only(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    assert "no video stream" in failure(tmp_path / "a.wav")


def test_video_without_a_frame(tmp_path: Path, write_video) -> None:
    write_video(tmp_path / "a.avi", count=1)
    data = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(data[: data.index(b"movi") + 4])
    assert "no frame could be decoded" in failure(tmp_path / "a.avi")
    with pytest.raises(VideoError, match="no frame could be decoded"):
        count_frames(tmp_path / "a.avi")


def test_header_without_frames(tmp_path: Path, write_video) -> None:
    write_video(tmp_path / "a.mkv")
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: data.index(b"\x1f\x43\xb6\x75") + 8])  # in the first Cluster
    assert "no frame could be decoded (the file has" in failure(tmp_path / "a.mkv")
    for read in (count_frames, locate_face):
        with pytest.raises(VideoError, match="no frame could be decoded"):
            read(tmp_path / "a.mkv")


def test_unreadable_duration_is_no_reason_to_refuse(tmp_path: Path, write_video) -> None:
    write_video(tmp_path / "a.mkv")
    data = (tmp_path / "a.mkv").read_bytes()
    assert b"00:00:00.8" in data
    (tmp_path / "a.mkv").write_bytes(data.replace(b"00:00:00.8", b"no minutes"))
    assert len(read_video(tmp_path / "a.mkv").frames) == 20


def test_longer_sound_is_no_reason_to_refuse(tmp_path: Path, write_video) -> None:
    import av

    write_video(tmp_path / "a.ts", codec="libx264")
    with av.open(str(tmp_path / "a.ts")) as source, av.open(str(tmp_path / "b.ts"), "w") as target:
        pictures = target.add_stream_from_template(source.streams.video[0])
        sound = target.add_stream("mp2", rate=48000)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = pictures
                target.mux(packet)
        for _ in range(150):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 2304), np.int16), format="s16", layout="stereo")
            frame.sample_rate = 48000
            target.mux(sound.encode(frame))
        target.mux(sound.encode(None))
    with av.open(str(tmp_path / "b.ts")) as container:
        assert container.duration > 3e6, "the sound lasts 3.6 s, the pictures 0.8 s"
    assert len(read_video(tmp_path / "b.ts").frames) == 20


def test_missing_packages_are_named(tmp_path: Path, write_video, write_folder, monkeypatch) -> None:
    write_video(tmp_path / "a.mp4")
    write_folder(tmp_path / "clip", ["1.jpg"])
    monkeypatch.setitem(sys.modules, "av", None)
    assert "needs PyAV, which the extra `video` brings: pip install" in failure(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "needs Pillow, which the extra `video` brings: pip install" in failure(tmp_path / "clip")


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "mpeg4", FASTSTART),
        ("a.mp4", "libx264", FASTSTART),
        ("a.mkv", "mpeg4", None),
        ("a.mkv", "libx264", None),
        ("a.avi", "mpeg4", None),
        ("a.webm", "libvpx", None),
    ],
)
def test_cut_off_video(tmp_path: Path, write_video, name: str, codec: str, options) -> None:
    path = tmp_path / name
    write_video(path, count=50, codec=codec, options=options, noise=True)
    whole = read_video(path).frames
    assert len(whole) == 50
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    message = failure(path)
    part = read_video(path, accept_partial=True).frames
    assert 5 < len(part) < 40
    assert f"damaged or cut off after {len(part)} readable frames (" in message
    assert np.array_equal(part, whole[: len(part)]), "what is returned is undamaged"
    for read in (count_frames, locate_face):
        with pytest.raises(VideoError, match="cut off"):
            read(path)
    # Frames before the cut can be had without a word: nothing behind them is read.
    assert np.array_equal(read_video(path, max_frames=3).frames, whole[:3])


def test_cut_off_header(tmp_path: Path, write_video) -> None:
    write_video(tmp_path / "a.mp4", noise=True)  # the index is at the end
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: len(data) // 2])
    assert "not a readable video" in failure(tmp_path / "a.mp4", accept_partial=True)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "mpeg4"), ("a.mp4", "libx264"), ("a.avi", "mpeg4")])
def test_damaged_in_the_middle(tmp_path: Path, write_video, name: str, codec: str) -> None:
    path = tmp_path / name
    write_video(path, count=40, codec=codec, noise=True)
    data = bytearray(path.read_bytes())
    middle, length = len(data) // 2, len(data) // 8
    data[middle : middle + length] = np.random.default_rng(1).bytes(length)
    path.write_bytes(data)
    assert "readable frames" in failure(path)
    assert 0 < len(read_video(path, accept_partial=True).frames) < 40


def test_nothing_is_printed(tmp_path: Path, write_video) -> None:
    """FFmpeg writes to stderr itself, past Python: look from outside."""
    write_video(tmp_path / "a.mp4", count=40, codec="libx264", options=FASTSTART, noise=True)
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: len(data) * 6 // 10])
    (tmp_path / "b.mp4").write_bytes(b"text" * 100)
    script = (
        "import sys\nfrom ifdd.data.video import read_video\n"
        "for path in sys.argv[1:]:\n    try: read_video(path)\n    except ValueError: print('refused')\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["refused", "refused"]
    assert done.stderr == ""


@pytest.mark.parametrize("pattern", ["{}.jpg", "00012_{:05d}.jpg", "x_7_{:03d}.PNG", "{}.jpeg"])
def test_frames_are_in_numeric_order(tmp_path: Path, write_folder, pattern: str) -> None:
    frames = write_folder(tmp_path / "clip", [pattern.format(k) for k in range(1, 13)])
    (tmp_path / "clip" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "clip" / "._1.jpg").write_bytes(b"x")
    video = read_video(tmp_path / "clip", folder_fps=12.5)
    assert video.frames.shape == (12, 20, 24, 3)
    assert video.fps == 12.5
    assert np.abs(video.frames.astype(int) - frames).max() < 25
    assert (np.diff(video.frames.reshape(12, -1).mean(1)) > 5).all()
    assert count_frames(tmp_path / "clip") == 12
    assert np.array_equal(read_video(tmp_path / "clip", indices=[11, 3]).frames, video.frames[[11, 3]])


def test_frames_of_different_sizes_and_modes(tmp_path: Path, write_folder) -> None:
    from PIL import Image

    write_folder(tmp_path / "clip", ["1.png", "2.png"])
    Image.new("L", (31, 17), 90).save(tmp_path / "clip" / "3.png")
    Image.new("RGBA", (8, 9), (10, 20, 30, 0)).save(tmp_path / "clip" / "4.png")
    Image.new("P", (8, 9)).save(tmp_path / "clip" / "5.png")
    frames = read_video(tmp_path / "clip").frames
    assert frames.shape == (5, 20, 24, 3)
    assert (frames[2] == 90).all()
    assert (frames[3] == (10, 20, 30)).all()
    assert read_video(tmp_path / "clip", size=16).frames.shape == (5, 16, 16, 3)


def test_bad_frame_folders(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path / "names", ["1.jpg", "cover.jpg"])
    assert "image 'cover.jpg' has no number in its name" in failure(tmp_path / "names")
    write_folder(tmp_path / "twice", ["1.jpg", "01.png"])
    assert "frame 1 is there twice ('01.png' and '1.jpg')" in failure(tmp_path / "twice")


def test_damaged_image_in_a_folder(tmp_path: Path, write_folder) -> None:
    from PIL import Image

    write_folder(tmp_path / "clip", [f"{k}.jpg" for k in range(1, 6)], size=(80, 80))
    broken = tmp_path / "clip" / "4.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    message = failure(tmp_path / "clip")
    assert "cut off after 3 readable frames (4.jpg: " in message
    assert len(read_video(tmp_path / "clip", accept_partial=True).frames) == 4
    assert len(read_video(tmp_path / "clip", indices=[0, 4]).frames) == 2, "it is not needed for these"
    assert "frame 3 cannot be read (4.jpg: " in failure(tmp_path / "clip", indices=[3], accept_partial=True)
    broken.write_bytes(b"no image")
    assert "4.jpg: cannot identify" in failure(tmp_path / "clip")
    Image.new("I;16", (8, 8)).save(tmp_path / "clip" / "4.png")
    broken.unlink()
    assert "4.png: pixels of mode I;16, expected 8 bits a channel" in failure(tmp_path / "clip")
    (tmp_path / "clip" / "1.jpg").write_bytes(b"")
    assert "no frame could be decoded (1.jpg: " in failure(tmp_path / "clip")
    assert len(read_video(tmp_path / "clip", accept_partial=True).frames) == 3
    with pytest.raises(VideoError, match="no frame could be decoded"):
        locate_face(tmp_path / "clip")


def test_real_clip(real_clip: Path) -> None:
    video = read_video(real_clip, size=112)
    assert video.frames.shape == (120, 112, 112, 3)
    assert video.fps == pytest.approx(30, abs=0.1)
    assert video.frames.std() > 40


@pytest.mark.parametrize("size", [None, 7, 40])
def test_frames_to_clip(size: int | None) -> None:
    frames = np.random.default_rng(3).integers(0, 256, (4, 20, 24, 3), dtype=np.uint8)
    clip = frames_to_clip(frames, size)
    assert clip.dtype == torch.float32
    assert clip.is_contiguous()
    assert clip.min() >= 0
    assert clip.max() <= 1
    if size is None:
        assert torch.equal((clip * 255).round().byte(), torch.from_numpy(frames).permute(3, 0, 1, 2))
    else:
        assert clip.shape == (3, 4, size, size)
        # The path for bytes, which read_video uses, differs by the rounding of its two passes where
        # nothing is clamped.
        tame = frames // 4 + 96
        small = np.stack([resize_frame(frame, (size, size)) for frame in tame])
        assert (frames_to_clip(small) - frames_to_clip(tame, size)).abs().max() * 255 < 1.5


def test_resizing_is_bicubic_with_antialiasing_and_clamped() -> None:
    board = np.repeat(
        ((np.indices((64, 64)).sum(0) % 2) * 255).astype(np.uint8)[None, :, :, None], 3, axis=-1
    )
    assert (frames_to_clip(board, 9) - 0.5).abs().max() < 0.05, "a fine checkerboard becomes grey"
    step = np.zeros((1, 8, 8, 3), np.uint8)
    step[:, :, 4:] = 255
    large = frames_to_clip(step, 32)
    assert large.min() == 0
    assert large.max() == 1
    values = large[0, 0, 0]
    # The overshoot of the filter is clamped, so the flat sides stay flat.
    assert (values[:10] == 0).all()
    assert (values[-10:] > 1 - 1e-6).all()
    assert (values.diff() > -1e-6).all()


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 4, 4, 3), np.float32), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)],
)
def test_bad_frames_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"frames must be uint8 \(T, H, W, 3\), got torch"):
        frames_to_clip(frames)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        frames_to_clip(np.zeros((1, 4, 4, 3), np.uint8), 0)
