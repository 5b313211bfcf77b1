"""Named tuples that exported programs can be saved with."""

from __future__ import annotations

from typing import Any, TypeVar

from torch.utils import _pytree

Class = TypeVar("Class", bound=type[Any])


def serialisable(cls: Class) -> Class:
    """Gives a named tuple a name in files, so that ``torch.export.save`` writes programs that return it.

    The name is that of the package and the class, wherever in the package it lies: a file outlives modules.
    Whoever loads such a file must have imported the package.
    """
    name = f"{cls.__module__.partition('.')[0]}.{cls.__name__}"
    _pytree._register_namedtuple(cls, serialized_type_name=name)
    return cls
