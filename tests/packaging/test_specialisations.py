"""Triton specialisations compiled ahead: those that launches ask for, and no failure passed over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.gpu import questions, specialisations, visit
from benchmarks.gpu.processes import Result, in_processes
from ops.cases import nightly

ROOT = Path(__file__).parents[2]

#: Kernels that are interpreted, as in this process, cannot be compiled: scripts run where they are.
KEYS = """
import json, sys
import torch
from triton.runtime import driver
from benchmarks.gpu import specialisations as ahead
from benchmarks.gpu.compilation import StandIn
from benchmarks.suite.launches import launches_of
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels.registry import REGISTRY, Maker

def displaced(x):
    # A view that begins one element into its memory: nothing is aligned.
    if not torch.is_tensor(x) or not x.is_floating_point():
        return x
    return torch.zeros(x.numel() + 1, dtype=x.dtype, device=x.device)[1:].view(x.shape)

driver.set_active(StandIn(90))
different, count, odd = [], 0, 0
for op in sys.argv[1:]:
    for dtype in (torch.float32, torch.bfloat16):
        samples = (list(REGISTRY[op].samples(Maker(dtype, device))) for device in ("meta", "cpu"))
        for told, real in zip(*samples):
            for move in (lambda x: x, displaced):
                calls = (tuple(move(x) for x in sample.args) for sample in (told, real))
                both = (launches_of(OPERATORS[op], arguments, 90) for arguments in calls)
                for guessed, launch in zip(*both, strict=True):
                    config = launch.configs[0]
                    one = ahead.specialisation(op, told.label, 90, guessed, config)
                    values = {**launch.arguments, **config.tiles, **config.options}
                    count += 1
                    odd += any(isinstance(v, ahead.Pointer) and v.data_ptr() for v in one.values.values())
                    if one.key != ahead.launch_key(launch.kernel.function, values):
                        different.append(one.name)
print(json.dumps({"different": different, "count": count, "odd": odd}))
"""

COMPILE = """
import functools, json, os, sys
from pathlib import Path
import torch
from triton.runtime import driver
from benchmarks.gpu import specialisations as ahead
from benchmarks.gpu.compilation import StandIn
from benchmarks.gpu.processes import in_processes
from benchmarks.gpu.questions import Found
from benchmarks.suite.launches import launches_of
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels.registry import REGISTRY, Maker

def files():
    return sorted(p.name for p in Path(os.environ["TRITON_CACHE_DIR"]).rglob("*.cubin"))

def question(architecture):
    sample = next(iter(REGISTRY["lifting_loss"].samples(Maker(torch.float32, "meta"))))
    launches = launches_of(OPERATORS["lifting_loss"], sample.args, 90)
    yield Found("a sample", "lifting_loss", launches[:1], False)

found, problems = ahead.find([functools.partial(question)], 90, 1)
assert not problems, problems
(one,) = found
(result,) = in_processes([one.name], lambda i: found[i].compile(check=True), 1)
assert not result.problem, result.problem
before = files()
assert before
# The same launch with tensors that have memory finds it, in another process than the one that compiled.
sample = next(iter(REGISTRY["lifting_loss"].samples(Maker(torch.float32, "cpu"))))
launch = launches_of(OPERATORS["lifting_loss"], sample.args, 90)[0]
config = launch.configs[0]
driver.set_active(StandIn(90))
launch.kernel.function.warmup(**launch.arguments, **config.tiles, **config.options, grid=(1,))
print(json.dumps({"row": result.value, "kept": files() == before, "name": one.name}))
"""


def compiling(script: str, folder: Path, *arguments: str) -> dict[str, object]:
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "TRITON_DEFAULT_FP_FUSION": "1",
        "TRITON_CACHE_DIR": str(folder),
    }
    command = [sys.executable, "-c", script, *arguments]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    result: dict[str, object] = json.loads(ran.stdout.splitlines()[-1])
    return result


def test_keys_are_those_of_launches(tmp_path: Path) -> None:
    """Alignment of views, sizes that are 1 or a multiple of 16: as with tensors that have memory."""
    ops = ("split_frames", "lifting_residual", "pooled_attention", "frame_correlation")
    told = compiling(KEYS, tmp_path, *ops)
    assert told["different"] == []
    assert told["count"] > 100  # type: ignore[operator]
    assert told["odd"] > 0  # type: ignore[operator]


@pytest.mark.slow
def test_what_was_compiled_is_found_by_a_launch(tmp_path: Path) -> None:
    told = compiling(COMPILE, tmp_path)
    assert told["kept"]
    assert told["row"]["registers"] > 0  # type: ignore[index]
    assert "lifting_loss" in str(told["name"])


COUNT = """
import json, sys
from benchmarks.gpu import questions, specialisations as ahead

seen, counts = set(), {}
for part in sys.argv[1:]:
    keys = {one.key for question in questions.PARTS[part]() for one in ahead.answer(question, 90)}
    counts[part] = len(keys - seen)
    seen |= keys
print(json.dumps(counts))
"""


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, nightly(len(visit.AHEAD))])
def test_gpu_check_expects_as_many_as_there_are(tmp_path: Path, parts: int) -> None:
    """Its estimates of the time it takes to compile are made of these counts."""
    first = list(visit.AHEAD)[:parts]
    assert compiling(COUNT, tmp_path, *first) == {
        part: pytest.approx(visit.AHEAD[part][1], rel=0.15) for part in first
    }


def _planted(number: int) -> str:
    """Work of which one part each hangs, dies, is killed and fails."""
    if number == 1:
        time.sleep(60)
    if number == 2:
        os._exit(7)
    if number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 4:
        raise ValueError("no such register")
    return f"done {number}"


@pytest.mark.parametrize("jobs", [1, 3])
def test_what_goes_wrong_is_named_and_the_rest_done(jobs: int) -> None:
    said: list[Result] = []
    names = ["first", "hangs", "dies", "is killed", "fails", "last"]
    results = in_processes(names, _planted, jobs, limit_s=1.5, say=said.append)
    assert [result.name for result in results] == names
    assert sorted(r.name for r in said) == sorted(names)
    problems = {result.name: result.problem for result in results if result.problem}
    assert set(problems) == {"hangs", "dies", "is killed", "fails"}
    assert "not done within 2 s" in problems["hangs"]
    assert "exit code 7" in problems["dies"]
    assert f"exit code {-signal.SIGSEGV}" in problems["is killed"]
    assert "ValueError: no such register" in problems["fails"]
    assert [r.value for r in results if not r.problem] == ["done 0", "done 5"]


def test_the_plan_is_asked_for_whatever_has_kernels() -> None:
    shown = " ".join(questions.shown(question) for question in questions.of_plan())
    for case in ("model", "issm", "ladm", "block", "pool_tokens", "pooled_attention", "lifting_update"):
        assert f"{case} " in shown, case
    for case in ("gelu_linear", "max_pool_tokens"):
        assert f"{case} " in shown, case
    assert "linear" not in shown.replace("gelu_linear", "").replace("nonlinear", "")


def test_without_a_gpu_an_architecture_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    if specialisations.torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        specialisations.main(["--list"])
    assert "say --arch 90" in capsys.readouterr().err
