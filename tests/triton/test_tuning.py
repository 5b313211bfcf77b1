"""The choice of a configuration: what it depends on, who remembers it, what may go wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from ifdd_kernels.triton import _runtime, _tuned, _tuning
from ifdd_kernels.triton._runtime import Kernel
from ifdd_kernels.triton._tuning import Config

CUDA = torch.device("cuda", 0)
SMALL, LARGE = Config({"block": 16}, 1, 1), Config({"block": 64}, 2, 1)


@triton.jit
def _double(x, y, size, factor, block: tl.constexpr, STYLE: tl.constexpr):
    i = tl.program_id(0) * block + tl.arange(0, block)
    tl.store(y + i, factor * tl.load(x + i, mask=i < size), mask=i < size)


def _kernel(candidates: tuple[Config, ...] = (SMALL, LARGE), key: tuple[str, ...] = ("size",)) -> Kernel:
    kernel = Kernel(_double, lambda arguments: candidates, key=key)
    kernel.function = SimpleNamespace(cache_key="source")
    return kernel


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A stand-in GPU: its state, and a stopwatch that finds the last candidate faster."""
    state: dict[str, Any] = {"capturing": False, "timed": []}
    monkeypatch.setenv("IFDD_TRITON_CACHE", str(tmp_path))
    monkeypatch.delenv("IFDD_TRITON_TUNE", raising=False)
    for memory in ("_by_key", "_by_launch", "_default"):
        monkeypatch.setattr(_tuning, memory, {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state["capturing"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Stand-in")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)

    def fastest(name: str, candidates: list[Config], launch: Any, device: Any) -> Config:
        state["timed"].append(len(candidates))
        return candidates[-1]

    monkeypatch.setattr(_tuning, "fastest", fastest)
    _tuning._device_name.cache_clear()
    yield state
    _tuning._device_name.cache_clear()


def _another_process() -> None:
    _tuning._by_key.clear()
    _tuning._by_launch.clear()
    _tuning._default.clear()


def _arguments(size: int = 8, **others: Any) -> dict[str, Any]:
    return {"x": torch.empty(size), "size": size, "factor": 2.0, "STYLE": "plain", **others}


def _grid(arguments: Any) -> tuple[int, ...]:
    return (_runtime.cdiv(arguments["size"], arguments["block"]),)


def _choose(kernel: Kernel | None = None, **arguments: Any) -> Config:
    return _tuning.choose(kernel or _kernel(), _grid, _arguments(**arguments), CUDA, lambda config: None)


# ----------------------------------------------------------------------------------------------- what is kept
def test_a_choice_is_timed_once_and_kept_on_disk(device: dict[str, Any], tmp_path: Path) -> None:
    assert _choose() == LARGE
    assert _choose() == LARGE
    assert device["timed"] == [2]
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text())["key"] == "_double(float32, size=8, STYLE=plain, programs<=1)"
    _another_process()
    assert _choose() == LARGE
    assert device["timed"] == [2]
    assert _choose(size=9) == LARGE
    assert device["timed"] == [2, 2]


def test_a_launch_like_the_last_one_asks_nothing_again(
    device: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    kernel = _kernel()
    kernel.configs = lambda arguments: asked.append(0) or (SMALL, LARGE)  # type: ignore[func-returns-value]
    for _ in range(3):
        assert _choose(kernel) == LARGE
    assert len(asked) == 1
    assert _choose(kernel, size=9) == LARGE
    assert len(asked) == 2


def test_the_default_is_remembered_while_nothing_may_be_timed(
    device: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hash of the key and a look into the folder at every launch would cost more than a small kernel."""
    looked: list[str] = []
    load = _tuning._load
    monkeypatch.setattr(_tuning, "_load", lambda name, known: looked.append(name) or load(name, known))
    kernel = _kernel()
    monkeypatch.setenv("IFDD_TRITON_TUNE", "0")
    for _ in range(3):
        assert _choose(kernel) == SMALL
    assert len(looked) == 1
    monkeypatch.delenv("IFDD_TRITON_TUNE")
    assert _choose(kernel) == LARGE  # but not beyond that
    monkeypatch.setenv("IFDD_TRITON_TUNE", "0")
    assert _choose(kernel) == LARGE


def test_nothing_is_timed_in_a_capture(device: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = _kernel()
    device["capturing"] = True
    assert [_choose(kernel), _choose(kernel)] == [SMALL, SMALL]
    assert device["timed"] == []
    device["capturing"] = False
    assert _choose(kernel) == LARGE
    device["capturing"] = True
    assert _choose(kernel) == LARGE


def test_a_measurement_reaches_launches_that_took_the_default(device: dict[str, Any]) -> None:
    """Sizes 9 and 10 share a choice."""
    kernel = _kernel(key=())
    device["capturing"] = True
    assert _choose(kernel, size=10) == SMALL
    device["capturing"] = False
    assert _choose(kernel, size=9) == LARGE
    device["capturing"] = True
    assert _choose(kernel, size=10) == LARGE


def test_nothing_is_timed_where_results_must_not_depend_on_it(device: dict[str, Any]) -> None:
    kernel = _kernel()
    torch.use_deterministic_algorithms(True)
    try:
        assert [_choose(kernel), _choose(kernel)] == [SMALL, SMALL]
    finally:
        torch.use_deterministic_algorithms(False)
    assert device["timed"] == []
    assert _choose(kernel) == LARGE


def test_nothing_is_timed_while_a_compiler_traces(device: dict[str, Any]) -> None:
    kernel = _kernel()
    assert _tuning.choose_traced(kernel, _grid, _arguments(), CUDA) == SMALL
    assert device["timed"] == []
    assert _choose(kernel) == LARGE
    assert _tuning.choose_traced(kernel, _grid, _arguments(), CUDA) == LARGE


def test_a_compiler_gets_no_configuration_it_would_launch_otherwise(device: dict[str, Any]) -> None:
    """wrap_triton takes no limit of the registers: without it, what needs it spills."""
    limited = Config({"block": 16}, 1, 1, max_registers=255)
    assert _tuning.choose_traced(_kernel((limited, LARGE)), _grid, _arguments(), CUDA) == LARGE
    with pytest.raises(
        RuntimeError, match=r"_double: each of its configurations limits the registers.*traced"
    ):
        _tuning.choose_traced(_kernel((limited,)), _grid, _arguments(), CUDA)


def test_memories_of_launches_do_not_grow_without_end(
    device: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tuning, "MOST_LAUNCHES", 10)
    kernel = _kernel(key=())
    for size in range(1, 60):
        assert _choose(kernel, size=size) == LARGE
        assert len(_tuning._by_launch) <= 10
    assert len(device["timed"]) == 7  # 1, 2, .. 64: the sizes share their choices


def test_the_committed_table_comes_first(device: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    key = _tuning.launch_key(_kernel(), _grid, _arguments(), [SMALL])
    monkeypatch.setattr(_tuned, "CHOSEN", {"Stand-in": {key: asdict(LARGE)}})
    device["capturing"] = True
    assert _choose() == LARGE
    assert _tuning.choose_traced(_kernel(), _grid, _arguments(), CUDA) == LARGE
    assert device["timed"] == []


# ----------------------------------------------------------------------------------------- what it depends on
def test_what_matters_is_in_the_key() -> None:
    def key(**others: Any) -> str:
        return _tuning.launch_key(_kernel(key=()), _grid, _arguments(**{"size": 100, **others}), [SMALL])

    plain = key()
    assert key(x=torch.empty(100, dtype=torch.bfloat16)) != plain
    assert key(STYLE="tf32") != plain  # any compile-time constant
    assert key(y=None) != plain
    assert key(factor=3.0) == plain
    assert key(size=110) == plain
    assert key(size=129) != plain
    assert key(other=33) == key(other=64) != key(other=65)


KEYS = """
import json, sys
import torch
from benchmarks.gpu import resource_cases
from benchmarks.suite.launches import launches_of
from ifdd_kernels._arguments import Unfilled
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels.triton._tuning import launch_key

def keys(batch):
    resource_cases.BATCH = batch
    found = {}
    make = Unfilled(torch.bfloat16)
    for op, label, arguments in resource_cases._network(make, every_block=True):
        for launch in launches_of(OPERATORS[op], arguments, 90):
            of = found.setdefault(f"{op}, {label}: {launch.kernel.name}", [])
            of.append(launch_key(launch.kernel, launch.grid, launch.arguments, launch.configs))
    return found

json.dump([keys(batch) for batch in map(int, sys.argv[1:])], sys.stdout)
"""


def _network_keys(*batches: int) -> list[dict[str, list[str]]]:
    """Keys of all launches of the network with batches of these sizes, by op and kernel."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", KEYS, *map(str, batches)]
    ran = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, check=False, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    found: list[dict[str, list[str]]] = json.loads(ran.stdout)
    return found


def test_one_clip_and_sixteen_never_share_a_choice() -> None:
    one, sixteen = _network_keys(1, 16)
    assert len(sixteen) > 30
    for kernel in one.keys() & sixteen.keys():
        if kernel.startswith("add_layer_norm") and kernel.endswith("sum_partials_kernel"):
            continue  # the same work: about as many partial sums for any number of clips
        assert not set(one[kernel]) & set(sixteen[kernel]), f"{kernel}: {one[kernel]}"


def test_a_batch_that_varies_is_not_timed_for_ever() -> None:
    """Between 33 and 64 clips all sizes that follow the batch stay in their class, or cross into one more."""
    found = _network_keys(*range(33, 65))
    for kernel in found[0]:
        keys = {key for of in found for key in of.get(kernel, ())}
        launches = max(len(of.get(kernel, ())) for of in found)
        assert len(keys) <= 8 * launches, f"{kernel}: {len(keys)} choices for 32 sizes of a batch"


# -------------------------------------------------------------------------------------------- what goes wrong
class _Stopwatch:
    """Times launches by a list, and fails as told."""

    def __init__(self, results: list[float | BaseException]) -> None:
        self.results = iter(results)

    def __call__(self, launch: Callable[[], None], **options: Any) -> float:
        launch()
        result = next(self.results)
        if isinstance(result, BaseException):
            raise result
        return result


THREE = (Config({"block": 16}), Config({"block": 32}), Config({"block": 64}))
FAILURES = [
    OutOfResources(300000, 232448, "shared memory"),
    PTXASError("ptxas fatal: Unresolved extern function"),
    CompilationError("def f(): pass", None, "out of registers"),
    RuntimeError("Triton Error [CUDA]: invalid argument"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_configuration_that_does_not_run_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: BaseException
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(triton.testing, "do_bench", _Stopwatch([3.0, failure, 2.0]))
    ran: list[Config] = []
    assert _tuning.fastest("_double", THREE, ran.append, CUDA) == THREE[2]
    assert ran == list(THREE)
    (note,) = caplog.messages
    assert note.startswith("_double: Config(tiles={'block': 32}")
    assert str(failure).strip().splitlines()[0] in note


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_where_none_runs_the_last_error_is_raised_with_the_kernel(
    monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(
        triton.testing, "do_bench", _Stopwatch([RuntimeError("first"), RuntimeError("second"), failure])
    )
    with pytest.raises(RuntimeError, match="_double: none of its 3 configurations runs") as raised:
        _tuning.fastest("_double", THREE, lambda config: None, CUDA)
    assert raised.value.__cause__ is failure
    assert str(failure).strip().splitlines()[0] in str(raised.value)


LACK = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 256.00 MiB")


def test_a_lack_of_memory_says_nothing_of_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the stopwatch that allocates."""
    monkeypatch.setattr(triton.testing, "do_bench", _Stopwatch([3.0, LACK]))
    with pytest.raises(torch.OutOfMemoryError):
        _tuning.fastest("_double", THREE, lambda config: None, CUDA)


def test_without_memory_for_the_stopwatch_the_default_runs_and_only_this_process_keeps_it(
    device: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another attempt at each launch would empty the allocator each time."""
    decided, kernel = _tuning.fastest, _kernel()
    stopwatch = mock.Mock(side_effect=LACK)
    monkeypatch.setattr(_tuning, "fastest", stopwatch)
    assert [_choose(kernel), _choose(kernel)] == [SMALL, SMALL]
    assert stopwatch.call_count == 1
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(_tuning, "fastest", decided)
    _another_process()
    assert _choose(kernel) == LARGE


def test_an_error_the_device_keeps_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an illegal access every call fails, and nothing that ran would be right."""
    broken: list[bool] = []

    def synchronize(device: Any = None) -> None:
        if broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def launch(config: Config) -> None:
        if config == THREE[1]:
            broken.append(True)
        synchronize()

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(triton.testing, "do_bench", _Stopwatch([3.0, 1.0, 2.0]))
    with pytest.raises(RuntimeError, match=r"^CUDA error: an illegal memory access"):
        _tuning.fastest("_double", THREE, launch, CUDA)


def test_a_mistake_is_not_a_failure_of_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.testing, "do_bench", _Stopwatch([TypeError("missing argument 'size'")]))
    with pytest.raises(TypeError, match="missing argument"):
        _tuning.fastest("_double", THREE, lambda config: None, CUDA)


# ------------------------------------------------------------------------------------------------- the folder
OTHER_VERSION = json.dumps({"key": "", "config": {**asdict(LARGE), "clusters": 2}})


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "\0\0", '{"config": {"tiles": {"block": 3}}}', OTHER_VERSION]
)
def test_a_file_that_holds_no_choice_is_replaced(
    device: dict[str, Any], tmp_path: Path, content: str
) -> None:
    _choose()
    (file,) = tmp_path.iterdir()
    good = file.read_text()
    file.write_text(content)
    _another_process()
    assert _choose() == LARGE
    assert device["timed"] == [2, 2]
    assert file.read_text() == good
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_cannot_be_written_is_no_error(
    device: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IFDD_TRITON_CACHE", str(tmp_path / "file" / "below"))
    kernel = _kernel(key=())
    assert [_choose(kernel, size=size) for size in (5, 6, 7, 8)] == [LARGE] * 4
    assert device["timed"] == [2], "sizes of one class are timed once even where nothing can be kept"


def test_a_full_disk_leaves_nothing_behind(
    device: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(content: Any, file: Any) -> None:
        file.write('{"key"')
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dump", full)
    assert _choose() == LARGE
    assert list(tmp_path.iterdir()) == []


def test_a_user_without_a_home_times_again(device: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IFDD_TRITON_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(number: int) -> Any:
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert _tuning.cache_directory() is None
    assert _choose() == LARGE
    _another_process()
    assert _choose() == LARGE
    assert device["timed"] == [2, 2]


# ------------------------------------------------------------------------------------------ several processes
FORK = multiprocessing.get_context("fork")
MANY = tuple(Config({"block": 2**i}) for i in range(5))
SIZES = range(1, 41)


def _forked(work: Callable[[int], Any], count: int) -> list[Any]:
    """The results of ``work(number)`` in ``count`` processes that start together."""
    barrier, results = FORK.Barrier(count), FORK.Queue()

    def run(number: int) -> None:
        barrier.wait(60)
        try:
            results.put((number, work(number)))
        except BaseException as error:
            results.put((number, error))

    children = [FORK.Process(target=run, args=(number,)) for number in range(count)]
    for child in children:
        child.start()
    found = dict(results.get(timeout=120) for _ in children)
    for child in children:
        child.join(60)
    for result in found.values():
        if isinstance(result, BaseException):
            raise result
    return [found[number] for number in range(count)]


def _tune_all(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[Config]]:
    """Chooses for every size, with a stopwatch that favours another candidate in every process."""
    arguments = [_arguments(size) for size in SIZES]
    kernel = _kernel(MANY)

    def work(number: int) -> list[Config]:
        monkeypatch.setattr(_tuning, "fastest", lambda *_: MANY[number % len(MANY)])
        return [_tuning.choose(kernel, _grid, given, CUDA, lambda config: None) for given in arguments]

    return work


def test_processes_that_tune_at_once_agree(
    device: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _forked(_tune_all(monkeypatch), 5)
    for choices in found:
        assert choices == found[0]
    _another_process()
    monkeypatch.setattr(_tuning, "fastest", lambda *_: pytest.fail("timed again"))
    kernel = _kernel(MANY)
    assert [_choose(kernel, size=size) for size in SIZES] == found[0]
    assert len(list(tmp_path.iterdir())) == len(SIZES), "a file is missing, or one was left behind"


def test_file_systems_without_links_keep_choices_too(
    device: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    _choose()
    _another_process()
    assert _choose() == LARGE
    assert device["timed"] == [2]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_process_inherits_choices_when_it_is_forked(
    device: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = _kernel()
    _choose(kernel)
    arguments = _arguments()

    def work(number: int) -> Config:
        monkeypatch.setattr(_tuning, "fastest", lambda *_: SMALL)
        return _tuning.choose(kernel, _grid, arguments, CUDA, lambda config: None)

    assert _forked(work, 2) == [LARGE, LARGE]


def test_a_writer_that_is_killed_leaves_no_half_file(
    device: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, kernel = _arguments(), _kernel()

    def half(content: Any, file: Any) -> None:
        file.write('{"key": "')
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    def die() -> None:
        monkeypatch.setattr(json, "dump", half)
        _tuning.choose(kernel, _grid, arguments, CUDA, lambda config: None)

    child = FORK.Process(target=die)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
    assert _choose(kernel) == LARGE
    assert device["timed"] == [2]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".tmp"]


def test_a_folder_that_is_deleted_meanwhile_costs_only_time(
    device: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune = _tune_all(monkeypatch)

    def work(number: int) -> list[Config]:
        if number:
            return tune(number)
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            shutil.rmtree(tmp_path, ignore_errors=True)
        return []

    for choices in _forked(work, 4)[1:]:
        assert len(choices) == len(SIZES)
        assert all(choice in MANY for choice in choices)
