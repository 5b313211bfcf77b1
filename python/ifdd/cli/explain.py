"""Draw what the network looked at in a video.

The figure of one window shows its frames, the positions of the static and dynamic samples, the features of
both groups, the correlation of the frames and the class probabilities. With --window all, it shows the
probabilities of all windows over time, with some frames. It is 18.3 cm wide, two columns of a paper.
"""

from __future__ import annotations

import sys
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from ifdd.cli._commands import UsageError
from ifdd.cli.common import add_device_option, choose_device
from ifdd.cli.paths import require_file, require_writable_file
from ifdd.cli.predict import add_crop_option, check_crop, remark_on_crop
from ifdd.cli.spare import spare
from ifdd.text import one_line, printable

SUMMARY = "draw what the network looked at"
USAGE = "VIDEO --checkpoint CHECKPOINT --out FIGURE [options]"
_IMAGES = (".png", ".pdf", ".svg", ".jpg")


def configure(parser: ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("video", metavar="VIDEO", help="video file or folder of numbered frames")
    parser.add_argument("--checkpoint", required=True, help="weights written by `ifdd fit` or `ifdd convert`")
    parser.add_argument(
        "--out", required=True, metavar="FIGURE", help="image to write: .png, .pdf, .svg or .jpg"
    )
    parser.add_argument(
        "--window",
        type=int | Literal["all"],
        default=0,
        help="number of the window, from 0, or all; `ifdd predict` lists the windows of a video",
    )
    parser.add_argument(
        "--panels",
        type=str | None,
        default=None,
        help="parts of the figure of one window, separated by commas; default: "
        "frames,samples,maps,correlation,probabilities",
    )
    parser.add_argument("--dpi", type=int, default=300, help="dots per inch of the figure")
    add_crop_option(parser)
    add_device_option(parser)


def run(options: Namespace) -> int:
    """Runs the command; returns the exit code."""
    from pathlib import Path

    from ifdd import explanation
    from ifdd.data.video import STILL

    face = check_crop(options)
    try:
        panels = explanation.PANELS if options.panels is None else explanation.parse_panels(options.panels)
    except ValueError as error:
        raise UsageError(f"--{one_line(error)}") from None
    whole = options.window == "all"
    if whole and options.panels is not None:
        raise UsageError("--panels are those of one window, and --window is all")
    require_file("--checkpoint", options.checkpoint)
    require_writable_file("--out", options.out)
    if Path(options.out).suffix.lower() not in _IMAGES:
        raise UsageError(f"--out: a figure ends in {', '.join(_IMAGES)}, got {printable(options.out)}")
    if not 20 <= options.dpi <= 2400:
        raise UsageError(f"--dpi must be 20 to 2400, got {options.dpi}")
    spare(
        [("--out", Path(options.out))], [("the video", options.video), ("the checkpoint", options.checkpoint)]
    )
    device = choose_device(options.device)

    from ifdd.prediction import Predictor

    predictor = Predictor(options.checkpoint, device)
    remark_on_crop(predictor, options)
    if whole:
        strips, footage = predictor.strips(options.video, options.crop, face=face)
        name = Path(options.video).name
        written = explanation.draw_strip(name, predictor.class_names, strips, options.out, dpi=options.dpi)
        remarks = [*([footage.damage] if footage.damage else []), *(r for r in footage.remarks if r == STILL)]
    else:
        shown = predictor.explain(options.video, options.window, options.crop, face=face)
        written = explanation.draw_explanation(shown, options.out, panels=panels, dpi=options.dpi)
        # All frames of the window are the same one.
        remarks = [STILL] if shown.frame_seconds[0] == shown.frame_seconds[-1] else []
    for remark in remarks:
        print(f"ifdd: warning: {printable(options.video)}: {one_line(remark)}", file=sys.stderr)
    print(f"written: {printable(written)}")
    return 0
