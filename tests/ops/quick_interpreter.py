"""Triton's interpreter without what it does in vain, for tests: more than half of its time.

At each call of a function by another it replaces the functions of the language by its own, which it did when
the kernel was launched. And it computes each sum and product of integers once more in 64 bits, to see whether
it overflows, which is said in debug mode only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from triton.runtime import interpreter


@contextmanager
def quick() -> Iterator[None]:
    """Kernels interpreted inside replace the language once a launch and compute integers once."""
    replaced: set[str] = set()  # modules, for the launch that runs

    def launch(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            replaced.clear()
            return original(self, *args, **kwargs)

        return call

    def once(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def replace(function: Any) -> Any:
            if function.__module__ in replaced:
                return None
            replaced.add(function.__module__)
            return original(function)

        return replace

    options = dataclasses.replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.GridExecutor, "__call__", launch(interpreter.GridExecutor.__call__))
        patch.setattr(interpreter, "_patch_lang", once(interpreter._patch_lang))
        patch.setattr(interpreter.interpreter_builder, "options", options)
        yield
