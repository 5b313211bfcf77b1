"""The plan of a training, known before it starts, and warnings about it."""

from __future__ import annotations

import json
import math
import os
import shlex
from dataclasses import dataclass

import torch

from ifdd.config import IFDDConfig
from ifdd.text import counted, printable
from ifdd.training.config import DEFAULTS, DataConfig, TrainingConfig
from ifdd.training.launch import ALONE, Launch

_LOCATING = (
    *("root", "fold", "train_list", "test_list", "classes", "format", "path_column", "label_column"),
    *("first_label", "strip_prefix", "path_map", "stride", "clips", "soft_labels"),
)
"""Settings of the data that decide which videos there are, and how many frames a window needs."""
FEW_HELD_OUT = 30
"""Below this many held-out clips a score is mostly chance: one clip moves it by more than 3 points."""
LARGE_DROP = 0.05
"""A share of the training clips that no epoch should leave out unmentioned."""
LARGE_FRAME = 112
"""Frames of this many pixels a side and more keep a CPU busy for days."""
SHORT_WAY = 0.02
"""Random weights learn nothing where the learning rates of all steps add up to less: AdamW moves a weight by
about the rate in a step, and weights are some hundredths large. Twenty drawn faces stayed at chance with
0.005 and were learnt with 0.06 (docs/training.md)."""


@dataclass(frozen=True)
class TrainingPlan:
    """A training in numbers.

    ``train_clips``, ``held_out_clips``: clips of both parts; ``parameters``: of the network; ``device``:
    ``cpu`` or the name of the GPU; ``done``: epochs that a resumed training has behind it, else 0;
    ``planned``: epochs it was last planned for, else None; ``launch``: the processes that train together;
    ``class_clips``: training clips of each class, None for drawn ones.
    """

    config: TrainingConfig
    network: IFDDConfig
    class_names: tuple[str, ...]
    train_clips: int
    held_out_clips: int
    parameters: int
    device: str
    done: int = 0
    planned: int | None = None
    launch: Launch = ALONE
    class_clips: tuple[int, ...] | None = None

    @property
    def batches(self) -> int:
        """Batches of an epoch; one smaller batch where there are fewer clips than its size."""
        return max(1, self.train_clips // self.config.data.batch_size)

    @property
    def steps(self) -> int:
        """Steps of the optimiser in an epoch."""
        return math.ceil(self.batches / self.config.optim.accumulate)

    @property
    def left_out(self) -> int:
        """Training clips that an epoch leaves out, because they fill no batch."""
        batch = self.config.data.batch_size
        return self.train_clips % batch if self.train_clips >= batch else 0

    def rates(self) -> list[float]:
        """Learning rate of each epoch that is still to come."""
        schedule = self.config.optim.schedule(self.config.data.batch_size)
        return [schedule(epoch) for epoch in range(self.done, self.config.optim.epochs)]

    @property
    def way(self) -> float:
        """Sum of the learning rates of the steps that are still to come: how far a weight can move."""
        return self.steps * sum(self.rates())

    @property
    def warming(self) -> int:
        """Steps still to come in which the rate climbs."""
        optim = self.config.optim
        epochs = 0 if optim.warmup == "none" else min(optim.warmup_epochs, optim.epochs)
        return self.steps * max(0, epochs - self.done)

    def lines(self) -> list[str]:
        """A heading and its text for each line, aligned."""
        data, network = self.config.data, self.network
        left_out = f", {self.left_out} of them left out of each epoch" if self.left_out else ""
        part = f" (--validation {data.validation:g})" if self.held_out_clips else ""
        held_out = f"{self.held_out_clips or 'none'} held out{part}"
        size = f"{network.clip_frames} frames of {network.image_size} x {network.image_size} pixels"
        rows = [
            ("data set", f"{data.name}{self._source()}"),
            ("clips", f"{self.train_clips} for training{left_out}; {held_out}"),
            ("classes", self._classes()),
            ("network", f"{network.backbone}, {self.parameters / 1e6:.2f} million parameters, {size}"),
            ("start", self._start()),
            ("device", f"{self._devices()}, precision {self.config.precision}"),
            ("steps", self._steps()),
        ]
        if self.rates():
            rows.append(("learning rate", self._rate()))
            if data.name != "synthetic":
                rows.append(
                    ("videos", f"read as they are drawn; to read all in advance: {check_command(data)}")
                )
        return [f"{heading:<14} {text}" for heading, text in rows]

    def warnings(self) -> list[str]:
        """Warnings about settings that will probably disappoint, in the words of `ifdd fit`."""
        data, optim, clips = self.config.data, self.config.optim, self.train_clips
        found: list[str] = []
        if not self.rates():
            return found
        if optim.warmup != "none" and optim.warmup_epochs >= optim.epochs:
            found.append(
                f"the warm-up of {optim.warmup_epochs} epochs is not over after the {optim.epochs} of this "
                f"training: the learning rate gets no higher than {max(self.rates()):.2g}; "
                "lower --warmup_epochs, or --warmup none"
            )
        if self.config.init is None and not self.done and self.way < SHORT_WAY:
            found.append(
                f"{counted(self.steps * optim.epochs, 'step')} at a learning rate of at most "
                f"{max(self.rates()):.2g} hardly move random weights: start from trained ones (--init), or "
                "give more --epochs, a smaller --batch_size and a higher --learning_rate with --warmup "
                "standard; docs/training.md has a recipe for a few clips"
            )
        if data.batch_size > clips:
            found.append(
                f"--batch_size {data.batch_size} is larger than the {clips} training clips: a step takes "
                f"{clips}, at a learning rate meant for {data.batch_size}"
            )
        if self.left_out >= max(LARGE_DROP * clips, 1):
            found.append(
                f"{self.left_out} of {clips} training clips, other ones each time, "
                f"{'is' if self.left_out == 1 else 'are'} left out of an epoch, because they do not fill a "
                f"batch of {data.batch_size}; change --batch_size"
            )
        if 0 < self.held_out_clips < FEW_HELD_OUT and optim.select == "best":
            found.append(
                f"with {self.held_out_clips} held-out clips the best epoch is chosen largely by chance: one "
                f"clip is {100 / self.held_out_clips:.0f} % of the score; {self._better_choice()}"
            )
        if self.device.startswith("cpu") and self.network.image_size >= LARGE_FRAME:
            found.append(
                f"{self.network.image_size} pixels on a CPU take long; --model.backbone mvit_nano "
                "--model.image_size 64 is a network that a CPU can train"
            )
        return found

    def _better_choice(self) -> str:
        """Advice on a held-out part of a few clips: a larger one, if there are clips for it."""
        clips = self.train_clips + self.held_out_clips
        last = "take the last epoch (--select last), or hold out none (--validation 0)"
        # A third is more than anybody gives away.
        return f"hold out more (--validation), or {last}" if clips >= 3 * FEW_HELD_OUT else last

    def _source(self) -> str:
        data = self.config.data
        if data.name == "synthetic":
            return " (drawn faces)"
        parts = [data.root, data.train_list]
        return "".join(f", {part}" for part in parts if part is not None)

    def _classes(self) -> str:
        names = [printable(name) for name in self.class_names]
        if self.class_clips is None:
            return f"{len(names)}: {', '.join(names)}"
        counts = [f"{name} {count}" for name, count in zip(names, self.class_clips, strict=True)]
        return f"{len(names)}, with training clips: {', '.join(counts)}"

    def _devices(self) -> str:
        ranks = self.launch.world_size
        if ranks == 1:
            return self.device
        return f"{ranks} x {self.device}, {self.config.data.batch_size // ranks} clips of each batch on each"

    def _start(self) -> str:
        if self.done:
            return f"the checkpoint of epoch {self.done}"
        if self.config.init is None:
            return "random weights"
        part = "" if self.config.init_part == "all" else " (backbone)"
        return f"{self.config.init}{part}"

    def _steps(self) -> str:
        optim = self.config.optim
        batch = min(self.config.data.batch_size, self.train_clips) * min(optim.accumulate, self.batches)
        left = optim.epochs - self.done
        text = f"{counted(left, 'epoch')} of {counted(self.steps, 'step')} of {counted(batch, 'clip')}"
        if left * self.steps > 1:
            warming = f", {self.warming} of them in the warm-up" if self.warming else ""
            text += f": {left * self.steps} steps{warming}"
        if not self.done:
            return text
        if not left:
            return f"none: {self.done} of {optim.epochs} epochs are done"
        before = "" if self.planned in (None, optim.epochs) else f", planned for {self.planned} before"
        return f"epochs {self.done + 1} to {optim.epochs} ({self.done} done{before}); {text}"

    def _rate(self) -> str:
        rates, optim = self.rates(), self.config.optim
        peak = max(rates)
        course = [f"{rates[0]:.2g}"]
        if rates[0] < peak:
            course.append(f"up to {peak:.2g} in epoch {self.done + rates.index(peak) + 1}")
        if rates[-1] < peak:
            course.append(f"down to {rates[-1]:.2g}")
        stated, base = optim.learning_rate, optim.schedule(self.config.data.batch_size).base
        batch = self.config.data.batch_size * optim.accumulate
        scaled = f" (--learning_rate {stated:g} for a batch of 32 is {base:.3g} for {batch})"
        return ", ".join(course) + ("" if base == stated else scaled)


def check_command(data: DataConfig) -> str:
    """The command that looks through the data set of a training."""
    words = ["ifdd", "check", "--data", data.name]
    for name in _LOCATING:
        value = getattr(data, name)
        if value == DEFAULTS[name]:
            continue
        if name == "classes" and not any("," in part for part in value):
            text = ",".join(value)
        elif isinstance(value, (list, bool)):
            text = json.dumps(value, ensure_ascii=False)
        else:
            text = str(value)
        words += [f"--{name}", text]
    return printable(shlex.join(words))


def device_name(config: TrainingConfig) -> str:
    """The device that a training runs on, as a person calls it."""
    if config.device == "cpu" or not torch.cuda.is_available():
        threads = torch.get_num_threads()
        return f"cpu ({threads} of {os.cpu_count()} cores)" if threads != os.cpu_count() else "cpu"
    return torch.cuda.get_device_name()
