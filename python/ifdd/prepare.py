"""Face frames cut from raw videos, for training.

Faces are found, followed and cut out exactly as `Predictor` does with ``face=``: a network trained on these
frames sees the same pixels when it predicts the raw videos. Each stretch in which a face is in sight becomes
a folder of numbered frames, named after the video, the face and the frames.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ifdd.data.errors import VideoError, reason
from ifdd.data.video import open_video
from ifdd.faces.crop import crop
from ifdd.faces.detector import FaceDetector
from ifdd.faces.tracks import FaceChoice, Segment, find_tracks, no_face
from ifdd.journal import ResultsError, claim, whole_lines
from ifdd.outcomes import path_of_dict, path_to_dict
from ifdd.text import one_line, printable

RECORD = "prepared.jsonl"
"""In the folder of the frames: the settings, and a line for each video that is done."""


@dataclass(frozen=True)
class PrepareOptions:
    """Options of the frames that are written.

    Args:
        face: which faces of each video; see :func:`ifdd.faces.tracks.parse_face`.
        size: side in pixels that frames are resized to; None keeps them as they were cut.
        quality: of JPEG files, 1 to 100; None writes PNG files, which hold exactly what was cut.
        min_frames: shorter stretches are left out, unless a face has no longer one.
        strict: refuse damaged videos; otherwise what can be read of them counts.

    Raises:
        ValueError: a value out of range.
    """

    face: FaceChoice = "largest"
    size: int | None = None
    quality: int | None = None
    min_frames: int = 16
    strict: bool = False

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be 1 to 100, got {self.quality}")
        if self.min_frames < 1:
            raise ValueError(f"min_frames must be at least 1, got {self.min_frames}")


class Prepared(NamedTuple):
    """The result for a video: the folders written (names in the folder of all), how many frames they hold,
    what was damaged, or the error.
    """

    path: str
    folders: tuple[str, ...] = ()
    frames: int = 0
    damage: str | None = None
    error: Exception | None = None


def prepare_video(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: PrepareOptions,
    detector: FaceDetector,
    stopped: threading.Event | None = None,
) -> Prepared:
    """Writes the face frames of one video. Folders appear when they are complete.

    Args:
        path: the video.
        out: the folder that they are written to, which is there.
        options: what is written.
        detector: finds the faces.
        stopped: set by another thread to make this end soon.

    Raises:
        VideoError: the video cannot be read, or no face is found.
        OSError: a frame cannot be written.
    """

    def check() -> None:
        if stopped is not None and stopped.is_set():
            raise InterruptedError(f"{printable(path)}: stopped")

    tracks = find_tracks(path, detector, strict=options.strict, check=check)
    chosen = tracks.select(options.face)
    if not chosen:
        raise VideoError(f"{printable(path)}: {no_face(tracks)}")
    stretches: list[_Stretch] = []
    try:
        for track in chosen:
            longest = max(track.segments, key=len)
            for segment in track.segments:
                if len(segment) >= options.min_frames or segment is longest:
                    name = folder_name(path, track.track_id, segment)
                    stretches.append(_Stretch(segment, Path(out), name, options))
        # Of the many stretches of a long video few are in sight at once.
        coming = deque(sorted(stretches, key=lambda stretch: stretch.start))
        open_ones: list[_Stretch] = []
        with open_video(path, strict=options.strict) as video:
            for frame in video:
                check()
                while coming and coming[0].start <= frame.number:
                    open_ones.append(coming.popleft())
                open_ones = [stretch for stretch in open_ones if frame.number < stretch.stop]
                if open_ones:
                    image = frame.image()
                    for stretch in open_ones:
                        stretch.write(frame.number, image)
            damage = video.damage
        for stretch in stretches:
            stretch.finish()
    finally:
        for stretch in stretches:
            shutil.rmtree(stretch.part, ignore_errors=True)
    folders = tuple(stretch.name for stretch in stretches)
    return Prepared(os.fspath(path), folders, sum(stretch.count for stretch in stretches), damage)


def folder_name(path: str | os.PathLike[str], face: int, segment: Segment) -> str:
    """Name of the folder of one stretch: safe in any file system, and another one for every video.

    Letters and digits of any script stay; for the rest, and for videos of the same name, there is a part of
    the hash of the whole path.
    """
    place = os.fsencode(Path(path).absolute())
    stem = "".join(c if c.isalnum() else "_" for c in printable(Path(path).stem)).strip("_")
    while len(stem.encode()) > 100:
        stem = stem[:-1]
    digest = hashlib.sha256(place).hexdigest()[:8]
    return f"{stem or 'video'}-{digest}_face{face}_{segment.start}-{segment.stop - 1}"


_FOLDER = re.compile(r"[^/\\]+-[0-9a-f]{8}_face[0-9]+_[0-9]+-[0-9]+")
"""Matches the names from :func:`folder_name`."""


def training_command(file: str | os.PathLike[str], classes: str) -> str:
    """The command that trains on a list of prepared videos, ready for a shell."""
    words = ["ifdd", "fit", "--data", "list", "--train_list", os.fspath(file), "--classes", classes]
    return shlex.join(words)


class _Stretch:
    """The frames of one face in one segment, being written."""

    def __init__(self, segment: Segment, out: Path, name: str, options: PrepareOptions) -> None:
        self.name = name
        self.start, self.stop = segment.start, segment.stop
        self.count = 0
        self.part = out / f".{name}.part"
        self._place = out / name
        self._segment = segment
        self._options = options
        shutil.rmtree(self.part, ignore_errors=True)
        self.part.mkdir()

    def write(self, number: int, image: np.ndarray) -> None:
        from PIL import Image

        face = Image.fromarray(crop(image, self._segment.box_at(number), self._options.size))
        file = self.part / f"{number:06d}"
        if self._options.quality is None:
            face.save(file.with_suffix(".png"), compress_level=1)
        else:
            face.save(file.with_suffix(".jpg"), quality=self._options.quality, subsampling=0)
        self.count += 1

    def finish(self) -> None:
        if self._place.exists():
            shutil.rmtree(self._place)
        self.part.rename(self._place)


class Preparation:
    """A folder of prepared videos; a context manager. A run that was stopped goes on from what is done.

    Args:
        out: the folder; made if it is not there.
        options: what is written.
        overwrite: prepare all videos anew; the folders that earlier runs wrote are removed.

    Attributes:
        done: absolute path of a video -> what was written of it.

    Raises:
        ResultsError: the folder holds other files, was written with other options, or another run is
            writing to it.
        OSError: it cannot be written.
    """

    def __init__(
        self, out: str | os.PathLike[str], options: PrepareOptions, *, overwrite: bool = False
    ) -> None:
        self.out = Path(out)
        self.done: dict[str, Prepared] = {}
        self._options = options
        record = self.out / RECORD
        if self.out.is_dir() and any(self.out.iterdir()) and not record.is_file():
            raise ResultsError(
                f"{printable(out)}: holds files that `ifdd prepare` did not write: name another folder"
            )
        self.out.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = record.open("a+b")
        try:
            claim(self._file, record)
            old = _folders_of(record) if overwrite else []
            end = 0 if overwrite else whole_lines(self._file)
            self._file.truncate(end)
            if end == 0:
                self._write({"kind": "prepare", "settings": asdict(options)})
            else:
                self._load(record)
            # Once the record is empty: a folder that is half removed must not count as done.
            for name in old:
                shutil.rmtree(self.out / name, ignore_errors=True)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Preparation:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def run(
        self, videos: Sequence[str | os.PathLike[str]], detector: FaceDetector, jobs: int = 1
    ) -> Generator[Prepared, None, None]:
        """The result for each video, in order, as they come; those that are done are not read again, nor one
        that is named twice. Closing the iterator ends what is under way.

        Args:
            videos: their paths.
            detector: finds the faces.
            jobs: videos read at once, in threads.
        """
        stopped = threading.Event()
        waiting: deque[tuple[str, Future[Prepared] | Prepared]] = deque()
        under_way: dict[str, Future[Prepared]] = {}  # two threads must not write the same folders
        rest = iter(videos)
        pool = ThreadPoolExecutor(jobs, thread_name_prefix="prepare")
        try:
            while True:
                while len(waiting) < 2 * jobs and (path := next(rest, None)) is not None:
                    place = str(Path(path).absolute())
                    job = self.done.get(place) or under_way.get(place)
                    if job is None:
                        job = pool.submit(self._prepare, os.fspath(path), detector, stopped)
                        under_way[place] = job
                    waiting.append((os.fspath(path), job))
                if not waiting:
                    return
                path, job = waiting.popleft()
                prepared = job if isinstance(job, Prepared) else job.result()
                place = str(Path(path).absolute())
                if under_way.get(place) is job:
                    del under_way[place]
                if prepared.error is None and place not in self.done:
                    self._add(prepared)
                yield prepared._replace(path=path)
        finally:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, path: str, detector: FaceDetector, stopped: threading.Event) -> Prepared:
        try:
            return prepare_video(path, self.out, self._options, detector, stopped)
        except VideoError as error:
            return Prepared(path, error=error)
        except OSError as error:
            return Prepared(path, error=VideoError(f"{printable(path)}: {reason(error)}"))
        except Exception as error:  # whatever it is, it must not end the run, and each repetition of it
            what = f"{type(error).__name__}: {one_line(error)}"
            return Prepared(path, error=VideoError(f"{printable(path)}: {what}"))

    def _add(self, prepared: Prepared) -> None:
        place = str(Path(prepared.path).absolute())
        self.done[place] = prepared
        entry = {"folders": prepared.folders, "frames": prepared.frames, "damage": prepared.damage}
        self._write({"kind": "video", **path_to_dict(place), **entry})

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line).encode("ascii") + b"\n")
        self._file.flush()

    def _load(self, record: Path) -> None:
        try:
            header, *lines = (json.loads(line) for line in record.read_bytes().splitlines())
            before, now = header["settings"], asdict(self._options)
            for line in lines:
                place = path_of_dict(line)
                entry = Prepared(place, tuple(line["folders"]), line["frames"], line["damage"])
                if all((self.out / folder).is_dir() for folder in entry.folders):
                    self.done[place] = entry
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(
                f"{printable(record)}: is damaged ({one_line(error)}); --overwrite begins anew"
            ) from None
        changed = [
            f"--{name} was {before.get(name)}, now {now[name]}"
            for name in now
            if before.get(name) != now[name]
        ]
        if changed:
            raise ResultsError(
                f"{printable(self.out)}: was prepared with other settings: {'; '.join(changed)}; --overwrite "
                "begins anew"
            )


def _folders_of(record: Path) -> list[str]:
    """The folders that a record names, as far as it can be read; nothing else, should it have been edited."""
    names: list[str] = []
    for line in record.read_bytes().splitlines():
        try:
            names += json.loads(line).get("folders", ())
        except (ValueError, AttributeError, TypeError):
            continue
    return [name for name in names if isinstance(name, str) and _FOLDER.fullmatch(name)]
