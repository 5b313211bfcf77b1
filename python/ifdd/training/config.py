"""Settings of a training; the defaults are the published recipe for DFEW.

Light on purpose: the command line reads these for its help without loading the training machinery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from ifdd.config import IFDDConfig
from ifdd.data.foreign_lists import ListFormat
from ifdd.data.labels import FirstLabel, class_list
from ifdd.data.locate import path_map
from ifdd.data.sampling import Short
from ifdd.training.schedule import Schedule, Warmup, scaled_rate

DatasetName = Literal["synthetic", "dfew", "ferv39k", "mafw", "list", "folder"]
Precision = Literal["32", "bf16-mixed", "16-mixed"]
Device = Literal["auto", "cpu", "cuda"]
Select = Literal["best", "last"]
OnError = Literal["raise", "skip"]
InitPart = Literal["all", "backbone"]
LiftingReduction = Literal["sum", "mean"]
Strategy = Literal["auto", "ddp"]


CHANGEABLE = frozenset(
    {
        *("device", "devices", "num_nodes", "strategy", "cuda_graph", "init", "init_part"),
        *("optim.epochs", "optim.select"),
        *("data.root", "data.train_list", "data.test_list", "data.test_size", "data.on_error"),
        *("data.strip_prefix", "data.path_map", "data.workers", "data.eval_batch_size"),
    }
)
"""Settings that a resumed training may have otherwise than the one it goes on with."""


_VIDEOS: tuple[DatasetName, ...] = ("dfew", "ferv39k", "mafw", "list", "folder")

ONLY_FOR: dict[str, tuple[DatasetName, ...]] = {
    **dict.fromkeys(("root", "classes", "sampling", "crop", "on_error", "augment"), _VIDEOS),
    **dict.fromkeys(("train_list", "test_list", "format", "path_column", "label_column"), ("list",)),
    **dict.fromkeys(("strip_prefix", "path_map"), ("list",)),
    "first_label": ("list", "dfew"),
    **dict.fromkeys(("fold", "clips"), ("dfew", "mafw")),
    "soft_labels": ("dfew",),
    **dict.fromkeys(("train_size", "test_size", "posed"), ("synthetic",)),
}
"""Settings of the data that only some data sets use. Set for another one, they would be ignored."""


class SettingError(ValueError):
    """A setting that cannot be used: its dotted name, and a phrase with the rule and its value."""

    def __init__(self, setting: str, rule: str) -> None:
        super().__init__(setting, rule)
        self.setting = setting
        self.rule = rule

    def __str__(self) -> str:
        return f"{self.setting} {self.rule}"


def _need(value: object, name: str, what: str) -> None:
    if not value:
        raise SettingError(name, f"is missing: {what}")


def _check(condition: bool, name: str, rule: str, value: object) -> None:
    if not condition:
        raise SettingError(name, f"must be {rule}, got {value!r}")


@dataclass(frozen=True)
class DataConfig:
    """Videos and how they are read."""

    name: DatasetName = "synthetic"
    """dataset: dfew, ferv39k, mafw, list (your own list files), folder (a folder of videos for each class) or
    synthetic (drawn faces, needs no files)"""
    root: str | None = None
    """folder of the dataset; for `list`, the folder that the paths in the list files are relative to
    (default: the folder of the list)"""
    fold: int = 1
    """cross-validation fold, 1 to 5 (dfew and mafw)"""
    train_list: str | None = None
    """list file of training videos (only for `list`)"""
    test_list: str | None = None
    """list file of test videos (only for `list`)"""
    classes: list[str] | str | None = None
    """class names in label order: A,B,C, or dfew, ferv39k or mafw for those of that data set; default: those
    of the dataset; `ifdd test` on list files or folders uses those of the checkpoint"""
    format: ListFormat = "auto"
    """format of the list files: folder_label or folder_count_label (columns separated by white space), csv,
    or auto (only for `list`)"""
    path_column: str | None = None
    """column of the list files that holds the videos: its name, or its number from 1 (only for `list`)"""
    label_column: str | None = None
    """column that holds the labels: its name, or its number from 1; -1 is the last (only for `list`)"""
    first_label: FirstLabel = "auto"
    """number of the first class in the list files, 0 or 1; auto finds out, or stops with an error if it
    cannot (list and dfew)"""
    strip_prefix: str = ""
    """prefix to remove from the paths in the list files (only for `list`)"""
    path_map: list[str] | str | None = None
    """OLD=NEW: replace the folder OLD at the beginning of the paths in the list files by NEW (only for
    `list`)"""
    stride: int | None = None
    """a window takes every STRIDE-th frame; default: that of the dataset's recipe"""
    short: Short | None = None
    """way to stretch a video shorter than a window: repeat_last or repeat_each; default: as published"""
    sampling: str | None = None
    """choice of the windows of a test video: centre, consecutive, segments, uniform or dense; default: as
    published"""
    clips: str | None = None
    """which form of the clips to read: 16f, native or original (dfew); frames or original (mafw)"""
    crop: str | None = None
    """cut the same box out of all frames of a video: x,y,w,h in pixels, or auto for the box of a face;
    default: the whole frame"""
    soft_labels: bool = False
    """train on the annotators' votes (only dfew)"""
    on_error: OnError = "raise"
    """a training video that is missing or cannot be read: raise stops the training, skip leaves the video out
    with a warning; in a test set it always stops"""
    validation: float = 0.1
    """share of each class's training clips that is held out to choose the best epoch; 0: none. The test set
    is never used for it"""
    batch_size: int = 32
    """clips per step, the sum over all devices and machines"""
    eval_batch_size: int = 16
    """videos per step and device in a test"""
    workers: int = 4
    """processes per device that read videos"""
    one_frame: bool = False
    """replace every clip by one of its frames, repeated: a control experiment without motion"""
    augment: bool = True
    """flip, random crop and colour jitter of training clips"""
    train_size: int = 700
    """number of drawn training clips (only for `synthetic`)"""
    test_size: int = 350
    """number of drawn test clips (only for `synthetic`)"""
    posed: bool = False
    """draw easy training clips: a still, frontal face at full intensity (only for `synthetic`)"""

    def __post_init__(self) -> None:
        _check(self.name in get_args(DatasetName), "data.name", f"one of {get_args(DatasetName)}", self.name)
        _check(
            self.on_error in get_args(OnError), "data.on_error", f"one of {get_args(OnError)}", self.on_error
        )
        _check(0.0 <= self.validation < 1.0, "data.validation", "at least 0 and below 1", self.validation)
        _check(self.batch_size >= 1, "data.batch_size", "at least 1", self.batch_size)
        _check(self.eval_batch_size >= 1, "data.eval_batch_size", "at least 1", self.eval_batch_size)
        _check(self.workers >= 0, "data.workers", "at least 0", self.workers)
        _check(self.stride is None or self.stride >= 1, "data.stride", "at least 1", self.stride)
        if self.name in ("dfew", "mafw"):
            _check(1 <= self.fold <= 5, "data.fold", "1 to 5", self.fold)
        if self.name in ("dfew", "ferv39k", "mafw"):
            _need(self.root, "data.root", f"the folder of {self.name}")
        if self.name == "folder":
            _need(self.root, "data.root", "the folder that holds a folder of videos for each class")
        self._check_list_options()
        for name in ONLY_FOR:
            if getattr(self, name) != DEFAULTS[name] and not uses(self.name, name):
                wanted = _or(ONLY_FOR[name])
                raise SettingError(f"data.{name}", f"is for data set {wanted}, not for {self.name}: omit it")

    def _check_list_options(self) -> None:
        """Those of `list`, for which strings become lists."""
        if self.name == "list":
            _need(self.classes, "data.classes", "the class names in label order, A,B,C")
        if self.classes is not None:
            try:
                object.__setattr__(self, "classes", list(class_list(self.classes)))
            except ValueError as error:
                raise SettingError("data.classes", str(error)) from None
        _check(
            self.format in get_args(ListFormat), "data.format", f"one of {get_args(ListFormat)}", self.format
        )
        firsts = get_args(FirstLabel)
        _check(self.first_label in firsts, "data.first_label", f"one of {firsts}", self.first_label)
        shorts = get_args(Short)
        _check(self.short in (None, *shorts), "data.short", f"one of {shorts}", self.short)
        try:
            pairs = [f"{old}={new}" for old, new in path_map(self.path_map)]
        except ValueError as error:
            raise SettingError("data.path_map", str(error)) from None
        object.__setattr__(self, "path_map", pairs or None)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """`classes` as a tuple."""
        return None if self.classes is None else tuple(self.classes)


DEFAULTS: dict[str, Any] = {part.name: part.default for part in fields(DataConfig)}
"""Of the settings of the data."""


def uses(dataset: str, setting: str) -> bool:
    """Whether a data set uses a setting of the data.

    Args:
        dataset: a name in `DataConfig.name`.
        setting: name of a field of `DataConfig`.

    Returns:
        False for a setting that belongs to other data sets.
    """
    return dataset in ONLY_FOR.get(setting, (dataset,))


def _or(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


@dataclass(frozen=True)
class OptimConfig:
    """Loss, optimiser and learning rate."""

    epochs: int = 100
    """passes over the training set"""
    learning_rate: float = 1e-4
    """learning rate for a batch of 32; the rate used is this times batch_size / 32"""
    weight_decay: float = 1e-3
    """AdamW weight decay, on all parameters"""
    warmup_epochs: int = 10
    """epochs in which the learning rate rises; afterwards it falls along a cosine"""
    warmup: Warmup = "original"
    """original: as published, rises to 9.8e-5 for any learning rate, and then jumps to the learning rate;
    standard: rises to the learning rate; none: starts at the learning rate"""
    mixup: float = 0.8
    """strength (alpha) of MixUp, which blends two clips; 0: off"""
    cutmix: float = 1.0
    """strength (alpha) of CutMix, which pastes a part of another clip; 0: off"""
    label_smoothing: float = 0.1
    """share of the target that is spread over all classes, at least 0 and below 1"""
    lifting_weight: float = 0.1
    """weight of the lifting loss"""
    lifting_reduction: LiftingReduction = "sum"
    """reduction of the lifting loss over the clips of a batch: sum, as published, or mean"""
    accumulate: int = 1
    """batches whose gradients are accumulated for one step"""
    gradient_clip: float | None = None
    """clip the norm of the gradient at this value; default: no clipping, as published"""
    select: Select = "best"
    """weights written at the end: best, of the epoch with the highest UAR on the held-out clips (of equal
    ones the latest), or last, of the last epoch"""
    ema_decay: float | None = None
    """keep a moving average of the weights with this decay, e.g. 0.999, and evaluate it; default: off"""

    def __post_init__(self) -> None:
        _check(self.epochs >= 1, "optim.epochs", "at least 1", self.epochs)
        _check(self.learning_rate > 0, "optim.learning_rate", "positive", self.learning_rate)
        _check(self.weight_decay >= 0, "optim.weight_decay", "at least 0", self.weight_decay)
        _check(self.warmup_epochs >= 0, "optim.warmup_epochs", "at least 0", self.warmup_epochs)
        _check(self.warmup in get_args(Warmup), "optim.warmup", f"one of {get_args(Warmup)}", self.warmup)
        _check(self.mixup >= 0, "optim.mixup", "at least 0", self.mixup)
        _check(self.cutmix >= 0, "optim.cutmix", "at least 0", self.cutmix)
        _check(0 <= self.label_smoothing < 1, "optim.label_smoothing", "in [0, 1)", self.label_smoothing)
        _check(self.lifting_weight >= 0, "optim.lifting_weight", "at least 0", self.lifting_weight)
        _check(self.select in get_args(Select), "optim.select", f"one of {get_args(Select)}", self.select)
        _check(self.accumulate >= 1, "optim.accumulate", "at least 1", self.accumulate)
        ok = self.gradient_clip is None or self.gradient_clip > 0
        _check(ok, "optim.gradient_clip", "positive", self.gradient_clip)
        ok = self.ema_decay is None or 0 < self.ema_decay < 1
        _check(ok, "optim.ema_decay", "between 0 and 1", self.ema_decay)

    def schedule(self, batch_size: int) -> Schedule:
        """The rate per epoch for steps of ``batch_size * accumulate`` clips."""
        base = scaled_rate(self.learning_rate, batch_size * self.accumulate)
        return Schedule(base, self.epochs, self.warmup_epochs, self.warmup)


@dataclass(frozen=True)
class TrainingConfig:
    """All that decides the weights at the end of a training, and where it runs.

    ``devices`` processes on each of ``num_nodes`` machines train together; None is what torchrun or SLURM
    started, and 1 without them. ``strategy`` is Lightning's: ``"auto"`` is DDP for more than one process.
    ``cuda_graph`` replays the forward and backward pass as CUDA graphs, on one GPU.
    ``model`` holds keyword arguments of :class:`ifdd.IFDDConfig` without ``num_classes``, which the data set
    decides.
    """

    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    model: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    precision: Precision = "32"
    device: Device = "auto"
    devices: int | None = None
    num_nodes: int | None = None
    strategy: Strategy = "auto"
    cuda_graph: bool = False
    init: str | None = None
    init_part: InitPart = "all"

    def __post_init__(self) -> None:
        _check(
            self.precision in get_args(Precision),
            "precision",
            f"one of {get_args(Precision)}",
            self.precision,
        )
        _check(
            self.init_part in get_args(InitPart),
            "init_part",
            f"one of {get_args(InitPart)}",
            self.init_part,
        )
        _check(self.device in get_args(Device), "device", f"one of {get_args(Device)}", self.device)
        _check(self.devices is None or self.devices >= 1, "devices", "at least 1", self.devices)
        _check(self.num_nodes is None or self.num_nodes >= 1, "num_nodes", "at least 1", self.num_nodes)
        _check(self.strategy in get_args(Strategy), "strategy", f"one of {get_args(Strategy)}", self.strategy)
        _check(
            "num_classes" not in self.model, "model", "without num_classes (the data set decides)", self.model
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for YAML, JSON and checkpoints."""
        return asdict(self)

    def to_options(self) -> dict[str, Any]:
        """The flat form that ``ifdd fit --config`` reads, without the numbers of devices and machines and
        without CUDA graphs: a training may go on elsewhere.
        """
        values = self.to_dict()
        del values["devices"], values["num_nodes"], values["cuda_graph"]
        data = values.pop("data")
        return {"data": data.pop("name"), **data, **values.pop("optim"), **values}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingConfig:
        """Inverse of :meth:`to_dict`; unknown names raise ``TypeError``. Settings that the data set does not
        use get their defaults: earlier versions accepted and ignored them.
        """
        values = dict(values)
        data = dict(values.pop("data", {}))
        name = data.get("name", DEFAULTS["name"])
        data = {setting: value for setting, value in data.items() if uses(name, setting)}
        return cls(data=DataConfig(**data), optim=OptimConfig(**values.pop("optim", {})), **values)

    def differences(self, before: TrainingConfig) -> dict[str, tuple[Any, Any]]:
        """Settings that differ and would change the weights: what a resume must not alter.

        Places, devices, loaders, what is exported and the number of epochs may differ. Settings that one of
        both leaves at its default count with that default.

        Returns:
            dotted name -> (value before, value now), sorted by name.
        """
        theirs, mine = before._settings(), self._settings()
        return {
            name: (theirs.get(name), mine.get(name))
            for name in sorted(theirs.keys() | mine.keys())
            if theirs.get(name) != mine.get(name)
        }

    def _settings(self) -> dict[str, Any]:
        """The settings that decide the weights of an epoch, flat, with the network's defaults filled in."""
        network = IFDDConfig.from_dict(self.model).to_dict()
        del network["num_classes"]
        flat = _flatten({**self.to_dict(), "model": network})
        return {name: value for name, value in flat.items() if name not in CHANGEABLE}

    def with_epochs(self, epochs: int) -> TrainingConfig:
        """The same training with another number of epochs."""
        return replace(self, optim=replace(self.optim, epochs=epochs))


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
