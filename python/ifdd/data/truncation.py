"""Whether a video file proves, or at least says, that its end is missing.

Containers that are read to their end without an error of the decoder may still have been cut off between two
frames. Only bytes count as proof: what a header says of frames and durations is often wrong for intact files.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

SEGMENT = b"\x18\x53\x80\x67"
_FLV_HEAD = 1 << 16


def missing_bytes(path: Path, container: str) -> str | None:
    """Says what is missing at the end of the file, or None where nothing proves it.

    Args:
        path: the file.
        container: FFmpeg's name of its format, such as "matroska,webm".
    """
    for name in container.split(","):
        if name in _CHECKS:
            with path.open("rb") as file:
                return _CHECKS[name](file, path.stat().st_size)
    return None


def doubtful_end(path: Path, container: str) -> str | None:
    """Says that a file is shorter than its header has it, in a format whose recorders are known to leave that
    number as it was in another file; None where nothing says so.

    Args:
        path: the file.
        container: FFmpeg's name of its format.
    """
    if container != "flv":
        return None
    with path.open("rb") as file:
        head = file.read(_FLV_HEAD)
    _, found, rest = head.partition(b"\0\x08filesize\0")  # in the table of numbers called onMetaData
    if not found or len(rest) < 8:
        return None
    announced, size = struct.unpack(">d", rest[:8])[0], path.stat().st_size
    if not size < announced < float("inf"):
        return None
    return f"the header announces a file of {announced:.0f} bytes, it has {size}: the end may be missing"


def _matroska(file: BinaryIO, size: int) -> str | None:
    """The one Segment element states its length, unless it was written live (RFC 9559)."""
    position = 0
    for _ in range(8):  # the EBML header comes first, perhaps padding
        file.seek(position)
        head = file.read(12)
        if len(head) < 2 or head[0] == 0:
            return None
        identifier = head[: _vint_length(head[0])]
        length = _vint_length(head[len(identifier)]) if len(identifier) < len(head) else 9
        field = head[len(identifier) : len(identifier) + length]
        if length > 8 or len(field) < length:
            return None
        value = int.from_bytes(field, "big") & ((1 << 7 * length) - 1)
        if value == (1 << 7 * length) - 1:  # unknown
            return None
        position += len(identifier) + length + value
        if identifier == SEGMENT:
            return _shorter(size, position)
    return None


def _vint_length(first: int) -> int:
    """Bytes of a number of variable length by its first one; 9 if that is not a number."""
    return 9 - first.bit_length()


def _avi(file: BinaryIO, size: int) -> str | None:
    """One RIFF chunk, several in files of more than a gigabyte; of length 0 after a broken recording."""
    position = 0
    while position + 12 <= size:
        file.seek(position)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):
            return None
        position += 8 + length
        if position > size:
            return _shorter(size, position)
        position += length % 2
    return None


def _transport_stream(file: BinaryIO, size: int) -> str | None:
    """Packets of 188 bytes, on disks of cameras 192, of broadcasters 204, that start with 0x47."""
    head = file.read(4 * 204 + 5)
    for packet, start in ((188, 0), (192, 4), (204, 0)):
        if head[start : start + 4 * packet : packet] == b"GGGG" and size % packet > start:
            file.seek(size - size % packet + start)
            if file.read(1) == b"G":
                return "the file ends inside a packet"
    return None


def _gif(file: BinaryIO, size: int) -> str | None:
    """Follows the blocks of the file; a file may end without the closing one, but not within a block."""
    head = file.read(13)
    if len(head) < 13:
        return None
    file.seek(13 + _palette(head[10]))
    while kind := file.read(1):
        if kind == b"!":
            file.read(1)
        elif kind == b",":
            descriptor = file.read(9)
            if len(descriptor) == 9:
                file.seek(_palette(descriptor[8]) + 1, os.SEEK_CUR)
        else:
            return None  # the end, or what some writers put behind the pictures
        while length := file.read(1):
            if length == b"\0":
                break
            file.seek(length[0], os.SEEK_CUR)
        if not length or file.tell() > size:
            return "the file ends inside a picture"
    return None


def _palette(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _shorter(size: int, announced: int) -> str | None:
    return f"the file has {size} of {announced} bytes" if size < announced else None


_CHECKS: dict[str, Callable[[BinaryIO, int], str | None]] = {
    "matroska": _matroska,
    "avi": _avi,
    "mpegts": _transport_stream,
    "gif": _gif,
}
