"""Reads videos, images and folders that were damaged at random, in a process of its own.

`python damaged_videos.py FOLDER FIRST COUNT` damages the files in FOLDER/good: flips, cuts, splices, zeroes.
Each must give frames or a `VideoError` of one line, within 60 seconds; the last line printed names the case
that did not.
"""

from __future__ import annotations

import resource
import shutil
import signal
import sys
from pathlib import Path

import numpy as np

from ifdd.data.video import VideoError, count_frames, open_video, read_video

SECONDS = 60


def damage(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        if not changed:
            break
        # Headers are where damage does most, so half of it goes there.
        reach = min(len(changed), 1500) if rng.random() < 0.5 else len(changed)
        place = int(rng.integers(reach))
        length = int(min(2 ** rng.uniform(0, 10), len(changed) - place))
        kind = rng.integers(6)
        if kind == 0:
            for bit in rng.integers(8, size=length):
                changed[place] ^= 1 << int(bit)
                place += 1
        elif kind == 1:
            del changed[place:]
        elif kind == 2:
            del changed[place : place + length]
        elif kind == 3:
            changed[place : place + length] = bytes(length)
        elif kind == 4:
            changed[place : place + length] = rng.bytes(length)
        else:
            start = int(rng.integers(len(other)))
            changed[place : place + length] = other[start : start + length]
    return bytes(changed)


def use(path: Path) -> str:
    """The outcome of reading it; raises whatever must not happen."""
    try:
        with open_video(path, size=24) as stream:
            last = 0.0
            for frame in stream:
                assert frame.image().shape == (24, 24, 3)
                assert last <= frame.seconds <= frame.stop_seconds
                last = frame.seconds
        result = "frames" if stream.damage is None else "part"
        assert "\n" not in "".join([stream.damage or "", *stream.remarks])
    except VideoError as error:
        result = "refused"
        line = str(error)
    if result == "refused" and ("\n" in line or path.name not in line):
        raise AssertionError(f"not one line with the name: {line!r}")
    for read in (count_frames, lambda name: read_video(name, size=8, accept_partial=True)):
        try:
            read(path)
        except VideoError:
            continue
    return result


def main() -> None:
    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    good = sorted((folder / "good").iterdir())
    tally = {"frames": 0, "part": 0, "refused": 0}
    limit = 8 << 30  # of addresses: libraries take most of it
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for case in range(first, first + count):
        rng = np.random.default_rng(case)
        source, other = good[case % len(good)], good[int(rng.integers(len(good)))]
        target = folder / f"case{case}{source.suffix}"
        print(case, source.name, flush=True)
        signal.alarm(SECONDS)  # ends the process, also from within FFmpeg
        if source.is_dir():
            shutil.copytree(source, target)
            for image in rng.choice(sorted(target.iterdir()), 2):
                Path(image).write_bytes(damage(Path(image).read_bytes(), Path(image).read_bytes(), rng))
        else:
            flat = source if other.is_dir() else other
            target.write_bytes(damage(source.read_bytes(), flat.read_bytes(), rng))
        tally[use(target)] += 1
        signal.alarm(0)
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink()
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    print(f"done {tally} peak {peak:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
