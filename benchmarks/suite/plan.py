"""The plan of a run, in order of importance: the budget cuts off its end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.rivals import vision
from benchmarks.suite import cases
from benchmarks.suite.cases import Case
from benchmarks.suite.shapes import network_shape
from ifdd import IFDDConfig


@dataclass(frozen=True)
class Task:
    """One case in one precision and pass."""

    case: Case
    precision: str
    pass_name: str


BOTH = ("inference", "training")
NETWORK = IFDDConfig()
SMALL = IFDDConfig(backbone="mvit_nano", image_size=64)
"""A network of seconds instead of minutes, to try the GPU's plan on a CPU."""


def _tasks(found: list[Case], precisions: tuple[str, ...], passes: tuple[str, ...] = BOTH) -> Iterator[Task]:
    for case in found:
        for precision in precisions:
            for pass_name in passes if case.differentiable else ("inference",):
                yield Task(case, precision, pass_name)


def _eager(found: list[Case]) -> list[Case]:
    """Without the compiled contenders."""
    return [replace(c, contenders=tuple(k for k in c.contenders if k.compiled is None)) for c in found]


def _compiled(found: list[Case], names: tuple[str, ...]) -> list[Case]:
    """Compiled contenders of these names beside the original, whose time they are compared with."""
    return [case.only((case.anchor, *names)) for case in found]


COMPILED = ("original+compile", "rewrite+compile", "ifdd+compile")


def cpu(shorter: bool = False) -> Iterator[Task]:
    """The CPU table; ``shorter`` is the preset of ``make bench``."""
    shape = network_shape(NETWORK)

    def ops(batch: int) -> list[Case]:
        make = (cases.pool_tokens, cases.pooled_attention)
        return [one(shape, block, batch, "cpu") for one in make for block in shape.blocks]

    issm = {batch: [cases.issm(shape, batch, "cpu")] for batch in (1, 4, 16)}
    ladm = {batch: [cases.ladm(shape, batch, "cpu")] for batch in (1, 4, 16)}
    model = {batch: [cases.model(NETWORK, batch, "cpu")] for batch in (1, 2)}
    firsts = [next(b for b in shape.blocks if b.stage == stage) for stage in range(4)]
    blocks = [cases.block(shape, block, 1, "cpu") for block in firsts]
    ours = ("original", "rewrite", "native", "ifdd")

    yield from _tasks(_eager(issm[1]) + _eager(issm[16]), ("fp32",))
    yield from _tasks([case.only(ours) for case in ops(1)], ("fp32",))
    yield from _tasks(_eager(ladm[1]), ("fp32",))
    yield from _tasks(_eager(model[1]), ("fp32",))
    yield from _tasks(_compiled(issm[1] + issm[16], COMPILED), ("fp32",))
    yield from _tasks(_eager(model[2]), ("fp32",), ("training",))
    yield from _tasks(_eager(issm[1] + issm[16] + ladm[1]), ("bf16",))
    yield from _tasks([case.only((case.anchor, "native")) for case in ops(1)], ("bf16",))
    if vision.available():
        yield from _tasks(_eager([cases.backbone_s(1)]), ("fp32",), ("inference",))
    if shorter:
        return
    yield from _tasks(_compiled(ladm[1], COMPILED), ("fp32",))
    yield from _tasks(_compiled(model[1], ("original+compile",)), ("fp32",))
    yield from _tasks(_compiled(ops(1), ("original+compile",)), ("fp32",))
    yield from _tasks(_eager(model[1]), ("bf16",))
    yield from deployment()
    singles = cases.small_ops(shape, 1, "cpu") + cases.around_attention(shape, 1, "cpu")
    yield from _tasks(_eager(singles), ("fp32",))
    yield from _tasks(_eager(blocks), ("fp32",))
    yield from _tasks(_eager(issm[4] + ladm[4] + ladm[16]), ("fp32",))
    yield from _tasks(_eager([cases.issm(shape, 1, "cpu", frames) for frames in (16, 32)]), ("fp32",))
    sizes = [replace(NETWORK, image_size=size) for size in (128, 160)]
    other = [cases.model(config, 1, "cpu") for config in (replace(NETWORK, clip_frames=32), *sizes)]
    yield from _tasks(_eager(other), ("fp32",), ("inference",))
    yield from _tasks(_eager(singles), ("bf16",))
    yield from _tasks(_eager(cases.small_ops(shape, 16, "cpu")), ("fp32",))
    yield from _tasks(_compiled(ops(1), ("rewrite+compile", "shifts+compile")), ("fp32",), ("training",))
    yield from _tasks(_compiled(issm[1], ("original+max-autotune",)), ("fp32",), ("inference",))
    every = [case.only(("original", "native", "ifdd")) for case in issm[1] + ladm[1] + ops(1)]
    yield from _tasks(every, ("fp16",))
    yield from _tasks([case.only(ours) for case in ops(4)], ("fp32",))
    yield from _tasks([case.only(ours) for case in ops(16)], ("fp32",))
    # A machine that runs out of memory measures nothing after that, see Session.run: the float64 step that a
    # training step of the network is checked against keeps 2.5 GB a clip.
    yield from _tasks(_eager([cases.model(NETWORK, 16, "cpu")]), ("fp32",), ("inference",))
    yield from _tasks(_eager([cases.model(NETWORK, 4, "cpu")]), ("fp32",))


def deployment(network: IFDDConfig = NETWORK) -> Iterator[Task]:
    """The network in deployment runtimes, for inference on a CPU."""
    for precision in ("fp32", "bf16"):
        found = [cases.deployed(network, batch) for batch in (1, 4)]
        yield from _tasks(found, (precision,), ("inference",))


def gpu(device: str = "cuda", network: IFDDConfig = NETWORK) -> Iterator[Task]:
    """The GPU table; it begins with what no estimate on paper can settle.

    Sixteen clips always before one: what is chosen or compiled for the first batch may be kept for the next.
    """
    shape = network_shape(network)
    every = ("bf16", "fp32", "tf32", "fp16")
    main = ("fp32", "bf16")
    block = {b.label: b for b in shape.blocks}

    def pools(batch: int) -> list[Case]:
        return [cases.pool_tokens(shape, b, batch, device) for b in shape.blocks]

    def attentions(batch: int) -> list[Case]:
        return [cases.pooled_attention(shape, b, batch, device) for b in shape.blocks]

    issm = {batch: [cases.issm(shape, batch, device)] for batch in (1, 4, 16)}
    ladm = {batch: [cases.ladm(shape, batch, device)] for batch in (1, 4, 16)}
    model = {batch: [cases.model(network, batch, device)] for batch in (1, 4, 16)}
    firsts = [next(b for b in shape.blocks if b.stage == stage) for stage in range(4)]
    wide = [block["0"], block["1"]]

    # grid_sample against the small product; the depthwise convolution by shape and layout; whole steps;
    # attention with its backward.
    yield from _tasks(_eager(issm[16] + issm[1]), main)
    yield from _tasks(_eager(pools(16)), main)
    yield from _tasks(_eager(model[16]), ("fp32", "tf32", "bf16"), ("training",))
    yield from _tasks(_eager(attentions(16)), main)
    yield from _tasks(_eager(model[16] + model[1]), main, ("inference",))
    yield from _tasks(_eager(ladm[16] + ladm[1]), main)
    yield from _tasks(_compiled(issm[16], COMPILED), main)
    compiled = ("original+compile", "rewrite+compile", "shifts+compile")
    for make in (cases.pool_tokens, cases.pooled_attention):
        yield from _tasks(_compiled([make(shape, b, 16, device) for b in wide], compiled), ("bf16",))
    yield from _tasks(_compiled(ladm[16], COMPILED), ("bf16",))
    yield from _tasks(_compiled(model[16], COMPILED), ("bf16",), ("training",))
    yield from _tasks(_eager(pools(1) + attentions(1)), main)
    if device == "cuda" and vision.available():
        yield from _tasks([cases.backbone_s(16)], ("bf16",))
    singles = cases.small_ops(shape, 16, device) + cases.around_attention(shape, 16, device)
    yield from _tasks(_eager(singles), main)
    joined = [cases.add_layer_norm(shape, b, 1, device) for b in firsts]
    yield from _tasks(_eager(cases.small_ops(shape, 1, device) + joined), main)
    yield from _tasks(_eager([cases.block(shape, b, 16, device) for b in firsts]), ("bf16",))
    yield from _tasks(_eager(model[1]), main, ("training",))
    yield from _tasks(_compiled(model[1], COMPILED), ("bf16",), ("inference",))
    yield from _tasks(_eager(issm[16] + pools(16) + attentions(16) + ladm[16]), ("tf32", "fp16"))
    yield from _tasks(_eager(issm[4] + ladm[4] + model[4]), every)
    sizes = [replace(network, image_size=size) for size in (128, 160, 320)]
    yield from _tasks(_eager([cases.model(replace(network, clip_frames=32), 16, device)]), ("bf16",))
    yield from _tasks(_eager([cases.model(config, 1, device) for config in sizes]), ("bf16",), ("inference",))
    yield from _tasks(_eager([cases.issm(shape, 16, device, frames) for frames in (16, 32)]), ("bf16",))
    yield from _tasks(_compiled(issm[16], ("original+max-autotune",)), ("bf16",), ("inference",))
