"""Weights as training scripts leave them: training checkpoints, wrappers and prefixes of others."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ifdd import IFDD, IFDDConfig
from ifdd.checkpoint import CheckpointError, load_checkpoint, load_pretrained, read_weights, save_checkpoint
from ifdd.checkpoint.wrappers import unwrap
from ifdd.training.config import DataConfig, OptimConfig, TrainingConfig

NAMES = ("Happy", "Sad", "Neutral", "Angry", "Surprise")
Weights = dict[str, torch.Tensor]
Small = Callable[..., IFDDConfig]


@pytest.fixture
def model(small_config: Small) -> IFDD:
    return IFDD(small_config())


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items()}


def other(weights: Weights) -> Weights:
    """Weights of the same names that must not be taken."""
    return {name: torch.full_like(tensor, 7) for name, tensor in weights.items()}


def inner(weights: Weights) -> Weights:
    """As where the backbone alone was compiled."""
    return {name.replace("backbone.", "backbone._orig_mod."): tensor for name, tensor in weights.items()}


OPTIMISER = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
WRAPPINGS: dict[str, tuple[Callable[[Weights], Any], str]] = {
    "plain": (lambda w: w, ""),
    "data parallel": (lambda w: prefixed("module.", w), ""),
    "compiled": (lambda w: prefixed("_orig_mod.", w), ""),
    "compiled inside": (lambda w: {"state_dict": prefixed("model.", inner(w))}, "state_dict / model."),
    "model_state_dict": (
        lambda w: {"model_state_dict": w, "epoch": 1, "optimizer": OPTIMISER},
        "model_state_dict",
    ),
    "net": (lambda w: {"net": prefixed("module.", w), "acc": 0.5}, "net"),
    "nested": (lambda w: {"checkpoint": {"model": prefixed("module._orig_mod.", w)}}, "checkpoint / model"),
    "lightning": (
        lambda w: {
            "state_dict": {**prefixed("model.", w), "criterion.weight": torch.ones(5)},
            "optimizer_states": [OPTIMISER],
        },
        "state_dict / model.",
    ),
    "lightning average": (
        lambda w: {
            "current_model_state": prefixed("model.", other(w)),
            "state_dict": prefixed("model.", w),
            "averaging_state": {"n_averaged": torch.tensor(4)},
        },
        "state_dict / model.",
    ),
    "timm": (lambda w: {"state_dict": other(w), "state_dict_ema": prefixed("module.", w)}, "state_dict_ema"),
    "ema entry": (lambda w: {"model": other(w), "ema": {"decay": 0.9, "shadow": w}}, "ema / shadow"),
    "ema_pytorch": (
        lambda w: {
            "step": torch.tensor(1),
            "initted": torch.tensor(True),
            **prefixed("online_model.", other(w)),
            **prefixed("ema_model.module.", w),
        },
        "ema_model.",
    ),
    "with numbers beside": (lambda w: {"epoch": 3, "best": 0.5, **w}, ""),
}


@pytest.mark.parametrize("name", WRAPPINGS)
def test_wrappers_of_others_are_removed(name: str, tmp_path: Path) -> None:
    wrap, place = WRAPPINGS[name]
    weights = {
        "backbone.class_token": torch.randn(3),
        "backbone.norm.bias": torch.randn(2),
        "head.b": torch.randn(2),
    }
    torch.save(wrap(weights), tmp_path / "w.pth")
    found = read_weights(tmp_path / "w.pth")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in weights.items())
    unwrapped = unwrap(wrap(weights))
    assert unwrapped is not None
    assert unwrapped.place == place, "messages say where the weights were"


def test_names_that_a_prefix_would_confuse_are_kept() -> None:
    both = {"module.a": torch.ones(1), "a": torch.zeros(1)}
    found = unwrap(both)
    assert found is not None
    assert found.weights.keys() == both.keys()


def test_wrapped_weights_fill_a_network(model: IFDD, small_config: Small, tmp_path: Path) -> None:
    weights = prefixed("module.", model.state_dict())
    save_file({key: tensor.half() for key, tensor in weights.items()}, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").rename(tmp_path / "w.ckpt")  # the content decides, not the name
    fresh = IFDD(small_config())
    report = load_pretrained(fresh, tmp_path / "w.ckpt")
    assert (report.kind, report.class_names, report.untouched) == ("checkpoint", None, ())
    for key, tensor in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], tensor.half().to(tensor.dtype)), key


def record(config: TrainingConfig) -> dict[str, Any]:
    return {
        "config": config.to_dict(),
        "class_names": list(NAMES),
        "validation": {"war": 0.5, "uar": 0.25},
        "sampling": {"stride": 2, "short": "repeat_each"},
    }


def training_checkpoint(model: IFDD, path: Path, **optim: Any) -> Path:
    network = model.config.to_dict()
    del network["num_classes"]
    data = DataConfig(name="folder", root="videos", crop="auto")
    config = TrainingConfig(data=data, optim=OptimConfig(epochs=9, **optim), model=network)
    content: dict[str, Any] = {
        "ifdd": record(config),
        "epoch": 4,
        "state_dict": prefixed("model.", model.state_dict()),
        "optimizer_states": [OPTIMISER],
    }
    if optim.get("ema_decay"):
        content["current_model_state"] = prefixed("model.", other(model.state_dict()))
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("optim", "origin"),
    [({}, "weights, epoch 5 of 9"), ({"ema_decay": 0.9}, "moving average of the weights, epoch 5 of 9")],
)
def test_a_training_checkpoint_is_a_checkpoint(
    model: IFDD, small_config: Small, tmp_path: Path, optim: dict[str, Any], origin: str
) -> None:
    path = training_checkpoint(model, tmp_path / "last.ckpt", **optim)
    loaded = load_checkpoint(path)
    assert loaded.class_names == NAMES
    assert loaded.config == model.config
    assert loaded.origin == origin
    assert (loaded.extra["stride"], loaded.extra["short"], loaded.extra["epoch"]) == (2, "repeat_each", 4)
    assert loaded.extra["crop"] == "auto"
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], tensor), key
    report = load_pretrained(IFDD(small_config()), path)
    assert (report.class_names, report.origin, report.dropped) == (NAMES, origin, ())


def test_sampling_of_a_training_checkpoint_that_does_not_state_it(model: IFDD, tmp_path: Path) -> None:
    path = training_checkpoint(model, tmp_path / "last.ckpt")
    content = torch.load(path, weights_only=True)
    del content["ifdd"]["sampling"]
    content["ifdd"]["config"]["data"] = TrainingConfig(data=DataConfig(name="mafw", root="x")).to_dict()[
        "data"
    ]
    torch.save(content, path)
    assert load_checkpoint(path).extra["stride"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("config"), "damaged checkpoint metadata: 'config'"),
        (lambda r: r["config"].update(colour=1), "damaged checkpoint metadata: .*colour"),
        (lambda r: r.update(class_names=["a", "a"]), "distinct names"),
        (
            lambda r: r.update(class_names=["a", "b"]),
            r"head.classifier.weight \(5, 128\) instead of \(2, 128\)",
        ),
    ],
)
def test_a_damaged_record_is_one_line(
    change: Callable[[dict[str, Any]], Any], message: str, model: IFDD, tmp_path: Path
) -> None:
    path = training_checkpoint(model, tmp_path / "last.ckpt")
    content = torch.load(path, weights_only=True)
    change(content["ifdd"])
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"^{path}: .*{message}"):
        load_checkpoint(path)


def test_weights_without_settings_are_sent_to_the_converter(model: IFDD, tmp_path: Path) -> None:
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    for path in (tmp_path / "w.safetensors", tmp_path / "w.pth"):
        with pytest.raises(
            CheckpointError, match=r"without configuration and class names; `ifdd convert .*--classes"
        ):
            load_checkpoint(path)


def test_unknown_weights_are_named(tmp_path: Path) -> None:
    torch.save({"net": {"conv1.weight": torch.ones(2, 3), "fc.bias": torch.ones(4)}}, tmp_path / "w.pth")
    expected = r"begin with conv1.weight \(2, 3\), fc.bias \(4,\) \(in net\); expected .*backbone.class_token"
    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html></html>", "a web page"),
        (b"PK\x03\x04" + b"x" * 99, "not a readable weights file: its end is missing"),
        (b"happy/a.mp4 0\n\xc3\xa4.mp4 1\n", "not a readable weights file: it is a text file"),
        ("7,happy/ä.mp4\n".encode() * 400, "not a readable weights file: it is a text file"),
        (b"\xff\xd8\xff\xe0" + bytes(60), "not a readable weights file: it is a picture"),
        (bytes(3) + b"\x20ftypisom" + bytes(60), "not a readable weights file: it is a video"),
        (b"\x1f\x8b\x08" + bytes(60), "not a readable weights file: it is a compressed file"),
    ],
)
def test_files_that_are_something_else(content: bytes, message: str, tmp_path: Path) -> None:
    for name in ("w.ckpt", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name}: {message}") as error:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(error.value)


def test_weights_without_their_end_and_other_archives(tmp_path: Path) -> None:
    weights = {"w": torch.zeros(999)}
    torch.save(weights, tmp_path / "new.pth")
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(weights, tmp_path / "w.safetensors")
    for name in ("new.pth", "old.pth", "w.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for length in (60, len(whole) // 2, len(whole) - 1):
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match=rf"{name}: not a readable .*: its end is missing"):
                read_weights(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(CheckpointError, match=r"it is a zip archive that torch.save did not write"):
        read_weights(tmp_path / "w.pth")


def test_a_checkpoint_of_this_package_says_which_weights_it_holds(model: IFDD, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m.safetensors", model, NAMES, {"weights": "weights, epoch 2 of 3"})
    assert load_checkpoint(tmp_path / "m.safetensors").origin == "weights, epoch 2 of 3"
