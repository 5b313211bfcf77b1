"""Draw what the network looked at in one window of a video.

The figure shows the frames, where the static and dynamic samples were taken, the features of both groups, the
correlation of the frames and the class probabilities.
"""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from ifdd.cli._commands import UsageError
from ifdd.cli.common import add_device_option, choose_device
from ifdd.cli.paths import require_file, require_writable_file
from ifdd.cli.predict import add_crop_option, check_crop
from ifdd.cli.spare import spare
from ifdd.text import printable

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
        type=int,
        default=0,
        help="which window of the video, from 0; windows are those of `ifdd predict`",
    )
    parser.add_argument("--dpi", type=int, default=130, help="dots per inch of the figure")
    add_crop_option(parser)
    add_device_option(parser)


def run(options: Namespace) -> int:
    """Runs the command; returns the exit code."""
    from pathlib import Path

    face = check_crop(options)
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

    from ifdd import figures
    from ifdd.prediction import Predictor

    explanation = Predictor(options.checkpoint, device).explain(
        options.video, options.window, options.crop, face=face
    )
    print(f"written: {printable(figures.explain(explanation, options.out, dpi=options.dpi))}")
    return 0
