"""CUDA graphs: the launches of a module recorded once, and replayed by one call forward and one backward.

A training step of this network is hundreds of launches. Starting them one by one takes a CPU longer than
running them takes a large GPU; a replay starts all of them at once. What a graph asks for, and what stays
outside of it: docs/training.md, "CUDA graphs".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

WARMUP = 3
"""Calls before a capture: libraries make their workspaces in them, Triton compiles and tunes its kernels."""

State = tuple[bool, bool, bool, torch.dtype]


def capture(module: nn.Module, *examples: Tensor, warmup: int = WARMUP) -> Captured:
    """Captures the graphs of a module for inputs like the examples.

    In training mode and where gradients are recorded there is a graph of backward, too, and the result takes
    part in autograd like the module: optimisers, their rates, gradient clipping, loss scaling, averages of
    the weights and several backward passes before a step work as they do without it::

        step = capture(network_with_loss, clips, targets)
        for clips, targets in loader:
            step(clips, targets).backward()
            optimizer.step()
            optimizer.zero_grad()

    The examples are run, and change nothing: buffers and random numbers are what they were before.

    Args:
        module: takes tensors, and returns a tensor or a tuple (or other tree) of them. It may not read values
            on the host, and none of its children may have hooks: a replay would not call them.
        examples: one for each input, on a GPU.
        warmup: calls before the capture.

    Returns:
        :class:`Captured`.

    Raises:
        ValueError: inputs that are not tensors on one GPU or require a gradient, or a module with hooks.
    """
    devices = {example.device for example in examples if isinstance(example, Tensor)}
    if not examples or len(devices) != 1 or not all(isinstance(example, Tensor) for example in examples):
        raise ValueError(f"capture: examples must be tensors on one GPU, got {_described(examples)}")
    if not _has_graphs(examples[0].device):
        raise ValueError(f"capture: CUDA graphs need a GPU; the examples are on {examples[0].device}")
    if any(example.requires_grad for example in examples):
        raise ValueError("capture: an example requires a gradient; graphs have those of parameters only")
    hooked = [name or type(module).__name__ for name, part in module.named_modules() if _has_hooks(part)]
    if hooked:
        raise ValueError(f"capture: {hooked[0]} has hooks, which a replay would not call; remove them")
    return Captured(module, examples, warmup)


class Captured:
    """The graphs of a module for inputs of one shape; :func:`capture` makes them.

    A call with inputs of other shapes, dtypes or devices, in another mode (training, gradients, autocast), or
    with inputs that require a gradient runs the module as it is. Results belong to the caller: the next
    replay does not write into them. Gradients are those of the latest call only.

    The graphs hold the addresses of parameters and buffers. What writes into these (optimisers,
    `load_state_dict`) is seen by the next replay; what puts others in their place (`Module.to`, a new head)
    needs a new capture.
    """

    def __init__(self, module: nn.Module, examples: Sequence[Tensor], warmup: int) -> None:
        self._module = module
        self._device = examples[0].device
        self._state = self._now()
        training = self._state[0] and self._state[1]
        self._parameters = tuple(p for p in module.parameters() if p.requires_grad) if training else ()
        self._calls = 0
        # Not of inference mode, in which a replay could not write into them later.
        with torch.inference_mode(False), torch.set_grad_enabled(self._state[1]):
            self._inputs = tuple(example.detach().clone() for example in examples)
            with _unchanged(module, self._device), _without_cache():
                self._record(warmup)

    def _record(self, warmup: int) -> None:
        device = self._device
        # One stream for both: libraries keep a handle and a workspace for each.
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(warmup):
                results = self._results(self._module(*self._inputs))[0]
                self._gradients(results, [torch.ones_like(one) for one in results if one.requires_grad])
                del results
        torch.cuda.current_stream(device).wait_stream(stream)
        # Threads that pin batches meanwhile call CUDA, too: of these calls the capture must not fail.
        how: dict[str, Any] = {"stream": stream, "capture_error_mode": "thread_local"}
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._forward, **how):
            self._outputs, self._tree = self._results(self._module(*self._inputs))
        self._grad_outputs = [torch.empty_like(one) for one in self._outputs if one.requires_grad]
        self._grads: tuple[Tensor | None, ...] = ()
        if self._parameters and self._grad_outputs:
            with torch.cuda.graph(self._backward, pool=self._forward.pool(), **how):
                self._grads = self._gradients(self._outputs, self._grad_outputs)

    @staticmethod
    def _results(found: Any) -> tuple[list[Tensor], Any]:
        leaves, tree = pytree.tree_flatten(found)
        if not all(isinstance(leaf, Tensor) for leaf in leaves):
            raise ValueError(f"capture: a module must return tensors, got {_described(leaves)}")
        return leaves, tree

    def _gradients(
        self, results: Sequence[Tensor], grad_outputs: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...]:
        """Of the parameters; None for those that took no part."""
        wanted = [one for one in results if one.requires_grad]
        if not (self._parameters and wanted):
            return ()
        return torch.autograd.grad(wanted, self._parameters, grad_outputs, allow_unused=True)

    def _now(self) -> State:
        kind = self._device.type
        return (
            self._module.training,
            torch.is_grad_enabled(),
            torch.is_autocast_enabled(kind),
            torch.get_autocast_dtype(kind),
        )

    def fits(self, *inputs: Tensor) -> bool:
        """Whether a call with these inputs is a replay, now."""
        return (
            self._now() == self._state
            and len(inputs) == len(self._inputs)
            and all(
                one.shape == own.shape
                and one.dtype == own.dtype
                and one.device == own.device
                and not one.requires_grad
                for one, own in zip(inputs, self._inputs, strict=True)
            )
        )

    def __call__(self, *inputs: Tensor) -> Any:
        """What the module returns.

        Raises:
            RuntimeError: in backward, where there was another call in between.
        """
        if not self.fits(*inputs):
            return self._module(*inputs)
        results = _Replay.apply(self, inputs, *self._parameters)
        return pytree.tree_unflatten(list(results), self._tree)

    def replay_forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Fresh results."""
        self._calls += 1
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        self._forward.replay()
        return tuple(one.detach().clone() for one in self._outputs)

    def replay_backward(self, call: int, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """Gradients of the parameters, in memory that the next replay writes to again."""
        if call != self._calls:
            raise RuntimeError("capture: backward of an earlier call; a later one has replaced its values")
        wanted = [grad for grad, own in zip(grads, self._outputs, strict=True) if own.requires_grad]
        torch._foreach_copy_(self._grad_outputs, wanted)
        # Autograd keeps what it gets as a parameter's gradient, without a copy. One that is still there will
        # be added to, and is about to be overwritten.
        held = [
            parameter
            for parameter, own in zip(self._parameters, self._grads, strict=True)
            if own is not None and parameter.grad is not None and parameter.grad.data_ptr() == own.data_ptr()
        ]
        for parameter in held:
            assert parameter.grad is not None
            parameter.grad = parameter.grad.clone()
        self._backward.replay()
        return tuple(None if own is None else own.detach() for own in self._grads)

    @property
    def calls(self) -> int:
        """Replays so far."""
        return self._calls

    @property
    def differentiable(self) -> tuple[bool, ...]:
        """Which results have gradients."""
        return tuple(one.requires_grad for one in self._outputs)


class _Replay(torch.autograd.Function):
    """The captured module as one node of autograd, whose inputs with gradients are the parameters."""

    @staticmethod
    def forward(ctx: Any, captured: Captured, inputs: Sequence[Tensor], *_: Tensor) -> tuple[Tensor, ...]:
        results = captured.replay_forward(inputs)
        ctx.captured, ctx.call = captured, captured.calls
        fixed = (one for one, has in zip(results, captured.differentiable, strict=True) if not has)
        ctx.mark_non_differentiable(*fixed)
        return results

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.captured.replay_backward(ctx.call, grads))


@contextmanager
def _unchanged(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Puts the buffers (statistics of a batch norm) and the random numbers back."""
    buffers = list(module.buffers())
    before = [buffer.clone() for buffer in buffers]
    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        yield
    with torch.no_grad():
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


@contextmanager
def _without_cache() -> Iterator[None]:
    """Autocast as it is, but with weights cast anew each time: a cached one would stay as it was captured."""
    before = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def _has_graphs(device: torch.device) -> bool:
    return device.type == "cuda"


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _described(values: Sequence[object]) -> str:
    kinds = [str(one.device) if isinstance(one, Tensor) else type(one).__name__ for one in values]
    return ", ".join(kinds) or "none"
