"""What a file that cannot be read as weights is: another kind of file, or one whose end is missing."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

_LOOKED_AT = 4096
_CUT = "its end is missing; copy or download it anew"
_ZIP = b"PK\x03\x04"

_BEGINNINGS: tuple[tuple[int, tuple[bytes, ...], str], ...] = (
    (0, (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*", b"BM"), "a picture"),
    (8, (b"WEBP",), "a picture"),
    (4, (b"ftyp", b"moov", b"mdat", b"wide"), "a video"),
    (0, (b"\x1a\x45\xdf\xa3", b"FLV\x01", b"OggS", b"\0\0\x01\xba", b"0&\xb2u"), "a video"),
    (8, (b"AVI ",), "a video"),
    (0, (b"%PDF",), "a PDF"),
    (0, (b"\x1f\x8b", b"7z\xbc\xaf", b"\xfd7zXZ", b"BZh", b"Rar!", b"\x28\xb5\x2f\xfd"), "a compressed file"),
)
"""Where a kind of file has which bytes."""


def what_it_is(path: Path) -> str | None:
    """Says of a file that no reader of weights could read what is in it, or None where that is not known."""
    with path.open("rb") as file:
        start = file.read(_LOOKED_AT)
    for place, beginnings, kind in _BEGINNINGS:
        if start[place:].startswith(beginnings):
            return f"it is {kind}"
    if _is_text(start):
        return "it is a text file"
    if start.startswith(_ZIP):
        return _zip_is(path)
    return _CUT if _safetensors_is_cut(path) else None


def _zip_is(path: Path) -> str | None:
    if not zipfile.is_zipfile(path):
        return _CUT
    with zipfile.ZipFile(path) as archive:
        written_by_torch = any(name.endswith("/data.pkl") for name in archive.namelist())
    return None if written_by_torch else "it is a zip archive that torch.save did not write"


def _is_text(start: bytes) -> bool:
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        # A character may be cut in two where the sample ends.
        if error.start < len(start) - 3 or len(start) < _LOOKED_AT:
            return False
        text = start[: error.start].decode("utf-8")
    return all(character.isprintable() or character.isspace() for character in text)


def _safetensors_is_cut(path: Path) -> bool:
    """Whether a file of safetensors is shorter than its header says: eight bytes with the length of the
    header, the header in JSON, then the tensors.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, size))
    if not header.startswith(b"{"):
        return False
    if 8 + length > size:
        return True
    try:
        tensors = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        return 8 + length + max((entry["data_offsets"][1] for entry in tensors), default=0) > size
    except (ValueError, LookupError, TypeError):
        return False
