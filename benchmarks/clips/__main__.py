"""``python -m benchmarks.clips``: clips a second and core, from folders of JPEG frames and from video files.

Both pipelines read the same drawn clips with the same windows and draws. Their results are compared first;
then all stages take turns, in CPU seconds of this process, which should have one thread (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from benchmarks.clips import published
from benchmarks.suite import machine
from benchmarks.suite.results import Writer
from benchmarks.suite.timing import CLOCKS, interleave, summary
from ifdd.data.folder import frame_files, read_image
from ifdd.data.jpeg import simplejpeg
from ifdd.data.resize import resize_frame
from ifdd.data.synthetic import SyntheticExpressions
from ifdd.data.transforms import ClipAugment
from ifdd.data.video import read_video
from ifdd.training.pieces import Pieces

FRAMES, SIZE = 16, 224
NOISE = 3.0
"""Standard deviation, in levels: drawn faces without any are smaller than a camera's as files."""

Stages = dict[str, Callable[[], Any]]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clips", description=__doc__)
    parser.add_argument("--sides", default="224,256", help="sides of the frames in the files")
    parser.add_argument("--budget-s", type=float, default=60.0, help="seconds for each source")
    parser.add_argument("--check-only", action="store_true", help="compare, time nothing")
    parser.add_argument("--out", type=Path, help="result file, appended to")
    return parser.parse_args(arguments)


def write_clip(folder: Path, side: int) -> tuple[Path, Path]:
    """A drawn face: as a folder of JPEG frames and as an H.264 file."""
    clip = SyntheticExpressions("train", size=1, clip_frames=FRAMES, image_size=side)[0][0]
    noise = np.random.default_rng(0).normal(0, NOISE, (FRAMES, side, side, 1))
    pixels = clip.permute(1, 2, 3, 0).numpy() * 255 + noise
    frames = pixels.round().clip(0, 255).astype(np.uint8)
    pictures, video = folder / f"jpeg{side}", folder / f"{side}.mp4"
    pictures.mkdir()
    for number, frame in enumerate(frames, 1):
        Image.fromarray(frame).save(pictures / f"{number:05d}.jpg", quality=90)
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return pictures, video


def stages_of(path: Path) -> tuple[Stages, list[str]]:
    """All stages of both pipelines on one source, and what was wrong when their results were compared."""
    augment = ClipAugment(SIZE)
    drawn = augment.draw(SIZE, SIZE, torch.Generator().manual_seed(1))
    indices = np.arange(FRAMES)
    files = frame_files(path) if path.is_dir() else []

    def theirs_decoded() -> list[Image.Image]:
        return published.decode_pictures(files) if files else published.decode_video(path, FRAMES)

    images = [np.array(picture) for picture in theirs_decoded()]
    pictures = [Image.fromarray(image) for image in images]
    resized = published.resize(pictures, SIZE)
    floats = published.to_floats(resized)
    frames = torch.from_numpy(read_video(path, size=SIZE, indices=indices).frames)[None]
    # Workers write into memory that they know.
    pieces = Pieces(1, frames.nbytes)
    piece = pieces.tensor(0, tuple(frames.shape), frames.dtype)

    def ours() -> Any:
        read = torch.from_numpy(read_video(path, size=SIZE, indices=indices).frames)
        return torch.stack([read], out=piece)

    def theirs() -> Any:
        floats = published.to_floats(published.resize(theirs_decoded(), SIZE))
        return published.augment(floats, drawn, SIZE)

    stages: Stages = {
        "ours: worker": ours,
        "ours: decode": (
            (lambda: [read_image(file) for file in files])
            if files
            else (lambda: read_video(path, indices=indices))
        ),
        "ours: resize": lambda: [resize_frame(image, (SIZE, SIZE)) for image in images],
        "ours: to shared memory": lambda: torch.cat([frames], out=piece),
        "ours: augment": lambda: augment.apply(frames, [drawn]),
        "published: all": theirs,
        "published: decode": theirs_decoded,
        "published: resize": lambda: published.resize(pictures, SIZE),
        "published: to floats": lambda: published.to_floats(resized),
        "published: augment": lambda: published.augment(floats, drawn, SIZE),
    }
    if files:
        stages["ours: list"] = lambda: frame_files(path)
    wrong = []
    # The same bicubic filter, rounded to bytes after each of its two directions.
    far = int(np.abs(frames[0].numpy().astype(int) - np.stack([np.asarray(p) for p in resized])).max())
    if far > 2:
        wrong.append(f"frames differ by {far} of 255 levels")
    same = published.to_floats([Image.fromarray(frame) for frame in frames[0].numpy()])
    gap = float((augment.apply(frames, [drawn])[0] - published.augment(same, drawn, SIZE)).abs().max())
    if not gap <= 1 / 255:
        wrong.append(f"augmented clips differ by {gap * 255:.2f} of 255 levels")
    return stages, wrong


def report(source: str, readings: Mapping[str, list[float]], writer: Writer | None) -> None:
    """Prints, and writes if asked: milliseconds of each stage, clips a second of both pipelines."""
    for name, seconds in readings.items():
        found = summary(seconds)
        quartiles = f"{found.low * 1e3:.2f} to {found.high * 1e3:.2f}"
        print(f"  {name:24} {found.median * 1e3:8.2f} ms   (quartiles {quartiles})")
        if writer is not None:
            pipeline, _, stage = name.partition(": ")
            fields = {"case": "clip", "label": source, "batch": 1, "precision": "fp32", "pass": stage}
            fields |= {"contender": pipeline, "mode": "cpu"}
            writer.write("time", **fields, seconds=found.median, rounds=found.count)
    pairs = zip(readings["ours: worker"], readings["ours: augment"], strict=True)
    both = summary([worker + augment for worker, augment in pairs]).median
    all_of = summary(readings["published: all"]).median
    worker = summary(readings["ours: worker"]).median
    print(
        f"  clips a second and core: {1 / worker:.0f} by a worker; {1 / both:.1f} with the augmentation, "
        f"published {1 / all_of:.1f} ({all_of / both:.1f} times)",
        flush=True,
    )


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 1 where the pipelines disagree, 2 for wrong options."""
    options = parse(arguments)
    sides = options.sides.split(",")
    if not all(side.isdecimal() and int(side) >= 16 and int(side) % 2 == 0 for side in sides):
        text = f"--sides must be even numbers from 16 on, e.g. 224,256; got {options.sides}"
        print(f"benchmarks.clips: {text}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    facts = machine.describe("cpu", 1)
    writer = None if options.out is None else Writer(options.out, facts)
    decoder = "Pillow (simplejpeg is not installed)" if simplejpeg() is None else "simplejpeg"
    load = machine.load_average()
    print(f"{facts['device']}, one thread, {facts['commit']}, JPEG by {decoder}, load {load}")
    with tempfile.TemporaryDirectory() as folder:
        for side in map(int, sides):
            for path in write_clip(Path(folder), side):
                source = f"{'JPEG folder' if path.is_dir() else 'H.264 file'}, {side} px"
                stages, wrong = stages_of(path)
                print(f"{source}: {'; '.join(wrong) or 'both pipelines agree'}", flush=True)
                if wrong:
                    return 1
                if not options.check_only:
                    report(source, interleave(stages, CLOCKS["cpu"], options.budget_s), writer)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
