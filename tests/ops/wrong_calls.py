"""Generated calls of the ops, most of them wrong: a program, so that a crash ends a process of its own.

    python wrong_calls.py SEED FIRST COUNT PROGRESS

Call ``i`` of a seed is always the same. Its description goes to the file PROGRESS before it is made: after a
crash the last line names it. The program prints a JSON object: how many calls were refused and accepted, and
the faults.
"""

from __future__ import annotations

import faulthandler
import json
import random
import resource
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ifdd_kernels import _arguments
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels._schema import Signature, outputs_of
from ifdd_kernels.registry import REGISTRY, Maker, backward_arguments
from ifdd_kernels.testing import check_against_float64, precision_error_bound

DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
#: Memory of the process beyond what it has at first: more is out of memory, which is tried, too.
MEMORY = 3 << 30
#: What an op may raise; the errors of Python's own arithmetic and attributes are none of them.
ERRORS = (TypeError, ValueError, RuntimeError, IndexError, NotImplementedError)
OUT_OF_MEMORY = "can't allocate memory"
#: PyTorch from 2.13 on keeps why a call through its stable interface failed; before, an op can only say that
#: such a call failed.
KEEPS_CAUSE = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)


@dataclass
class Call:
    """One call: a function of named arguments, and how the same is computed in float64."""

    op: str
    surface: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    arguments: dict[str, Any]
    what: list[str] = field(default_factory=list)
    #: A backward op whose forward would not have saved these results for these arguments: what the gradients
    #: are then is the kernel's own choice.
    inconsistent: bool = False

    def __str__(self) -> str:
        return f"{self.op} ({self.surface}): {'; '.join(self.what)}"


def tensors(rng: random.Random, value: Tensor) -> tuple[str, Any]:
    """A variant of a tensor, with its name."""
    axis = rng.randrange(value.dim()) if value.dim() else 0
    floating = value.is_floating_point()
    choices: dict[str, Callable[[], Any]] = {
        "None": lambda: None,
        "text": lambda: "text",
        "number": lambda: 1.5,
        "list": lambda: value.detach().to(torch.float32).tolist(),
        "numpy": lambda: np.zeros(tuple(value.shape), np.float32),
        "list of tensors": lambda: [value],
        "meta": lambda: value.to("meta"),
        "rank + 1": lambda: value[None],
        "rank - 1": lambda: value.select(axis, 0) if value.dim() and value.shape[axis] else value.sum(),
        "no axes": lambda: value.sum(),
        "longer": lambda: torch.cat((value, value), axis) if value.dim() else value[None],
        "shorter": lambda: (
            value.narrow(axis, 0, max(0, value.shape[axis] - 1)) if value.dim() else value[None]
        ),
        "empty": lambda: value.narrow(axis, 0, 0) if value.dim() else value.new_empty(0),
        "huge": lambda: huge(rng, value, axis),
        "huge and empty": lambda: (
            value.new_empty([1 << rng.choice((20, 31, 40, 45))] * (value.dim() - 1) + [0])
            if value.dim() == 2
            else huge(rng, value[:0] if value.dim() else value, max(axis, 1))
        ),
        "expanded": lambda: value[:1].expand_as(value) if value.dim() and value.shape[0] else value,
        "strided": lambda: value.mT.contiguous().mT if value.dim() > 1 else value,
        "sparse": lambda: value.to_sparse(),
        "sparse rows": lambda: value.flatten(1).to_sparse_csr() if value.dim() > 1 else value.to_sparse(),
        "mkldnn": lambda: value.float().to_mkldnn(),
        "nested": lambda: torch.nested.nested_tensor([value, value]),
        "quantised": lambda: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
        "complex": lambda: value.to(torch.complex64),
        "negative bit": lambda: (
            torch.complex(value, value).conj().imag if value.dtype == torch.float32 else value
        ),
        "learned": lambda: torch.nn.Parameter(value.detach().clone(), requires_grad=floating),
        "nan": lambda: torch.full_like(value, torch.nan) if floating else value,
        "infinite": lambda: torch.full_like(value, torch.inf) if floating else value + 1,
        "negative": lambda: -value if floating else value - 100,
    }
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.bool,
        torch.float8_e4m3fn,
        torch.uint16,
    ):
        choices[str(dtype)] = lambda dtype=dtype: value.to(dtype)
    while True:
        name = rng.choice(list(choices))
        try:
            return name, choices[name]()
        except (RuntimeError, NotImplementedError):  # PyTorch has no such tensor of this shape or dtype
            continue


def huge(rng: random.Random, value: Tensor, axis: int) -> Tensor:
    """With a size that no memory holds, of one element or of none."""
    if not value.dim() or not value.dim() > axis:
        return value
    shape = list(value.shape)
    shape[axis] = 1 << rng.choice((20, 31, 33, 40, 46, 50, 61))
    source = value.narrow(axis, 0, 1) if value.shape[axis] else value.new_zeros([1] * value.dim())
    try:
        return source.expand(shape)
    except RuntimeError:  # strides beyond 64 bits: PyTorch has no such tensor
        return value.new_zeros([1] * value.dim()).expand([1 << 40] * value.dim())


def learned(value: float) -> Tensor:
    return torch.nn.Parameter(torch.tensor(float(value)))


def integers(rng: random.Random, value: int) -> tuple[str, Any]:
    found = rng.choice(
        [
            None,
            "2",
            1.5,
            float(value),
            True,
            False,
            torch.tensor(value),
            learned(value),
            np.array([value, value]),
            np.int64(value),
            [value],
            (),
            0,
            -1,
            -value,
            value + 1,
            2 * value,
            1 << 15,
            1 << 20,
            1 << 27,
            1 << 28,
            1 << 29,
            1 << 30,
            1 << 31,
            1 << 40,
            1 << 62,
            (1 << 63) - 1,
            1 << 63,
            -(1 << 63) - 1,
            10**30,
            1j,
            torch.int64,
        ]
    )
    return repr(found), found


def floats(rng: random.Random, value: float) -> tuple[str, Any]:
    found = rng.choice(
        [
            None,
            "0.5",
            torch.tensor(value),
            learned(value),
            learned(value)[None],
            np.array([value]),
            np.float32(value),
            np.float64(value),
            [value],
            True,
            0.0,
            -1.0,
            0,
            1,
            2,
            float("nan"),
            float("inf"),
            float("-inf"),
            1e-3,
            10**400,
            -(10**400),
            1j,
            {},
            torch.float32,
        ]
    )
    return repr(found), found


def flags(rng: random.Random, value: bool) -> tuple[str, Any]:
    found = rng.choice(
        [None, 0, 1, 1.0, "yes", [], torch.tensor(True), learned(1.0), np.array([1, 2]), not value]
    )
    return repr(found), found


def triples(rng: random.Random, value: list[int]) -> tuple[str, Any]:
    place = rng.randrange(len(value))

    def changed(item: Any) -> list[Any]:
        return [*value[:place], item, *value[place + 1 :]]

    found = rng.choice(
        [
            None,
            3,
            2.5,
            "123",
            tuple(value),
            value[:-1],
            [*value, 1],
            [],
            [value],
            torch.tensor(value),
            np.array(value),
            {1: 2},
            changed(integers(rng, value[place])[1]),
            changed(0),
            changed(1 << 21),
            changed(1 << 62),
            changed(None),
            [1 << 21] * len(value),
            [1 << 32] * len(value),
            value[::-1],
            iter(value),
        ]
    )
    return repr(found), found


def mutate(rng: random.Random, value: Any) -> tuple[str, Any]:
    """A variant of an argument."""
    if isinstance(value, Tensor):
        return tensors(rng, value)
    if isinstance(value, bool):
        return flags(rng, value)
    if isinstance(value, int):
        return integers(rng, value)
    if isinstance(value, float):
        return floats(rng, value)
    if isinstance(value, tuple) and any(isinstance(item, Tensor) for item in value):
        name, inner = mutate(rng, value[0])
        return rng.choice(
            [
                ("None", None),
                ("one of two", value[:1]),
                ("weight alone", value[0]),
                ("text", "ab"),
                (f"weight {name}", (inner, value[1])),
                ("bias None", (value[0], None)),
            ]
        )
    if isinstance(value, (list, tuple)):
        return triples(rng, list(value))
    if isinstance(value, str):
        found = rng.choice([None, 3, "nothing", ["native"], b"native", torch.tensor(1)])
        return repr(found), found
    found = rng.choice([1.5, "text", torch.randn(3), torch.randn(2, 2, device="meta"), [1, 2], 7])
    return repr(found)[:40], found


class Generator:
    """Draws calls; the arguments they start from are the registry's samples."""

    def __init__(self) -> None:
        self._samples: dict[tuple[str, torch.dtype], list[Any]] = {}
        self._backward: dict[tuple[str, torch.dtype, int], tuple[Any, ...]] = {}

    def samples(self, op: str, dtype: torch.dtype) -> list[Any]:
        if (op, dtype) not in self._samples:
            self._samples[op, dtype] = list(REGISTRY[op].samples(Maker(dtype)))
        return self._samples[op, dtype]

    def draw(self, rng: random.Random) -> Call:
        """A call with one or two of its arguments changed."""
        op = rng.choice(list(REGISTRY))
        dtype = rng.choice(DTYPES)
        number = rng.randrange(len(self.samples(op, dtype)))
        sample = self.samples(op, dtype)[number]
        operator = OPERATORS.get(op)
        surfaces = ["public", "public", "op"]
        if operator is not None:
            surfaces += ["op", "op_reference"]
            if operator.backward is not None:
                surfaces += ["op_backward", "op_backward", "op_backward_reference"]
        surface = rng.choice(surfaces)
        library = torch.ops.ifdd
        if surface == "public":
            entry = REGISTRY[op]
            named = _arguments.public(op, dict(zip(entry.signature.arguments, sample.args, strict=True)))
            named["backend"] = rng.choice(("auto", "auto", "native", "reference"))
            call = Call(op, surface, entry.function, entry.function, named)
        elif "backward" in surface:
            if (op, dtype, number) not in self._backward:
                self._backward[op, dtype, number] = backward_arguments(operator, sample.args)
            names = Signature.of(op, operator.backward.schema).arguments
            named = dict(zip(names, self._backward[op, dtype, number], strict=True))
            suffix = surface.removeprefix("op")
            call = Call(
                op,
                surface,
                getattr(library, op + suffix),
                getattr(library, f"{op}_backward_reference"),
                named,
            )
        else:
            named = dict(zip(REGISTRY[op].signature.arguments, sample.args, strict=True))
            reference = getattr(library, op if operator is None else f"{op}_reference")
            call = Call(op, surface, getattr(library, op + surface.removeprefix("op")), reference, named)
        call.what.append(f"{sample.label}, {dtype}")
        for name in rng.sample(list(call.arguments), rng.choice((1, 1, 1, 2))):
            what, value = mutate(rng, call.arguments[name])
            if (op, name, what) == ("lifting_residual", "approximation", "huge"):
                continue  # any number of frames is averaged: right, and without end for an expanded tensor
            saved = "backward" in surface and _saves_results(op) and not name.startswith("grad_")
            call.inconsistent |= saved and not _same_numbers(call.arguments[name], value)
            call.arguments[name] = value
            call.what.append(f"{name} = {what}")
        if rng.random() < 0.3:  # with a rule for gradients around it
            for name, value in call.arguments.items():
                if isinstance(value, Tensor) and value.is_floating_point() and value.device.type == "cpu":
                    call.arguments[name] = value.detach().requires_grad_()
                    call.what.append("with gradients")
                    break
        return call


def _saves_results(op: str) -> bool:
    """Whether the backward op is given results of the op."""
    operator = OPERATORS[op]
    taken = Signature.of(op, operator.backward.schema).arguments
    return not set(operator.signature.results).isdisjoint(taken)


def _same_numbers(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if other.is_nested or other.is_quantized or other.layout != torch.strided:
            return False
        same = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
        return same and torch.equal(one, other)
    return type(one) is type(other) and not isinstance(one, Tensor) and bool(np.all(one == other))


def wide(value: Any) -> Any:
    """Floating tensors in float64."""
    if isinstance(value, tuple):
        return tuple(wide(item) for item in value)
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().to(torch.float64) if floating else value


def devices(arguments: dict[str, Any]) -> set[str]:
    found = [
        item for value in arguments.values() for item in (value if isinstance(value, tuple) else (value,))
    ]
    return {item.device.type for item in found if isinstance(item, Tensor)}


def problem_of(call: Call, error: BaseException) -> str:
    """The fault of a refusal; empty if there is none."""
    message = str(error)
    if OUT_OF_MEMORY in message or "second derivatives" in message:
        return ""
    if not KEEPS_CAUSE and "API call failed" in message:
        return ""
    if call.op == "max_pool_tokens" and "rows = negative" in call.what:
        return ""  # as above: PyTorch's own error of an index
    if not isinstance(error, ERRORS):
        return f"{type(error).__name__}: {message}"
    parts = {"linear", "lifting_attention"} | set(OPERATORS[call.op].parts if call.op in OPERATORS else ())
    if call.op not in message and not any(f"{part}:" in message for part in parts):
        return f"names no op: {type(error).__name__}: {message}"
    names = {*call.arguments, *REGISTRY[call.op].signature.arguments}
    if OPERATORS.get(call.op) is not None and OPERATORS[call.op].backward is not None:
        names |= set(Signature.of(call.op, OPERATORS[call.op].backward.schema).arguments)
    return "" if any(name in message for name in names) else f"names no argument: {message}"


def promised_dtypes(call: Call) -> list[torch.dtype] | None:
    """The results of a registered op according to its fake."""
    if call.op not in OPERATORS or call.surface == "public":
        return None
    arguments = {n: v.to("meta") if isinstance(v, Tensor) else v for n, v in call.arguments.items()}
    with torch.no_grad():
        return [result.dtype for result in outputs_of(call.function(**arguments))]


def wrong_number(call: Call, results: tuple[Any, ...]) -> str:
    """How an accepted call differs from the reference in float64; empty if it does not."""
    kinds = devices(call.arguments)
    if kinds != {"cpu"}:
        return "" if len(kinds) == 1 else f"accepted tensors of {sorted(kinds)}"
    backward = "backward" in call.surface
    if (
        call.op == "max_pool_tokens"
        and backward
        and any(what.startswith(("rows", "stride")) for what in call.what)
    ):
        return ""  # the rows are trusted to be those that forward returned for this stride
    arguments = {name: wide(value) for name, value in call.arguments.items()}
    if call.surface == "public":
        arguments["backend"] = "auto" if OPERATORS.get(call.op) is None else "reference"
    try:
        expected = outputs_of(call.reference(**arguments))
    except Exception as error:
        return "" if OUT_OF_MEMORY in str(error) else f"accepted, the reference says {error}"
    if call.op == "topk_split_index" and any("nan" in what or "infinite" in what for what in call.what):
        return ""
    if call.inconsistent:
        return ""
    nan_position = any("_index = nan" in what for what in call.what)
    kept = []
    for place, (actual, right) in enumerate(zip(results, expected, strict=True)):
        if actual.shape != right.shape:
            return f"result {place} has shape {tuple(actual.shape)}, not {tuple(right.shape)}"
        if not actual.is_floating_point():
            kept.append((actual, right))
            continue
        finite = right.isfinite() & (right.abs() < torch.finfo(actual.dtype).max)
        # The matrices of the definition carry NaN and infinity to what is not sampled or multiplied.
        spread = nan_position or backward
        if not spread and (actual.isfinite() & ~finite & ~right.isfinite()).any():
            return f"result {place} is finite where it should not be"
        kept.append((actual[finite], right[finite]))
    ulps = 4 * max(16, REGISTRY[call.op].ulps)
    given = [v.dtype for n, v in call.arguments.items() if n.startswith("grad_") and isinstance(v, Tensor)]
    coarsest = max((d for d in given if d.is_floating_point), key=lambda d: torch.finfo(d).eps, default=None)
    try:
        check_against_float64(
            [actual for actual, _ in kept],
            [right for _, right in kept],
            lambda dtype: precision_error_bound(dtype, ulps),
            results=0 if backward else len(kept),
            dtypes=[actual.dtype for actual, _ in kept],
            result_dtype=coarsest,
            gradient_factor=1,
        )
    except AssertionError as error:
        return str(error)
    return ""


def attempt(call: Call) -> tuple[str, str]:
    """Makes a call: ("refused" or "accepted", its fault or "")."""
    try:
        results = outputs_of(call.function(**call.arguments))
        loss = [r.float().sum() for r in results if r.requires_grad and r.device.type == "cpu"]
        if loss:
            sum(loss).backward()
    except BaseException as error:
        return "refused", problem_of(call, error)
    return "accepted", wrong_number(call, tuple(r.detach() for r in results))


def main(seed: int, first: int, count: int, progress: Path) -> None:
    faulthandler.enable()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    generator = Generator()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    counts = {"refused": 0, "accepted": 0}
    faults = []
    with progress.open("a") as log:
        for number in range(first, first + count):
            rng = random.Random(f"{seed} {number}")
            torch.manual_seed(number)
            call = generator.draw(rng)
            print(number, call, file=log, flush=True)
            outcome, fault = attempt(call)
            counts[outcome] += 1
            if fault:
                faults.append(f"{number} {call}: {fault}")
    print(json.dumps({**counts, "faults": faults}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), Path(sys.argv[4]))
