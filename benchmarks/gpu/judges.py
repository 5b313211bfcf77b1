"""Judges a stage of the rehearsal by its exit code and log: counts, and the failures by name."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.library import STOP

Judgement = tuple[dict[str, Any], list[str]]
"""Counts of a stage and its failures; it went well without any."""


def _last(log: str) -> str:
    return next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "nothing was printed")


def _printed(log: str) -> dict[str, Any]:
    """The JSON object that a script printed, warnings around it or not."""
    found: dict[str, Any] = json.loads(
        next(line for line in reversed(log.splitlines()) if line.startswith("{"))
    )
    return found


def exit_code(code: int, log: str) -> Judgement:
    """Only whether the process succeeded."""
    return {}, [] if code == 0 else [f"exit code {code}: {_last(log)}"]


def stop(code: int, log: str) -> Judgement:
    """gpu-check has a library of these sources, and nothing is missing but a device."""
    wrong = []
    if "library carried, of these sources" not in log:
        wrong.append("the library that was built here is not taken")
    if code != STOP or "PyTorch finds no CUDA device" not in log:
        wrong.append(f"exit code {code}, not for want of a device: {_last(log)}")
    return {}, wrong


def environment(code: int, log: str, versions: Mapping[str, str]) -> Judgement:
    """The versions, where they are those of the GPU machine (``versions``) and nothing is missing."""
    if code != 0:
        return exit_code(code, log)
    found = _printed(log)
    wrong = [f"{name} is missing" for name, version in found.items() if version is None]
    for name, wanted in versions.items():
        version = found.get(name)
        if version is not None and not version.split("+")[0].startswith(wanted):
            wrong.append(f"{name} is {version}, the GPU machine has {wanted}")
    return found, wrong


def build(code: int, log: str) -> Judgement:
    """How many sources were compiled; those that were not."""
    compiled = len(re.findall(r"^\[\d+/\d+\] Building", log, re.MULTILINE))
    failed = re.findall(r"^FAILED: (?:\[code=\d+\] )?(\S+)", log, re.MULTILINE)
    return {"compiled": compiled}, failed if failed else exit_code(code, log)[1]


def library(code: int, log: str, expected: set[str]) -> Judgement:
    """The ops of a library that loaded; CUDA kernels that it lacks."""
    if code != 0:
        return exit_code(code, log)
    info = _printed(log)
    missing = sorted(expected - set(info["cuda_ops"]))
    kept = ("torch", "torch_build", "torch_target", "compiler", "cuda_architectures")
    counts = {"cuda_ops": len(info["cuda_ops"]), "cpu_ops": len(info["cpu_ops"])}
    return {**counts, **{name: info.get(name) for name in kept}}, [
        *([] if info["native"] else [info["reason"]]),
        *(f"no CUDA kernel is registered for {name}" for name in missing),
    ]


def tests(code: int, log: str, report: Path) -> Judgement:
    """Counts from the report in JUnit's format; the failed tests."""
    if not report.is_file():
        return exit_code(code or 1, log)
    counts = {"passed": 0, "skipped": 0, "failed": 0}
    failures = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        bad = next((child for child in case if child.tag in ("failure", "error")), None)
        skipped = any(child.tag == "skipped" for child in case)
        counts["failed" if bad is not None else "skipped" if skipped else "passed"] += 1
        if bad is not None:
            first = (bad.get("message") or "").splitlines() or [""]
            failures.append(f"{case.get('classname')}::{case.get('name')}: {first[0]}"[:300])
    if counts["passed"] == 0:
        failures.append("no test has run")
    return counts, failures or exit_code(code, log)[1]


def specialisations(code: int, log: str, found: Path) -> Judgement:
    """Counts from the report of the compilations; failures and spills."""
    if not found.is_file():
        return exit_code(code or 1, log)
    report = json.loads(found.read_text())
    failures = [f"{name}: {_last(problem)}" for name, problem in report["failed"].items()]
    failures += [f"{name}: {count} local loads and stores" for name, count in report["spills"].items()]
    counts = {name: report[name] for name in ("specialisations", "compiled")}
    counts["spills"] = len(report["spills"])
    return {**counts, "launchers": report["launchers"]}, failures or exit_code(code, log)[1]
