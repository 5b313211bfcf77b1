"""Tables and plots of a small result file, and their places in documents."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from benchmarks.report import __main__ as report
from benchmarks.report import tables
from benchmarks.suite import overhead
from benchmarks.suite.results import Writer, read

COMMON = {
    "device": "Some CPU", "driver": None, "threads": 2, "torch": "2.13.0", "triton": None, "commit": "abc"
}  # fmt: skip
TIMES = {"original": 8e-3, "original+compile": 6e-3, "rewrite": 4e-3, "native": 2e-3}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tables, "BLOCKS", 5)
    writer = Writer(tmp_path / "table.jsonl", COMMON)
    writer.write("machine", copy=1e10, products={"fp32": 1e11, "bf16": 2e11})
    shapes = [("issm", "8 frames", batch, 1) for batch in (1, 4, 16)]
    shapes += [("pool_tokens", "block 0", 1, 1), ("pool_tokens", "block 4-7", 1, 4)]
    for case, label, batch, count in shapes:
        for pass_name, factor in (("inference", 1), ("training", 3)):
            for name, time in TIMES.items():
                seconds = time * batch * factor
                writer.write(
                    "time", case=case, label=label, batch=batch, frames=8, image_size=224, count=count,
                    precision="fp32", contender=name, mode="eager", median_s=seconds, low_s=seconds,
                    high_s=seconds, clock="wall", bytes=1000000 * batch,
                    flops=5000000 * batch, roofline=0.4,
                    peak_bytes=3000000, error=1e-6, error_in_eager_fp32=1.5, load=0.5, **{"pass": pass_name},
                )  # fmt: skip
    for contender in ("original", "ifdd"):
        for part in ("mlp", "attention", "pools"):
            writer.write(
                "profile", case="model", batch=1, precision="fp32", contender=contender, part=part,
                seconds=0.5, launches=3, share=0.3, **{"pass": "inference"},
            )  # fmt: skip
    return writer.path


def test_summary_has_times_and_factors(file: Path) -> None:
    text = tables.summary(read(file, "time"))
    head, _, *lines = text.splitlines()
    assert "original, torch.compile" in head
    assert lines[0].split(" | ")[4:] == ["2 ms", "8 ms (4x)", "6 ms (3x)", "4 ms (2x) |"]
    assert [line for line in lines if "pooling" in line and "inference" in line] == [
        "| pooling of q, k, v, all blocks | inference | 1 | fp32 "
        "| 10 ms | 40 ms (4x) | 30 ms (3x) | 20 ms (2x) |"
    ]


def test_sums_need_every_block(file: Path) -> None:
    found = tables.quantities(r for r in read(file, "time") if r["label"] != "block 0")
    assert tables.sum_of_blocks(found, "pool_tokens", 1, "fp32", "inference") is None
    rows = [r for r in read(file, "time") if not (r["label"] == "block 0" and r["contender"] == "rewrite")]
    total = tables.sum_of_blocks(tables.quantities(rows), "pool_tokens", 1, "fp32", "inference")
    assert total is not None
    assert set(total.rows) == {"original", "original+compile", "native"}
    assert total.label == "5 blocks"


@pytest.mark.parametrize("table", ["headline", "summary", "accuracy", "memory", "issm", "pool_tokens"])
def test_tables_fill_their_markers(file: Path, table: str) -> None:
    rows = read(file, "time")
    document = f"before\n<!-- benchmarks: {table} cpu -->\nold\n<!-- end of benchmarks -->\nafter\n"
    filled = report.fill(document, rows, "raw.jsonl")
    assert "old" not in filled
    assert filled.startswith("before\n")
    assert filled.endswith("<!-- end of benchmarks -->\nafter\n")
    assert "Some CPU, 2 threads, torch 2.13.0, commit abc, wall time" in filled
    widths = {
        line.count(" | ") for line in filled.splitlines() if line.startswith("| ") and "---" not in line
    }
    assert len(widths) == 1
    assert report.fill(filled, rows, "raw.jsonl") == filled
    other = document.replace("cpu", "gpu")
    assert report.fill(other, rows, "raw.jsonl") == other


def test_plots(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.main([str(file), "--figures", str(tmp_path / "figures")])
    written = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert written == [f"benchmark_cpu_{name}.png" for name in ("breakdown", "roofline", "scaling", "speed")]
    for path in (tmp_path / "figures").iterdir():
        image = plt.imread(path)
        assert image.shape[1] == 800
        assert image[..., :3].min() < 0.5
    assert "splitting" in capsys.readouterr().out
    assert overhead.CALLS > 0


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(SystemExit, match="no measurements"):
        report.main([str(tmp_path / "empty.jsonl")])
