"""What the Triton kernels need on a GPU, found out without one.

    python -m benchmarks.triton_resources             compile what is new or changed, write the table
    python -m benchmarks.triton_resources --check     say what in the table is missing, stale or spills
    python -m benchmarks.triton_resources --only pool_tokens --recompile

Every launch of every op in :mod:`benchmarks.triton_cases` is compiled, in each configuration that sm_80 and
sm_90 have for it, through a stand-in driver. The table, ``results/triton_resources.json``, has registers a
thread, shared memory, local stores and loads (spills) and the instructions that multiply.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import importlib
import inspect
import json
import re
import subprocess
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction, MockTensor

from benchmarks.triton_cases import cases
from ifdd_kernels._operator import OPERATORS, Operator
from ifdd_kernels._schema import outputs_of
from ifdd_kernels.triton._runtime import Arguments, Kernel, Launch, captured_launches
from ifdd_kernels.triton._tuning import Config

TABLE = Path(__file__).parent / "results" / "triton_resources.json"
ARCHITECTURES = (80, 90)


class StandIn:
    """As much of a GPU driver as compiling needs; a device index of its own for each architecture."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        """The key compiled kernels are kept under."""
        return self.architecture

    def get_current_stream(self, device: int | None = None) -> int:
        """No stream."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """A GPU by name."""
        return torch.device("cuda", 0)


@dataclass(frozen=True)
class Compilation:
    """One kernel in one configuration for one architecture, with the types it is launched with."""

    op: str
    label: str
    architecture: int
    kernel: Kernel
    arguments: Arguments
    config: Config

    @property
    def signature(self) -> str:
        """What a compiler sees of the arguments: types, and values of compile-time constants."""
        constants = {p.name for p in self.kernel.function.params if p.is_constexpr}
        seen = {n: repr(v) if n in constants else _type(v) for n, v in self.arguments.items()}
        return ", ".join(f"{name}: {of}" for name, of in sorted(seen.items()))

    @property
    def name(self) -> str:
        """Kernel, dtypes and configuration, for people."""
        dtypes = {str(v.dtype)[6:] for v in self.arguments.values() if isinstance(v, Tensor)}
        tiles = " ".join(f"{name}={size}" for name, size in self.config.tiles.items())
        config = f"{tiles} warps={self.config.num_warps} stages={self.config.num_stages}".strip()
        return f"{self.kernel.name} [{self.op}, {self.label}, {'/'.join(sorted(dtypes))}; {config}]"

    @property
    def digest(self) -> str:
        """Changes with the code, the arguments' types, the configuration and the architecture."""
        what = (source(self.kernel.function), self.signature, repr(self.config), self.architecture)
        return hashlib.sha256(repr(what).encode()).hexdigest()[:16]

    def compile(self) -> dict[str, Any]:
        """Compiles it; returns its row of the table."""
        driver.set_active(StandIn(self.architecture))
        compiled = self.kernel.function.warmup(
            **{k: MockTensor(v.dtype) if isinstance(v, Tensor) else v for k, v in self.arguments.items()},
            **self.config.tiles,
            **self.config.options,
            grid=(1,),
        )
        return {
            "kernel": self.name,
            "architecture": f"sm_{self.architecture}",
            "digest": self.digest,
            "shared_bytes": compiled.metadata.shared,
            **instructions(compiled.asm["cubin"]),
            "dots": compiled.asm["ttir"].count("tt.dot"),
        }


def _type(value: Any) -> str:
    """Type of an argument as the compiler specialises on it: 1 and multiples of 16 are types of their own."""
    if isinstance(value, Tensor):
        return f"*{value.dtype}"
    if isinstance(value, int) and not isinstance(value, bool):
        return "i32=1" if value == 1 else "i32%16" if value % 16 == 0 else "i32"
    return repr(value) if isinstance(value, (bool, str)) else type(value).__name__


@functools.cache
def source(function: Any, seen: tuple[str, ...] = ()) -> str:
    """Code of a kernel and the kernels it calls, without comments, docstrings and layout."""
    plain = function.fn
    tree = ast.parse(textwrap.dedent(inspect.getsource(plain)))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - {*seen, plain.__name__}
    called = {name: plain.__globals__.get(name) for name in sorted(names)}
    used = [
        f for f in called.values() if isinstance(f, JITFunction) and f.__module__.startswith("ifdd_kernels")
    ]
    seen = (*seen, plain.__name__, *(f.fn.__name__ for f in used))
    return "\n".join((ast.unparse(tree), *(source(f, seen) for f in used)))


def instructions(cubin: bytes) -> dict[str, int]:
    """Registers of a compiled kernel, and how often its code has the instructions that matter."""
    code = _tool("nvdisasm", cubin, "-c")

    def count(pattern: str) -> int:
        return len(re.findall(rf"^\s+(?:/\*\w+\*/)?\s+(?:@!?U?P\w+\s+)?(?:{pattern})\b", code, re.MULTILINE))

    return {
        "registers": usage(cubin)["REG"],
        "spill_stores": count("STL"),
        "spill_loads": count("LDL"),
        "tensor_core": count("HMMA|HGMMA"),
        "ffma": count("FFMA"),
    }


def spills(cubin: bytes) -> dict[str, int]:
    """What :func:`instructions` finds in a kernel with memory of its own; of one without its registers.

    Reading the code takes a second, that there is no such memory a hundredth of it.
    """
    found = usage(cubin)
    return instructions(cubin) if found["STACK"] or found["LOCAL"] else {"registers": found["REG"]}


def usage(cubin: bytes) -> dict[str, int]:
    """Registers, and bytes of a thread's own memory, of a compiled kernel: the largest of its functions."""
    text = _tool("cuobjdump", cubin, "--dump-resource-usage")
    names = ("REG", "STACK", "LOCAL")
    return {name: max(int(n) for n in re.findall(rf"\b{name}:(\d+)", text)) for name in names}


def _tool(name: str, cubin: bytes, *options: str) -> str:
    """Output of one of the tools that Triton brings."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), *options, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def compilations(only: str | None = None) -> Iterator[Compilation]:
    """What is launched, each configuration and type once an architecture.

    A kernel that ops share belongs to the first of them; ``only`` leaves out what belongs to others.
    """
    seen: set[str] = set()
    for op, label, arguments in cases():
        operator = OPERATORS[op]
        if "triton" not in operator.backends:
            continue
        for architecture in ARCHITECTURES:
            for launch in launches_of(operator, arguments, architecture):
                for config in launch.configs:
                    found = Compilation(op, label, architecture, launch.kernel, launch.arguments, config)
                    if found.digest not in seen:
                        seen.add(found.digest)
                        if only in (None, op):
                            yield found


def launches_of(operator: Operator, arguments: tuple[Any, ...], architecture: int) -> list[Launch]:
    """What an op's Triton kernels launch for these arguments, forward and backward."""
    module = importlib.import_module(f"ifdd_kernels.triton.{operator.name}")
    with captured_launches(architecture) as launches:
        outputs = outputs_of(module.forward(*arguments))
        if operator.wiring is not None:
            gradients = [torch.empty_like(output) for output in outputs]
            module.backward(*operator.wiring.arguments(arguments, outputs, gradients))
    return launches


def problems(rows: list[dict[str, Any]], declared: list[Compilation]) -> list[str]:
    """What a table lacks, holds in vain, and forbids: spills, products off the tensor cores."""
    known = {row["digest"] for row in rows}
    wanted = {c.digest: c for c in declared}
    found = [f"{c.name} for sm_{c.architecture}: not in the table" for c in declared if c.digest not in known]
    for row in rows:
        name = f"{row['kernel']} for {row['architecture']}"
        if row["digest"] not in wanted:
            found.append(f"{name}: in the table, but no longer launched")
        if row["spill_stores"] or row["spill_loads"]:
            found.append(f"{name}: spills ({row['spill_stores']} stores, {row['spill_loads']} loads)")
        if row["dots"] and not row["tensor_core"]:
            found.append(f"{name}: has products, but no tensor-core instruction")
    return found


def read() -> list[dict[str, Any]]:
    """Rows of the committed table."""
    if not TABLE.is_file():
        return []
    rows: list[dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))["rows"]
    return rows


def write(rows: list[dict[str, Any]]) -> None:
    """Writes the table, one row a line."""
    head = {
        "triton": triton.__version__,
        "note": "compiled without a GPU by python -m benchmarks.triton_resources",
    }
    rows = sorted(rows, key=lambda row: (row["kernel"], row["architecture"]))
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    text = json.dumps(head)[:-1] + f', "rows": [\n{lines}\n]}}\n'
    TABLE.write_text(text, encoding="utf-8")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compile nothing, list what is wrong")
    parser.add_argument("--only", help="one op; other rows of the table stay as they are")
    parser.add_argument("--recompile", action="store_true", help="also what has not changed")
    options = parser.parse_args()
    declared = list(compilations(options.only))
    rows = read()
    if not options.check:
        digests = {c.digest for c in declared}
        kept = [] if options.recompile else [row for row in rows if row["digest"] in digests]
        if options.only:
            kept += [row for row in rows if f"[{options.only}," not in row["kernel"]]
        done = {row["digest"] for row in kept}
        for number, compilation in enumerate(declared):
            if compilation.digest not in done:
                row = compilation.compile()
                print(f"{number + 1}/{len(declared)}", json.dumps(row), flush=True)
                kept.append(row)
                write(kept)  # a table that was cut off is continued
        rows = kept
        write(rows)
    if options.only:
        rows = [row for row in rows if f"[{options.only}," in row["kernel"]]
    wrong = problems(rows, declared)
    print("\n".join(wrong) or f"{len(rows)} rows, nothing spills")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
