"""Class names, and what the labels in a list mean."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from .errors import DatasetError

DFEW_CLASSES = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")
"""Labels 1..7 of DFEW."""

FERV39K_CLASSES = ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
"""The alphabetical order, which the original implementation uses for FERV39k. Other projects use DFEW's."""

MAFW_CLASSES = (
    "anger",
    "disgust",
    "fear",
    "happiness",
    "neutral",
    "sadness",
    "surprise",
    "contempt",
    "anxiety",
    "helplessness",
    "disappointment",
)

OFFICIAL_CLASSES = {"dfew": DFEW_CLASSES, "ferv39k": FERV39K_CLASSES, "mafw": MAFW_CLASSES}

FirstLabel = Literal[0, 1, "auto"]


class Label(NamedTuple):
    """A label as it stands in a list: a number, or (`named`) the index of a class name."""

    value: int
    named: bool


def class_list(classes: str | Sequence[str]) -> tuple[str, ...]:
    """Class names in label order, from "A,B,C", from the name of a benchmark (dfew, ferv39k, mafw) or as a
    list.

    Raises:
        ValueError: fewer than two names, an empty one, or one that is there twice (in any case).
    """
    if isinstance(classes, str) and classes.strip().lower() in OFFICIAL_CLASSES:
        return OFFICIAL_CLASSES[classes.strip().lower()]
    names = tuple(str(name).strip() for name in (classes.split(",") if isinstance(classes, str) else classes))
    if len(names) < 2 or not all(names) or len({name.lower() for name in names}) != len(names):
        raise ValueError(
            f"must be distinct names separated by commas, or one of {', '.join(OFFICIAL_CLASSES)}; "
            f"got {','.join(names)!r}"
        )
    return names


def parse_label(text: str, class_names: Sequence[str]) -> Label | None:
    """A label given as a class name in any case or as a whole number ("3", "3.0"); None for anything else.

    A name comes first, so that classes called "1", "2" and "3" are not taken for numbers.
    """
    lowered = [name.lower() for name in class_names]
    if text.lower() in lowered:
        return Label(lowered.index(text.lower()), True)
    if re.fullmatch(r"[+-]?[0-9]{1,9}(\.0*)?", text):
        return Label(int(text.partition(".")[0]), False)
    return None


def unknown_label(where: str, text: str, class_names: Sequence[str]) -> DatasetError:
    """The error for a label that is neither a number nor a class name."""
    if not text:
        return DatasetError(f"{where}: the label is empty")
    lowered = {name.lower(): name for name in class_names}
    close = difflib.get_close_matches(text.lower(), lowered, 1)
    meant = f"; did you mean {lowered[close[0]]}?" if close else ""
    return DatasetError(f"{where}: label {text[:80]!r} is none of {', '.join(class_names)}{meant}")


def indexes(labels: Sequence[tuple[str, Label]], class_names: Sequence[str], first: int) -> list[int]:
    """Labels as indexes into the class names, with numbers that count from `first`.

    Raises:
        DatasetError: a number outside `first` .. `first + K - 1`; names its line.
    """
    found = []
    for where, label in labels:
        index = label.value if label.named else label.value - first
        if not 0 <= index < len(class_names):
            last = first + len(class_names) - 1
            raise DatasetError(f"{where}: label {label.value} is not in {first}..{last}")
        found.append(index)
    return found


def numbering(path: str, numbers: Sequence[int], classes: int) -> int:
    """Whether labels count from 0 or from 1, from all numbers of a list.

    With a 0 among them they count from 0. Without a 0 but with K, the number of classes, they count from 1.

    Raises:
        DatasetError: neither 0 nor K occurs, so that both would be possible.
    """
    if not numbers or min(numbers) <= 0:
        return 0
    if max(numbers) >= classes:
        return 1
    raise DatasetError(
        f"{path}: labels {min(numbers)} to {max(numbers)} for {classes} classes: neither 0 nor {classes} "
        "occurs, so they may count from 0 or from 1: say which with --first_label"
    )
