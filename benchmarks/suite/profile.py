"""``python -m benchmarks.suite.profile``: the time and the launches of a network by its parts."""

from __future__ import annotations

import argparse
import bisect
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.rivals.contender import DeviceMaker, Step, prepare
from benchmarks.suite import machine, plan
from benchmarks.suite.cases import Case, model
from benchmarks.suite.journal import Journal
from benchmarks.suite.precision import PRECISIONS
from benchmarks.suite.results import Writer
from benchmarks.suite.runner import PASSES

PREFIX = "part: "
OTHER = "other"

#: Module names, of ``ifdd`` or of the original, and their part. The innermost module that matches counts.
MODULE_PARTS = (
    (r"^(module\.)?(embedding|embed)$", "embedding"),
    (r"blocks\.\d+\.(attention|attn)\.qkv$", "qkv"),
    (r"blocks\.\d+\.(attention\.output|attn\.project|shortcut|project)$", "projections"),
    (r"blocks\.\d+\.attn\.pool_[qkv]$", "pools"),
    (r"blocks\.\d+\.(attention|attn)$", "attention"),
    (r"blocks\.\d+\.(attention_norm|mlp_norm|norm[12])$|backbone\.norm$", "norms"),
    (r"blocks\.\d+$", "mlp"),
    (r"pyramid$|PANLayer|CatConv", "pyramid"),
    (r"adapt_split$|lifting\.split$", "split"),
    (r"lifting(\.\w+)?$|WaveLifts$", "lifting"),
    (r"head$", "head"),
)
#: Ops called inside a module of another part.
OP_PARTS = {
    "ifdd::pool_tokens": "pools",
    "ifdd::max_pool_tokens": "projections",
    "ifdd::split_index": "split",
    "ifdd::split_frames": "split",
    "ifdd::static_dynamic_split": "split",
    "ifdd::lifting_residual": "lifting",
}


@dataclass
class Share:
    """Seconds and launches of one part; on a CPU, calls of PyTorch's ops stand for launches."""

    seconds: float = 0.0
    launches: int = 0


@dataclass
class Profile:
    """Shares of all parts."""

    parts: dict[str, Share] = field(default_factory=lambda: defaultdict(Share))

    @property
    def seconds(self) -> float:
        """Of all parts."""
        return sum(share.seconds for share in self.parts.values())

    @property
    def launches(self) -> int:
        """Of all parts."""
        return sum(share.launches for share in self.parts.values())


def part_of_module(name: str) -> str | None:
    """The part a module stands for, by its dotted name."""
    return next((part for pattern, part in MODULE_PARTS if re.search(pattern, name)), None)


@contextmanager
def _marked(network: nn.Module) -> Iterator[None]:
    """Every module that stands for a part records a range around its forward pass."""
    with ExitStack() as stack:
        for name, module in network.named_modules():
            if part := part_of_module(name):
                _mark(stack, module, part)
        yield


def _mark(stack: ExitStack, module: nn.Module, part: str) -> None:
    open_ranges: list[Any] = []

    def enter(*_: Any) -> None:
        open_ranges.append(record_function(PREFIX + part))
        open_ranges[-1].__enter__()

    def leave(*_: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    stack.callback(module.register_forward_pre_hook(enter).remove)
    stack.callback(module.register_forward_hook(leave).remove)


def profile_step(step: Step, device: str) -> Profile:
    """Runs a step of a network once to warm up and once under the profiler."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    network = step.bound.function
    assert isinstance(network, nn.Module)
    step()
    with _marked(network), profile(activities=activities) as recorder:
        step()
        if device == "cuda":
            torch.cuda.synchronize()
    return attribute(recorder.events() or [], device)


def attribute(events: Iterable[Any], device: str) -> Profile:
    """Adds events up by part.

    A forward event belongs to the innermost marked range around it. A backward event belongs to where the
    forward op with its sequence number ran, which is how autograd numbers both; nodes that an op adds beside
    its own (of in-place operations on views) have the numbers that follow.
    """
    events = [event for event in events if event.device_type == DeviceType.CPU]
    numbered = sorted(
        (event.sequence_nr, part)
        for event in events
        if event.sequence_nr >= 0 and (part := _enclosing_part(event))
    )
    result = Profile()
    for event in events:
        if event.name.startswith(PREFIX):
            # A range around others: what it took itself is Python between ops.
            if device == "cpu":
                result.parts[event.name.removeprefix(PREFIX)].seconds += event.self_cpu_time_total * 1e-6
            continue
        part = _enclosing_part(event) or _part_of_backward(event, numbered)
        share = result.parts[part]
        if device == "cuda":
            share.seconds += sum(kernel.duration for kernel in event.kernels) * 1e-6
            share.launches += len(event.kernels)
        else:
            share.seconds += event.self_cpu_time_total * 1e-6
            share.launches += event.cpu_parent is None or not _is_op(event.cpu_parent)
    return result


def _ancestors(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent


def _is_op(event: Any) -> bool:
    return "::" in event.name and not event.name.startswith("autograd::")


def _enclosing_part(event: Any) -> str | None:
    for one in _ancestors(event):
        name = one.name.removesuffix("_backward")
        if name in OP_PARTS:
            return OP_PARTS[name]
        if one.name.startswith(PREFIX):
            return str(one.name.removeprefix(PREFIX))
    return None


def _part_of_backward(event: Any, numbered: list[tuple[int, str]]) -> str:
    """The part of the last forward op that is not numbered higher than the node the event runs in."""
    place = bisect.bisect_right(numbered, (_sequence_of_backward(event), chr(sys.maxunicode)))
    return numbered[place - 1][1] if place else OTHER


def _sequence_of_backward(event: Any) -> int:
    """Sequence number of the autograd node an event runs in; -1 outside of backward."""
    for one in _ancestors(event):
        if one.name.startswith("autograd::engine::evaluate_function"):
            return int(one.sequence_nr)
    return -1


def measure(
    case: Case, precision_name: str, pass_name: str, names: Iterable[str], device: str, writer: Writer
) -> None:
    """Profiles the named contenders of a network's case and writes a row for each part."""
    precision, training = PRECISIONS[precision_name], PASSES[pass_name]
    inputs = case.make(DeviceMaker(case.dtype or precision.activations, device))
    for contender in case.only(names).contenders:
        with precision.context(device):
            found = profile_step(prepare(contender, inputs, training), device)
        for part, share in found.parts.items():
            fields = case.identity(precision_name, pass_name) | asdict(share)
            share_of_all = share.seconds / found.seconds
            writer.write("profile", **fields, contender=contender.name, part=part, share=share_of_all)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite.profile", description=__doc__)
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--batch", type=int, default=16 if cuda else 1)
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="bf16" if cuda else "fp32")
    parser.add_argument("--passes", default="inference,training")
    parser.add_argument("--contenders", default="original,ifdd")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="result file, appended to")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    journal = Journal.of_process()
    path = options.out or journal.path or machine.results_folder(options.device) / "profile.jsonl"
    writer = Writer(path, journal.facts or machine.describe(options.device, options.threads))
    case = model(plan.NETWORK, options.batch, options.device)
    for pass_name in options.passes.split(","):
        names = options.contenders.split(",")
        measure(case, options.precision, pass_name, names, options.device, writer)
    print(path)


if __name__ == "__main__":
    main()
