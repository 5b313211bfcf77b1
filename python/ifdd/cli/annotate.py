"""Draw the faces, their classes and the probabilities over time into a copy of a video.

Every frame shows the class that ifdd predict gives to its window. The sound is copied. OUT appears when it is
complete; until then an older file of that name stays as it is.

Pictures stay on this machine. The classes are a guess at what faces show, not at what people feel; the EU's
AI Act, Article 5(1)(f), prohibits inferring emotions of people at work or in education.
"""

from __future__ import annotations

import sys

from jsonargparse import ArgumentParser, Namespace

from ifdd.cli.common import add_device_option, choose_device
from ifdd.cli.film import check_film
from ifdd.cli.paths import require_file
from ifdd.cli.predict import add_crop_option, check_crop, remark_on_crop
from ifdd.cli.signals import stoppable
from ifdd.text import one_line, printable

SUMMARY = "draw classes and probabilities into a video"
USAGE = "VIDEO --checkpoint CHECKPOINT --out OUT [options]"


def configure(parser: ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("video", metavar="VIDEO", help="video file or folder of numbered frames")
    parser.add_argument("--checkpoint", required=True, help="weights written by `ifdd fit` or `ifdd convert`")
    parser.add_argument("--out", required=True, metavar="OUT", help="video to write: .mp4, .mov or .mkv")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    add_crop_option(parser)
    add_device_option(parser)


def run(options: Namespace) -> int:
    """Runs the command; returns the exit code."""
    face = check_crop(options)
    out = check_film(options, options.video)
    require_file("--checkpoint", options.checkpoint)
    device = choose_device(options.device)

    from ifdd.prediction import Predictor
    from ifdd.view.annotate import annotate

    predictor = Predictor(options.checkpoint, device)
    remark_on_crop(predictor, options)
    with stoppable() as check:
        written = annotate(predictor, options.video, out, options.crop, face=face, check=check)
    for remark in written.remarks:
        print(f"ifdd: warning: {printable(options.video)}: {one_line(remark)}", file=sys.stderr)
    faces = f", {len(written.faces)} face{'s' * (len(written.faces) != 1)}" if face is not None else ""
    print(f"written: {printable(out)} ({written.frames} frames, {written.windows} windows{faces})")
    return 0
