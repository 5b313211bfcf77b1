"""Steps of a check: what there is to do of them, when each is over, and doing them in order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.gpu.stages import Outcome, Runner, Stage
from benchmarks.suite import results


@dataclass(frozen=True)
class Step:
    """Stages that run one after the other, or beside each other, and the seconds that should take."""

    name: str
    estimate_s: float
    stages: Sequence[Stage]
    at_once: int = 1
    #: Started here, and not waited for before a step needs it.
    background: Sequence[Stage] = ()
    #: Names of background stages, of this step or earlier ones, that must be over before this one begins.
    needs: Sequence[str] = ()


START_S, BUILD_S, BUILD_LIMIT_S = 12.0, 45.0, 150.0
"""Seconds expected to look at the library, and to build one where none was carried."""


def table(steps: Sequence[Step], builds: bool) -> str:
    """The steps with their estimates, what has to be waited for, and the sum."""
    rows = [("library", START_S, "versions, the device, all CUDA ops")]
    if builds:
        rows.insert(0, ("build", BUILD_S, "no library of these sources was carried"))
    ends: dict[str, float] = {}
    for step in steps:
        now = sum(seconds for _, seconds, _ in rows)
        background = [stage for stage in step.background if not stage.skip]
        ends |= {stage.name: now + min(stage.estimate_s, stage.limit_s) for stage in background}
        late = {name: ends[name] - now for name in step.needs if ends.get(name, 0.0) > now}
        if late:
            rows.append(("(waiting)", max(late.values()), f"until it is over: {', '.join(late)}"))
        skips = [stage.skip for stage in step.stages]
        what = " ".join(step.stages[0].command[1:]) if step.stages else "only what runs beside it"
        if skips and all(skips):
            what = f"NOT HERE, {skips[0]}: {what}"
        beside = f" [{len(step.stages)} processes, {step.at_once} at once]" if len(step.stages) > 1 else ""
        behind = "".join(f"; beside it, {one.estimate_s:.0f} s: {one.name}" for one in step.background)
        rows.append((step.name, step.estimate_s, f"{what}{beside}{behind}"))
    lines = [f"{name:28s} {seconds:5.0f} s  {what}" for name, seconds, what in rows]
    return "\n".join([*lines, f"{'in all':28s} {sum(seconds for _, seconds, _ in rows):5.0f} s"])


def done(log: Path, steps: Sequence[Step]) -> list[Step]:
    """The steps without the stages that the log has as done, with the sources as they are now."""
    rows = results.read(log, "stage") if log.exists() else []
    ok = {(row["stage"], row["sources"]) for row in rows if row["status"] == "ok"}

    def left(stages: Sequence[Stage]) -> list[Stage]:
        return [stage for stage in stages if (stage.name, stage.sources) not in ok]

    return useful([replace(step, stages=left(step.stages)) for step in steps])


def only(steps: Sequence[Step], names: Collection[str]) -> list[Step]:
    """The steps of these names, and what has to run beside others for them."""
    return useful([step if step.name in names else replace(step, stages=[]) for step in steps])


def useful(steps: Sequence[Step]) -> list[Step]:
    """The steps without those that have nothing to do, and without background stages that none needs.

    A background stage stays where its step is done: a machine keeps nothing from one call to the next.
    """
    kept: list[Step] = []
    needed: set[str] = set()
    for step in reversed(steps):
        if not all(stage.skip for stage in step.stages):
            needed |= set(step.needs)
        background = tuple(stage for stage in step.background if stage.name in needed)
        if step.stages:
            kept.append(replace(step, background=background))
        elif background:
            kept.append(replace(step, background=background, estimate_s=0.0, needs=()))
    return kept[::-1]


def walk(runner: Runner, steps: Sequence[Step]) -> list[Outcome]:
    """Runs the steps in order."""
    outcomes: list[Outcome] = []
    for step in steps:
        for stage in step.background:
            runner.start(stage)
        outcomes += runner.join(step.needs)
        if len(step.stages) > 1:
            outcomes += runner.together(step.stages, step.at_once)
        else:
            outcomes += [runner.run(stage) for stage in step.stages]
    return outcomes + runner.join()
