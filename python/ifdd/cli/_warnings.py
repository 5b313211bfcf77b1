"""Warnings of the package as one line on stderr."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Shows warnings about a data set like errors, without the place in the source."""
    from ifdd.data.errors import DatasetWarning
    from ifdd.text import one_line

    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, DatasetWarning):
                print(f"ifdd: warning: {one_line(message)}", file=sys.stderr)
            else:
                usual(message, category, *where, **more)

        warnings.showwarning = show
        # What Pillow remarks on damaged images; whether they can be read is said in our own words.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield
