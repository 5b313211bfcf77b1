"""Becomes a program that ends with the thread that started it: ``python -IS with_parent.py PROGRAM ...``.

Where the check of a GPU is killed, nobody else would end what it started. The setting stays when a process
becomes another program, whatever that is, and is not passed on to the processes which that one starts: their
parent may well start them from a thread of a short life, as profilers do.
"""

import contextlib
import ctypes
import os
import signal
import sys


def main() -> None:
    """Never returns."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not Linux
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG
    try:
        os.execvp(sys.argv[1], sys.argv[1:])
    except OSError as error:
        print(f"cannot start {sys.argv[1]}: {error}", flush=True)
        raise SystemExit(127) from None


if __name__ == "__main__":
    main()
