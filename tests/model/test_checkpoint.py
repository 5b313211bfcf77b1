"""Checkpoints: round trip, atomic writing, foreign weights, and one clear error for every bad file."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from benchmarks.original import OriginalIFDD
from ifdd import IFDD, IFDDConfig, create_model
from ifdd.checkpoint import (
    CheckpointError,
    from_original,
    from_torchvision_mvit,
    load_checkpoint,
    load_pretrained,
    read_weights,
    save_checkpoint,
)

NAMES = ("Happy", "Sad", "Neutral", "Angry", "Surprise")
Weights = dict[str, torch.Tensor]
Small = Callable[..., IFDDConfig]


@pytest.fixture
def model(small_config: Callable[..., IFDDConfig]) -> IFDD:
    return IFDD(small_config())


@pytest.fixture
def original_file(make_pair: Callable[..., Any], tmp_path: Path) -> tuple[IFDD, OriginalIFDD, Path]:
    ours, original = make_pair(torch.float32)
    path = tmp_path / "original.pth"
    torch.save(original.state_dict(), path)
    return ours, original, path


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


@pytest.mark.parametrize(
    "fields", [{}, {"embedding": "s3d", "clip_frames": 32}, {"lifting": "none"}], ids=str
)
def test_round_trip(fields: dict[str, Any], small_config: Callable[..., IFDDConfig], tmp_path: Path) -> None:
    model = IFDD(small_config(**fields)).train()
    extra = {"epoch": 3, "war": 0.5, "notes": ["a", None]}
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, NAMES, extra)
    loaded = load_checkpoint(path)
    assert loaded.config == model.config == loaded.model.config
    assert loaded.class_names == NAMES
    assert loaded.extra == extra
    assert not loaded.model.training
    assert loaded.model.state_dict().keys() == model.state_dict().keys()
    assert same(model, loaded.model)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_precision_survives(model: IFDD, tmp_path: Path) -> None:
    """Weights are stored in their own type and loaded into the float32 network."""
    save_checkpoint(tmp_path / "m.safetensors", model.bfloat16(), NAMES)
    assert read_weights(tmp_path / "m.safetensors")["backbone.class_token"].dtype == torch.bfloat16
    assert same(model.float(), load_checkpoint(tmp_path / "m.safetensors").model)


def test_compiled_model_is_saved_under_plain_names(model: IFDD, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m.safetensors", torch.compile(model), NAMES)
    assert same(model, load_checkpoint(tmp_path / "m.safetensors").model)


def test_failed_write_keeps_the_old_file(
    model: IFDD, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, NAMES, {"epoch": 1})

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("ifdd.whole.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, model, NAMES, {"epoch": 2})
    assert load_checkpoint(path).extra == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_save_refusals(model: IFDD, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(TypeError, match=r"must be an ifdd.IFDD; got Linear"):
        save_checkpoint(path, torch.nn.Linear(2, 2), NAMES)
    for names in (NAMES[:3], ("a",) * 5, "abcde", (1, 2, 3, 4, 5)):
        with pytest.raises(ValueError, match="class_names must be"):
            save_checkpoint(path, model, names)  # type: ignore[arg-type]
    for extra in ({"tensor": torch.ones(2)}, {"loss": float("nan")}):
        with pytest.raises(ValueError, match="extra must be a JSON object"):
            save_checkpoint(path, model, NAMES, extra)
    with pytest.raises(OSError, match="absent"):
        save_checkpoint(tmp_path / "absent" / "model.safetensors", model, NAMES)
    assert not list(tmp_path.iterdir())


def rewrite(path: Path, change: Callable[[Weights, dict[str, str]], None]) -> None:
    """Stores the checkpoint again after a change to its tensors and metadata."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = dict(file.metadata())
    weights = read_weights(path)
    change(weights, header)
    save_file(weights, path, header)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, h: h.update(format="other"), "not an IFDD checkpoint"),
        (lambda w, h: h.pop("format"), "not an IFDD checkpoint"),
        (lambda w, h: h.update(format_version="99"), "format version 99; this package reads 1"),
        (lambda w, h: h.update(config="{"), "damaged checkpoint metadata"),
        (lambda w, h: h.update(config='{"width": 1}'), "unknown configuration fields"),
        (lambda w, h: h.update(config="3"), "damaged checkpoint metadata"),
        (lambda w, h: h.pop("config"), "damaged checkpoint metadata: 'config'"),
        (lambda w, h: h.update(class_names='["a"]'), "5 distinct names"),
        (lambda w, h: w.pop("head.classifier.bias"), "missing head.classifier.bias"),
        (lambda w, h: w.update(more=torch.ones(1)), "unknown more"),
        (
            lambda w, h: w.update({"backbone.class_token": torch.ones(3)}),
            r"class_token \(3,\) instead of \(16,\)",
        ),
    ],
)
def test_inconsistent_checkpoints(
    change: Callable[[Weights, dict[str, str]], None], message: str, model: IFDD, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, NAMES)
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: .*{message}"):
        load_checkpoint(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_unreadable_files(suffix: str, model: IFDD, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    with pytest.raises(CheckpointError, match="no such file"):
        read_weights(path)
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".pth":
        torch.save(model.state_dict(), whole)
    else:
        save_checkpoint(whole, model, NAMES)
    content = whole.read_bytes()
    for damaged in (b"", content[:4], content[: len(content) // 2], b"not weights at all" * 9):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=re.escape(str(path))) as error:
            read_weights(path)
        assert "\n" not in str(error.value)
    assert not str(error.value).split()[-1].isdigit(), "a byte of the file is no reason"


def test_a_folder_is_not_called_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a folder$"):
        read_weights(tmp_path)
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(CheckpointError, match=r"is a folder; the weights in it are .*last\.ckpt$"):
        read_weights(tmp_path)


def test_published_weights_are_sent_to_the_converter(model: IFDD, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="ifdd convert"):
        load_checkpoint(tmp_path / "w.pth")


def test_what_to_do_about_objects_of_a_training_script(tmp_path: Path) -> None:
    """The usual training scripts for these data sets save a `recorder` of their own class."""
    path = tmp_path / "w.pth"
    torch.save({"state_dict": {"a": torch.ones(2)}, "recorder": argparse.Namespace(best=1)}, path)
    with pytest.raises(CheckpointError, match=r"holds Python objects beside tensors.*state_dict") as error:
        read_weights(path)
    assert "\n" not in str(error.value)
    assert "\033" not in str(error.value)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "weights.pt"
    torch.save({"state_dict": Payload()}, path)
    with pytest.raises(CheckpointError, match="not a readable weights file"):
        read_weights(path)
    assert not (tmp_path / "ran").exists()


def test_wrappers_are_removed(tmp_path: Path) -> None:
    weights = {"a.weight": torch.randn(2, 3), "b": torch.randn(2)}
    prefixed = {f"module.{name}": tensor for name, tensor in weights.items()}
    path = tmp_path / "w.pt"
    for content in (weights, prefixed, {"state_dict": prefixed, "epoch": 3}, {"model": weights}):
        torch.save(content, path)
        found = read_weights(path)
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("content", [{}, [1, 2], {"a": 3}, {"a": {"b": "c"}}, 5], ids=str)
def test_files_without_named_tensors(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"holds no named tensors, but (nothing|a list|a int|a \[)"):
        read_weights(tmp_path / "w.pt")


def test_from_original_reports_what_it_drops(make_pair: Callable[..., Any]) -> None:
    _, original = make_pair()
    lifting = "backbone.WaveLifts."
    expected = {f"{lifting}{name}" for name in ("spatial_pos", "temporal_pos", "class_pos")}
    expected |= {f"{lifting}adapt_split.index_{name}" for name in ("even", "odd")}
    expected |= {
        f"{lifting}adapt_split.time_project.{name}" for name in ("0.weight", "0.bias", "2.weight", "2.bias")
    }
    converted = from_original(original.state_dict())
    assert converted.dropped == sorted(expected)
    kept = sum(tensor.numel() for tensor in converted.state_dict.values())
    everything = sum(tensor.numel() for tensor in original.state_dict().values())
    assert everything - kept == sum(original.state_dict()[name].numel() for name in expected)


@pytest.mark.parametrize(
    "name",
    [
        "embed.conv_proj.bias",
        "backbone.backbone.blocks.0.attn.rel_pos_t",
        "backbone.backbone.blocks.1.project.weight",
        "backbone.backbone.norm.weight",
        "backbone.PANLayer.0.weight",
        "backbone.CatConv.weight",
        "backbone.WaveLifts.project_compress.weight",
        "backbone.WaveLifts.xd_norm.bias",
        "backbone.WaveLifts.adapt_split.dim_project.0.weight",
        "head.head.1.bias",
    ],
)
def test_from_original_names_what_is_missing(name: str, make_pair: Callable[..., Any]) -> None:
    ours, original = make_pair()
    state = original.state_dict()
    del state[name]
    with pytest.raises(KeyError, match=r"missing .*") as error:
        from_original(state, target=ours)
    # Without the dilated convolution the rest looks like a network of other stages: the target tells.
    assert name in str(error.value) or "pyramid.reduce.0.weight" in str(error.value)


def test_from_original_refusals(
    make_pair: Callable[..., Any], small_config: Callable[..., IFDDConfig]
) -> None:
    _, original = make_pair()
    state = original.state_dict()
    with pytest.raises(KeyError, match=r"unknown backbone.backbone.blocks.0.extra"):
        from_original({**state, "backbone.backbone.blocks.0.extra": torch.ones(1)})
    with pytest.raises(ValueError, match=r"part must be one of .*'head'"):
        from_original(state, "head")
    with pytest.raises(KeyError, match=r"weights for IFDD: missing backbone.blocks.5"):
        from_original(state, target=IFDD(small_config(depths=(1, 1, 2, 2))))
    with pytest.raises(ValueError, match=r"head.classifier.bias \(5,\) instead of \(9,\)"):
        from_original(state, target=IFDD(small_config(num_classes=9)))
    with pytest.raises(KeyError, match=r"original model weights: missing .* more; unknown"):
        from_original({"weight": torch.ones(1)})


def torchvision_state() -> Weights:
    """Random weights with the names and shapes of torchvision's mvit_v2_s."""
    original = OriginalIFDD(depths=(1, 2, 11, 2))
    state = {}
    for name, like in original.state_dict().items():
        for prefix in ("embed.", "backbone.backbone."):
            if name.startswith(prefix):
                state[name.removeprefix(prefix)] = torch.randn(like.shape)
    return {**state, "head.1.weight": torch.randn(400, 768), "head.1.bias": torch.randn(400)}


@pytest.fixture(scope="module")
def kinetics() -> Weights:
    return torchvision_state()


def test_torchvision_blocks(kinetics: Weights) -> None:
    weights, dropped = from_torchvision_mvit(kinetics, IFDDConfig(backbone="mvit_xs"))
    for ours, theirs in ((0, 0), (3, 3), (7, 7), (8, 14), (9, 15)):
        assert torch.equal(
            weights[f"backbone.blocks.{ours}.attention.qkv.weight"],
            kinetics[f"blocks.{theirs}.attn.qkv.weight"],
        )
        assert torch.equal(
            weights[f"backbone.blocks.{ours}.attention.table_h"], kinetics[f"blocks.{theirs}.attn.rel_pos_h"]
        )
    assert torch.equal(weights["embedding.conv.weight"], kinetics["conv_proj.weight"])
    assert torch.equal(weights["backbone.class_token"], kinetics["pos_encoding.class_token"])
    assert torch.equal(weights["backbone.norm.bias"], kinetics["norm.bias"])
    skipped = {int(name.split(".")[1]) for name in dropped if name.startswith("blocks.")}
    assert skipped == set(range(8, 14))
    assert {"head.1.weight", "head.1.bias"} <= set(dropped)
    full = from_torchvision_mvit(kinetics, IFDDConfig(backbone="mvit_s"))
    assert full.dropped == ["head.1.bias", "head.1.weight"]
    assert torch.equal(
        full.state_dict["backbone.blocks.13.mlp_contract.weight"], kinetics["blocks.13.mlp.3.weight"]
    )


def test_torchvision_tables_are_interpolated(kinetics: Weights) -> None:
    config = IFDDConfig(backbone="mvit_xs", image_size=128)
    weights, _ = from_torchvision_mvit(kinetics, config)
    table = kinetics["blocks.0.attn.rel_pos_h"]
    actual = weights["backbone.blocks.0.attention.table_h"]
    assert (table.shape, actual.shape) == ((111, 96), (63, 96))
    torch.testing.assert_close(actual, F.interpolate(table.t()[None], 63, mode="linear")[0].t())


def test_torchvision_s3d_keeps_its_own_stem(kinetics: Weights) -> None:
    weights, dropped = from_torchvision_mvit(kinetics, IFDDConfig(embedding="s3d", clip_frames=32))
    assert not any(name.startswith("embedding") for name in weights)
    assert "conv_proj.weight" in dropped


def test_torchvision_refusals(kinetics: Weights) -> None:
    for fields in ({"backbone": "mvit_nano"}, {"embed_dim": 48}, {"depths": (1, 1, 1, 1)}):
        with pytest.raises(ValueError, match="fit the mvit_s and mvit_xs backbones only"):
            from_torchvision_mvit(kinetics, IFDDConfig(**fields))
    less = {name: tensor for name, tensor in kinetics.items() if name != "blocks.4.norm1.bias"}
    with pytest.raises(KeyError, match=r"missing blocks.4.norm1.bias"):
        from_torchvision_mvit(less, IFDDConfig())
    fewer = {name: tensor for name, tensor in kinetics.items() if not name.startswith("blocks.15.")}
    with pytest.raises(KeyError, match=r"no weight for backbone.blocks.9.* \(as backbone.blocks.15"):
        from_torchvision_mvit(fewer, IFDDConfig())
    with pytest.raises(ValueError, match=r"norm.bias is \(5,\) instead of \(768,\)"):
        from_torchvision_mvit({**kinetics, "norm.bias": torch.ones(5)}, IFDDConfig())


def test_pretrained_original(original_file: tuple[IFDD, OriginalIFDD, Path]) -> None:
    ours, _, path = original_file
    fresh = IFDD(ours.config)
    report = load_pretrained(fresh, path)
    assert report.kind == "original"
    assert not report.untouched
    assert same(fresh, ours)
    assert "original implementation" in str(report)


def test_pretrained_checkpoint_through_create_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "m.safetensors"
    model = create_model("ifdd_nano", num_classes=5)
    save_checkpoint(path, model, NAMES)
    with caplog.at_level("INFO", logger="ifdd.factory"):
        assert same(model, create_model("ifdd_nano", num_classes=5, pretrained=path))
    assert f"{path}: an IFDD checkpoint" in caplog.text
    with pytest.raises(CheckpointError, match="the classifier has 5 classes, the model 3; reset_head=True"):
        create_model("ifdd_nano", num_classes=3, pretrained=path)
    reset = create_model("ifdd_nano", num_classes=3, pretrained=path, reset_head=True)
    assert reset.head.classifier.weight.shape == (3, 128)
    assert torch.equal(reset.backbone.class_token, model.backbone.class_token)
    with pytest.raises(CheckpointError, match="do not fit the model: missing"):
        create_model("ifdd_nano", num_classes=5, depths=(1, 1, 3, 1), pretrained=path)


def test_reset_head_of_original_weights(original_file: tuple[IFDD, OriginalIFDD, Path]) -> None:
    ours, _, path = original_file
    other = IFDD(IFDDConfig.from_dict({**ours.config.to_dict(), "num_classes": 2}))
    with pytest.raises(CheckpointError, match="has 5 classes, the model 2"):
        load_pretrained(other, path)
    report = load_pretrained(other, path, reset_head=True)
    assert report.untouched == ("head.classifier.bias", "head.classifier.weight")
    assert torch.equal(other.lifting.compress.weight, ours.lifting.compress.weight)


def test_pretrained_torchvision(kinetics: Weights, tmp_path: Path) -> None:
    path = tmp_path / "mvit.pth"
    torch.save(kinetics, path)
    model = IFDD(IFDDConfig(stages=(3,)))
    report = load_pretrained(model, path)
    assert report.kind == "torchvision"
    assert all(name.startswith(("lifting.", "head.")) for name in report.untouched)
    assert torch.equal(model.backbone.blocks[9].mlp_norm.weight, kinetics["blocks.15.norm2.weight"])
    with pytest.raises(CheckpointError, match=r"mvit.pth: torchvision's mvit_v2_s weights fit"):
        create_model("ifdd_nano", pretrained=path)


def test_foreign_weights(model: IFDD, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"layer.weight": torch.randn(2)}, path, {"note": json.dumps({})})
    with pytest.raises(
        CheckpointError, match=r"no known network: they begin with layer\.weight \(2,\); expected "
    ):
        load_pretrained(model, path)


def test_a_start_from_the_backbone_takes_nothing_behind_it(small_config: Small, tmp_path: Path) -> None:
    plain = IFDD(small_config(split="even_odd", lifting="none"))
    path = tmp_path / "plain.safetensors"
    save_checkpoint(path, plain, NAMES)
    full = IFDD(small_config())
    before = {name: value.clone() for name, value in full.state_dict().items()}
    report = load_pretrained(full, path, part="backbone")
    taken = plain.state_dict()
    for name, value in full.state_dict().items():
        shared = name.startswith(("embedding.", "backbone.", "pyramid."))
        assert torch.equal(value, taken[name] if shared else before[name]), name
        assert (name in report.untouched) != shared
    assert all(name.startswith(("lifting.", "head.")) for name in report.dropped)
    with pytest.raises(CheckpointError, match=r"do not fit the model: missing .*lifting"):
        load_pretrained(full, path)
    with pytest.raises(ValueError, match=r"part must be one of .*; got 'head'"):
        load_pretrained(full, path, part="head")


def test_a_start_from_a_backbone_of_another_width_is_refused(small_config: Small, tmp_path: Path) -> None:
    path = tmp_path / "narrow.safetensors"
    save_checkpoint(path, IFDD(small_config(embed_dim=8)), NAMES)
    with pytest.raises(CheckpointError, match="of other shapes"):
        load_pretrained(IFDD(small_config()), path, part="backbone")


@pytest.mark.skipif(os.name != "posix", reason="the modes of files are POSIX's")
def test_a_checkpoint_is_as_readable_as_any_file(tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    config = IFDDConfig(backbone="mvit_nano", image_size=32)
    names = [str(i) for i in range(config.num_classes)]
    save_checkpoint(tmp_path / "weights.safetensors", IFDD(config), names)
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1
