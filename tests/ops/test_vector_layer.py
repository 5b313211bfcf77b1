"""The vector layer of the CPU kernels (csrc/include/ifdd/vector) on every instruction set that runs here.

The header's code is compiled with the flags of the native library, see ``vector_layer.cpp``. Beside the
instruction sets it is compiled for AVX2 with vectors of other widths: products and sums are fused as in AVX2,
so what does not depend on the width has the same bits. Bounds of errors are those that ``math.h`` states.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ifdd_kernels

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("vector_layer.cpp")
CACHE = ROOT / "build" / "vector_layer"
HEADERS = (ROOT / "csrc" / "include", ROOT / "csrc" / "cpu" / "kernels")
#: As in CMakeLists.txt.
FLAGS = ("-O3", "-fopenmp-simd", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
AVX2, AVX512 = "-march=x86-64-v3", ("-march=x86-64-v4", "-mprefer-vector-width=512")
SETS: dict[str, tuple[str, ...]] = {"x86-64": (), "x86-64-v3": (AVX2,), "x86-64-v4": AVX512}
WIDTHS = {f"AVX2, {size} bytes": (AVX2, f"-DIFDD_VECTOR_BYTES={size}") for size in (16, 64)}

compiler = shutil.which(os.environ.get("CXX", "g++"))
pytestmark = pytest.mark.skipif(compiler is None, reason="the vector layer needs a C++ compiler")

Array = np.ndarray[Any, np.dtype[Any]]


def runnable() -> list[str]:
    """The instruction sets up to the one in use."""
    info = ifdd_kernels.build_info()
    compiled = list(info.get("instruction_sets", ()))
    return compiled[: compiled.index(info["instruction_set"]) + 1] if compiled else []


RUNNABLE = runnable()
EVERY_SET = pytest.mark.parametrize("name", RUNNABLE)
OTHER_WIDTHS = pytest.mark.skipif("x86-64-v3" not in RUNNABLE, reason="needs AVX2")
EVERY_WIDTH = pytest.mark.parametrize("name", WIDTHS)


@functools.cache
def library(name: str) -> ctypes.CDLL:
    """The layer compiled for an instruction set or width; kept until a source changes."""
    assert compiler is not None
    flags = {**SETS, **WIDTHS}.get(name, ())
    # -Wno-psabi: vectors wider than the instruction set's cross no boundary of a library here.
    command = [
        compiler,
        "-std=c++17",
        "-shared",
        "-fPIC",
        "-fno-gnu-unique",
        "-DIFDD_ISA=tested",
        *FLAGS,
        *flags,
    ]
    command += [
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-psabi",
        *(f"-I{folder}" for folder in HEADERS),
        str(SOURCE),
    ]
    digest = hashlib.sha256("\0".join(command).encode())
    digest.update(subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout)
    for file in sorted({SOURCE, *(file for folder in HEADERS for file in folder.rglob("*.h"))}):
        digest.update(file.read_bytes())
    path = CACHE / f"{digest.hexdigest()[:16]}.so"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            built = Path(folder) / path.name
            done = subprocess.run([*command, "-o", str(built)], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            built.replace(path)
    return ctypes.CDLL(str(path))


def _address(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def call(name: str, function: str, x: Array, out: Array | None = None, count: int | None = None) -> Array:
    """``function(x, count, out)`` of a library; ``out`` is like x unless given."""
    assert x.flags.c_contiguous
    out = np.empty_like(x) if out is None else out
    arguments = (_address(x), ctypes.c_int64(x.size if count is None else count), _address(out))
    getattr(library(name), function)(*arguments)
    return out


def width(name: str, dtype: str) -> int:
    return int(library(name).vector_bytes()) // np.dtype(dtype).itemsize


# Functions.


def every_float(step: int, least: int = 0, most: int = (1 << 31) - 1) -> Iterator[Array]:
    """Every ``step``-th bit pattern from ``least`` to ``most``, then with the other sign, in pieces."""
    chunk = step << 22
    for sign in (0, 1 << 31):
        for first in range(least, most + 1, chunk):
            bits = np.arange(first, min(first + chunk, most + 1), step, dtype=np.int64) + sign
            yield bits.astype(np.uint32).view(np.float32)


def around(*values: float) -> Array:
    """The 65 bit patterns around each value, of both signs."""
    bits = np.array(values, np.float32).view(np.uint32).astype(np.int64)[:, None] + np.arange(-32, 33)
    positive = bits[bits >= 0].astype(np.uint32)
    return np.concatenate([positive, positive | np.uint32(1 << 31)]).view(np.float32)


def ulps(value: Array, exact: Array) -> Array:
    """The error in spacings of floats around the exact value, no smaller than that of normal numbers."""
    mantissa, least = (53, -1021) if value.dtype == np.float64 else (24, -125)
    exponent = np.maximum(np.frexp(exact)[1], least)
    error: Array = np.ldexp(np.abs(value.astype(exact.dtype) - exact), mantissa - exponent)
    return error


def _cdf(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * torch.special.erfc(x * -math.sqrt(0.5))


def _pdf(x: torch.Tensor) -> torch.Tensor:
    return torch.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))


#: Bit patterns between those that are tried; a prime.
STEP = 16411
SMALLEST, LARGEST = 2.0**-126, float(np.finfo(np.float32).max)
#: The definition, and math.h's bound in ulps at x.
FUNCTIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[Array], Any]]] = {
    "exp": (torch.exp, lambda x: 1.25),
    "cdf": (_cdf, lambda x: 6 + np.minimum(x, 0) ** 2 / 2),
    "pdf": (_pdf, lambda x: 3 + x**2 / 2),
    "sqrt": (torch.sqrt, lambda x: 0.5),
    "log": (torch.log, lambda x: 1.0),
}
#: What lies at their edges: where results stop to be normal, change their formula or are exact.
EDGES = around(
    0.0, 1e-30, 0.34657359, 1.0, 3.0, 5.4, 12.9, 13.19, 87.33654, 88.0296919, 88.7228317, 1e30, LARGEST
)


def check_function(name: str, function: str, x: Array) -> None:
    """NaN where it is due, infinity beyond the largest float, else within the bound, or 0 below 2^-126."""
    definition, bound = FUNCTIONS[function]
    exact = definition(torch.from_numpy(x).double()).numpy()
    value = call(name, f"{function}_float32", x)
    nan = np.isnan(exact)
    assert np.array_equal(np.isnan(value), nan), f"{function}({x[np.isnan(value) != nan][:4]})"
    overflow = np.abs(exact) > LARGEST
    assert np.array_equal(value[overflow], np.sign(exact[overflow]) * np.float32(np.inf))
    number = ~(nan | overflow)
    x, value, exact = x[number].astype(np.float64), value[number], exact[number]
    error = ulps(value, exact)
    wrong = (error > bound(x)) & ~((value == 0) & (np.abs(exact) < SMALLEST))
    assert not wrong.any(), f"{function}({x[wrong][0]}) errs by {error[wrong][0]} ulps"


@EVERY_SET
@pytest.mark.parametrize("function", FUNCTIONS)
def test_function(name: str, function: str) -> None:
    check_function(name, function, EDGES)
    for x in every_float(STEP):
        check_function(name, function, x)


@pytest.mark.nightly
@EVERY_SET
@pytest.mark.parametrize("function", ["exp", "cdf", "pdf"])
def test_function_at_every_float(name: str, function: str) -> None:
    """From 2^-30, below which they are constants to the last digit, to 128, where all have ended."""
    least, most = np.array([2.0**-30, 128], np.float32).view(np.uint32).tolist()
    for x in every_float(1, least, most):
        check_function(name, function, x)


@EVERY_SET
def test_edges(name: str) -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, 88.722839, -87.336548], np.float32)
    assert call(name, "exp_float32", x).tolist() == [1, 1, np.inf, 0, np.inf, 0]
    assert call(name, "cdf_float32", x)[2:4].tolist() == [1, 0]
    assert call(name, "pdf_float32", x)[2:4].tolist() == [0, 0]
    # NaNs of all payloads and signs.
    payloads = np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFC001FF, 0xFFFFFFFF], np.uint32)
    for function in FUNCTIONS:
        assert np.isnan(call(name, f"{function}_float32", payloads.view(np.float32))).all()


@EVERY_SET
def test_functions_in_float64(name: str) -> None:
    """Against long double, which has eleven bits more."""
    random = np.random.default_rng(0)
    x = np.concatenate(
        [random.uniform(-708, 709.7, 4000), random.normal(size=4000), [0.0, 709.782712893384, -708.3964]]
    )
    error = ulps(call(name, "exp_float64", x), np.exp(x.astype(np.longdouble)))
    assert error.max() < 1.25
    specials = np.array([np.nan, np.inf, -np.inf, 709.7827128933841, -708.3964185322642])
    assert np.array_equal(call(name, "exp_float64", specials), [np.nan, np.inf, 0, np.inf, 0], equal_nan=True)
    x = random.uniform(-30, 8, 4000)
    wide = x.astype(np.longdouble)
    # erfc at an argument rounded to double, and what the rounding changed.
    half = np.sqrt(np.longdouble(0.5))
    rounded = (-wide * half).astype(float)
    slope = -2 / np.sqrt(np.longdouble(np.pi)) * np.exp(-(rounded.astype(np.longdouble) ** 2))
    exact = np.array([math.erfc(v) for v in rounded]) + slope * (-wide * half - rounded)
    assert (ulps(call(name, "cdf_float64", x), exact / 2) <= 6 + 2 * np.minimum(x, 0) ** 2).all()
    exact = np.exp(-(wide**2) / 2) / np.sqrt(2 * np.longdouble(np.pi))
    assert (ulps(call(name, "pdf_float64", x), exact) <= 3 + x**2 / 2).all()
    x = random.normal(size=4000)
    assert ulps(call(name, "tanh_float64", x), np.tanh(x.astype(np.longdouble))).max() < 2


@pytest.mark.nightly
@OTHER_WIDTHS
@EVERY_WIDTH
@pytest.mark.parametrize(
    "function", ["exp_float32", "cdf_float32", "pdf_float32", "exp_float64", "cdf_float64"]
)
def test_functions_do_not_depend_on_the_width(name: str, function: str) -> None:
    x = np.random.default_rng(0).normal(size=4001, scale=4).astype(function[-7:])
    assert call(name, function, x).tobytes() == call("x86-64-v3", function, x).tobytes()


# Sums.


def halves(lanes: Array) -> Any:
    """Halves added until one lane is left."""
    while lanes.size > 1:
        lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
    return lanes[0]


@EVERY_SET
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_reductions(name: str, dtype: str) -> None:
    """The order of additions is the stated one, bit for bit; that of 16 and 64 lanes on every set."""
    lanes = width(name, dtype)
    for seed in range(8):
        x = np.random.default_rng(seed).normal(size=64).astype(dtype)
        one = np.empty(1, dtype)
        assert call(name, f"total_{dtype}", x, one)[0] == halves(x[:lanes])
        assert call(name, f"largest_{dtype}", x, one)[0] == x[:lanes].max()
        assert call(name, f"total16_{dtype}", x, one)[0] == halves(x[:16])
        assert call(name, f"total64_{dtype}", x, one)[0] == halves(x)


@EVERY_SET
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_transpose(name: str, dtype: str) -> None:
    lanes = width(name, dtype)
    x = np.arange(lanes * lanes, dtype=dtype).reshape(lanes, lanes)
    assert np.array_equal(call(name, f"transpose_{dtype}", x), x.T)


# Memory.


@EVERY_SET
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_conversions_of_16_bits(name: str, dtype: torch.dtype) -> None:
    """All 16-bit patterns widen exactly; floats round to nearest, ties to even, NaN to a NaN."""
    suffix = str(dtype).removeprefix("torch.")
    patterns = np.arange(1 << 16, dtype=np.uint16)
    exact = torch.from_numpy(patterns).view(dtype).float().numpy()
    value = call(name, f"widen_{suffix}", patterns, np.empty(1 << 16, np.float32))
    nan = np.isnan(exact)
    assert np.array_equal(np.isnan(value), nan)
    assert value[~nan].tobytes() == exact[~nan].tobytes()
    # Halfway between neighbours, and one float below and above that.
    middles = exact[:-1][np.isfinite(exact[:-1])].view(np.uint32) + np.uint32(
        1 << 15 if suffix == "bfloat16" else 1 << 12
    )
    edges = (middles[:, None] + np.array([-1, 0, 1])).astype(np.uint32).ravel().view(np.float32)
    for x in (edges, *every_float(STEP)):
        rounded = call(name, f"narrow_{suffix}", x, np.empty(x.size, np.uint16))
        expected = torch.from_numpy(x).to(dtype)
        assert torch.equal(torch.from_numpy(rounded).view(dtype).isnan(), expected.isnan())
        number = ~np.isnan(x)
        assert np.array_equal(rounded[number], expected.view(torch.uint16).numpy()[number])


@EVERY_SET
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_ends_of_rows(name: str, dtype: str) -> None:
    """A partial vector changes nothing behind the row; lanes behind it are zeros."""
    stored = dtype if dtype.startswith("float") else "uint16"
    lanes = width(name, "float64" if dtype == "float64" else "float32")
    x = np.random.default_rng(0).normal(size=lanes).astype("float16" if stored == "uint16" else stored)
    for count in range(1, lanes):
        out = np.full(lanes + 1, 7, x.dtype)
        call(name, f"partial_{dtype}", x, out, count)
        assert out[:count].tobytes() == x[:count].tobytes()
        assert (out[count:] == 7).all()
    if dtype in ("float32", "float64"):
        for count in (*range(lanes), lanes, lanes + 5):
            y = np.where(np.arange(lanes) < count, x, np.nan).astype(dtype)
            first = call(name, f"first_lanes_{dtype}", y, count=count)
            assert np.array_equal(first, np.where(np.arange(lanes) < count, x, 0))


# Products.

#: m, n and depth: whole tiles, partial ones of each count of vectors, single rows and columns.
PRODUCTS = ((1, 1, 1), (3, 5, 2), (8, 48, 16), (9, 50, 33), (17, 25, 7), (32, 96, 128), (5, 131, 40))
KINDS = ("multiply", "multiply, add", "multiply, packed", "add transposed")


def product(name: str, dtype: str, kind: int, m: int, n: int, depth: int) -> tuple[Array, Array, Array]:
    """A product, its value in float64 and the sum of the products' sizes."""
    random = np.random.default_rng(m * n + depth)
    rows, columns = (-(-count // 48) * 48 for count in (m, n))  # a multiple of every tile
    transposed, packed = kind == 3, kind == 2
    # Behind the matrices lies a large number: whole tiles are read, and it is seen if it enters a sum.
    a = np.full((depth + 1, rows) if transposed else (rows, depth + 3), 1e30, dtype)
    b = np.full((n, depth + 5) if packed else (depth, columns), 1e30, dtype)
    c = random.normal(size=(rows, columns)).astype(dtype)
    left, right = random.normal(size=(m, depth)).astype(dtype), random.normal(size=(depth, n)).astype(dtype)
    if transposed:
        a[:depth, :m] = left.T
    else:
        a[:m, :depth] = left
    if packed:
        b[:n, :depth] = right.T
    else:
        b[:depth, :n] = right
    add = kind in (1, 3)
    exact, size = (
        0.75 * (f(left).astype(float) @ f(right).astype(float)) + (f(c[:m, :n]) if add else 0)
        for f in (np.asarray, np.abs)
    )
    if not add:
        c[:] = np.nan
    panels = np.full(columns * depth, np.nan, dtype)
    alpha = ctypes.c_double(0.75) if dtype == "float64" else ctypes.c_float(0.75)
    integers = [ctypes.c_int64(value) for value in (m, n, depth)]
    strides = [ctypes.c_int64(matrix.shape[1]) for matrix in (a, b, c)]
    arguments = (_address(a), strides[0], _address(b), strides[1], _address(panels), _address(c), strides[2])
    getattr(library(name), f"product_{dtype}")(ctypes.c_int(kind), *integers, alpha, *arguments)
    return c[:m, :n], exact, size


@EVERY_SET
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", range(4), ids=KINDS)
def test_products(name: str, dtype: str, kind: int) -> None:
    for m, n, depth in PRODUCTS:
        value, exact, size = product(name, dtype, kind, m, n, depth)
        # A product and a sum are rounded per term, and twice at the end: each time a number up to `size`.
        bound = (2 * depth + 4) * np.finfo(dtype).eps / 2 * size
        assert (np.abs(value - exact) <= bound).all(), (m, n, depth)


@pytest.mark.nightly
@OTHER_WIDTHS
@EVERY_WIDTH
def test_products_do_not_depend_on_the_width(name: str) -> None:
    for m, n, depth in PRODUCTS:
        for kind in range(4):
            value = product(name, "float32", kind, m, n, depth)[0]
            assert value.tobytes() == product("x86-64-v3", "float32", kind, m, n, depth)[0].tobytes()
