"""Compiles Triton kernels without a GPU, through a stand-in driver, and looks at the machine code."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import re
import subprocess
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction, MockTensor

from ifdd_kernels.triton._runtime import Arguments, Kernel
from ifdd_kernels.triton._tuning import Config


class StandIn:
    """As much of a GPU driver as compiling needs; a device index of its own for each architecture."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        """The target of the compilation."""
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
        """The arguments as a compiler sees them: types, and values of compile-time constants."""
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
    """The result of :func:`instructions` for a kernel with memory of its own; of one without its registers.

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
