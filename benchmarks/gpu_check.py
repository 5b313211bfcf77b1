"""``make gpu-check``: everything that needs a GPU, in one command and one time budget.

Builds the native library in place, runs the GPU tests, compute-sanitizer on small shapes, the benchmarks in
order of importance and a profile. Each stage is a process of its own with its own log and limit: one that
fails or hangs leaves the others alone, and a run that is cut off leaves what it measured. Nothing is
downloaded; pytest plugins other than pytest itself are not needed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from benchmarks import machine
from benchmarks.results import Writer

ROOT = machine.ROOT
PYTHON = sys.executable
#: pytest without the plugins (and the strictness about their options) that pyproject.toml expects.
PYTEST = (PYTHON, "-m", "pytest", "-o", "addopts=-ra --import-mode=importlib", "-p", "no:cacheprovider")
GRACE_S = 5.0


@dataclass(frozen=True)
class Stage:
    """One process: its command, and the share of the whole budget it may take at most."""

    name: str
    command: Sequence[str]
    share: float
    environment: Mapping[str, str] = field(default_factory=dict)
    #: Runs in place of the command if that fails.
    fallback: Stage | None = None
    #: Why it is left out; empty if it runs.
    skip: str = ""
    #: Exit codes that are no failure, and what they mean.
    accepted: Mapping[int, str] = field(default_factory=dict)
    #: Whether it is told its limit, so that it ends by itself.
    takes_budget: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: "ok", "failed", "timeout" or "skipped"."""

    name: str
    status: str
    seconds: float
    detail: str


def gpu_tests(folder: Path) -> list[str]:
    """Test files that mention the marker: others need not be importable on the GPU machine."""
    files = sorted(folder.rglob("test_*.py"))
    return [str(path) for path in files if "mark.gpu" in path.read_text() or "gpu" in path.stem]


def _tool(name: str) -> str | None:
    """A program of the CUDA toolkit, which is not always on the path."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(name) or shutil.which(name, path=str(Path(home) / "bin"))


def stages(out: Path, *, has_gpu: bool, capability: tuple[int, int] = (9, 0)) -> list[Stage]:
    """What the check runs, in order; the benchmarks write to ``out``."""
    compiler, sanitizer = _tool("nvcc"), _tool("compute-sanitizer")
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    tests = gpu_tests(ROOT / "tests")
    no_gpu = "" if has_gpu else "no CUDA device"
    missing_triton = "" if (ROOT / "tests" / "triton").is_dir() else "there are no tests of Triton kernels"
    small = (PYTHON, "-m", "benchmarks.small_shapes")
    no_tool = no_gpu or ("" if sanitizer else "compute-sanitizer is not installed")

    def sanitize(tool: str) -> Stage:
        command = (sanitizer or "compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *small)
        # With PyTorch's own cache off, an access beyond a tensor is one beyond an allocation.
        return Stage(tool, command, 0.08, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, skip=no_tool)

    return [
        _build(compiler, bool(sources), capability),
        Stage(
            "tests",
            (*PYTEST, "-m", "gpu", *tests),
            0.2,
            skip=no_gpu or ("" if tests else "no test is marked gpu"),
            accepted={5: "no test was selected"},
        ),
        # The interpreter's tests, on the device that is there.
        Stage("triton", (*PYTEST, "tests/triton"), 0.15, skip=no_gpu or missing_triton),
        sanitize("memcheck"),
        sanitize("racecheck"),
        Stage(
            "benchmarks",
            (PYTHON, "-m", "benchmarks", "--device", "cuda", "--row-budget-s", "0.5", "--out", str(out)),
            1.0,
            skip=no_gpu,
            takes_budget=True,
        ),
        Stage("profile", (PYTHON, "-m", "benchmarks.profile", "--out", str(out)), 1.0, skip=no_gpu),
        # What "auto" should choose here: a proposal, which the package does not follow unasked.
        Stage(
            "fastest",
            (PYTHON, "-m", "benchmarks.fastest", str(out), "--out", str(proposal(out))),
            1.0,
            skip=no_gpu,
        ),
    ]


def proposal(out: Path) -> Path:
    """The table of the fastest backends, beside the result file it comes from."""
    return out.with_name(f"{out.stem}-fastest.json")


def _build(compiler: str | None, has_sources: bool, capability: tuple[int, int]) -> Stage:
    command = (PYTHON, "setup.py", "build_ext", "--inplace")
    major, minor = capability
    # Kernels that use the matrix unit of one generation need its own ("a") target.
    own = f"{major}{minor}a-real" if major >= 9 else f"{major}{minor}-real"
    jobs = {"MAX_JOBS": str(os.cpu_count() or 1), "IFDD_NATIVE": "1"}
    path = os.pathsep.join((*([str(Path(compiler).parent)] if compiler else []), os.environ.get("PATH", "")))
    without = Stage("build", command, 0.3, {**jobs, "IFDD_CUDA": "OFF"})
    if compiler is None or not has_sources:
        missing = "nvcc" if compiler is None else "a CUDA source (csrc/cuda/*.cu)"
        print(f"!!! building WITHOUT CUDA kernels: there is no {missing}", flush=True)
        return without
    architectures = os.environ.get("IFDD_CUDA_ARCHS", own)
    with_cuda = {**jobs, "IFDD_CUDA": "ON", "IFDD_CUDA_ARCHS": architectures, "PATH": path}
    return Stage("build", command, 0.5, with_cuda, fallback=without)


class Runner:
    """Runs stages within a budget and writes a row and a log for each."""

    def __init__(
        self,
        folder: Path,
        writer: Writer,
        budget_s: float,
        reserve: Mapping[str, float] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.folder, self.writer, self.budget_s, self.say = folder, writer, budget_s, say
        #: Seconds that are kept for a later stage.
        self.reserve = dict(reserve or {})
        self.start = time.perf_counter()
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "logs").mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        """Seconds until the budget ends."""
        return self.budget_s - (time.perf_counter() - self.start)

    def limit(self, stage: Stage) -> float:
        """Seconds a stage may take: its share, what is left, and not what later ones are promised."""
        self.reserve.pop(stage.name, None)
        return min(stage.share * self.budget_s, self.left - sum(self.reserve.values()))

    def run(self, stage: Stage) -> Outcome:
        """Runs one stage, and its fallback if it fails; never raises because of it."""
        outcome = self._run(stage)
        if outcome.status in ("failed", "timeout") and stage.fallback is not None:
            self.say(f"!!! {stage.name} {outcome.status}; trying again without what failed")
            outcome = self._run(stage.fallback)
        return outcome

    def _run(self, stage: Stage) -> Outcome:
        begin = time.perf_counter()
        limit = self.limit(stage)
        if stage.skip:
            outcome = Outcome(stage.name, "skipped", 0.0, stage.skip)
        elif limit < 1:
            outcome = Outcome(stage.name, "skipped", 0.0, "the budget is used up")
        else:
            command = list(stage.command)
            if stage.takes_budget:
                command += ["--budget-s", f"{max(limit - 2 * GRACE_S, 1):.0f}"]
            self.say(f"--- {stage.name} (at most {limit:.0f} s): {' '.join(command)}")
            status, detail = self._execute(stage, command, limit)
            outcome = Outcome(stage.name, status, time.perf_counter() - begin, detail)
        self.say(f"--- {outcome.name}: {outcome.status} after {outcome.seconds:.0f} s. {outcome.detail}")
        self.writer.write(
            "stage", stage=outcome.name, status=outcome.status, seconds=outcome.seconds, detail=outcome.detail
        )
        return outcome

    def _execute(self, stage: Stage, command: list[str], limit: float) -> tuple[str, str]:
        log = self.folder / "logs" / f"{stage.name}.log"
        paths = (".", "python", os.environ.get("PYTHONPATH", ""))
        environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        environment.update(stage.environment)
        with log.open("ab") as file:
            try:
                # A session of its own, so that what the stage started ends with it.
                self._process = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
                )
            except OSError as error:
                return "failed", f"cannot start: {error}"
            try:
                code = self._process.wait(limit)
            except subprocess.TimeoutExpired:
                self.stop()
                return "timeout", f"stopped at its limit; log: {log.name}"
            finally:
                self._process = None
        if code == 0:
            return "ok", _last_line(log)
        if code in stage.accepted:
            return "ok", stage.accepted[code]
        return "failed", f"exit code {code}; log: {log.name}; {_last_line(log)}"

    def stop(self) -> None:
        """Ends the running stage with everything it started: politely, then not."""
        process = self._process
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(GRACE_S)
                return
            except subprocess.TimeoutExpired:
                continue
            except ProcessLookupError:
                return


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 1 if a stage failed or was stopped."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    budget = float(os.environ.get("GPU_BUDGET_S", "500"))
    parser.add_argument("--budget-s", type=float, default=budget, help="wall time of everything")
    parser.add_argument("--results", type=Path, help="folder of results and logs")
    parser.add_argument("--only", help="only these stages, e.g. build,tests")
    parser.add_argument("--dry-run", action="store_true", help="print what would run")
    options = parser.parse_args(arguments)
    start = time.perf_counter()

    import torch  # not at the top: an import that hangs or fails should come after the options are read

    has_gpu = torch.cuda.is_available()
    device = "cuda" if has_gpu else "cpu"
    capability = torch.cuda.get_device_capability() if has_gpu else (9, 0)
    folder = options.results or machine.results_folder(device)
    out = folder / f"gpu-check-{machine.commit().rstrip('+')}.jsonl"
    shares = {"benchmarks": 0.4, "profile": 0.08, "fastest": 0.03}
    reserve = {stage: share * options.budget_s for stage, share in shares.items()}
    plan = stages(out, has_gpu=has_gpu, capability=capability)
    if options.only:
        plan = [stage for stage in plan if stage.name in options.only.split(",")]
    if options.dry_run:
        for stage in plan:
            print(f"{stage.name}: {stage.skip or ' '.join(stage.command)}")
        return 0

    writer = Writer(out, machine.describe(device, torch.get_num_threads()))
    runner = Runner(folder, writer, options.budget_s, reserve, say=lambda line: print(line, flush=True))
    runner.start = start

    def cut_off(number: int, _: FrameType | None) -> None:
        runner.stop()
        writer.write("stage", stage="check", status="timeout", seconds=0.0, detail=f"signal {number}")
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, cut_off)
    outcomes = [runner.run(stage) for stage in plan]
    for outcome in outcomes:
        print(f"{outcome.status:8s} {outcome.name:11s} {outcome.seconds:6.0f} s  {outcome.detail}")
    if proposal(out).exists():
        print(
            f"proposed for ifdd_kernels/measured.json ({proposal(out)}):\n{proposal(out).read_text()}", end=""
        )
    print(f"{time.perf_counter() - start:.0f} s in all; results: {out}")
    return 1 if any(outcome.status in ("failed", "timeout") for outcome in outcomes) else 0


if __name__ == "__main__":
    raise SystemExit(main())
