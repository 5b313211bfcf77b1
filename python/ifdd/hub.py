"""Networks in folders and in repositories of the Hugging Face Hub: `IFDD.from_pretrained` and the like.

A folder holds `config.json` (configuration and class names), `model.safetensors` (a checkpoint of this
package) and a model card, `README.md`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from ifdd.checkpoint.files import CheckpointError, PathLike, load_weights, read_weights
from ifdd.checkpoint.format import checked_names, save_checkpoint
from ifdd.config import IFDDConfig
from ifdd.model import IFDD
from ifdd.text import one_line
from ifdd.whole import write_whole

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
Model = TypeVar("Model", bound=IFDD)


def repository_files(
    name: PathLike,
    revision: str | None = None,
    cache_dir: PathLike | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> tuple[Path, Path]:
    """Configuration and weights of a folder or a repository, see `IFDD.from_pretrained`."""
    folder = Path(name)
    if folder.is_dir():
        return folder / CONFIG, folder / WEIGHTS
    shown = os.fspath(name)
    if (
        folder.exists()
        or not isinstance(name, str)
        or name.count("/") > 1
        or name.startswith((".", "/", "~"))
    ):
        kind = "not a folder" if folder.exists() else "no such folder"
        raise CheckpointError(f"{shown}: {kind}; expected one with {CONFIG} and {WEIGHTS}")
    hub = _package(f"{shown} is not a folder, and a repository of the Hugging Face Hub")

    def get(file: str) -> Path:
        try:
            return Path(
                hub.hf_hub_download(
                    shown,
                    file,
                    revision=revision,
                    cache_dir=cache_dir,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        except (OSError, ValueError) as error:  # all errors of the Hub's client are one of them
            raise CheckpointError(
                f"{shown}: no such folder, and no {file} from the Hugging Face Hub: {one_line(error)}"
            ) from error

    return get(CONFIG), get(WEIGHTS)


def load_folder(kind: type[Model], config_path: Path, weights_path: Path) -> Model:
    """The network of these two files, in evaluation mode.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    config, names = _read_config(config_path)
    model = kind(config)
    load_weights(model, read_weights(weights_path), str(weights_path))
    model.class_names = names
    return model.eval()


def _read_config(path: Path) -> tuple[IFDDConfig, tuple[str, ...]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {one_line(error)}") from error
    if not isinstance(content, dict) or not isinstance(content.get("ifdd"), dict):
        raise CheckpointError(f"{path}: not the configuration of an IFDD network: it has no object 'ifdd'")
    try:
        config = IFDDConfig.from_dict(content["ifdd"])
        return config, checked_names(content.get("class_names", ()), config.num_classes)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {one_line(error)}") from error


def save_folder(model: IFDD, folder: PathLike, class_names: Sequence[str] | None = None) -> None:
    """See `IFDD.save_pretrained`."""
    given = model.class_names if class_names is None else class_names
    if given is None:
        given = [f"class {index}" for index in range(model.config.num_classes)]
    names = checked_names(given, model.config.num_classes)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder / WEIGHTS, model, names)
    content = {"model_type": "ifdd", "ifdd": model.config.to_dict(), "class_names": list(names)}
    write_whole(folder / CONFIG, json.dumps(content, indent=2) + "\n")
    if not (folder / CARD).exists():
        write_whole(folder / CARD, model_card(model.config, names))


def upload(
    model: IFDD,
    repo_id: str,
    class_names: Sequence[str] | None,
    private: bool | None,
    revision: str | None,
    commit_message: str,
    token: str | bool | None,
) -> str:
    """See `IFDD.push_to_hub`."""
    hub = _package("a repository of the Hugging Face Hub")
    with tempfile.TemporaryDirectory() as folder:
        save_folder(model, folder, class_names)
        try:
            api = hub.HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            kept = [CARD] if api.file_exists(repo_id, CARD, revision=revision) else None
            done = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                ignore_patterns=kept,
            )
        except (OSError, ValueError) as error:
            raise OSError(f"{repo_id}: not uploaded to the Hugging Face Hub: {one_line(error)}") from error
    return str(getattr(done, "commit_url", done))


def _package(what: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"{what} needs huggingface_hub, which does not import ({one_line(error)}): "
            "`pip install huggingface_hub` installs it"
        ) from error
    return huggingface_hub


def model_card(config: IFDDConfig, class_names: Sequence[str]) -> str:
    """The model card of a network, in Markdown with the Hub's header."""
    names = ", ".join(class_names)
    frames, side = config.clip_frames, config.image_size
    return f"""---
library_name: ifdd-kernels
pipeline_tag: video-classification
license: other
tags:
- facial-expression-recognition
- ifdd
---

# IFDD for facial expressions in video

A network of the architecture IFDD (Wang & Chai, "Lifting Scheme-Based Implicit Disentanglement of
Emotion-Related Facial Dynamics in the Wild", AAAI 2025, arXiv:2412.13168) for the package ifdd-kernels.

```python
from ifdd import IFDD

model = IFDD.from_pretrained("FOLDER_OR_REPOSITORY")
logits = model(clips).logits  # clips: (B, 3, {frames}, {side}, {side}), RGB in [0, 1]
```

| | |
|---|---|
| classes | {names} |
| clip | {frames} frames of {side} x {side} pixels around one face |
| backbone | {config.backbone}, stages {list(config.stages)} |
| split, lifting | {config.split}, {config.lifting} |

## Training data and results

Not stated. Whoever publishes this network should name the data, the protocol and the results here.

## Licence

The code of ifdd-kernels is under the MIT licence. That says nothing about these weights: whoever publishes
them should state their licence, and the data sets of the field allow research only.

## Limits

The network sorts visible expressions into the classes above. It does not know what a person feels, and must
not be used to decide about people. Faces, cameras, cultures and expressions unlike those of its training data
are recognised worse, and every face gets one of the classes. Probabilities are not calibrated.
"""
