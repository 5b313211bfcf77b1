"""How 16-bit products are computed on a CPU: asked for, measured, kept; and that the library obeys."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

from ifdd_kernels import _products, build_info, linear
from ifdd_kernels.backends import can_run
from ifdd_kernels.ops.linear import faster_in_float32

pytestmark = pytest.mark.skipif(not can_run("linear", "native"), reason=can_run("linear", "native").reason)
BF16, FP16 = torch.bfloat16, torch.float16
Times = Callable[[float, float], list[torch.dtype]]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A process that has not chosen yet, of a user with an empty cache; then the choices of before."""
    before = dict(_products._choices)
    forget()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(_products.VARIABLE, raising=False)
    yield
    forget()
    for dtype, choice in before.items():
        _products._settle(dtype, choice)


def forget() -> None:
    """As a new process."""
    _products._choices.clear()
    for dtype in (BF16, FP16):
        _products._setter("ifdd_choose_products")(_products._PLACES[dtype], -1)


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    """Sets what a measurement finds (seconds by PyTorch, through float32); returns those that were made."""
    made: list[torch.dtype] = []

    def find(library: float, float32: float) -> list[torch.dtype]:
        def measure(dtype: torch.dtype) -> tuple[float, float]:
            made.append(dtype)
            return library, float32

        monkeypatch.setattr(_products, "measure", measure)
        return made

    return find


@pytest.mark.parametrize(
    ("text", "bfloat16", "float16"),
    [
        ("", None, None),
        ("library", False, False),
        ("float32", True, True),
        ("bfloat16=library", False, None),
        (" bfloat16=library , float16=float32 ", False, True),
        ("library,float16=float32", False, True),
    ],
)
def test_variable(
    monkeypatch: pytest.MonkeyPatch, text: str, bfloat16: bool | None, float16: bool | None
) -> None:
    monkeypatch.setenv(_products.VARIABLE, text)
    assert (_products.asked_for(BF16), _products.asked_for(FP16)) == (bfloat16, float16)
    if bfloat16 is not None:
        assert faster_in_float32(BF16) == bfloat16
        assert "IFDD_CPU_PRODUCTS is set" in build_info()["products"]["bfloat16"]


@pytest.mark.parametrize(
    "text", ["float64", "bfloat16=", "=library", "float32=library", "bfloat16=library;float16=float32"]
)
def test_variable_that_says_nothing_known_is_an_error(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Of ops by PyTorch's own entry, which the library calls, a warning."""
    monkeypatch.setenv(_products.VARIABLE, text)
    x = torch.ones(4, 8, dtype=BF16)
    with pytest.raises(ValueError, match=re.escape("IFDD_CPU_PRODUCTS: expected 'library' or 'float32'")):
        linear(x, x)
    assert repr(text) in build_info()["products"]["bfloat16"]
    with pytest.warns(UserWarning, match="IFDD_CPU_PRODUCTS"):
        assert torch.equal(torch.ops.ifdd.linear(x, x, None), torch.full((4, 4), 8, dtype=BF16))


def test_measured_once_and_kept_for_other_processes(times: Times, tmp_path: Path) -> None:
    made = times(0.002, 0.001)
    assert faster_in_float32(BF16)
    assert faster_in_float32(BF16)
    assert not faster_in_float32(torch.float32)
    assert made == [BF16]
    (file,) = tmp_path.rglob("*.json")
    assert file.parent == tmp_path / "ifdd_kernels" / "products"
    assert f"2 ms by PyTorch, 1 ms through float32; kept in {file}" in str(_products.choice(BF16))
    forget()
    times(0.001, 0.002)  # what would be found now
    assert faster_in_float32(BF16)
    assert not faster_in_float32(FP16)
    assert made == [BF16, FP16]


@pytest.mark.parametrize(("library", "through"), [(1.0, False), (1.04, False), (1.06, True), (0.5, False)])
def test_pytorch_stays_unless_float32_is_faster_beyond_the_noise(
    times: Times, library: float, through: bool
) -> None:
    times(library * 1e-3, 1e-3)
    assert faster_in_float32(BF16) == through


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"library_ms": 1.0, "float32_ms": 2.0, "through_float32": "no"}']
)
def test_damaged_file_is_replaced(times: Times, tmp_path: Path, content: str) -> None:
    times(0.002, 0.001)
    faster_in_float32(BF16)
    (file,) = tmp_path.rglob("*.json")
    whole = file.read_text()
    file.write_text(content)
    forget()
    assert faster_in_float32(BF16)
    assert json.loads(file.read_text()) == json.loads(whole)


def test_another_machine_measures_for_itself(times: Times, monkeypatch: pytest.MonkeyPatch) -> None:
    made = times(0.002, 0.001)
    faster_in_float32(BF16)
    for change in (
        lambda: monkeypatch.setattr(_products, "_cpu", lambda: "another CPU"),
        lambda: monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2"),
        lambda: monkeypatch.setattr(torch, "__version__", "9.0.0"),
        lambda: monkeypatch.setattr(torch, "get_num_threads", lambda: 99),
    ):
        change()
        forget()
        faster_in_float32(BF16)
    assert len(made) == 5


def test_of_two_that_measured_at_once_the_first_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the second measures, the first one writes."""

    def measure(dtype: torch.dtype) -> tuple[float, float]:
        monkeypatch.setattr(_products, "measure", lambda dtype: (0.002, 0.001))
        _products._decide(dtype)
        return 0.001, 0.002

    monkeypatch.setattr(_products, "measure", measure)
    assert faster_in_float32(BF16)


def test_without_a_cache_every_process_measures(
    times: Times, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "a file"
    taken.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(taken))
    made = times(0.002, 0.001)
    for _ in range(2):
        assert faster_in_float32(BF16)
        assert "not kept" in str(_products.choice(BF16))
        forget()
    assert made.count(BF16) == 2


@pytest.mark.parametrize("through", [False, True])
def test_the_library_asks_and_obeys(times: Times, through: bool) -> None:
    """At the first 16-bit product, and only then. A float32 weight shows the way: PyTorch's rounds it."""
    made = times(0.002 if through else 0.001, 0.001 if through else 0.002)
    x, weight = torch.randn(64, 512).to(BF16), torch.randn(96, 512)
    torch.ops.ifdd.linear(x.float(), weight, None)
    assert made == []
    for _ in range(2):
        out = torch.ops.ifdd.linear(x, weight, None)
        assert made == [BF16]
        assert torch.equal(out, F.linear(x, weight.to(BF16))) == (not through)
        error = (out - F.linear(x.double(), weight.double())).norm() / out.double().norm()
        assert error < (0.002 if through else 0.004)


def test_forced_and_back(times: Times) -> None:
    times(0.002, 0.001)
    for through in (False, True):
        with _products.forced(through):
            assert faster_in_float32(BF16) == faster_in_float32(FP16) == through
    assert faster_in_float32(BF16)


def test_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real, of a small layer: both ways, in a trace and under autocast, and no random number is drawn."""
    monkeypatch.setattr(_products, "_LAYER", (32, 64))
    ran: list[tuple[torch.dtype, int]] = []

    def layer(x: Any, weight: Any, run: Any = _products._layer) -> Any:
        ran.append((x.dtype, len(x)))
        out = run(x, weight)
        assert type(out) is torch.Tensor
        assert out.device.type == "cpu"
        assert out.dtype == x.dtype
        return out

    monkeypatch.setattr(_products, "_layer", layer)
    state = torch.get_rng_state()
    with FakeTensorMode(), torch.autocast("cpu", dtype=FP16), torch.device("meta"):
        library, float32 = _products.measure(BF16)
    assert 0 < library < 10
    assert 0 < float32 < 10
    assert (BF16, 16) in ran
    assert torch.equal(torch.get_rng_state(), state)
    # Nothing is left forced in this thread.
    _products._settle(BF16, _products.Choice(False, ""))
    x, weight = torch.randn(64, 512).to(BF16), torch.randn(96, 512)
    assert torch.equal(torch.ops.ifdd.linear(x, weight, None), F.linear(x, weight.to(BF16)))


def test_a_dtype_without_kernels_is_not_measured_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def layer_times(dtype: torch.dtype, rows: int, channels: int, rounds: int) -> tuple[float, float]:
        sizes.append(rows)
        return 0.005, 0.0001

    monkeypatch.setattr(_products, "_layer_times", layer_times)
    assert _products.measure(FP16) == (0.005, 0.0001)
    assert sizes == [16]


def test_compilers_take_the_answer_for_a_constant(times: Times) -> None:
    times(0.002, 0.001)
    x, weight = torch.randn(4, 8).to(BF16), torch.randn(6, 8).to(BF16)
    compiled = torch.compile(linear, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x, weight), linear(x, weight))
