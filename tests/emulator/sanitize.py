"""Runs emulator tests with kernels compiled for sanitizers; fails where one reports anything.

``python tests/emulator/sanitize.py address,undefined tests/emulator/test_lifting_attention.py -k registry``,
from the root of a checkout, with its root and ``tests`` on ``PYTHONPATH``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from emulator.build import sanitizer_environment


def main() -> int:
    sanitize, *arguments = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        environment = sanitizer_environment(sanitize, Path(folder) / "report")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            *arguments,
        ]
        failed = subprocess.run(command, env=environment).returncode
        reports = sorted(Path(folder).glob("report*"))
        for report in reports:
            print(report.read_text())
    return failed or bool(reports)


if __name__ == "__main__":
    sys.exit(main())
