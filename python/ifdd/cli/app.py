"""Open a web page on this machine: drop a video, and see its faces, their classes over time and what the
network looked at.

The page is served on 127.0.0.1, to this machine only, and loads nothing from other hosts. Uploaded videos
and results are deleted when the command ends (Ctrl-C).

Pictures stay on this machine. The classes are a guess at what faces show, not at what people feel; the EU's
AI Act, Article 5(1)(f), prohibits inferring emotions of people at work or in education.
"""

from __future__ import annotations

from functools import partial

from jsonargparse import ArgumentParser, Namespace

from ifdd.cli._commands import UsageError
from ifdd.cli.common import add_device_option, choose_device, say_address
from ifdd.cli.paths import require_file
from ifdd.cli.signals import stoppable
from ifdd.text import one_line

SUMMARY = "open a web page on this machine that reads videos"
USAGE = "--checkpoint CHECKPOINT [options]"


def configure(parser: ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--checkpoint", required=True, help="weights written by `ifdd fit` or `ifdd convert`")
    parser.add_argument("--max_size", type=float, default=200, help="largest file in MB")
    parser.add_argument("--max_seconds", type=float, default=300, help="longest video in seconds")
    parser.add_argument(
        "--port", type=int | None, default=None, help="port of the page; default: the first free from 7860 on"
    )
    parser.add_argument("--browser", type=bool, default=True, help="open the page in a browser")
    add_device_option(parser)


def run(options: Namespace) -> int:
    """Runs the command; returns the exit code."""
    import importlib.util

    for name in ("max_size", "max_seconds"):
        if not 0 < options[name] < float("inf"):
            raise UsageError(f"--{name} must be positive, got {options[name]:g}")
    if options.port is not None and not 1 <= options.port <= 65535:
        raise UsageError(f"--port must be 1 to 65535, got {options.port}")
    if importlib.util.find_spec("gradio") is None:
        raise UsageError("the page needs Gradio, which the extra app brings: pip install 'ifdd-kernels[app]'")
    require_file("--checkpoint", options.checkpoint)
    device = choose_device(options.device)

    from ifdd.prediction import Predictor
    from ifdd.view.app import Limits, PortError, serve

    predictor = Predictor(options.checkpoint, device)
    say = partial(say_address, quiet=options.quiet)
    limits = Limits(round(options.max_size * 1e6), options.max_seconds)
    with stoppable():
        try:
            serve(predictor, limits, options.port, say, browser=options.browser)
        except PortError as error:
            raise UsageError(f"--port: {one_line(error)}") from None
    return 0
