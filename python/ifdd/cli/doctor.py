"""Check the installation: versions, the native library, the kernels that run each op (and why others do not),
the GPU, and a self-test.

The self-test compares every op with its definition in float64 and trains a small network for one step; it
takes about ten seconds. Exit code 1 if a kernel or the native library does not work, if an installed package
cannot be imported, or if Python, started in this folder, would import the package without its kernels.
"""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from ifdd.cli._commands import EXIT_FAILED
from ifdd.cli._imports import failed_import
from ifdd.cli.common import add_device_option, choose_device, wide_console
from ifdd.text import one_line

SUMMARY = "check the installation"
USAGE = "[options]"

PACKAGES = {
    "ifdd-kernels": "ifdd_kernels",
    "torch": "torch",
    "triton": "triton",
    "numpy": "numpy",
    "safetensors": "safetensors",
    "pytorch-lightning": "pytorch_lightning",
    "torchmetrics": "torchmetrics",
    "av": "av",
    "pillow": "PIL",
    "simplejpeg": "simplejpeg",
    "onnxruntime": "onnxruntime",
    "scipy": "scipy",
    "matplotlib": "matplotlib",
    "jsonargparse": "jsonargparse",
}
"""Name of a package -> the module that it is imported by."""


def configure(parser: ArgumentParser) -> None:
    """Adds the options."""
    add_device_option(parser)
    parser.add_argument("--self_test", type=bool, default=True, help="run the self-test")


def run(options: Namespace) -> int:
    """Runs the command; returns the exit code."""
    import torch
    from rich.table import Table

    device = choose_device(options.device)
    console = wide_console()
    say = console.print

    say("[bold]Versions[/bold]")
    for name, version in versions():
        say(f"  {name:18} {version}", highlight=False)
    say(f"  JPEG frames are decoded by {jpeg_decoder()}", highlight=False)
    unusable = unusable_packages()
    for found in unusable:
        say(f"  FAIL  {found}", highlight=False, markup=False, soft_wrap=True)
    say("\n[bold]GPU[/bold]")
    for line in gpus():
        say(f"  {line}", highlight=False)
    say(f"  threads of PyTorch on the CPU: {torch.get_num_threads()}", highlight=False)

    say("\n[bold]Face detector[/bold]")
    detector, detector_problem = face_detector(device)
    say(f"  {detector}", highlight=False, markup=False, soft_wrap=True)

    import ifdd_kernels
    from ifdd_kernels import _library, backends
    from ifdd_kernels._operator import OPERATORS

    say("\n[bold]Native library[/bold]")
    for key, value in ifdd_kernels.build_info().items():
        say(f"  {key}: {value}", highlight=False, markup=False, soft_wrap=True)
    problems = _library.problems(Path.cwd())
    for found in problems:
        say(f"  FAIL  {found}", highlight=False, markup=False, soft_wrap=True)

    say(f"\n[bold]Kernels of each op on {device}[/bold]")
    table = Table("op", *backends.BACKENDS)
    probe = torch.empty(0, device=device)
    refusals: dict[str, list[str]] = {}
    for op in sorted(OPERATORS):
        cells = []
        for backend in backends.BACKENDS:
            support = backends.can_run(op, backend, probe)
            if support.ok:
                cells.append(support.reason.partition(":")[0] if backend == "auto" else "yes")
            else:
                cells.append("no")
                refusals.setdefault(f"{backend}: {support.reason}", []).append(op)
        table.add_row(op, *cells)
    say(table)
    for reason, ops in refusals.items():
        which = "all ops" if len(ops) == len(OPERATORS) else ", ".join(ops)
        say(f"  refused {reason} ({which})", highlight=False, markup=False, soft_wrap=True)

    failed = bool(problems or unusable or detector_problem)
    if not options.self_test:
        return EXIT_FAILED if failed else 0
    say("\n[bold]Self-test[/bold]")
    for name, problem in self_test(device):
        failed |= problem is not None
        line = f"  ok    {name}" if problem is None else f"  FAIL  {name}: {problem}"
        say(line, highlight=False, markup=False, soft_wrap=True)
    without = "" if _library.loaded() else ", without native kernels"
    say("the installation is NOT in order" if failed else f"all is well{without}", style="bold")
    return EXIT_FAILED if failed else 0


def versions() -> Iterator[tuple[str, str]]:
    """(name, version) of Python, the system and the packages that matter; of this one, the version of the
    code that runs, and of its installed metadata where these are of another version.
    """
    from ifdd_kernels import __version__ as running

    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for name, module in PACKAGES.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = "not installed"
        if module == "ifdd_kernels" and version != running:
            version = f"{running} (pip has {version}: install it again for pip and other packages to know)"
        yield name, version


def jpeg_decoder() -> str:
    """The decoder for folders of JPEG frames."""
    from ifdd.data.jpeg import simplejpeg

    try:
        if simplejpeg() is not None:
            return "simplejpeg"
    except ImportError:
        return "nothing: simplejpeg is installed and cannot be imported"
    return "Pillow, in twice the time of simplejpeg (pip install simplejpeg)"


def unusable_packages() -> list[str]:
    """One line for each package that is installed and cannot be imported.

    Where several fail because of the same one below them, that one is named, once.
    """
    lines: dict[str, str] = {}
    for name, module in PACKAGES.items():
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                lines.setdefault(name, f"the package {name} lacks a package that it needs: {error.name}")
        except Exception as error:
            package, line = failed_import(error) or (name, f"the package {name}: {one_line(error)}")
            lines.setdefault(package, line)
    return list(lines.values())


def gpus() -> list[str]:
    """One line per GPU, with what keeps the native kernels from it if anything does; or why there is none."""
    import torch

    from ifdd_kernels import _library

    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        return [f"none visible to PyTorch ({built})"]
    lines = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        memory = found.total_memory / 2**30
        lines.append(f"{index}: {found.name}, sm_{found.major}{found.minor}, {memory:.0f} GiB")
        if problem := _library.without_code(index):
            lines.append(f"   no native kernels there: {problem}")
    return lines


def face_detector(device: str) -> tuple[str, bool]:
    """One line on the detector of `--face` and `--crop auto`, and whether it is broken, which it is not when
    it is merely not installed.
    """
    from ifdd.faces.detector import PACKAGE, DetectorError, load_detector

    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return "not installed (pip install 'ifdd-kernels[face]')", False
    try:
        detector = load_detector(device)
    except Exception as error:  # a package that is broken may raise anything, and the report goes on
        kind = "" if isinstance(error, DetectorError) else f"{type(error).__name__}: "
        return f"FAIL  {kind}{one_line(error)}", True
    return f"RetinaFace of {PACKAGE} {version} on {detector.device}", False


def self_test(device: str) -> Iterator[tuple[str, str | None]]:
    """(what was tested, what is wrong or None), one at a time."""
    from ifdd_kernels.registry import REGISTRY

    for entry in REGISTRY.values():
        yield f"{entry.name} against its definition in float64", _guarded(_op_problem, entry, device)
    yield "forward and backward pass of a small network", _guarded(_network_problem, device)


def _guarded(check: Callable[..., str | None], *args: Any) -> str | None:
    try:
        return check(*args)
    except Exception as error:
        return f"{type(error).__name__}: {one_line(error)}"


def _op_problem(entry: Any, device: str) -> str | None:
    import torch

    from ifdd_kernels.registry import Maker
    from ifdd_kernels.testing import precision_error_bound, relative_error

    for sample in entry.samples(Maker(torch.float32, device)):
        actual = _tensors(entry.overload(*sample.args))
        wide = [
            a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in sample.args
        ]
        # An op that is made of others has no definition of its own: its parts in float64 are one.
        expected = _tensors((entry.reference if entry.operator else entry.overload)(*wide))
        for place, (a, e) in enumerate(zip(actual, expected, strict=True)):
            error = relative_error(a, e)
            bound = precision_error_bound(torch.float32, entry.ulps) if a.is_floating_point() else 0.0
            if not error <= bound:
                found = f"relative error {error:.1e}, allowed {bound:.1e}"
                return f"sample '{sample.label}', result {place}: {found}"
    return None


def _tensors(result: Any) -> list[Any]:
    import torch

    return [result] if isinstance(result, torch.Tensor) else list(result)


def _network_problem(device: str) -> str | None:
    import torch

    from ifdd import IFDD, IFDDConfig
    from ifdd.losses import IFDDLoss

    torch.manual_seed(0)
    model = IFDD(IFDDConfig(backbone="mvit_nano", image_size=64)).to(device)
    clips = torch.rand(2, 3, 16, 64, 64, device=device)
    loss = IFDDLoss()(model(clips), torch.tensor([1, 4], device=device)).total
    loss.backward()
    if not torch.isfinite(loss):
        return f"the loss is {float(loss.detach())}"
    for name, weight in model.named_parameters():
        if weight.grad is None:
            return f"no gradient reaches {name}"
        if not torch.isfinite(weight.grad).all():
            return f"the gradient of {name} is NaN or infinite"
    return None
