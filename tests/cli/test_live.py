from __future__ import annotations

import http.client
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import av
import numpy as np
import pytest
import torch

from ifdd.cli import live as command
from ifdd.data.video import VideoError
from ifdd.faces import Boxes
from ifdd.prediction import PredictionError, Predictor
from ifdd.view import live, sources
from ifdd.view.film import FilmError
from ifdd.view.live import LiveReader, LiveResult, _bands, run_live
from ifdd.view.overlay import Painter
from ifdd.view.screens import Closed, FilmScreen, PageScreen
from ifdd.view.sources import WAITING, Feed, LiveFrame

from .conftest import full_disk, write_video

Run = Callable[..., Any]


def frames(count: int, rate: float = 25.0, size: int = 40) -> Iterator[LiveFrame]:
    rng = np.random.default_rng(1)
    for number in range(count):
        image = rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
        yield LiveFrame(image, number / rate, (number + 1) / rate, time.monotonic())


def test_every_frame_of_a_file_is_read_as_predict_does(video: Path, checkpoint: Path) -> None:
    """With the stride of a whole window the windows are those of a prediction."""
    predictor = Predictor(checkpoint)
    reader = LiveReader(predictor, None, stride=8, wait=True)
    run_live(reader, Feed(str(video), realtime=False), [], predictor.class_names, 1)
    expected = predictor.predict(video, tail="drop").windows
    results = list(reader.results[None])
    assert [(result.first, result.last) for result in results] == [(0, 7), (8, 15)]
    for result, window in zip(results, expected, strict=True):
        np.testing.assert_allclose(result.probabilities, window.probabilities, atol=1e-6)
    report = reader.report
    assert (report.frames, report.dropped, report.unseen, report.runs) == (20, 0, 0, 2)
    first, second = report.lines()
    assert first.startswith("20 frames in ")
    assert "the network ran 2 times (" in first
    assert "every 10.0 frames)" in first
    assert second.startswith("latency from the last frame of a window to its class on the picture: ")


def test_a_network_that_is_too_slow_leaves_frames_out_and_says_so(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is held until 20 more frames have come, where its windows have 8."""
    predictor = Predictor(checkpoint)
    reader = LiveReader(predictor, None)
    logits = predictor.logits
    free = False

    def slow(clips: Any) -> Any:
        while not free:
            time.sleep(0.001)
        return logits(clips)

    with reader:
        monkeypatch.setattr(predictor, "logits", slow)
        for frame in frames(28):
            reader.add(frame)
        assert "the network is too slow: it has not finished a window" in reader.report.lines()[0]
        free = True
        deadline = time.monotonic() + 30
        (running,) = [reader._running]
        assert running is not None
        running.result(timeout=deadline - time.monotonic())
        for frame in list(frames(30))[28:]:
            reader.add(frame)
    # The first window was 0 to 7; the next began with frame 21.
    assert reader.report.unseen == 13
    assert (
        "the network is too slow for this rate: 13 frames (43 %) were shown but read in no window"
        in (reader.report.lines()[-1])
    )
    assert reader.report.latencies[0] > 0


def test_the_network_rests_as_long_as_it_worked(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the time is left to the rest, until frames would lie in no window; `stride` decides alone."""
    now = 0.0
    monkeypatch.setattr(live.time, "monotonic", lambda: now)
    for took, stride, expected in (
        (0.1, None, [7, 10, 13, 16, 19]),
        (9.0, None, [7, 15]),
        (9.0, 4, [7, 11, 15, 19]),
    ):
        predictor = Predictor(checkpoint)
        reader = LiveReader(predictor, None, stride=stride)
        logits = predictor.logits

        def slow(clips: Any, logits: Any = logits, took: float = took) -> Any:
            nonlocal now
            now += took
            return logits(clips)

        monkeypatch.setattr(predictor, "logits", slow)
        with reader:
            for frame in frames(21):
                reader.add(frame)
                if reader._running is not None:
                    reader._running.result(timeout=30)
                now += 0.04
        assert [result.last for result in reader.results[None]] == expected
        assert reader.report.unseen == 0


def test_the_network_leaves_a_processor_to_the_rest(
    video: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live.os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    predictor = Predictor(checkpoint)
    threads = []
    logits = predictor.logits
    monkeypatch.setattr(
        predictor, "logits", lambda clips: threads.append(torch.get_num_threads()) or logits(clips)
    )
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        reader = LiveReader(predictor, None, stride=8, wait=True)
        run_live(reader, Feed(str(video), realtime=False), [], predictor.class_names, 1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert threads == [2, 2, 2], "once before the feed, and two windows"


def test_frames_that_nobody_takes_are_dropped_as_a_camera_does(tmp_path: Path) -> None:
    video = write_video(tmp_path / "fast.mp4", fps=100)
    with Feed(str(video), realtime=True) as feed:
        deadline = time.monotonic() + 30
        while feed.dropped < 20 - WAITING and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(list(feed)) == WAITING
    assert feed.dropped == 20 - WAITING


def test_a_file_can_wait_for_who_takes_its_frames(video: Path) -> None:
    with Feed(str(video), realtime=False) as feed:
        numbers = [round(frame.seconds * 10) for frame in feed]
    assert numbers == list(range(20))
    assert feed.dropped == 0


def test_a_file_is_played_by_its_time_stamps(video: Path) -> None:
    with Feed(str(video), realtime=True) as feed:
        begun = time.monotonic()
        arrived = [frame.arrived - begun for frame in feed]
    late = np.array(arrived) - np.arange(len(arrived)) / 10
    assert late.min() > -0.05


class Moving:
    """One face that moves to the right, one pixel a frame."""

    calls = 0

    def detect(self, frames: np.ndarray) -> list[Boxes]:
        self.calls += 1
        boxes = np.array([[10, 10, 22, 22], [26, 20, 34, 28]], np.float32)
        return [Boxes(boxes, np.ones(2, np.float32)) for _ in frames]


@pytest.mark.parametrize(("face", "followed"), [("all", {1, 2}), ("largest", {1})])
def test_faces_are_followed_each_with_a_window_of_its_own(
    checkpoint: Path, face: Any, followed: set[int]
) -> None:
    detector = Moving()
    captions = []
    image = np.random.default_rng(2).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    with LiveReader(Predictor(checkpoint), detector, face, wait=True) as reader:
        for frame in frames(25):
            captions = reader.add(frame._replace(image=image))
    assert reader.report.faces == followed
    assert {caption.face for caption in captions} == followed
    assert all(caption.probabilities is not None and caption.box is not None for caption in captions)
    assert captions[0].box is not None
    x0, y0, x1, y1 = captions[0].box
    assert x0 < 10 < 22 < x1
    assert y0 < 10 < 22 < y1
    assert detector.calls == 5, "five looks a second, not one a frame"


def test_frames_that_share_a_time_stamp_do_not_end_the_session(checkpoint: Path) -> None:
    with LiveReader(Predictor(checkpoint), Moving()) as reader:
        for frame in frames(12):
            reader.add(frame._replace(seconds=float(frame.seconds > 0.2)))
    assert reader.report.frames == 12


def test_the_bands_are_those_of_the_faces_seen_last(checkpoint: Path) -> None:
    reader = LiveReader(Predictor(checkpoint), None)
    for face, stop in ((1, 3.0), (2, 9.0), (3, 5.0), (4, 8.0)):
        reader.results[face] = deque([LiveResult(face, 0, 7, 0.0, stop, np.ones(7) / 7)])
    assert [name for name, _ in _bands(reader, 1)] == ["2"]
    assert [name for name, _ in _bands(reader, 3)] == ["2", "3", "4"]


def test_a_network_that_gives_no_numbers_is_refused(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(checkpoint)
    monkeypatch.setattr(predictor, "logits", lambda clips: torch.full((len(clips), 7), float("nan")))
    *first, last = frames(8)
    with LiveReader(predictor, None, wait=True, name="camera 0") as reader:
        for frame in first:
            reader.add(frame)
        with pytest.raises(PredictionError, match="camera 0: the network gave NaN or infinite values"):
            reader.add(last)


def test_a_damaged_picture_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "camera.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width = stream.height = 48
        stream.pix_fmt = "yuvj420p"
        for number in range(6):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 48, 3), np.uint8), format="rgb24")
            for packet in stream.encode(frame):
                if number in (2, 3):
                    damaged = av.Packet(bytes(40))
                    damaged.pts, damaged.dts = packet.pts, packet.dts
                    damaged.time_base, damaged.stream = packet.time_base, stream
                    packet = damaged
                container.mux(packet)
    assert len(list(sources._device(str(path), None))) == 4
    monkeypatch.setattr(sources, "MOST_DAMAGED", 2)
    with pytest.raises(VideoError, match="cannot be read"):
        list(sources._device(str(path), None))


def test_a_face_that_was_not_there_for_a_whole_window_is_not_read(checkpoint: Path) -> None:
    with LiveReader(Predictor(checkpoint), None, wait=True) as reader:
        (caption,) = [reader.add(frame) for frame in frames(7)][-1]
    assert caption.probabilities is None
    assert reader.report.lines()[0].endswith("; no window was full")


def test_who_finds_no_face_is_told(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = Moving()
    monkeypatch.setattr(detector, "detect", lambda frames: [Boxes.none()])
    with LiveReader(Predictor(checkpoint), detector, wait=True) as reader:
        for frame in frames(12):
            assert reader.add(frame) == []
    assert reader.report.lines()[0].endswith("; no face was found")


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_an_address_that_is_silent_is_given_up(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "OPEN_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/x"
        with pytest.raises(VideoError, match=r"/x: gave nothing for 0\.2 seconds"):
            list(sources.read_source(address))


def film_until_full(path: Path, size: int) -> str:
    """Films noise until no byte more fits; returns the error."""
    screen, rng = FilmScreen(path), np.random.default_rng(0)

    def film() -> None:
        for number in range(200):
            picture = rng.integers(0, 255, (96, 96, 3), dtype=np.uint8)
            screen.show(picture, number / 25, (number + 1) / 25, {})

    with full_disk(size):
        with pytest.raises(FilmError) as caught:
            film()
        screen.close()
    return str(caught.value)


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv"])
def test_a_full_disk_leaves_a_film_that_plays(tmp_path: Path, ending: str) -> None:
    """What was filmed cannot be filmed again."""
    path = tmp_path / f"o{ending}"
    text = film_until_full(path, 400_000)
    said = re.fullmatch(
        rf"{re.escape(str(path))}: cannot be written \(File too large\); "
        r"the first (\d+\.\d) seconds are there",
        text,
    )
    assert said, text
    played = 0
    with av.open(str(path)) as container, suppress(av.InvalidDataError):  # the last picture is half there
        for _ in container.decode(video=0):
            played += 1
    assert played >= 25
    assert abs(float(said[1]) - played / 25) <= 0.1
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_disk_that_is_full_at_once_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "o.mp4"
    assert film_until_full(path, 100) == f"{path}: cannot be written (File too large)"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_files_is_named_with_the_file(tmp_path: Path) -> None:
    """Such as /proc, which the superuser may write."""
    path = tmp_path / "gone" / "o.mp4"
    with pytest.raises(FilmError, match=rf"^{re.escape(str(path))}: cannot be written \("):
        FilmScreen(path).show(np.zeros((64, 64, 3), np.uint8), 0.0, 0.1, {})


def test_a_viewer_who_stalls_holds_up_nobody() -> None:
    """It asks for the pictures and never takes one."""
    screen = PageScreen()
    picture = np.random.default_rng(0).integers(0, 255, (360, 480, 3), dtype=np.uint8)
    address = ("127.0.0.1", int(screen.url.rstrip("/").rpartition(":")[2]))
    with socket.create_connection(address) as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.sendall(b"GET /stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        sent = []

        def film() -> None:
            """More than any socket holds, and each picture after the one before was encoded."""
            for number in range(100):
                screen.show(picture, number / 25, (number + 1) / 25, {"text": str(number)})
                item = screen.next_jpeg(number)
                assert item is not None
                sent.append(len(item[1]))

        filming = Thread(target=film, daemon=True)
        filming.start()
        filming.join(30)
        assert not filming.is_alive()
        assert sum(sent) > 10_000_000
        assert get(screen.url, "/state") == (200, b'{"text": "99"}')
        assert get(screen.url, "/stream")[0] == 200
        closing = Thread(target=screen.close, daemon=True)
        closing.start()
        closing.join(20)
        assert not closing.is_alive()


def get(url: str, path: str, host: str | None = None) -> tuple[int, bytes]:
    address = url.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    data = answer.read() if path != "/stream" else answer.read(300)
    connection.close()
    return answer.status, data


def test_the_page_shows_the_newest_picture_on_this_machine_only() -> None:
    screen = PageScreen(words="nothing is sent anywhere")
    try:
        assert screen.url.startswith("http://127.0.0.1:")
        picture = np.zeros((20, 30, 3), np.uint8)
        screen.show(picture, 0.0, 0.1, {"text": "25 frames/s"})
        status, page = get(screen.url, "/")
        assert status == 200
        assert b"nothing is sent anywhere" in page
        assert b"http" not in page.replace(b"http://127", b""), "the page asks no other host"
        assert get(screen.url, "/state") == (200, b'{"text": "25 frames/s"}')
        with ThreadPoolExecutor(2) as viewers:
            for status, stream in viewers.map(get, [screen.url] * 2, ["/stream"] * 2):
                assert status == 200
                assert b"Content-Type: image/jpeg" in stream
                assert b"\xff\xd8\xff" in stream
        assert get(screen.url, "/x")[0] == 404
        # A name of another page that was made to point here.
        assert get(screen.url, "/stream", "evil.example")[0] == 403
    finally:
        screen.close()
    assert screen.next_jpeg(0) is None


def test_live_writes_a_file_and_a_summary(ifdd: Run, video: Path, checkpoint: Path, tmp_path: Path) -> None:
    options = ("--checkpoint", checkpoint, "--face", "off", "--realtime", "false")
    result = ifdd("live", video, *options, "--show", "none", "--out", tmp_path / "o.mp4")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].startswith("20 frames in ")
    assert "latency" in lines[1]
    assert (tmp_path / "o.mp4").stat().st_size > 1000


def test_the_address_of_the_page_is_said_in_any_case(ifdd: Run, video: Path, checkpoint: Path) -> None:
    options = ("--checkpoint", checkpoint, "--face", "off", "--realtime", "false", "--show", "page")
    assert ifdd("live", video, *options).out.startswith("open http://127.0.0.1:")
    result = ifdd("live", video, *options, "--quiet")
    assert result.out == ""
    assert result.err.startswith("open http://127.0.0.1:")


def test_a_crop_outside_of_the_picture_is_refused_as_predict_does(
    ifdd: Run, video: Path, checkpoint: Path
) -> None:
    options = ("--checkpoint", checkpoint, "--face", "off", "--crop", "40,0,40,40", "--show", "none")
    result = ifdd("live", video, *options)
    assert result.code == 1
    assert result.err == f"ifdd: error: {video}: crop 40,0,40,40 reaches outside the 48x48 frame\n"


def test_ctrl_c_ends_with_the_summary_and_a_whole_file(
    ifdd: Run, video: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def stopped_soon() -> Iterator[Callable[[], None]]:
        calls = iter(range(100))

        def check() -> None:
            if next(calls) == 12:
                raise KeyboardInterrupt

        yield check

    monkeypatch.setattr(command, "stoppable", stopped_soon)
    options = ("--checkpoint", checkpoint, "--face", "off", "--realtime", "false", "--show", "none")
    result = ifdd("live", video, *options, "--out", tmp_path / "o.mp4")
    assert result.code == 130
    assert result.out.startswith("12 frames in ")
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 12


def test_who_closes_the_window_ends_it(video: Path, checkpoint: Path) -> None:
    class OneLook:
        closed = 0

        def show(self, picture: np.ndarray, start: float, stop: float, state: dict[str, Any]) -> None:
            raise Closed

        def close(self) -> None:
            self.closed += 1

    predictor, screen = Predictor(checkpoint), OneLook()
    reader = LiveReader(predictor, None)
    run_live(reader, Feed(str(video), realtime=False), [screen], predictor.class_names, 1)
    assert (reader.report.frames, screen.closed) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("97",), 1, "camera 97: "),
        (("nowhere.mp4",), 1, "nowhere.mp4"),
        (("http://127.0.0.1:9/x",), 1, "http://127.0.0.1:9/x: cannot be read"),
        (("0", "--crop", "1,2,3,4"), 2, "--crop is for --face off"),
        (("0", "--face", "off", "--crop", "auto"), 2, "--crop must be four integers x,y,w,h here"),
        (("0", "--stride", "0"), 2, "--stride must be at least 1, got 0"),
        (("0", "--port", "70000"), 2, "--port must be 0 to 65535"),
        (("0", "--out", "x.gif"), 2, "--out: an annotated video ends in .mp4, .mov, .mkv"),
    ],
)
def test_what_cannot_be_read_live(
    ifdd: Run, checkpoint: Path, arguments: tuple[str, ...], code: int, text: str
) -> None:
    face = () if "--face" in arguments or code == 2 else ("--face", "off")
    result = ifdd("live", *arguments, *face, "--checkpoint", checkpoint, "--show", "none")
    assert (result.code, result.err.count("\n")) == (code, 1)
    assert text in result.err


def test_an_error_of_the_source_reaches_who_reads() -> None:
    with Feed("no/such/file.mp4") as feed, pytest.raises(VideoError, match=r"file\.mp4"):
        next(iter(feed))


def test_frames_of_another_size_fit_into_the_picture() -> None:
    """A camera may change its mode."""
    painter = Painter(("a", "b"), 480, 360)
    picture = painter.draw(np.zeros((720, 1280, 3), np.uint8), [], 0.0, [], (0, 1))
    assert picture.shape == (painter.size[1], painter.size[0], 3)
