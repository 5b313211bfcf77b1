"""Resources of the compiled CUDA kernels: registers, shared memory, occupancy, instructions.

``python -m benchmarks.gpu.cuda_resources`` reads the built library with ``cuobjdump`` and writes
``results/cuda_resources.csv``; ``--check`` compares instead. No GPU is needed: threads and shared memory of
launches come from the launchers themselves, in the tests' emulator. The file carries a hash of the sources
it belongs to, which a test compares, so it is renewed with every change of a kernel.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks.gpu import sources
from benchmarks.gpu.toolkit import find_tool
from benchmarks.suite.place import RESULTS, ROOT

TABLE = RESULTS / "cuda_resources.csv"


@dataclass(frozen=True)
class Architecture:
    """Limits of a multiprocessor (CUDA C++ Programming Guide, "Compute Capabilities")."""

    warps: int
    blocks: int
    shared_bytes: int

    def blocks_per_multiprocessor(self, threads: int, registers: int, shared_bytes: int) -> int:
        """Resident blocks; registers are given out 256 at a time to a warp, shared memory 128 bytes and
        1 KB more than asked for to a block.
        """
        warps = -(-threads // 32)
        of_warp = -(-registers * 32 // 256) * 256
        of_block = -(-(shared_bytes + 1024) // 128) * 128
        by_registers = 65536 // of_warp // warps if of_warp else self.blocks
        return min(self.blocks, self.warps // warps, by_registers, self.shared_bytes // of_block)


ARCHITECTURES = {
    "sm_80": Architecture(64, 32, 164 * 1024),
    "sm_86": Architecture(48, 16, 100 * 1024),
    "sm_89": Architecture(48, 24, 100 * 1024),
    "sm_90a": Architecture(64, 32, 228 * 1024),
}


@dataclass(frozen=True)
class Row:
    """One kernel on one architecture."""

    kernel: str
    architecture: str
    registers: int
    #: Local memory of a thread: spilled registers, and arrays that are not in registers.
    local_bytes: int
    static_shared: int
    #: At the network's shapes, the largest of them where several blocks of it differ.
    dynamic_shared: int
    #: Of a block at these shapes.
    threads: int
    #: Blocks that fit on a multiprocessor, and the share of its warps that they are.
    blocks: int
    occupancy: float
    #: Counts of instructions: tensor cores, asynchronous copies to shared memory, and accesses of global
    #: memory by width; those of 8 bytes are left out.
    tensor_core: int
    copy_async: int
    load_16_bytes: int
    store_16_bytes: int
    store_4_bytes: int
    store_2_bytes: int


#: (kernel, architecture) -> threads and dynamic shared memory of a block; others have none and the threads of
#: their launch bound.
Launches = Mapping[tuple[str, str], tuple[int, int]]


def network_launches() -> Launches:
    """The launches at the network's shapes: of several of a kernel the one with most shared memory.

    The host emulator of the tests compiles the launchers, which tell it what they would start.
    """
    sys.path.append(str(ROOT / "tests"))
    from emulator.launches import launches

    found: dict[tuple[str, str], tuple[int, int]] = {}
    by_size = {size.shared_bytes: list(launches(size.shared_bytes - 1024)) for size in ARCHITECTURES.values()}
    for name, architecture in ARCHITECTURES.items():
        for launch in by_size[architecture.shared_bytes]:
            key = _short(launch.kernel), name
            before = found.get(key, (0, -1))
            found[key] = max(before, (launch.threads, launch.shared_bytes), key=lambda one: one[1])
    return found


def source_hash(root: Path = ROOT) -> str:
    """Of every file that CUDA kernels are compiled from."""
    return sources.hash_of(root, sources.CUDA)


def _run(command: Sequence[str | Path], **variables: str) -> str:
    environment = {**os.environ, **variables}
    process = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {process.stderr}")
    return process.stdout


def _short(name: str) -> str:
    """A demangled kernel without namespace, result and parameters."""
    name = re.sub(r"ifdd::cuda::|\(anonymous namespace\)::|\((bool|int)\)", "", name.removeprefix("void "))
    return name.partition("(")[0]


def read(files: Sequence[Path], launches: Launches) -> list[Row]:
    """The kernels of a library or of object files, as they are launched."""
    cuobjdump, disassembler = find_tool("cuobjdump"), find_tool("nvdisasm")
    if cuobjdump is None or disassembler is None:
        raise RuntimeError("cuobjdump and nvdisasm are needed: install the CUDA toolkit or triton")
    path = f"{Path(disassembler).parent}{os.pathsep}{os.environ['PATH']}"
    text = "".join(
        _run([cuobjdump, option, file], PATH=path)
        for file in files
        for option in ("--dump-resource-usage", "--dump-elf", "--dump-sass")
    )
    names = sorted(set(re.findall(r"_Z\w*_kernel\w*", text)))
    demangled = dict(zip(names, map(_short, _run(["c++filt", *names]).splitlines()), strict=True))

    architecture = kernel = ""
    usage: dict[tuple[str, str], dict[str, int]] = {}
    threads: dict[tuple[str, str], int] = {}
    counts: dict[tuple[str, str], dict[str, int]] = {}
    patterns = {
        "tensor_core": r"\bH?GMMA|\bHMMA",
        "copy_async": r"\bLDGSTS",
        "load_16_bytes": r"\bLDG\.\S*128",
        # Stores whose address could lie anywhere (ST) count as well: global memory is where they go.
        "store_16_bytes": r"\bSTG?\.\S*\b128",
        "store_4_bytes": r"\bSTG?\.(?!\S*\b([US]8|[US]?16|64|128)\b)",
        "store_2_bytes": r"\bSTG?\.\S*\b[US]?16\b",
    }
    lines = iter(text.splitlines())
    for line in lines:
        if found := re.match(r"arch = (sm_\w+)", line):
            architecture = found[1]
        elif found := re.match(r"\s*Function (_Z\w+):", line):
            values = dict(re.findall(r"([A-Z]+)(?:\[\d\])?:(\d+)", next(lines)))
            usage[demangled[found[1]], architecture] = {k: int(v) for k, v in values.items()}
        elif found := re.match(r"\.nv\.info\.(_Z\w+)", line):
            kernel = demangled.get(found[1], "")
        elif "EIATTR_MAX_THREADS" in line:
            next(lines)
            x, y, z = (int(size, 16) for size in next(lines).split()[1:4])
            threads[kernel, architecture] = x * y * z
        elif found := re.match(r"\s*Function : (_Z\w+)", line):
            kernel = demangled.get(found[1], "")
            counts[kernel, architecture] = dict.fromkeys(patterns, 0)
        elif "/*" in line and (kernel, architecture) in counts:
            for name, pattern in patterns.items():
                counts[kernel, architecture][name] += re.search(pattern, line) is not None
    return sorted(
        (_row(key, used, launches.get(key, (threads[key], 0)), counts[key]) for key, used in usage.items()),
        key=lambda row: (row.kernel, row.architecture),
    )


def _row(key: tuple[str, str], used: dict[str, int], launch: tuple[int, int], counts: dict[str, int]) -> Row:
    kernel, name = key
    architecture, (threads, dynamic) = ARCHITECTURES[name], launch
    # The driver's 1 KB a block counts as shared memory of the kernel on some architectures.
    static = used["SHARED"] - 1024 if name.startswith("sm_9") and used["SHARED"] >= 1024 else used["SHARED"]
    blocks = architecture.blocks_per_multiprocessor(threads, used["REG"], static + dynamic)
    return Row(
        kernel=kernel,
        architecture=name,
        registers=used["REG"],
        local_bytes=used["STACK"] + used["LOCAL"],
        static_shared=static,
        dynamic_shared=dynamic,
        threads=threads,
        blocks=blocks,
        occupancy=round(blocks * threads / 32 / architecture.warps, 3),
        **counts,
    )


def write(rows: Sequence[Row], file: Path = TABLE) -> None:
    """Writes the table, with the hash of the sources in its first line."""
    with file.open("w", newline="") as stream:
        stream.write(f"# sources {source_hash()}\n# {_compiler()}\n")
        writer = csv.DictWriter(stream, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def _compiler() -> str:
    nvcc = find_tool("nvcc")
    return _run([nvcc, "--version"]).splitlines()[-2] if nvcc else "compiler unknown"


def load(file: Path = TABLE) -> tuple[str, list[Row]]:
    """The hash of the sources and the rows of a written table."""
    with file.open(newline="") as stream:
        digest = stream.readline().split()[-1]
        stream.readline()
        types = {f.name: {"int": int, "float": float}.get(str(f.type), str) for f in fields(Row)}
        rows = [Row(**{k: types[k](v) for k, v in line.items()}) for line in csv.DictReader(stream)]
    return digest, rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "files", nargs="*", type=Path, help="library or objects (default: the installed library)"
    )
    parser.add_argument("--check", action="store_true", help="compare with the table instead of writing it")
    options = parser.parse_args()
    rows = read(options.files or [ROOT / "ifdd_kernels" / "_ops.so"], network_launches())
    if not rows:
        sys.exit("no CUDA kernels there: build with IFDD_CUDA=ON")
    if options.check:
        digest, before = load()
        if digest != source_hash() or before != rows:
            sys.exit(f"{TABLE.relative_to(ROOT)} is of other sources or another compiler; write it anew")
    else:
        write(rows)
        print(f"{len(rows)} rows in {TABLE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
