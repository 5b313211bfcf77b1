"""The web page of `ifdd app`: drop a video, see its faces and their probabilities. On this machine only."""

from __future__ import annotations

import html
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifdd.data.errors import NoFaceError
from ifdd.data.video import VideoError, open_video
from ifdd.explanation import draw_explanation, draw_strip
from ifdd.faces import DetectorError
from ifdd.outcomes import VideoPrediction, WindowPrediction, best
from ifdd.prediction import PredictionError, Predictor
from ifdd.streaming import Window
from ifdd.strips import FaceStrip, StripBuilder
from ifdd.text import one_line, printable
from ifdd.view.annotate import FaceWindow, draw_windows
from ifdd.view.screens import is_local
from ifdd.view.words import LOCAL, WORDS

# Must be set before Gradio is imported.
_QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}

# The browser itself refuses to ask any other host, whatever a version of Gradio may want.
_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "frame-ancestors 'none'",
    ]
)

_WHOLE = "the whole picture, no faces"
_CHOICES = [("all faces", "all"), ("the largest face", "largest"), (_WHOLE, "off")]
_FIGURE_DPI = 150
_LEAST_WIDTH = 320  # of a picture; where there is no room for two, one stands below the other
_KEPT_SECONDS = 3600


class PortError(OSError):
    """The page cannot be served at this port; the message is one line."""


@dataclass(frozen=True)
class Limits:
    """Limits of an upload: bytes of the file, and seconds of the video."""

    size: int
    seconds: float


@dataclass(frozen=True)
class Analysis:
    """The results for a video, and the files with them."""

    prediction: VideoPrediction
    strips: tuple[FaceStrip, ...]
    strip_figure: Path
    explanation_figure: Path
    explained: int
    video: Path
    json: Path


def analyse(
    predictor: Predictor,
    path: str | os.PathLike[str],
    face: str,
    folder: Path,
    limits: Limits,
    progress: Callable[[float, str], object] = lambda part, text: None,
) -> Analysis:
    """Predicts a video and writes all that the page shows into `folder`.

    Args:
        predictor: the network.
        path: the video.
        face: as in :meth:`Predictor.predict`.
        folder: where files go.
        limits: of the video.
        progress: called with the part that is done, 0 to 1, and what is done.

    Raises:
        VideoError: the video is too large or too long, cannot be read, or shows no face.
        PredictionError: the network gave NaN or infinite values.
        DetectorError: the extra `face` is not installed.
    """
    path = Path(path)
    progress(0.0, "looking at the file")
    _check_limits(path, limits)
    progress(0.05, "finding faces")
    windows: list[WindowPrediction] = []
    drawn: list[FaceWindow] = []
    builders: dict[int | None, StripBuilder] = {}
    surest: tuple[float, Window] | None = None
    reading = predictor.reading(face=face)
    coming = predictor.read(path, reading)
    while True:
        try:
            window, logits = next(coming)
        except StopIteration as end:
            footage = end.value
            break
        known = WindowPrediction.of_logits(
            window.start_seconds, window.stop_seconds, logits.tolist(), window.face, window.box
        )
        windows.append(known)
        drawn.append(FaceWindow.of(window, logits.double().softmax(0).numpy(), None))
        builders.setdefault(window.face, StripBuilder(window.face)).add(window, logits)
        if surest is None or max(known.probabilities) > surest[0]:
            surest = max(known.probabilities), window
        progress(0.1 + 0.6 * min(window.part or 0.0, 1.0), "reading faces")
    assert surest is not None, "a video has a window, or reading it fails"
    prediction = VideoPrediction.of_windows(path.name, predictor.class_names, windows, footage)
    strips = tuple(builders[number].result() for number in sorted(builders, key=lambda number: number or 0))
    progress(0.7, "drawing figures")
    strip = draw_strip(path.name, predictor.class_names, strips, folder / "windows.png", dpi=_FIGURE_DPI)
    explanation = draw_explanation(
        predictor.explain_window(surest[1], path.name), folder / "explanation.png", dpi=_FIGURE_DPI
    )
    progress(0.8, "drawing the video")
    video = folder / "annotated.mp4"
    draw_windows(predictor.class_names, drawn, path, video)
    result = folder / "result.json"
    result.write_text(json.dumps(prediction.to_dict(), indent=2) + "\n", encoding="utf-8")
    return Analysis(prediction, strips, strip, explanation, surest[1].number, video, result)


def _check_limits(path: Path, limits: Limits) -> None:
    name = printable(path.name)
    size = path.stat().st_size
    if size > limits.size:
        raise VideoError(
            f"{name}: {size / 1e6:.1f} MB, this page takes {limits.size / 1e6:g} MB at most (--max_size)"
        )
    # Frames count, not what a header says; they are decoded, but not converted.
    with open_video(path) as video:
        for frame in video:
            if frame.seconds > limits.seconds:
                raise VideoError(
                    f"{name}: longer than the {limits.seconds:g} seconds this page takes (--max_seconds)"
                )


def build_page(predictor: Predictor, folder: Path, limits: Limits) -> Any:
    """The page, a `gradio.Blocks`.

    Args:
        predictor: the network; it reads one video at a time, others wait.
        folder: where files of the visits go, each in a folder of its own.
        limits: of the videos.
    """
    import gradio

    names = predictor.class_names

    def visit(file: str | None, face: str, progress: Any = gradio.Progress()) -> tuple[Any, ...]:  # noqa: B008
        nothing = (None,) * 9
        if not file:
            return (_alert("Choose a video first."), *nothing)
        place = _new_place(folder)
        try:
            found = analyse(
                predictor, file, face, place, limits, lambda part, text: progress(part, desc=text)
            )
        except (VideoError, PredictionError, DetectorError, OSError, ValueError) as error:
            shutil.rmtree(place, ignore_errors=True)
            return (_refusal(error, file), *nothing)
        faces = [
            (picture, _face_label(strip, names))
            for strip in found.strips
            for _, picture in strip.pictures[len(strip.pictures) // 2 :][:1]
        ]
        return (
            _summary(found.prediction),
            faces,
            str(found.video),
            str(found.strip_figure),
            str(found.explanation_figure),
            str(found.json),
            str(found.video),
            found.explained,
            None,
            (file, face),
        )

    def explain(analysed: tuple[str, str] | None, number: float | None) -> tuple[str, Any]:
        if analysed is None or number is None:
            return _alert("Analyse a video first."), None
        file, face = analysed
        place = _new_place(folder)
        try:
            _check_limits(Path(file), limits)
            explanation = predictor.explain(file, int(number), face=face)
            figure = draw_explanation(explanation, place / "explanation.png", dpi=_FIGURE_DPI)
        except (VideoError, PredictionError, DetectorError, OSError, ValueError) as error:
            shutil.rmtree(place, ignore_errors=True)
            return _refusal(error, file), None
        return f"<p>Window {int(number)} is explained below.</p>", str(figure)

    with gradio.Blocks(
        title="ifdd app", analytics_enabled=False, delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS)
    ) as page:
        gradio.HTML(
            "<h1>Facial expressions in a video</h1>"
            f"<p>{LOCAL} {WORDS}</p>"
            f"<p>Up to {limits.size / 1e6:g} MB and {limits.seconds:g} seconds.</p>"
        )
        with gradio.Row():
            file = gradio.File(label="Video", type="filepath", elem_id="video")
            with gradio.Column():
                face = gradio.Radio(_CHOICES, value="all", label="What is read", elem_id="face")
                start = gradio.Button("Analyse", variant="primary", elem_id="analyse")
        status = gradio.HTML(elem_id="status")
        with gradio.Row():
            # No buttons: theirs would share a picture with another host.
            faces = gradio.Gallery(
                label="Faces", columns=2, height="auto", elem_id="faces", buttons=[], min_width=_LEAST_WIDTH
            )
            video = gradio.Video(
                label="Annotated video",
                elem_id="annotated",
                autoplay=False,
                buttons=[],
                min_width=_LEAST_WIDTH,
            )
        gradio.HTML("<h2>Probabilities over time</h2>")
        strip = gradio.Image(**_figure("strip", "Probabilities over time"))
        gradio.HTML("<h2>What the network looked at, in the window it is surest of or another</h2>")
        with gradio.Row():
            number = gradio.Number(label="Window", precision=0, minimum=0, elem_id="window")
            again = gradio.Button("Explain this window", elem_id="explain")
        told = gradio.HTML(elem_id="explained")
        figure = gradio.Image(**_figure("explanation", "What the network looked at"))
        with gradio.Row():
            as_json = gradio.DownloadButton("Download JSON", elem_id="json")
            as_video = gradio.DownloadButton("Download annotated video", elem_id="download")
        # What the results are of: the visitor may have chosen something else since.
        analysed = gradio.State(None)
        start.click(
            visit,
            [file, face],
            [status, faces, video, strip, figure, as_json, as_video, number, told, analysed],
            concurrency_id="network",
            concurrency_limit=1,
            api_name=False,
        )
        again.click(
            explain,
            [analysed, number],
            [told, figure],
            concurrency_id="network",
            api_name=False,
        )
    return page


def _new_place(folder: Path) -> Path:
    """A folder for the files of one visit. Those that are older than Gradio keeps uploads are removed, or a
    page that runs for weeks would fill the disk.
    """
    oldest = time.time() - _KEPT_SECONDS
    for place in folder.iterdir():
        with suppress(OSError):
            if place.stat().st_mtime < oldest:
                shutil.rmtree(place)
    return Path(tempfile.mkdtemp(dir=folder))


def _figure(name: str, label: str) -> dict[str, Any]:
    """Arguments of a picture that covers no part of the figure with its label."""
    return {
        "label": label,
        "elem_id": name,
        "type": "filepath",
        "show_label": False,
        "buttons": ["fullscreen"],
    }


def _alert(text: str) -> str:
    return f'<p role="alert" style="color:#c00;font-weight:bold">{html.escape(text)}</p>'


def _refusal(error: Exception, file: str) -> str:
    """Shows the name of the file, but no folder of this machine."""
    text = one_line(error)
    if isinstance(error, NoFaceError):
        # The page has no command line.
        text = f"{error.finding}; choose “{_WHOLE}” to read it all the same"
    return _alert(text.replace(f"{printable(str(Path(file).parent))}{os.sep}", ""))


def _face_label(strip: FaceStrip, names: tuple[str, ...]) -> str:
    top = int(strip.mean.argmax())
    who = "" if strip.face is None else f"face {strip.face}: "
    return f"{who}{printable(names[top])} {100 * strip.mean[top]:.0f} %"


def _summary(prediction: VideoPrediction) -> str:
    """A table: a row for each face, or one for the whole video."""
    names = prediction.class_names
    rows = [(f"face {face.face}", face.windows, face.probabilities) for face in prediction.faces] or [
        ("whole picture", prediction.windows, prediction.probabilities)
    ]
    head = "".join(f"<th scope='col'>{html.escape(printable(name))}</th>" for name in names)
    body = ""
    for who, windows, values in rows:
        label = html.escape(printable(best(names, values)))
        shares = "".join(f"<td>{100 * value:.1f} %</td>" for value in values)
        body += f"<tr><th scope='row'>{who}</th><td><b>{label}</b></td><td>{len(windows)}</td>{shares}</tr>"
    footage = prediction.footage
    damage = f"<p>Damaged: {html.escape(one_line(footage.damage))}</p>" if footage.damage else ""
    return (
        f"<p role='status'>{html.escape(printable(prediction.path))}: {footage.frames_read} frames, "
        f"{footage.seconds:.1f} seconds</p>{damage}"
        # Wider than a narrow screen, the table is scrolled: with the keyboard, too.
        "<div tabindex='0' role='region' aria-label='Probabilities' style='overflow-x:auto'>"
        "<table><thead><tr><th></th><th scope='col'>class</th><th scope='col'>windows</th>"
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


class _Policy:
    """Tells browsers to ask no other host (Content-Security-Policy), and answers those alone that asked for
    this machine.
    """

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        async def answer(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", _POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        if scope["type"] in ("http", "websocket") and not _asks_this_machine(scope):
            await _forbid(scope, send)
        else:
            await self._app(scope, receive, answer)


def _asks_this_machine(scope: MutableMapping[str, Any]) -> bool:
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"host"]
    return bool(hosts) and all(map(is_local, hosts))


async def _forbid(scope: MutableMapping[str, Any], send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})  # against the policy
        return
    await send({"type": "http.response.start", "status": 403, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets variables, and brings back what was there before."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _past_proxies() -> dict[str, str]:
    """Variables with which this machine is reached without the proxy for others: Gradio asks its own page
    whether it is there.
    """
    before = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    # "*", which stands for all hosts, counts only where it stands alone.
    hosts = before if before.strip() == "*" else ",".join(filter(None, [before, "127.0.0.1", "localhost"]))
    return {"no_proxy": hosts, "NO_PROXY": hosts}


def serve(
    predictor: Predictor,
    limits: Limits,
    port: int | None = None,
    ready: Callable[[str], None] = lambda url: None,
    stop: threading.Event | None = None,
    *,
    browser: bool = False,
) -> None:
    """Serves the page on 127.0.0.1 until Ctrl-C; all files of its visits are removed then.

    Args:
        predictor: the network.
        limits: of the videos.
        port: of the page; None for the first free one from 7860 on.
        ready: called with the address.
        stop: ends it, too.
        browser: open the page in a browser.

    Raises:
        PortError: the port is taken.
    """
    stop = threading.Event() if stop is None else stop
    with (
        tempfile.TemporaryDirectory(prefix="ifdd-app-") as folder,
        _environment({**_QUIET, **_past_proxies(), "GRADIO_TEMP_DIR": str(Path(folder) / "uploads")}),
    ):
        import gradio
        from starlette.middleware import Middleware

        results = Path(folder) / "results"
        results.mkdir()
        page = build_page(predictor, results, limits)
        try:
            _, url, _ = page.queue(max_size=20).launch(
                server_name="127.0.0.1",
                server_port=port,
                share=False,
                inbrowser=browser,
                quiet=True,
                prevent_thread_lock=True,
                show_error=True,
                max_file_size=limits.size,
                allowed_paths=[str(results)],
                footer_links=[],
                enable_monitoring=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
                app_kwargs={"middleware": [Middleware(_Policy)], "docs_url": None, "redoc_url": None},
            )
        except OSError as error:
            raise PortError(one_line(error)) from error
        try:
            ready(url)
            # In steps, so that Ctrl-C is heard on every system.
            while not stop.wait(0.5):
                pass
        finally:
            page.close(verbose=False)
