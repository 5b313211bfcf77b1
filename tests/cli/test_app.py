"""The parts of the page of `ifdd app`; tests/cli/test_app_browser.py looks at it in a browser."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ifdd.data.errors import NoFaceError
from ifdd.data.video import VideoError
from ifdd.prediction import Predictor
from ifdd.view import app
from ifdd.view.app import (
    _POLICY,
    Limits,
    PortError,
    _environment,
    _new_place,
    _past_proxies,
    _Policy,
    _refusal,
    _summary,
    analyse,
)

from .conftest import make_checkpoint

Run = Callable[..., Any]
WIDE = Limits(10_000_000, 60.0)


def test_an_analysis_says_what_predict_says(video: Path, checkpoint: Path, tmp_path: Path) -> None:
    predictor = Predictor(checkpoint)
    told: list[float] = []
    found = analyse(predictor, video, "off", tmp_path, WIDE, lambda part, text: told.append(part))
    expected = predictor.predict(video).to_dict() | {"path": video.name}
    assert json.loads(found.json.read_text()) == expected
    for file in (found.strip_figure, found.explanation_figure, found.video):
        assert file.parent == tmp_path
        assert file.stat().st_size > 1000
    surest = max(range(3), key=lambda number: max(found.prediction.windows[number].probabilities))
    assert found.explained == surest
    assert told == sorted(told)


def test_names_are_text_on_the_page(video: Path, tmp_path: Path) -> None:
    names = ("<script>alert(1)</script>", "a&b", "Sad")
    predictor = Predictor(make_checkpoint(tmp_path / "w.safetensors", names))
    prediction = predictor.predict(video)
    shown = _summary(prediction)
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "a&amp;b" in shown


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (Limits(1000, 60.0), r"face\.mp4: 0\.\d MB, this page takes 0.001 MB at most \(--max_size\)"),
        (Limits(10**7, 1.5), r"face\.mp4: longer than the 1.5 seconds this page takes \(--max_seconds\)"),
    ],
)
def test_limits(video: Path, checkpoint: Path, tmp_path: Path, limits: Limits, text: str) -> None:
    with pytest.raises(VideoError, match=text):
        analyse(Predictor(checkpoint), video, "off", tmp_path, limits)
    assert list(tmp_path.iterdir()) == []


def test_browsers_are_told_to_ask_no_other_host() -> None:
    sent: list[Any] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"x"})

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(_Policy(page)({"type": "http", "headers": [(b"host", b"localhost:7860")]}, None, send))
    headers = dict(sent[0]["headers"])
    assert headers[b"a"] == b"b"
    assert headers[b"content-security-policy"].decode() == _POLICY
    assert sent[1]["body"] == b"x"
    assert re.findall(r"https?:|\*", _POLICY) == []
    assert _POLICY.startswith("default-src 'self'")


@pytest.mark.parametrize("host", [None, b"evil.example:7860", b"127.0.0.1.evil.example", b"localhost.x"])
def test_a_name_that_was_made_to_point_here_gets_nothing(host: bytes | None) -> None:
    sent: list[Any] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("must not be asked")

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [] if host is None else [(b"host", host)]
    asyncio.run(_Policy(page)({"type": "http", "headers": headers}, None, send))
    assert (sent[0]["status"], sent[1]["body"]) == (403, b"")
    asyncio.run(_Policy(page)({"type": "websocket", "headers": headers}, None, send))
    assert sent[2]["type"] == "websocket.close"


def test_old_results_are_removed(tmp_path: Path) -> None:
    old, new = _new_place(tmp_path), _new_place(tmp_path)
    (old / "annotated.mp4").touch()
    os.utime(old, (0, 0))
    newest = _new_place(tmp_path)
    assert set(tmp_path.iterdir()) == {new, newest}


def test_the_page_advises_what_it_has() -> None:
    error = NoFaceError("uploads/x/a.mp4: no face found", "--face off reads whole frames")
    shown = _refusal(error, "uploads/x/a.mp4")
    assert "a.mp4: no face found; choose “the whole picture, no faces”" in shown
    assert "--" not in shown
    assert "uploads" not in shown


@pytest.mark.parametrize(
    ("before", "inside"),
    [
        (None, "127.0.0.1,localhost"),
        ("intern.example", "intern.example,127.0.0.1,localhost"),
        ("*", "*"),
    ],
)
def test_the_page_itself_is_not_asked_through_a_proxy(
    monkeypatch: pytest.MonkeyPatch, before: str | None, inside: str
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    if before is not None:
        monkeypatch.setenv("NO_PROXY", before)
    with _environment(_past_proxies()):
        assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == inside
    assert os.environ.get("NO_PROXY") == before


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (PortError("Cannot find empty port in range: 80-80"), 2, "--port: Cannot find empty port"),
        (OSError(28, "No space left on device"), 1, "ifdd: error: No space left on device"),
    ],
)
def test_only_the_port_is_blamed_on_the_port(
    ifdd: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, code: int, text: str
) -> None:
    def serve(*_: object, **__: object) -> None:
        raise error

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "gradio" or find(name))
    monkeypatch.setattr(app, "serve", serve)
    result = ifdd("app", "--checkpoint", checkpoint)
    assert result.code == code
    assert text in result.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--max_size", "0"), "--max_size must be positive, got 0"),
        (("--max_seconds", "-1"), "--max_seconds must be positive, got -1"),
        (("--port", "70000"), "--port must be 1 to 65535, got 70000"),
    ],
)
def test_wrong_calls(ifdd: Run, checkpoint: Path, arguments: tuple[str, ...], text: str) -> None:
    result = ifdd("app", "--checkpoint", checkpoint, *arguments)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert text in result.err


def test_without_gradio_it_says_what_to_install(
    ifdd: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else find(name))
    result = ifdd("app", "--checkpoint", checkpoint)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "pip install 'ifdd-kernels[app]'" in result.err
