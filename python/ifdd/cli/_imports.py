"""Packages that are installed and yet cannot be imported, most often as they are built for another torch."""

from __future__ import annotations

from importlib import metadata
from types import TracebackType

from ifdd.text import one_line

_OURS = frozenset({"ifdd", "ifdd_kernels", "__main__"})


def failed_import(error: BaseException) -> tuple[str, str] | None:
    """The package whose own import raised `error`, and a line about it; None if no such import did.

    Code at the level of a module only runs while it is imported, so the innermost such frame of another
    package names the one at fault, however deep below our import of something else it lies. A module that is
    not installed is none of this: Python names it.
    """
    if isinstance(error, ModuleNotFoundError):
        return None
    package = _innermost(error.__traceback__)
    if package is None:
        return None
    beside = "" if package == "torch" else f" beside torch {_version('torch')}".rstrip()
    named = f"{package} {_version(package)}".rstrip()
    return package, f"the package {named} cannot be imported{beside}: {one_line(error)}"


def _innermost(trace: TracebackType | None) -> str | None:
    found = None
    while trace is not None:
        package = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if trace.tb_frame.f_code.co_name == "<module>" and package not in _OURS:
            found = package
        trace = trace.tb_next
    return found


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except (metadata.PackageNotFoundError, ValueError):
        return ""
