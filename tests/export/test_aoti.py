"""AOTInductor packages, from Python and from a C++ program that knows no Python."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ifdd import IFDD, IFDDConfig
from ifdd.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ifdd.export import ExportError, export_checkpoint, metadata_of
from ifdd.export.formats import check_available
from ifdd_kernels import _library
from ifdd_kernels._operator import OPERATORS

from .conftest import CLASSES, TINY, clips_for, thin

ROOT = Path(__file__).parents[2]
native = pytest.mark.skipif(not _library.loaded(), reason=f"native library not loaded: {_library.failure()}")


@native
def test_c_plus_plus_defines_the_ops_as_python_does() -> None:
    library = ctypes.CDLL(str(_library.path()))
    library.ifdd_schemas.restype = ctypes.POINTER(ctypes.c_char_p)
    texts = library.ifdd_schemas()
    found = []
    while texts[len(found)] is not None:
        found.append(texts[len(found)].decode())
    python = [name + operator.schema for name, operator in OPERATORS.items()]
    python += [f"{n}_backward{op.backward.schema}" for n, op in OPERATORS.items() if op.backward is not None]
    assert sorted(found) == sorted(python)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Of a network with one block of the backbone."""
    torch.manual_seed(0)
    model = IFDD(IFDDConfig(**TINY, stages=(3,)))
    with torch.no_grad():
        model.head.classifier.weight.normal_(std=3.0)
    path = tmp_path_factory.mktemp("aoti") / "tiny.safetensors"
    save_checkpoint(path, model, CLASSES)
    return thin(load_checkpoint(path))


@pytest.fixture(scope="module")
def package(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its package, which takes any batch."""
    try:
        check_available("aoti")
    except ExportError as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("package") / "tiny.pt2"
    export_checkpoint(checkpoint, path, "aoti")
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_package_gives_the_numbers_of_the_network(checkpoint: Checkpoint, package: Path) -> None:
    loaded = torch._inductor.aoti_load_package(str(package))
    assert loaded.get_metadata().items() >= metadata_of(checkpoint).items()
    for batch in (1, 5):
        clips = clips_for(checkpoint, batch)
        with torch.no_grad():
            torch.testing.assert_close(loaded(clips), checkpoint.model(clips)._asdict(), rtol=1e-5, atol=1e-5)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_package_of_a_whole_network(make: Callable[..., Checkpoint], tmp_path: Path) -> None:
    assert export_checkpoint(make(), tmp_path / "whole.pt2", "aoti").difference <= 1e-5


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ example, built as docs/deploy.md says."""
    cmake = shutil.which("cmake")
    if cmake is None or not (shutil.which("c++") or os.environ.get("CXX")):
        pytest.skip("the C++ example needs cmake and a C++ compiler")
    build = tmp_path_factory.mktemp("build")
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    for command in (
        (cmake, "-S", ROOT / "examples" / "cpp", "-B", build, prefix),
        (cmake, "--build", build),
    ):
        made = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert made.returncode == 0, made.stdout + made.stderr
    return build / "classify"


def classify(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)


@native
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_c_plus_plus_gives_the_numbers_of_the_network(
    checkpoint: Checkpoint, package: Path, program: Path, tmp_path: Path
) -> None:
    ops = _library.path()
    clips = clips_for(checkpoint, 3)
    clips.numpy().tofile(tmp_path / "clips")
    ran = classify(program, package, ops, tmp_path / "clips", tmp_path / "logits")
    assert ran.returncode == 0, ran.stderr
    with torch.no_grad():
        wanted = checkpoint.model(clips).logits
    logits = torch.from_numpy(np.fromfile(tmp_path / "logits", np.float32)).view(3, len(CLASSES))
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
    lines = ran.stdout.splitlines()
    assert lines[0].startswith("classes: ")
    assert CLASSES[1] in lines[0]
    best = [f"clip {i}: class {label}," for i, label in enumerate(wanted.argmax(1).tolist())]
    assert all(line.startswith(start) for line, start in zip(lines[1:], best, strict=True))

    (tmp_path / "short").write_bytes(b"\0" * 12)
    for arguments, code, text in (
        ((package, ops), 2, "usage: classify PACKAGE OPS CLIPS LOGITS"),
        (
            (package, ops, tmp_path / "short", tmp_path / "none"),
            1,
            "a multiple of 3 * 8 * 32 * 32 values",
        ),
        ((package, tmp_path / "no.so", tmp_path / "clips", tmp_path / "none"), 1, "no.so"),
        ((package, ops, tmp_path / "absent", tmp_path / "none"), 1, "absent: cannot be opened"),
    ):
        failed = classify(program, *arguments)
        assert failed.returncode == code
        assert text in failed.stderr
        assert len(failed.stderr.splitlines()) == 1
    assert not (tmp_path / "none").exists()
