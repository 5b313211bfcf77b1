"""Deployment runtimes beside the network: checked, timed, refused with a reason; their files in the cache."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks.report import __main__ as report
from benchmarks.report import tables
from benchmarks.rivals import deployment, products
from benchmarks.rivals.contender import Bound, Inputs, Outputs, prepare
from benchmarks.suite import cases, machine, plan, results
from benchmarks.suite.cases import Case
from benchmarks.suite.runner import Session
from ifdd import IFDDConfig
from ifdd_kernels.registry import Maker

CONFIG = IFDDConfig(
    backbone="mvit_nano", embed_dim=8, depths=(1, 1, 1, 1), image_size=32, clip_frames=8, dropout=0.0,
    drop_path=0.0,
)  # fmt: skip
RUNTIMES = ("onnxruntime", "openvino")


def runtime(name: str) -> Any:
    missing = [part for part in (name, "onnx", "onnxscript") if importlib.util.find_spec(part) is None]
    return pytest.param(name, marks=pytest.mark.skipif(bool(missing), reason=f"not installed: {missing}"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests of the module: an export takes many seconds."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def case(cache: Path, session: Session, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    session.deadline += 600  # the first exports
    return cases.deployed(CONFIG, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", [runtime(name) for name in RUNTIMES])
def test_a_runtime_is_checked_and_timed_on_both_files(name: str, case: Case, session: Session) -> None:
    names = [f"original+{name}", f"ifdd+{name}"]
    session.run(case.only(["original", "ifdd", "products", *names]), "fp32", "inference")
    rows = {row["contender"]: row for row in results.read(session.writer.path, "time")}
    assert session.failures == 0
    assert set(rows) == {"original", "ifdd", "products", *names}
    for one in names:
        assert rows[one]["error"] < 1e-4
        assert rows[one]["peak_bytes"] is None  # PyTorch does not see it
        assert re.match(r"\d+\.", rows[one]["runtime"])
    assert "error" not in rows["products"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [runtime("onnxruntime")])
def test_a_wrong_result_of_a_runtime_is_not_timed(
    name: str, case: Case, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One output off by one per cent."""
    (rival,) = case.only([f"original+{name}"]).contenders

    def bind(inputs: Inputs) -> Bound:
        bound = rival.bind(inputs)

        def wrong(clips: torch.Tensor) -> Outputs:
            logits, residual = bound.function(clips)
            return logits, residual * 1.01

        return replace(bound, function=wrong)

    wrong = replace(case, contenders=(case.contenders[0], replace(rival, bind=bind)))
    session.run(wrong, "fp32", "inference")
    (failed,) = results.read(session.writer.path, "failed")
    assert failed["contender"] == rival.name
    assert "lifting_residual is off by" in failed["reason"]
    assert {row["contender"] for row in results.read(session.writer.path, "time")} == {"original"}


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> deployment.Export:
    """An export whose files hold the number of the writing, instead of a network."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    written: list[Path] = []

    def write(program: object, path: Path, metadata: object) -> None:
        written.append(path)
        path.write_text(str(len(written)))

    monkeypatch.setattr(torch.export, "export", lambda *_: None)
    monkeypatch.setitem(deployment.FORMATS, "onnx", replace(deployment.FORMATS["onnx"], write=write))
    source = tmp_path / "network.py"
    source.write_text("a = 1")
    return replace(deployment.exports(CONFIG)[0], sources=(source,))


def test_a_file_is_kept_until_what_it_holds_changes(
    export: deployment.Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = cases.model(CONFIG, 2, "cpu").make(Maker(torch.float32))
    said: list[str] = []

    def content() -> str:
        return export.file(inputs, said.append).read_text()

    assert export.seconds(inputs) > 0
    assert content() == content() == "1"
    assert export.seconds(inputs) == 0
    assert len(said) == 1
    assert "about a minute" in said[0]
    export.sources[0].write_text("a = 2")
    assert content() == content() == "2"
    versions = deployment.importlib.metadata.version
    with monkeypatch.context() as patch:
        patch.setattr(deployment.importlib.metadata, "version", lambda name: versions(name) + "x")
        assert content() == content() == "3"
    with torch.no_grad():
        next(inputs.constants["original"].parameters()).add_(1)
    assert content() == content() == "4"
    # Files of other keys are gone; those of other sizes stay.
    other = cases.model(CONFIG, 1, "cpu").make(Maker(torch.float32))
    export.file(other)
    assert len(list(export.path(inputs).parent.iterdir())) == 2
    assert replace(export, config=replace(CONFIG, num_classes=8)).path(inputs) != export.path(inputs)


def test_a_file_that_cannot_be_written_leaves_nothing(
    export: deployment.Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(program: object, path: Path, metadata: object) -> None:
        path.write_text("half")
        raise OSError("the disk is full")

    monkeypatch.setitem(deployment.FORMATS, "onnx", replace(deployment.FORMATS["onnx"], write=write))
    inputs = cases.model(CONFIG, 2, "cpu").make(Maker(torch.float32))
    with pytest.raises(OSError, match="the disk is full"):
        export.file(inputs)
    assert not list(export.path(inputs).parent.iterdir())


def test_what_is_not_installed_is_left_out_with_a_reason(
    case: Case, session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        deployment.importlib.util, "find_spec", lambda name: None if name in RUNTIMES else find(name)
    )
    session.run(case, "fp32", "inference")
    rows = results.read(session.writer.path)
    skipped = {row["contender"]: row["reason"] for row in rows if row["kind"] == "skipped"}
    assert set(skipped) == {f"{network}+{name}" for network in ("original", "ifdd") for name in RUNTIMES}
    assert skipped["ifdd+openvino"] == "not installed: openvino; pip install 'ifdd-kernels[bench]'"
    timed = {row["contender"] for row in rows if row["kind"] == "time"}
    assert timed == {"original", "ifdd", "products"}
    assert session.failures == 0
    # Asked for by name, it is an error before anything is measured.
    monkeypatch.setattr(machine, "measure_rates", lambda *_, **__: pytest.fail("measured"))
    words = "--device cpu --preset deployment --contenders original+openvino"
    assert command.main(words.split()) == 2
    assert "original+openvino does not run here: not installed: openvino" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--contenders original+opnvino", r"there is no 'original\+opnvino'; .*original\+openvino"),
        ("--precision bf16 --contenders original+onnxruntime", "original.onnxruntime does not run here"),
        ("--batch 2", r"--batch: there is no '2'; .*: 1, 4"),
    ],
)
def test_names_are_checked_first(
    words: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "measure_rates", lambda *_, **__: pytest.fail("measured"))
    assert command.main(["--device", "cpu", "--preset", "deployment", *words.split()]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_onnx_runtime_computes_in_float32_only() -> None:
    ort, _ = deployment.RUNTIMES
    assert ort.refusal(torch.float32) == ""
    assert "in float32 on x86-64" in ort.refusal(torch.bfloat16)


@pytest.mark.parametrize("name", [runtime("openvino")])
def test_openvino_says_what_the_cpu_lacks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    def core(*found: str) -> Any:
        class Core:
            def get_property(self, device: str, name: str) -> list[str]:
                return list(found)

        return Core

    _, vino = deployment.RUNTIMES
    monkeypatch.setattr(openvino, "Core", core("FP32", "INT8"))
    assert vino.refusal(torch.float32) == ""
    assert vino.refusal(torch.bfloat16) == "OpenVINO has no BF16 on this CPU, only FP32, INT8"
    monkeypatch.setattr(openvino, "Core", core("FP32", "BF16"))
    assert vino.refusal(torch.bfloat16) == ""
    assert "no FP16" in vino.refusal(torch.float16)


@pytest.mark.parametrize("flops", [10**8, 2 * 2048**3, 96_800_000_000])
def test_products_have_the_flops_of_the_case(flops: int, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    monkeypatch.setattr(torch, "matmul", lambda a, b, out: done.append(2 * a.numel() * len(b)))
    inputs = Inputs({"x": torch.rand(1)})
    prepare(products.contender(lambda _: flops), inputs, False)()
    assert sum(done) == pytest.approx(flops, rel=0.01)
    assert max(done) <= 2 * 2048**3


def test_the_plan_has_both_batches_and_precisions() -> None:
    found = {(task.case.name, task.case.batch, task.precision, task.pass_name) for task in plan.deployment()}
    assert found == {("model", b, p, "inference") for b in (1, 4) for p in ("fp32", "bf16")}
    assert found <= {(t.case.name, t.case.batch, t.precision, t.pass_name) for t in plan.cpu()}


def test_float16_is_not_multiplied_for_a_float32_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of a reader with a CPU that multiplies float16 at 0.4 GFLOP/s: it never does."""
    matmul, dtypes = torch.matmul, set()

    def watched(a: torch.Tensor, b: torch.Tensor, **named: Any) -> torch.Tensor:
        dtypes.add(a.dtype)
        return matmul(a, b, **named)

    monkeypatch.setattr(torch, "matmul", watched)
    out = tmp_path / "rows.jsonl"
    words = ["--device", "cpu", "--ops", "pool_tokens", "--labels", "block 9", "--batch", "1"]
    words += ["--precision", "fp32", "--passes", "inference", "--contenders", "native,rewrite"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert command.main([*words, "--budget-s", "30", "--row-budget-s", "0.1", "--out", str(out)]) == 0
    assert dtypes == {torch.float32}
    (row,) = results.read(out, "machine")
    assert set(row["products"]) == {"fp32"}


def test_one_line_per_rival(tmp_path: Path) -> None:
    common = {
        "device": "Some CPU", "driver": None, "threads": 2, "torch": "2.13.0", "triton": None, "commit": "abc"
    }  # fmt: skip
    writer = results.Writer(tmp_path / "rows.jsonl", common)
    row = {"case": "model", "label": "network", "pass": "inference", "mode": "eager", "clock": "wall"}
    times = {"original": 3.0, "ifdd": 1.0, "original+openvino": 4.0, "products": 0.5}
    for batch in (1, 4):
        for name, time in times.items():
            writer.write(
                "time", **row, batch=batch, precision="fp32", contender=name, median_s=batch * time,
                speedup=3.0 / time, load=0.5,
            )  # fmt: skip
    writer.write("skipped", **row, batch=1, precision="bf16", contender="original+openvino", reason="no BF16")
    rows = results.read(writer.path)
    document = "<!-- benchmarks: deployment cpu -->\nold\n<!-- end of benchmarks -->\n"
    filled = report.fill(document, rows, "raw.jsonl").splitlines()
    assert filled[1].startswith("| whole network, inference | 1 clip, fp32 | 4 clips, fp32 |")
    assert "| OpenVINO, the original exported | 4.00 s (4x) | 16.00 s (4x) |" in filled
    assert "| plain products of the same FLOPs | 500 ms (0.5x) | 2.00 s (0.5x) |" in filled
    assert "Not measured: original+openvino in bf16 (no BF16)." in filled
    # A file without them leaves the table as it is, and others can be left alone.
    rest = [r for r in rows if r.get("contender") in ("original", "ifdd")]
    assert report.fill(document, rest, "raw.jsonl") == document
    assert report.fill(document, rows, "raw.jsonl", only=["summary"]) == document
    assert tables.deployment(rest) == ""
