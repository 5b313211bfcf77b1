"""Programs of torch.export, what is checked before a file is written, and what survives a failure."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree

from ifdd import IFDDFeatures, IFDDOutput
from ifdd.checkpoint import Checkpoint
from ifdd.export import FORMATS, OUTPUTS, ExportError, export_checkpoint, formats, metadata_of, trace, write
from ifdd.export.write import relative_difference
from ifdd.losses import LossParts
from ifdd.modules.backbone import StageOutput
from ifdd.modules.issm import FrameIndexes
from ifdd.modules.ladm import Lifted
from ifdd_kernels import SplitIndex, StaticDynamicSplit, TopkIndex

from .conftest import CLASSES, clips_for

Make = Callable[..., Checkpoint]
TUPLES = (
    *(IFDDOutput, IFDDFeatures, LossParts, StageOutput, FrameIndexes, Lifted),
    *(SplitIndex, StaticDynamicSplit, TopkIndex),
)
LOADED = """
import sys, torch, ifdd_kernels
program = torch.export.load(sys.argv[1]).module()
assert "ifdd" not in sys.modules
torch.save(dict(program(torch.load(sys.argv[2]))), sys.argv[3])
"""


@pytest.mark.parametrize("kind", TUPLES)
def test_results_have_a_name_in_files(kind: type) -> None:
    value = kind(*range(len(kind._fields)))  # type: ignore[attr-defined]
    leaves, spec = _pytree.tree_flatten(value)
    read = _pytree.treespec_loads(_pytree.treespec_dumps(spec))
    assert _pytree.tree_unflatten(leaves, read) == value
    assert type(_pytree.tree_unflatten(leaves, read)) is kind


def test_a_network_exported_by_hand_is_saved_with_its_output_type(make: Make) -> None:
    checkpoint = make()
    clips = clips_for(checkpoint, 2)
    with torch.no_grad():
        program, file = torch.export.export(checkpoint.model, (clips,)), io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    result = torch.export.load(file).module()(clips)
    assert type(result) is IFDDOutput
    torch.testing.assert_close(result, checkpoint.model(clips))


def test_a_file_is_loaded_beside_ifdd_kernels_alone(make: Make, tmp_path: Path) -> None:
    checkpoint = make()
    exported = export_checkpoint(checkpoint, tmp_path / "net.pt2", "pt2")
    assert exported.files == (tmp_path / "net.pt2",)
    assert exported.difference <= 1e-5
    torch.save(clips_for(checkpoint, 3), tmp_path / "clips.pt")
    names = [str(tmp_path / name) for name in ("net.pt2", "clips.pt", "results.pt")]
    ran = subprocess.run([sys.executable, "-c", LOADED, *names], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    results = torch.load(tmp_path / "results.pt")
    wanted = checkpoint.model(torch.load(tmp_path / "clips.pt"))._asdict()
    assert tuple(results) == OUTPUTS == tuple(wanted)
    torch.testing.assert_close(results, wanted, rtol=1e-5, atol=1e-5)
    assert b"model.py" not in (tmp_path / "net.pt2").read_bytes(), "paths of this machine"
    files = {formats.METADATA_FILE: ""}
    torch.export.load(tmp_path / "net.pt2", extra_files=files)
    metadata = json.loads(files[formats.METADATA_FILE])
    assert metadata == metadata_of(checkpoint)
    assert json.loads(metadata["class_names"]) == list(CLASSES)
    assert [json.loads(metadata[n]) for n in ("clip_frames", "image_size", "stride", "short")] == [
        *(8, 32, 2, "repeat_each")
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("clips.pt", "net.pt2", "results.pt", "tiny.safetensors")
    ]


@pytest.mark.parametrize("spoiled", ["a number", "NaN", "a shape", "does not run", "does not load"])
def test_a_file_of_other_numbers_is_not_put_in_place(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoiled: str
) -> None:
    checkpoint = make()

    def load(path: Path) -> formats.Run:
        if spoiled == "does not load":
            raise ValueError("no\nsuch")

        def run(clips: torch.Tensor) -> dict[str, torch.Tensor]:
            if spoiled == "does not run":
                raise RuntimeError("only one clip") if len(clips) > 1 else KeyError
            results = checkpoint.model(clips)._asdict()
            value = results["dynamic"]
            if spoiled == "a shape":
                results["dynamic"] = value[:, :-1]
            else:
                factor = float("nan") if spoiled == "NaN" else 1 + 3e-5
                results["dynamic"] = torch.where(value == value.max(), value * factor, value)
            return results

        return run

    monkeypatch.setitem(FORMATS, "pt2", dataclasses.replace(FORMATS["pt2"], load=load, write=_nothing))
    monkeypatch.setattr(write, "trace", lambda model: None)
    target = tmp_path / "net.pt2"
    target.write_text("as before")
    with pytest.raises(ExportError, match="not written") as caught:
        export_checkpoint(checkpoint, target, "pt2")
    assert len(str(caught.value).splitlines()) == 1
    assert target.read_text() == "as before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pt2", "tiny.safetensors"]


def _nothing(program: object, path: Path, metadata: object) -> None:
    path.touch()


def test_the_file_beside_is_put_in_place_first(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make()

    def two_files(program: object, path: Path, metadata: object) -> None:
        path.write_text("graph")
        path.with_name(f"{path.name}.data").write_text("weights")

    changed = dataclasses.replace(
        FORMATS["pt2"], write=two_files, load=lambda path: lambda clips: checkpoint.model(clips)._asdict()
    )
    monkeypatch.setitem(FORMATS, "pt2", changed)
    monkeypatch.setattr(write, "trace", lambda model: None)
    exported = export_checkpoint(checkpoint, tmp_path / "net.pt2", "pt2")
    assert exported.files == (tmp_path / "net.pt2", tmp_path / "net.pt2.data")
    assert exported.bytes == len("graphweights")


def test_networks_that_cannot_be_traced_are_refused(make: Make) -> None:
    model = make().model
    with pytest.raises(ValueError, match=r"evaluation mode"):
        trace(model.train())
    with pytest.raises(ValueError, match=r"float32, .* is torch\.float64"):
        trace(model.eval().double())


def test_a_network_without_numbers_is_refused(make: Make, tmp_path: Path) -> None:
    checkpoint = make()
    with torch.no_grad():
        checkpoint.model.head.classifier.bias[1] = float("nan")
    with pytest.raises(ExportError, match="NaN or infinite"):
        export_checkpoint(checkpoint, tmp_path / "net.pt2", "pt2")


def test_what_is_missing_is_named(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_installed", lambda package: package != "onnxscript")
    with pytest.raises(ExportError, match=r"onnxscript are not installed: .*'ifdd-kernels\[export\]'"):
        export_checkpoint(make(), tmp_path / "net.onnx", "onnx")
    monkeypatch.setitem(FORMATS, "aoti", dataclasses.replace(FORMATS["aoti"], refusal=lambda: "no compiler"))
    with pytest.raises(ExportError, match="format aoti: no compiler"):
        export_checkpoint(make(), tmp_path / "net.pt2", "aoti")
    with pytest.raises(ValueError, match="unknown format 'tflite'"):
        export_checkpoint(make(), tmp_path / "net.tflite", "tflite")
    monkeypatch.setattr(formats, "_installed", lambda package: True)
    with pytest.raises(ValueError, match=r"ends in \.onnx"):
        export_checkpoint(make(), tmp_path / "net.pt2", "onnx")


def test_the_difference_is_relative_to_the_largest_value() -> None:
    wanted = torch.tensor([0.0, -4.0])
    assert relative_difference(torch.tensor([0.4, -4.0]), wanted) == pytest.approx(0.1)
    assert relative_difference(torch.zeros(3), wanted) == float("inf")
    assert relative_difference(torch.zeros(2), torch.zeros(2)) == 0
