"""Where pictures are shown: a window, a page in the browser, a file."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ifdd.view.film import Film


class Closed(Exception):  # noqa: N818 (nothing went wrong)
    """The person who looks has closed the window."""


class Screen(Protocol):
    """Something that shows pictures."""

    def show(self, picture: np.ndarray, start: float, stop: float, state: dict[str, Any]) -> None:
        """Shows uint8 RGB (H, W, 3), from `start` to `stop` seconds; `state` says what is in it.

        Raises:
            Closed: nobody looks any more.
        """

    def close(self) -> None:
        """Ends in order."""


def is_local(host: str) -> bool:
    """Whether a browser that sends this header Host was asked for a page on this machine. A page elsewhere
    whose name was made to point here (DNS rebinding) must see nothing.
    """
    return host.rsplit(":", 1)[0].lower() in ("127.0.0.1", "localhost")


def has_display() -> bool:
    """Whether a window can be opened here."""
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        return False
    try:
        import tkinter

        tkinter.Tk().destroy()
    except Exception:  # tkinter may be missing, or its display be gone
        return False
    return True


class WindowScreen:
    """A window; the key q or Escape closes it.

    Args:
        title: of the window.
    """

    def __init__(self, title: str) -> None:
        import tkinter

        self._window = tkinter.Tk()
        self._window.title(title)
        self._label = tkinter.Label(self._window, borderwidth=0)
        self._label.pack()
        self._open = True
        self._picture: Any = None
        self._window.protocol("WM_DELETE_WINDOW", self._closed)
        for key in ("q", "<Escape>"):
            self._window.bind(key, lambda _: self._closed())

    def _closed(self) -> None:
        self._open = False

    def show(self, picture: np.ndarray, start: float, stop: float, state: dict[str, Any]) -> None:
        """See :class:`Screen`."""
        from PIL import ImageTk

        self._picture = ImageTk.PhotoImage(Image.fromarray(picture), master=self._window)
        self._label.configure(image=self._picture)
        self._window.update()
        if not self._open:
            raise Closed

    def close(self) -> None:
        """See :class:`Screen`."""
        self._window.destroy()


class FilmScreen:
    """An annotated video file, encoded to keep up with a camera.

    Args:
        path: as for :class:`ifdd.view.film.Film`.
        fps: about how many frames come a second.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float = 25.0) -> None:
        self._path = Path(path)
        self._fps = fps
        self._film: Film | None = None

    def show(self, picture: np.ndarray, start: float, stop: float, state: dict[str, Any]) -> None:
        """See :class:`Screen`."""
        if self._film is None:
            size = (picture.shape[1], picture.shape[0])
            self._film = Film(self._path, size, self._fps, live=True).__enter__()
        self._film.write(picture, start, stop)

    def close(self) -> None:
        """See :class:`Screen`."""
        if self._film is not None:
            self._film.__exit__(None, None, None)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>ifdd live</title>
<meta name="viewport" content="width=device-width">
<style>body{background:#181818;color:#eee;font:16px sans-serif;margin:1em;max-width:70em}
img{max-width:100%;display:block}p{line-height:1.4}</style></head>
<body><h1>ifdd live</h1>
<img src="/stream" alt="The picture of the camera with faces and their classes">
<p id="state" role="status">waiting for the first frame</p>
<p>PRIVACY</p>
<script>
const state = document.getElementById("state");
setInterval(async () => {
  try { state.textContent = (await (await fetch("/state")).json()).text; }
  catch { state.textContent = "ended"; }
}, 1000);
</script></body></html>
"""


class PageScreen:
    """A page on this machine only that shows the pictures as a stream of JPEG images (MJPEG).

    Args:
        port: 0 for any that is free.
        words: a sentence shown below the picture.

    Attributes:
        url: of the page.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, port: int = 0, words: str = "") -> None:
        self._news = threading.Condition()
        self._picture: np.ndarray | None = None
        self._number = 0
        self._ended = False
        self._jpeg: tuple[int, bytes] = (0, b"")
        self.state: dict[str, Any] = {"text": "waiting for the first frame"}
        page = _PAGE.replace("PRIVACY", words).encode()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self, page))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, name="ifdd-page", daemon=True)
        self._thread.start()

    def show(self, picture: np.ndarray, start: float, stop: float, state: dict[str, Any]) -> None:
        """See :class:`Screen`."""
        with self._news:
            self._picture, self.state = picture, state
            self._number += 1
            self._news.notify_all()

    def close(self) -> None:
        """See :class:`Screen`."""
        with self._news:
            self._ended = True
            self._news.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def next_jpeg(self, after: int) -> tuple[int, bytes] | None:
        """The newest picture whose number is above `after`, with that number; None at the end. Nothing is
        encoded while nobody looks, and once for all who do.
        """
        with self._news:
            self._news.wait_for(lambda: self._ended or self._number > after)
            if self._ended or self._picture is None:
                return None
            if self._jpeg[0] != self._number:
                data = io.BytesIO()
                Image.fromarray(self._picture).save(data, "JPEG", quality=80)
                self._jpeg = (self._number, data.getvalue())
            return self._jpeg


def _handler(screen: PageScreen, page: bytes) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Answers a browser."""
            if not is_local(self.headers.get("Host", "")):
                self.send_error(HTTPStatus.FORBIDDEN)
            elif self.path == "/":
                self._send("text/html; charset=utf-8", page)
            elif self.path == "/state":
                self._send("application/json", json.dumps(screen.state).encode())
            elif self.path == "/stream":
                self._stream()
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def _send(self, kind: str, body: bytes) -> None:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def _stream(self) -> None:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            number = 0
            try:
                while (item := screen.next_jpeg(number)) is not None:
                    number, data = item
                    self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n")
                    self.wfile.write(f"Content-Length: {len(data)}\r\n\r\n".encode() + data + b"\r\n")
            except (BrokenPipeError, ConnectionResetError):
                pass  # the tab was closed

        def log_message(self, *_: object) -> None:
            """Keeps requests out of the terminal."""

    return Handler
