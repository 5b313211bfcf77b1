"""Where a measurement belongs: commit, device, folder. No torch here."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def output(*command: str, timeout_s: float = 30) -> str:
    """The output of a command; empty if it fails or does not exist."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def cpu_name() -> str:
    """Name and model number of the processor."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    field = {key: re.search(rf"^{key}\s*:\s*(.+)$", info, re.MULTILINE) for key in ("model name", "model")}
    name, model = (match.group(1).strip() if match else "" for match in field.values())
    return f"{name} (model {model})"


def commit() -> str:
    """Short hash of the checkout, with + where sources differ from it; ``IFDD_COMMIT`` outside of git."""
    name = output("git", "rev-parse", "--short=10", "HEAD")
    changed = output("git", "status", "--porcelain", "--untracked-files=no", "--", "*.py", "csrc", "*.txt")
    return name + ("+" if changed else "") if name else os.environ.get("IFDD_COMMIT", "unknown")


def slug(device: str, name: str) -> str:
    """Folder name of a device."""
    cores = "" if device == "cuda" else f"-{os.cpu_count()}-cores"
    return re.sub(r"[^a-z0-9]+", "-", name.replace("(R)", "").lower()).strip("-") + cores


def results_folder(device: str, name: str) -> Path:
    """Where result files of a device are kept."""
    return RESULTS / slug(device, name)
