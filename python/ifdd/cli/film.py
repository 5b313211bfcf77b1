"""The annotated video that `annotate` and `live` write."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from ifdd.cli._commands import UsageError
from ifdd.cli.paths import require_writable_file
from ifdd.cli.spare import spare
from ifdd.text import one_line, printable


def check_film(options: Namespace, video: str) -> Path:
    """The path `--out`, where a video can be written; `video` is what the command reads.

    Raises:
        UsageError: it cannot be written there, its ending names no format, it is what is read, or it is there
            already and `--overwrite` is not given.
    """
    from ifdd.view.film import FilmError, film_format

    out = Path(options.out)
    require_writable_file("--out", out)
    try:
        film_format(out)
    except FilmError as error:
        raise UsageError(f"--out: {one_line(error)}") from None
    spare([("--out", out)], [("the video", video), ("the checkpoint", options.checkpoint)])
    if out.exists() and not options.overwrite:
        raise UsageError(f"--out: {printable(out)} is there already: --overwrite replaces it")
    return out
