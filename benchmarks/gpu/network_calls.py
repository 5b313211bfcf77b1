"""The calls of ops that the network makes, read off a run of it: shapes, strides, constants.

The network runs on fake tensors, so that nothing is computed, and every op is noted as it is called, views as
views. An :class:`Instance` is one such call, for any number of clips, dtype and device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.resource_cases import cases as compiled_cases
from ifdd import IFDD, IFDDConfig
from ifdd.losses import IFDDLoss
from ifdd.modules.backbone import MultiscaleBlock
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels._schema import NAMESPACE
from ifdd_kernels.reference._common import accumulator
from ifdd_kernels.registry import REGISTRY, Maker, Sample

#: Clips of the recorded run.
RECORDED_BATCH = 10
#: dtypes and clips of the tests on a GPU: one clip, which kernels are specialised for, in the precision of
#: inference.
TESTED = ((torch.float32, 2), (torch.bfloat16, 1), (torch.bfloat16, 2), (torch.float16, 2))
ACTIVATION, PARAMETER, NUMBERS = "activation", "parameter", "numbers"


@dataclass(frozen=True)
class Layout:
    """A tensor argument as it lies in memory, for one clip where it has an axis of clips."""

    role: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    #: Elements of the memory that it is a view of.
    stored: int
    per_clip: bool

    def sizes(self, batch: int) -> tuple[int, ...]:
        """The shape for a number of clips."""
        return (batch, *self.shape[1:]) if self.per_clip else self.shape

    def elements(self, batch: int) -> int:
        """Elements of the memory for a number of clips."""
        return self.stored * batch if self.per_clip else self.stored

    def empty(self, batch: int, dtype: torch.dtype, device: str) -> Tensor:
        """A tensor that lies like this, its memory included."""
        memory = torch.empty(self.elements(batch), dtype=dtype, device=device)
        return memory.as_strided(self.sizes(batch), self.strides, self.offset)


@dataclass(frozen=True)
class Instance:
    """A call of an op: layouts in place of tensors."""

    op: str
    label: str
    args: tuple[Any, ...]

    @property
    def name(self) -> str:
        """Op and place in the network, for the name of a test."""
        return f"{self.op}-{self.label}"

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """Those of the tensors."""
        return tuple(arg for arg in self.args if isinstance(arg, Layout))

    @property
    def largest(self) -> int:
        """Elements a clip of the largest tensor."""
        return max(layout.stored for layout in self.layouts if layout.per_clip)

    def dtype_of(self, layout: Layout, dtype: torch.dtype) -> torch.dtype:
        """Parameters and positions are float32 beside 16-bit activations, frame numbers integers."""
        if layout.role == NUMBERS:
            return torch.int64
        return dtype if layout.role == ACTIVATION else accumulator(dtype)

    def empty(self, batch: int, dtype: torch.dtype, device: str) -> tuple[Any, ...]:
        """Arguments without values."""
        return tuple(
            a.empty(batch, self.dtype_of(a, dtype), device) if isinstance(a, Layout) else a for a in self.args
        )

    def sample(self, batch: int, dtype: torch.dtype, device: str, seed: int = 0) -> Sample:
        """Arguments with random values, drawn on the device."""
        generator = torch.Generator(device).manual_seed(seed)
        args = self.empty(batch, dtype, device)
        for place, arg in enumerate(args):
            if isinstance(arg, Tensor):
                self._draw(place, arg, generator)
        return Sample(self.label, args)

    def _draw(self, place: int, values: Tensor, generator: torch.Generator) -> None:
        layout, name = self.args[place], REGISTRY[self.op].signature.arguments[place]
        frames = self.layouts[0].shape[1]
        if layout.role == NUMBERS:
            values.random_(0, frames, generator=generator)
        elif layout.role == ACTIVATION:
            values.normal_(generator=generator)
        elif name.endswith("_index"):  # some beyond either end
            values.uniform_(-2, frames + 1, generator=generator)
        elif values.dim() > 1:
            values.normal_(0, math.prod(values.shape[1:]) ** -0.5, generator=generator)
        else:
            mean, spread = (1, 0.3) if "norm_weight" in name else (0, 0.1)
            values.normal_(mean, spread, generator=generator)


@functools.cache
def roles(op: str) -> tuple[str | None, ...]:
    """The kind of each argument of an op: the dtype that the registry first gives it; None: no tensor."""
    found: list[str | None] = [None] * len(REGISTRY[op].signature.arguments)
    for sample in REGISTRY[op].samples(Maker(torch.bfloat16, "meta")):
        for place, arg in enumerate(sample.args):
            if isinstance(arg, Tensor) and found[place] is None:
                found[place] = ACTIVATION if arg.dtype == torch.bfloat16 else PARAMETER
    return tuple(found)


def instance(op: str, label: str, args: Sequence[Any], batch: int) -> Instance:
    """From arguments for ``batch`` clips, where activations and positions have an axis of clips in front."""
    return Instance(op, label, tuple(_layout(op, place, arg, batch) for place, arg in enumerate(args)))


def _layout(op: str, place: int, arg: Any, batch: int) -> Any:
    if not isinstance(arg, Tensor):
        return list(arg) if isinstance(arg, (list, tuple)) else arg
    role = roles(op)[place]
    assert role is not None, f"{op}: argument {place} is a tensor only here"
    if not arg.is_floating_point():
        role = NUMBERS
    clips = role != PARAMETER or REGISTRY[op].signature.arguments[place].endswith("_index")
    per_clip = clips and bool(arg.shape) and arg.shape[0] == batch
    return Layout(
        role,
        (1, *arg.shape[1:]) if per_clip else tuple(arg.shape),
        tuple(arg.stride()),
        arg.storage_offset(),
        arg.untyped_storage().nbytes() // arg.element_size() // (batch if per_clip else 1),
        per_clip,
    )


class _Recorder(TorchDispatchMode):
    """Notes calls of this library's ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Instance] = []
        self.place = ""

    def note(self, op: str, args: Sequence[Any]) -> None:
        self.calls.append(instance(op, self.place, args, RECORDED_BATCH))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == NAMESPACE:
            name = func._schema.name.partition("::")[2]
            # The longest first: one op's name begins another's.
            self.note(max((op for op in OPERATORS if name.startswith(op)), key=len), args)
        return func(*args, **(kwargs or {}))


class _Linear(TorchFunctionMode):
    """``linear`` is PyTorch's own where the dtypes are alike: the call is noted all the same."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear and not kwargs and len(args) == 3 and args[2] is not None:
            self.recorder.note("linear", args)
        return func(*args, **(kwargs or {}))


def _record(config: IFDDConfig) -> list[Instance]:
    recorder = _Recorder()
    with torch.device("meta"):
        model = IFDD(config)
    with FakeTensorMode(), torch.no_grad():
        _without_memory(model)
        for name, module in model.named_modules():
            if name and (name.count(".") == 0 or isinstance(module, MultiscaleBlock)):
                place = name.replace("backbone.blocks.", "block ")
                module.register_forward_pre_hook(functools.partial(_enter, recorder, place))
        model.pyramid.register_forward_hook(functools.partial(_enter, recorder, "lifting"))
        frames, size = config.clip_frames, config.image_size
        clips = torch.empty(RECORDED_BATCH, 3, frames, size, size)
        labels = torch.empty(RECORDED_BATCH, dtype=torch.int64)
        with recorder, _Linear(recorder):
            output = model(clips)
            recorder.place = "loss"
            if output.lifting_residual is not None:
                IFDDLoss()(output, labels)
    return recorder.calls


def _enter(recorder: _Recorder, place: str, *of_the_module: Any) -> None:
    recorder.place = place


def _without_memory(model: nn.Module) -> None:
    """Fake parameters and buffers for those on the meta device, which autocast does not know."""
    for module in model.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, nn.Parameter(torch.empty(value.shape, dtype=value.dtype)))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def variants(config: IFDDConfig) -> Iterator[IFDDConfig]:
    """The network, and others that call other ops, or these in other ways, after the backbone.

    A block and the next have different shapes only at the beginning of a stage: two of each suffice. Without
    a merged stage the frames are the last stage's tokens as they lie behind the class token.
    """
    yield replace(config, depths=tuple(min(depth, 2) for depth in config.stage_depths))
    shallow = replace(config, depths=(1,) * len(config.stage_depths))
    last = (len(config.stage_depths) - 1,)
    yield replace(shallow, split="topk", stages=last)
    yield replace(shallow, lifting="predict_first", index_sampling="aligned", stages=last)


@functools.cache
def instances(config: IFDDConfig) -> tuple[Instance, ...]:
    """Every different call of an op in the network and its variants, and those that one stands for."""
    found: dict[Any, Instance] = {}
    for variant in variants(config):
        for call in _record(variant):
            for one in (call, *_parts(call)):
                found.setdefault(repr((one.op, one.args)), one)
    return _named_apart(found.values())


def _parts(call: Instance) -> Iterator[Instance]:
    """The calls that one of ``static_dynamic_split`` stands for on a GPU, and what those consist of."""
    if call.op != "static_dynamic_split":
        return
    x, weight, bias, static, dynamic, *norms, height, width, pool, reach, eps, aligned = call.args
    place, length, clips = call.label, x.shape[1], RECORDED_BATCH
    yield Instance("split_index", place, (x, weight, bias, static, dynamic, height, width, pool, reach))
    positions = _layout("split_frames", 1, torch.empty(clips, length // 2, device="meta"), clips)
    yield Instance("split_frames", place, (x, positions, positions, *norms, eps, aligned))
    yield Instance("frame_tokens", place, (x, weight, bias, height, width, pool))
    tokens = torch.empty(clips, length, weight.shape[0] * pool * pool, device="meta")
    scale = 1 / tokens.shape[-1]
    yield Instance("frame_correlation", place, (_layout("frame_correlation", 0, tokens, clips), scale))


def _named_apart(calls: Any) -> tuple[Instance, ...]:
    """Several calls of an op in one place get numbers."""
    counts: dict[str, int] = {}
    named = []
    for call in calls:
        counts[call.name] = counts.get(call.name, 0) + 1
        number = counts[call.name]
        named.append(call if number == 1 else replace(call, label=f"{call.label}, call {number}"))
    return tuple(named)


@functools.cache
def ragged() -> tuple[Instance, ...]:
    """One call of each op at sizes that no tile divides: those of the table of resources.

    Not of augment_clips, whose crops and steps are not values that could fill a layout.
    """
    return tuple(
        instance(op, label, args, args[0].shape[0])
        for op, label, args in compiled_cases()
        if label == "ragged" and op != "augment_clips"
    )


def select(calls: Sequence[Instance], wanted: Callable[[Instance], bool]) -> tuple[Instance, ...]:
    """Those that a test wants; an error if there are none."""
    found = tuple(call for call in calls if wanted(call))
    assert found, "no call of the network is left"
    return found
