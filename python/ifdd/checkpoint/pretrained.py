"""A network filled from any known kind of weights."""

from __future__ import annotations

from dataclasses import dataclass

from ifdd.checkpoint.files import CheckpointError, PathLike, WeightsFile, load_weights, read_file
from ifdd.checkpoint.foreign import ConvertedWeights, from_original, from_torchvision_mvit
from ifdd.checkpoint.format import settings_of
from ifdd.checkpoint.kinds import kind_of, unknown_weights
from ifdd.model import IFDD

HEAD_KEYS = ("head.classifier.weight", "head.classifier.bias")
#: Prefixes of the tensors `load_pretrained` takes.
PARTS = {"all": ("",), "backbone": ("embedding.", "backbone.", "pyramid.")}


class ClassCountError(CheckpointError):
    """The classifier in a file has another number of classes than the model."""

    def __init__(self, path: PathLike, found: int, wanted: int) -> None:
        super().__init__(
            f"{path}: the classifier has {found} classes, the model {wanted}; "
            "reset_head=True keeps a fresh classifier"
        )
        self.found = found
        self.wanted = wanted


@dataclass(frozen=True)
class PretrainedReport:
    """The outcome of `load_pretrained`.

    Attributes:
        path: the file.
        kind: `checkpoint`, `original` or `torchvision`.
        dropped: names in the file that were left out, sorted.
        untouched: names of the network that kept their values, sorted.
        class_names: those the file states, if it does.
        origin: which weights of the file were taken, where it holds several or states their epoch.
    """

    path: str
    kind: str
    dropped: tuple[str, ...]
    untouched: tuple[str, ...]
    class_names: tuple[str, ...] | None = None
    origin: str = ""

    def __str__(self) -> str:
        names = {"checkpoint": "an IFDD checkpoint", "original": "weights of the original implementation"}
        kind = names.get(self.kind, "torchvision MViTv2 weights")
        origin = f" ({self.origin})" if self.origin else ""
        return (
            f"{self.path}: {kind}{origin}; {len(self.dropped)} tensors of the file not used, "
            f"{len(self.untouched)} tensors of the model keep their initial values"
        )


def load_pretrained(
    model: IFDD, path: PathLike | WeightsFile, reset_head: bool = False, part: str = "all"
) -> PretrainedReport:
    """Loads weights of any known kind into `model`; the names inside decide the kind.

    Args:
        model: the network to fill.
        path: an IFDD checkpoint, a training checkpoint of this package (`last.ckpt`), weights of the original
            implementation, or torchvision's `mvit_v2_s` weights, or such a file that was read.
        reset_head: where the classifier in the file has another number of classes, keep the model's fresh
            one.
        part: `all`, or `backbone` to take embedding, backbone and pyramid only, so that networks that differ
            behind them can start from the same features.

    Returns:
        `PretrainedReport`.

    Raises:
        ValueError: an unknown part.
        CheckpointError: unreadable, of no known kind, or not fitting the model.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {tuple(PARTS)}; got {part!r}")
    file = path if isinstance(path, WeightsFile) else read_file(path)
    path = file.path
    own = settings_of(file)
    known = set(model.state_dict())
    kind = kind_of(file.weights)
    try:
        if kind == "torchvision":
            converted = from_torchvision_mvit(file.weights, model.config)
        elif kind == "original":
            converted = from_original(file.weights, "model")
        elif kind == "checkpoint":
            converted = ConvertedWeights(file.weights, [])
        else:
            raise CheckpointError(f"{path}: {unknown_weights(file)}")
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
                raise ClassCountError(path, classes, model.config.num_classes)
            dropped += [key for key in HEAD_KEYS if state.pop(key, None) is not None]
    outside = {key for key in {*state, *known} if not key.startswith(PARTS[part])}
    dropped += [key for key in sorted(outside) if state.pop(key, None) is not None]
    untouched = sorted(known - set(state))
    allowed = set(untouched) if kind == "torchvision" else {*dropped, *outside}
    load_weights(model, state, str(path), missing_allowed=allowed)
    # A training checkpoint's other entries are the trainer's state, which nobody misses here.
    beside = () if file.training is not None else file.left_out
    return PretrainedReport(
        str(path),
        kind,
        (*dropped, *beside),
        tuple(untouched),
        None if own is None else own.class_names,
        file.place if own is None else own.origin,
    )
