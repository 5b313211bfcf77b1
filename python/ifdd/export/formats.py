"""The formats: how a file of each is written, and how it is run."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ifdd.export.program import INPUT, OUTPUTS, decomposed
from ifdd_kernels import _library
from ifdd_kernels._operator import OPERATORS

if TYPE_CHECKING:
    from torch.export import ExportedProgram

OPSET = 20
METADATA_FILE = "ifdd.json"
"""Where an exported program of PyTorch keeps the metadata: the name among `extra_files`."""

Run = Callable[[Tensor], Mapping[str, Tensor]]


class ExportError(RuntimeError):
    """A file that cannot be written here or does not give the network's numbers; the message is one line."""


@dataclass(frozen=True)
class Format:
    """A kind of file."""

    suffix: str
    summary: str
    #: Packages that writing and checking a file need.
    packages: tuple[str, ...]
    #: Why this machine cannot write it, empty if it can.
    refusal: Callable[[], str]
    #: (program, path, metadata): writes the file, and what lies beside it, into the path's folder.
    write: Callable[[ExportedProgram, Path, Mapping[str, str]], None]
    #: The file as a function from clips to the results by name.
    load: Callable[[Path], Run]


def _write_onnx(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    with _quiet():
        exported = torch.onnx.export(
            decomposed(program),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
            custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
        )
    assert exported is not None
    exported.model.metadata_props.update(metadata)
    # One file, unless the weights come near the 2 GiB where protobuf ends: then they lie in a file beside it.
    exported.save(path, external_data=False)


def _stable_sort(
    self: Any, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Any, Any]:
    """``Tensor.sort(stable=True)`` of an axis of known size: TopK lists equal elements in their order."""
    from onnxscript import opset20 as op

    size: Any = op.Constant(value_ints=[self.shape[dim]])
    values, indices = op.TopK(self, size, axis=dim, largest=int(descending), sorted=1)
    return values, indices


def _load_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(clips: Tensor) -> dict[str, Tensor]:
        results = session.run(list(OUTPUTS), {INPUT: clips.numpy()})
        return {name: torch.from_numpy(result) for name, result in zip(OUTPUTS, results, strict=True)}

    return run


def _write_pt2(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    with _quiet():
        torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(dict(metadata))})


def _load_pt2(path: Path) -> Run:
    with _quiet():
        run: Run = torch.export.load(path).module()
    return run


def _write_aoti(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    # Without the native library the package calls no op of ours; PyTorch compiles the definitions.
    compiled = _library.native_ops("cpu")
    ready = decomposed(program, [name for name in OPERATORS if name not in compiled])
    with _quiet():
        torch._inductor.aoti_compile_and_package(
            ready,
            package_path=str(path),
            inductor_configs={"aot_inductor.metadata": dict(metadata)},
        )


def _load_aoti(path: Path) -> Run:
    with _quiet():
        run: Run = torch._inductor.aoti_load_package(str(path))
    return run


def _no_compiler() -> str:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        with _quiet():
            get_cpp_compiler()
    except (InvalidCxxCompiler, OSError, RuntimeError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return f"it needs a C++ compiler, and PyTorch finds none that works ({first})"
    return ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks about themselves; what they refuse they raise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


FORMATS: dict[str, Format] = {
    "onnx": Format(
        ".onnx",
        "for ONNX Runtime and others, plain ONNX operators",
        ("onnx", "onnxscript", "onnxruntime"),
        str,
        _write_onnx,
        _load_onnx,
    ),
    "pt2": Format(
        ".pt2",
        "torch.export program, loaded in Python beside ifdd_kernels",
        (),
        str,
        _write_pt2,
        _load_pt2,
    ),
    "aoti": Format(
        ".pt2",
        "compiled AOTInductor package, run from Python or C++ on CPUs of the kind that wrote it",
        (),
        _no_compiler,
        _write_aoti,
        _load_aoti,
    ),
}
"""The formats by name."""


def check_available(name: str) -> Format:
    """The format of a name, if a file of it can be written here.

    Raises:
        ValueError: an unknown name.
        ExportError: a package or a compiler is missing.
    """
    if name not in FORMATS:
        raise ValueError(f"export: unknown format {name!r}; known formats are {sorted(FORMATS)}")
    found = FORMATS[name]
    missing = [package for package in found.packages if not _installed(package)]
    if missing:
        raise ExportError(
            f"format {name}: the packages {', '.join(missing)} are not installed: "
            "pip install 'ifdd-kernels[export]'"
        )
    if problem := found.refusal():
        raise ExportError(f"format {name}: {problem}")
    return found


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def run_of(found: Format, path: Path) -> Run:
    """The file at a path as a function of clips (B, 3, T, S, S) float32.

    Raises:
        ExportError: the runtime cannot load it.
    """
    try:
        return found.load(path)
    except Exception as error:  # every runtime has errors of its own
        raise ExportError(f"{path.name}: not written: it does not load: {cause(error)}") from error


def cause(error: BaseException) -> str:
    """The first line of what an error came from; exporters wrap it in advice about themselves."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
