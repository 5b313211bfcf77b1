"""Finding the videos that a list names, and saying how to where they are not found."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ifdd.text import printable

from .folder import VIDEO_SUFFIXES
from .foreign_lists import Entry

_SAMPLE = 200
"""Videos looked at for advice."""


def exists(path: Path) -> bool:
    """Whether something is there; a name that is too long, or not allowed, is not."""
    return os.path.exists(path)  # noqa: PTH110  (pathlib raises for such names)


def path_map(values: str | Sequence[str] | None) -> tuple[tuple[str, str], ...]:
    """Pairs (old, new) of `OLD=NEW`.

    Raises:
        ValueError: no `=` in it, or nothing in front of it.
    """
    pairs = []
    for value in [values] if isinstance(values, str) else values or ():
        old, equals, new = value.partition("=")
        if not equals or not old:
            raise ValueError(f"must be OLD=NEW, got {value!r}")
        pairs.append((old, new))
    return tuple(pairs)


@dataclass(frozen=True)
class Locator:
    """Where the videos of a list are.

    Args:
        base: folder that relative names start from.
        list_folder: folder of the list, named in advice if the videos are found from there.
        strip_prefix: taken off the beginning of names.
        path_map: pairs (old, new): names that begin with the folder `old` begin with `new` instead; the first
            that fits counts.
    """

    base: Path
    list_folder: Path
    strip_prefix: str = ""
    path_map: tuple[tuple[str, str], ...] = ()

    def find(self, entry: Entry) -> Path:
        """The first place where a video is, or the likeliest if it is nowhere."""
        first: Path | None = None
        for name in (entry.name, *entry.readings):
            for place in self._places(self._rewritten(name)):
                first = first or place
                if exists(place):
                    return place
        assert first is not None
        return first

    def advice(self, missing: Sequence[Entry], found: Sequence[Entry] = ()) -> str:
        """How the missing ones would be found, or what was tried: words to follow on "missing", or
        nothing.

        Advised is what finds most of those looked at, more than half of them, without losing those that are
        `found` already; of equals another folder comes before other names.
        """
        sample, kept = _spread(missing), _spread(found)
        if self.strip_prefix and not any(self._stripped(name) != name for name, *_ in sample):
            return f"; --strip_prefix {printable(self.strip_prefix)} is the beginning of none of their names"
        most, words = len(sample) // 2, ""
        for count, way, other in (*self._other_folders(sample), *self._shorter_names(sample)):
            if count > most and (other is None or all(exists(other.find(entry)) for entry in kept)):
                most, words = count, way
        if not words:
            return ""
        looked_for = " looked for" if len(sample) < len(missing) else ""
        return f"; {most} of {len(sample)}{looked_for} are found {words}"

    def _other_folders(self, sample: Sequence[Entry]) -> Iterator[tuple[int, str, Locator]]:
        """Other folders that names could start from: how many they find, advice, and the locator."""
        for folder in dict.fromkeys((self.list_folder, *self.base.parents, Path())):
            if folder != self.base:
                other = replace(self, base=folder)
                count = sum(exists(other.find(entry)) for entry in sample)
                yield count, f"with --root {printable(folder)}", other

    def _shorter_names(self, sample: Sequence[Entry]) -> Iterator[tuple[int, str, Locator | None]]:
        """Names without their first folders: how many are found, advice, and the locator if one option does
        it.
        """
        cuts: Counter[int] = Counter()
        prefixes: dict[int, Counter[str]] = {}
        for entry in sample:
            parts = _parts(self._rewritten(entry.name))
            for count in range(1, len(parts)):
                if any(exists(place) for place in self._places("/".join(parts[count:]))):
                    cuts[count] += 1
                    separator = "\\" if "\\" in entry.name and "/" not in entry.name else "/"
                    prefix = separator.join(parts[:count]) + separator
                    prefixes.setdefault(count, Counter())[prefix] += 1
                    break
        if not cuts:
            return
        count, found = cuts.most_common(1)[0]
        prefix, same = prefixes[count].most_common(1)[0]
        if same == found and not self.strip_prefix and not self.path_map:
            yield found, f"with --strip_prefix {printable(prefix)}", replace(self, strip_prefix=prefix)
            return
        new = "" if self.base == Path() else f"{self.base}/"
        below = f"below {printable(self.base)} without their first {count} folders"
        yield found, f"{below}: --path_map {printable(prefix)}={printable(new)}", None

    def _rewritten(self, name: str) -> str:
        for old, new in self.path_map:
            rest = _behind(name, old)
            if rest is not None:
                return f"{new.rstrip('/')}/{rest}" if new else rest
        return self._stripped(name)

    def _stripped(self, name: str) -> str:
        if not self.strip_prefix:
            return name
        for text in (name, name.replace("\\", "/")):
            for prefix in (self.strip_prefix, self.strip_prefix.replace("\\", "/")):
                if text.startswith(prefix) and text != prefix:
                    return text[len(prefix) :].lstrip("/\\")
        return name

    def _places(self, name: str) -> Iterator[Path]:
        spellings = [name]
        if "\\" in name:
            spellings.append(name.replace("\\", "/"))
        for spelling in spellings:
            path = self.base / spelling
            yield path
            if not path.name:
                continue
            stem = path.name
            padded = path.with_name(stem.zfill(5)) if stem.isascii() and stem.isdigit() else None
            if padded is not None:
                yield padded
            if not path.suffix:
                for suffix in VIDEO_SUFFIXES:
                    yield from (place.with_suffix(suffix) for place in (path, padded) if place)
            elif path.suffix.lower() in VIDEO_SUFFIXES:
                # The frames of a video in a folder of its name.
                yield path.with_suffix("")


def _spread(entries: Sequence[Entry]) -> Sequence[Entry]:
    """A sample from all over a list: its beginning is often of one class, in one folder."""
    return entries[:: max(1, -(-len(entries) // _SAMPLE))]


def _behind(name: str, folder: str) -> str | None:
    """The part of a name after a folder at its beginning; None if the name begins with another one."""
    name, folder = name.replace("\\", "/"), folder.replace("\\", "/")
    if not folder.endswith("/"):
        folder += "/"
    return name[len(folder) :].lstrip("/") if name.startswith(folder) else None


def _parts(name: str) -> list[str]:
    return name.replace("\\", "/").split("/")
