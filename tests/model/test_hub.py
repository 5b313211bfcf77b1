"""Networks in folders and repositories, and the maps of the stages for other networks. Nothing is fetched."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ifdd import IFDD, FeatureExtractor, IFDDConfig, create_model
from ifdd.checkpoint import CheckpointError, load_checkpoint

FILES = ("README.md", "config.json", "model.safetensors")
FIELDS: dict[str, Any] = {"clip_frames": 8, "image_size": 32, "embed_dim": 8, "num_classes": 3}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def network() -> IFDD:
    return IFDD(IFDDConfig(backbone="mvit_nano", **FIELDS))


def clips() -> Tensor:
    return torch.rand(2, 3, 8, 32, 32)


def test_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved network comes back, in evaluation, without any package of the Hub."""
    without_package(monkeypatch)
    model, x = network().eval(), clips()
    folder = tmp_path / "a" / "b"
    model.save_pretrained(folder, class_names=["x", "y", "z"])
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    for name in (folder, str(folder)):
        loaded = IFDD.from_pretrained(name)
        assert not loaded.training
        assert (loaded.config, loaded.class_names) == (model.config, ("x", "y", "z"))
        assert torch.equal(loaded(x).logits, model(x).logits)
    checkpoint = load_checkpoint(folder / "model.safetensors")
    assert checkpoint.class_names == checkpoint.model.class_names == ("x", "y", "z")
    loaded.save_pretrained(tmp_path / "again")
    assert IFDD.from_pretrained(tmp_path / "again").class_names == ("x", "y", "z")
    network().save_pretrained(tmp_path / "unnamed")
    assert IFDD.from_pretrained(tmp_path / "unnamed").class_names == ("class 0", "class 1", "class 2")

    class Own(IFDD):
        pass

    assert type(Own.from_pretrained(folder)) is Own


def test_model_card(tmp_path: Path) -> None:
    network().save_pretrained(tmp_path, class_names=["happy", "sad", "angry"])
    card = (tmp_path / "README.md").read_text()
    for part in ("library_name: ifdd-kernels", "happy, sad, angry", "## Licence", "## Limits", "8 frames"):
        assert part in card
    (tmp_path / "README.md").write_text("mine")
    network().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    """One line that begins with the file."""
    network().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    good = config.read_text()
    content = json.loads(good)
    wrong = {
        "{": "not readable as JSON",
        "[]": "no object 'ifdd'",
        json.dumps({**content, "ifdd": {"depth": 3}}): r"unknown configuration fields \['depth'",
        json.dumps({**content, "class_names": ["a"]}): "class_names must be 3 distinct names",
        json.dumps({**content, "class_names": 3}): "class_names must be a sequence of strings",
    }  # fmt: skip
    for text, message in wrong.items():
        config.write_text(text)
        with pytest.raises(CheckpointError, match=message) as error:
            IFDD.from_pretrained(tmp_path)
        assert str(error.value).startswith(str(config))
        assert "\n" not in str(error.value)
    config.write_text(json.dumps({**content, "ifdd": {**content["ifdd"], "embed_dim": 16}}))
    with pytest.raises(CheckpointError, match="weights do not fit the model"):
        IFDD.from_pretrained(tmp_path)
    config.write_text(good)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        IFDD.from_pretrained(tmp_path)
    config.unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        IFDD.from_pretrained(tmp_path)
    for missing in (tmp_path / "none", f"{tmp_path}/none", "./none"):
        with pytest.raises(CheckpointError, match="none: no such folder"):
            IFDD.from_pretrained(missing)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file: not a folder"):
        IFDD.from_pretrained(tmp_path / "file")


def test_names_that_do_not_fit_write_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="class_names must be 3 distinct names"):
        network().save_pretrained(tmp_path / "x", class_names=["a", "a", "b"])
    assert not (tmp_path / "x").exists()


def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def fail(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "huggingface_hub":
            raise ImportError("No module named 'huggingface_hub'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    without_package(monkeypatch)
    with pytest.raises(
        ImportError, match=r"owner/none is not a folder.*needs huggingface_hub.*`pip install hugg"
    ):
        IFDD.from_pretrained("owner/none")
    with pytest.raises(ImportError, match="needs huggingface_hub"):
        network().push_to_hub("owner/none")


def cached(root: Path) -> IFDD:
    """A repository in the layout of the Hub's cache, as a download leaves it."""
    model = network().eval()
    repository = root / "models--owner--faces"
    model.save_pretrained(repository / "snapshots" / COMMIT, class_names=["x", "y", "z"])
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return model


def test_offline_repository(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    model, x = cached(tmp_path), clips()
    for revision in (None, "main", COMMIT):
        loaded = IFDD.from_pretrained(
            "owner/faces", cache_dir=tmp_path, local_files_only=True, revision=revision
        )
        assert torch.equal(loaded(x).logits, model(x).logits)
    missing: list[tuple[str, str | None]] = [("owner/other", None), ("owner/faces", "v2"), ("a b/c", None)]
    for name, revision in missing:
        with pytest.raises(CheckpointError, match=r"config\.json from the Hugging Face Hub") as error:
            IFDD.from_pretrained(name, cache_dir=tmp_path, local_files_only=True, revision=revision)
        assert str(error.value).startswith(name)
        assert "\n" not in str(error.value)


def test_what_the_hub_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    network().save_pretrained(tmp_path)
    asked: list[tuple[str, str, dict[str, Any]]] = []

    def download(repo: str, file: str, **options: Any) -> str:
        asked.append((repo, file, options))
        return str(tmp_path / file)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    IFDD.from_pretrained("owner/faces", revision="v1", token="secret", cache_dir="elsewhere")
    options = {"revision": "v1", "token": "secret", "cache_dir": "elsewhere", "local_files_only": False}
    assert asked == [("owner/faces", file, options) for file in FILES[1:]]


@pytest.mark.parametrize("has_card", [False, True])
def test_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_card: bool) -> None:
    hub = pytest.importorskip("huggingface_hub")
    done: list[tuple[Any, ...]] = []

    class Api:
        def __init__(self, token: Any = None) -> None:
            done.append(("token", token))

        def create_repo(self, repo: str, private: Any, exist_ok: bool) -> None:
            done.append(("create", repo, private, exist_ok))

        def file_exists(self, repo: str, file: str, revision: Any) -> bool:
            return has_card

        def upload_folder(self, folder_path: str, ignore_patterns: Any, **options: Any) -> Any:
            for path in Path(folder_path).iterdir():
                if path.name not in (ignore_patterns or ()):
                    (tmp_path / path.name).write_bytes(path.read_bytes())
            done.append(("upload", options))
            return SimpleNamespace(commit_url="https://hub/commit")

    monkeypatch.setattr(hub, "HfApi", Api)
    address = network().push_to_hub("owner/faces", token="secret", private=True, revision="v1")
    assert address == "https://hub/commit"
    assert done[:2] == [("token", "secret"), ("create", "owner/faces", True, True)]
    assert done[2][1]["repo_id"] == "owner/faces"
    assert done[2][1]["revision"] == "v1"
    assert (tmp_path / "README.md").exists() != has_card
    IFDD.from_pretrained(tmp_path)

    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        raise OSError("403\nForbidden")

    monkeypatch.setattr(Api, "create_repo", refuse)
    with pytest.raises(OSError, match="owner/faces: not uploaded to the Hugging Face Hub: 403 Forbidden"):
        network().push_to_hub("owner/faces")


def test_parts_of_the_network() -> None:
    model, x = network().eval(), clips()
    wanted = model(x)
    tokens = model.forward_features(x)
    assert tokens.shape == (2, 8, 64)
    for got, want in zip(model.forward_head(tokens), wanted, strict=True):
        assert torch.equal(got, want)
    assert model.get_classifier() is model.head.classifier
    model.double().reset_classifier(5)
    assert model(x.double()).logits.shape == (2, 5)
    assert model.config.num_classes == 5
    assert not model.head.training
    with pytest.raises(ValueError, match="num_classes"):
        model.reset_classifier(0)


def test_maps_of_all_stages() -> None:
    features = create_model("ifdd_nano", features_only=True, **FIELDS).eval()
    assert isinstance(features, FeatureExtractor)
    maps = features(clips())
    info = features.feature_info
    assert [m.shape[1] for m in maps] == info.channels() == [8, 16, 32, 64]
    assert [32 // m.shape[3] for m in maps] == info.reduction() == [4, 8, 16, 32]
    assert all(8 // m.shape[2] == one.frame_reduction == 1 for m, one in zip(maps, info, strict=True))
    for one, found in zip(info, maps, strict=True):
        block = features.get_submodule(one.module)
        assert block.mlp_contract.out_features == found.shape[1]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="IFDD: clips must be"):
        features(clips()[:, :2])


@pytest.mark.parametrize("asked", [(0,), (1, 2), (-1,), (0, 3)])
def test_some_maps(asked: tuple[int, ...]) -> None:
    """They are those of all, and every parameter that is left has a gradient; names are the network's."""
    torch.manual_seed(3)
    every = create_model("ifdd_nano", features_only=True, **FIELDS, drop_path=0.0)
    torch.manual_seed(3)
    some = create_model("ifdd_nano", features_only=True, out_indices=asked, **FIELDS, drop_path=0.0)
    x = clips()
    got, wanted = some(x), every(x)
    for one, stage in zip(got, asked, strict=True):
        assert torch.equal(one, wanted[stage])
    assert set(some.state_dict()) <= set(network().state_dict())
    (wanted[-1].sum() * 0 + sum(m.square().sum() for m in got)).backward()
    assert all(p.grad is not None for p in some.parameters())


@pytest.mark.parametrize("asked", [(), (4,), (2, 1), (1, 1), (True, "x"), (-5,)])
def test_stages_that_are_not_there(asked: Any) -> None:
    with pytest.raises(ValueError, match="out_indices must be ascending stages from 0 to 3"):
        create_model("ifdd_nano", features_only=True, out_indices=asked, **FIELDS)


def test_indices_without_features() -> None:
    with pytest.raises(ValueError, match="needs features_only=True"):
        create_model("ifdd_nano", out_indices=(1,), **FIELDS)  # type: ignore[call-overload]


@pytest.mark.parametrize("training", [False, True])
def test_hooks_on_every_layer_fire(training: bool) -> None:
    features = create_model("ifdd_nano", features_only=True, **FIELDS).train(training)
    fired: set[nn.Module] = set()
    for module in features.modules():
        module.register_forward_hook(lambda module, inputs, output: fired.add(module))
    features(clips())
    lists = {m for m in features.modules() if isinstance(m, nn.ModuleList)}
    assert fired == set(features.modules()) - lists
