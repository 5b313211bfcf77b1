"""Show the classes and probabilities of a camera's picture while it films.

SOURCE is the number of a camera (0 is the first), a video file, which is played like a camera, or an address
such as rtsp://camera/stream. Whenever the network is free, it reads the newest window of frames, so a slower
machine reads fewer windows. The picture shows the rate, the latency and the number of frames that were
dropped. It opens in a window; without a screen, it is a page on this machine, whose address is printed.
Ctrl-C ends the command, with a summary.

Pictures stay on this machine. The classes are a guess at what faces show, not at what people feel; the EU's
AI Act, Article 5(1)(f), prohibits inferring emotions of people at work or in education.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace

from ifdd.cli._commands import UsageError
from ifdd.cli.common import add_device_option, choose_device, say_address
from ifdd.cli.film import check_film
from ifdd.cli.paths import require_file
from ifdd.cli.signals import stoppable
from ifdd.text import one_line

if TYPE_CHECKING:
    from ifdd.view.screens import Screen

SUMMARY = "show the expressions in front of a camera"
USAGE = "[SOURCE] --checkpoint CHECKPOINT [options]"


def configure(parser: ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument(
        "source", nargs="?", default="0", metavar="SOURCE", help="number of a camera, video file or address"
    )
    parser.add_argument("--checkpoint", required=True, help="weights written by `ifdd fit` or `ifdd convert`")
    parser.add_argument(
        "--face",
        type=str,
        default="all",
        metavar="WHICH",
        help="find and follow faces: all, largest, a number (2: the two largest) or off",
    )
    parser.add_argument(
        "--crop",
        type=str | None,
        default=None,
        metavar="BOX",
        help="with --face off: box to cut out of all frames, x,y,w,h in pixels; default: the whole frame",
    )
    parser.add_argument(
        "--stride",
        type=int | None,
        default=None,
        help="smallest number of frames from one window to the next; default: as many as leave the network "
        "idle half of the time; 1 with --realtime false",
    )
    parser.add_argument(
        "--realtime",
        type=bool,
        default=True,
        help="play a file at its own speed, and drop frames if the machine is too slow; false: read every "
        "frame",
    )
    group = parser.add_argument_group("Output")
    group.add_argument(
        "--show",
        type=Literal["auto", "window", "page", "none"],
        default="auto",
        help="window, page (in a browser on this machine) or none; auto: window if there is a screen, else "
        "page",
    )
    group.add_argument("--port", type=int, default=0, help="port of the page; 0: any free one")
    group.add_argument(
        "--out",
        type=str | None,
        default=None,
        metavar="OUT",
        help="annotated video to write when the command ends: .mp4, .mov or .mkv",
    )
    group.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    add_device_option(parser)


def run(options: Namespace) -> int:
    """Runs the command; returns the exit code."""
    from ifdd.faces.tracks import parse_face
    from ifdd.view.live import parse_region

    try:
        region, face = parse_region(options.crop), parse_face(options.face)
    except ValueError as error:
        raise UsageError(f"--{one_line(error)}") from None
    if region is not None and face is not None:
        raise UsageError("--crop is for --face off: name one of them")
    if options.stride is not None and options.stride < 1:
        raise UsageError(f"--stride must be at least 1, got {options.stride}")
    if not 0 <= options.port <= 65535:
        raise UsageError(f"--port must be 0 to 65535, got {options.port}")
    if options.out is not None:
        check_film(options, options.source)
    require_file("--checkpoint", options.checkpoint)
    device = choose_device(options.device)

    from ifdd.faces import load_detector
    from ifdd.prediction import Predictor
    from ifdd.view.live import LiveReader, run_live
    from ifdd.view.overlay import MOST_BANDS
    from ifdd.view.sources import Feed, is_camera, is_url, name_of

    predictor = Predictor(options.checkpoint, device)
    detector = None if face is None else load_detector(device)
    wait = not options.realtime and not is_camera(options.source) and not is_url(options.source)
    name = name_of(options.source)
    reader = LiveReader(predictor, detector, face or "all", region, options.stride, wait, name)
    bands = 1 if face in (None, "largest", 1) else min(MOST_BANDS, face) if isinstance(face, int) else 3
    feed = Feed(options.source, options.realtime)
    with stoppable() as check:
        try:
            run_live(reader, feed, _screens(options), predictor.class_names, bands, check)
        finally:
            for line in reader.report.lines() if reader.report.frames else []:
                print(line)
    return 0


def _screens(options: Namespace) -> list[Screen]:
    from ifdd.view.screens import FilmScreen, PageScreen, WindowScreen, has_display
    from ifdd.view.words import LOCAL, WORDS

    screens: list[Screen] = []
    if options.out is not None:
        screens.append(FilmScreen(options.out))
    show = options.show
    if show == "auto":
        show = "window" if has_display() else "page"
    if show == "window":
        if not has_display():
            raise UsageError(
                "--show window: there is no screen here, or Python has no tkinter; --show page works"
            )
        screens.append(WindowScreen("ifdd live: q ends"))
    elif show == "page":
        try:
            page = PageScreen(options.port, f"{LOCAL} {WORDS}")
        except OSError as error:
            raise UsageError(f"--port {options.port} cannot be used ({one_line(error)})") from None
        say_address(page.url, options.quiet)
        screens.append(page)
    return screens
