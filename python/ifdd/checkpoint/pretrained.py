"""A network filled from any known kind of weights."""

from __future__ import annotations

from dataclasses import dataclass

from ifdd.checkpoint.files import CheckpointError, PathLike, load_weights, read_weights
from ifdd.checkpoint.foreign import ConvertedWeights, from_original, from_torchvision_mvit
from ifdd.model import IFDD

HEAD_KEYS = ("head.classifier.weight", "head.classifier.bias")
#: Prefixes of the tensors `load_pretrained` takes.
PARTS = {"all": ("",), "backbone": ("embedding.", "backbone.", "pyramid.")}


@dataclass(frozen=True)
class PretrainedReport:
    """What `load_pretrained` found and did; `kind` is `checkpoint`, `original` or `torchvision`."""

    path: str
    kind: str
    dropped: tuple[str, ...]
    untouched: tuple[str, ...]

    def __str__(self) -> str:
        names = {"checkpoint": "an IFDD checkpoint", "original": "weights of the original implementation"}
        kind = names.get(self.kind, "torchvision MViTv2 weights")
        return (
            f"{self.path}: {kind}; {len(self.dropped)} tensors of the file not used, "
            f"{len(self.untouched)} tensors of the model keep their initial values"
        )


def load_pretrained(
    model: IFDD, path: PathLike, reset_head: bool = False, part: str = "all"
) -> PretrainedReport:
    """Loads weights of any known kind into `model`; the names inside decide the kind.

    Args:
        model: the network to fill.
        path: an IFDD checkpoint, weights of the original implementation, or torchvision's `mvit_v2_s`
            weights.
        reset_head: where the classifier in the file has another number of classes, keep the model's fresh
            one.
        part: `all`, or `backbone` to take embedding, backbone and pyramid only, so that networks that differ
            behind them can start from the same features.

    Raises:
        ValueError: an unknown part.
        CheckpointError: unreadable, of no known kind, or not fitting the model.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {tuple(PARTS)}; got {part!r}")
    weights = read_weights(path)
    known = set(model.state_dict())
    try:
        if "conv_proj.weight" in weights and "pos_encoding.class_token" in weights:
            kind = "torchvision"
            converted = from_torchvision_mvit(weights, model.config)
        elif "backbone.backbone.pos_encoding.class_token" in weights:
            kind = "original"
            converted = from_original(weights, "model")
        elif "backbone.class_token" in weights:
            kind, converted = "checkpoint", ConvertedWeights(weights, [])
        else:
            raise CheckpointError(
                f"{path}: neither an IFDD checkpoint, nor weights of the original implementation, "
                "nor torchvision MViTv2 weights"
            )
    except CheckpointError:
        raise
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: {error.args[0]}") from error
    state = dict(converted.state_dict)
    dropped = list(converted.dropped)
    if kind != "torchvision" and HEAD_KEYS[0] in state:
        classes = state[HEAD_KEYS[0]].shape[0]
        if classes != model.config.num_classes:
            if not reset_head:
                raise CheckpointError(
                    f"{path}: the classifier has {classes} classes, the model {model.config.num_classes}; "
                    "reset_head=True keeps a fresh classifier"
                )
            dropped += [key for key in HEAD_KEYS if state.pop(key, None) is not None]
    outside = {key for key in {*state, *known} if not key.startswith(PARTS[part])}
    dropped += [key for key in sorted(outside) if state.pop(key, None) is not None]
    untouched = sorted(known - set(state))
    allowed = set(untouched) if kind == "torchvision" else {*dropped, *outside}
    load_weights(model, state, str(path), missing_allowed=allowed)
    return PretrainedReport(str(path), kind, tuple(dropped), tuple(untouched))
