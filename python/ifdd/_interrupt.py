"""Ctrl-C while the command line imports its modules.

That takes seconds, and a broken import may raise anything: NumPy, for example, is left without half of its
names. So the process ends at once, with one line; nothing has been begun by then. Elsewhere Ctrl-C is the
`KeyboardInterrupt` that it always is. In other programs nothing is changed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType

EXIT_INTERRUPTED = 130


def on_interrupt(number: int, frame: FrameType | None) -> None:
    """A handler of SIGINT; ends the process if it is importing.

    Raises:
        KeyboardInterrupt: it is not.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"ifdd: interrupted\n")
            os._exit(EXIT_INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def _is_the_command() -> bool:
    if sys.argv[:1] == ["-m"]:  # Python looks for the module
        return ("-m", "ifdd") in zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
    return bool(sys.argv) and Path(sys.argv[0]).stem == "ifdd"


if _is_the_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, on_interrupt)
