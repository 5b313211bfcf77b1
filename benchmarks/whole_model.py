"""The whole network beside the eager original, on the CPU: inference and a training step, interleaved.

    python -m benchmarks.whole_model [--rounds N] [--threads N] [--out FILE]

Both networks hold the same weights; their outputs and gradients are compared before anything is timed. A
training step is forward, loss and backward, without the optimiser.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import ifdd_kernels
from benchmarks.original import OriginalIFDD
from ifdd import IFDD, IFDDConfig
from ifdd.checkpoint import from_original

#: The first layer's weight in both networks: its gradient has passed through everything.
FIRST = ("embedding.conv.weight", "embed.conv_proj.weight")
CASES = (("inference", 1), ("training step", 1), ("training step", 2))


def make_pair() -> tuple[IFDD, nn.Module]:
    """IFDD with the XS backbone and its eager original, same weights, no dropout of any kind."""
    torch.manual_seed(0)
    original = OriginalIFDD(7, clip_frames=16, image_size=224, dropout=0.0, drop_path=0.0)
    ours = IFDD(IFDDConfig(dropout=0.0, drop_path=0.0))
    ours.load_state_dict(from_original(original.state_dict(), "model", target=ours).state_dict)
    return ours, original


def step(model: nn.Module, clips: Tensor, train: bool) -> Tensor:
    """One inference or one forward and backward; returns the logits."""
    if not train:
        with torch.no_grad():
            logits: Tensor = model(clips).logits
        return logits
    model.zero_grad(set_to_none=True)
    output = model(clips)
    (output.logits.square().sum() + output.lifting_residual.square().sum()).backward()
    return output.logits.detach()


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(ours: IFDD, original: nn.Module, kind: str, batch: int, rounds: int) -> str:
    """Checks, then times one case; returns its line."""
    train = kind == "training step"
    for model in (ours, original):
        model.train(train)
    clips = torch.rand(batch, 3, 16, 224, 224)
    error = relative(step(ours, clips, train), step(original, clips, train))
    if train:
        grads = [
            dict(model.named_parameters())[name].grad
            for model, name in zip((ours, original), FIRST, strict=True)
        ]
        error = max(error, relative(*grads))
    if not error < 1e-3:
        raise AssertionError(f"{kind}, B={batch}: results differ by {error:.1e}; nothing was timed")
    pairs = [
        (seconds(lambda: step(ours, clips, train)), seconds(lambda: step(original, clips, train)))
        for _ in range(rounds)
    ]
    ratio = statistics.median(theirs / mine for mine, theirs in pairs)
    mine, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    times = f"ifdd {mine:7.3f} s  original {theirs:7.3f} s  ratio {ratio:5.2f}"
    return f"{kind:14s} B={batch}  {times}  error {error:.1e}"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds of each case")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--out", type=Path, default=None, help="file the lines are appended to as they come")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    info = ifdd_kernels.build_info()
    lines = [
        f"whole model (mvit_xs, 16 frames of 224x224), float32, {options.threads} threads, "
        f"{platform.machine()}, torch {torch.__version__}, instruction set {info.get('instruction_set')}, "
        f"median of {options.rounds} interleaved pairs"
    ]
    ours, original = make_pair()
    for position in range(len(CASES) + 1):
        if position:
            lines.append(measure(ours, original, *CASES[position - 1], options.rounds))
        print(lines[-1], flush=True)
        if options.out is not None:
            with options.out.open("a") as file:
                file.write(lines[-1] + "\n")


if __name__ == "__main__":
    main()
