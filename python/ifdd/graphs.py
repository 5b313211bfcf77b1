"""CUDA graphs: the launches of a module recorded once, and replayed by one call forward and one backward.

A training step of this network is hundreds of launches. Starting them one by one takes a CPU longer than
running them takes a large GPU; a replay starts all of them at once. What a graph asks for, and what stays
outside of it: docs/training.md, "CUDA graphs".
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils import _pytree as pytree

WARMUP = 3
"""Calls before a capture: libraries make their workspaces in them, Triton compiles and tunes its kernels."""


class State(NamedTuple):
    """What a graph is captured in, and replayed in only."""

    training: tuple[bool, ...]
    """of the module and each part of it"""
    trained: tuple[bool, ...]
    """which parameters require a gradient"""
    gradients: bool
    autocast: bool
    autocast_dtype: torch.dtype


def capture(module: nn.Module, *examples: Tensor, warmup: int = WARMUP) -> Captured:
    """Captures the graphs of a module for inputs like the examples.

    Where gradients are recorded there is a graph of backward, too, and the result takes part in autograd like
    the module: optimisers, their rates, gradient clipping, loss scaling, averages of the weights and several
    calls, each with its backward, before a step work as they do without it. Backward of a call runs once,
    before the next call, and as PyTorch recommends it: outside autocast::

        step = capture(network_with_loss, clips, targets)
        for clips, targets in loader:
            step(clips, targets).backward()
            optimizer.step()
            optimizer.zero_grad()

    The examples are run, and change nothing: buffers and random numbers are what they were before.

    Args:
        module: takes tensors, and returns a tensor or a tuple (or other tree) of tensors and None. It may not
            read values on the host. None of its parts may have hooks, which a replay would not call, nor its
            parameters those of `Tensor.register_hook`, which would be applied twice.
        examples: one for each input, on a GPU.
        warmup: calls before the capture.

    Returns:
        :class:`Captured`.

    Raises:
        ValueError: inputs that are not tensors on one GPU or require a gradient; a module or parameters with
            hooks; a result of an earlier call of the module that can still be backpropagated; a module that
            returns anything but tensors and None.
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
    hooked = [name for name, parameter in module.named_parameters() if parameter._backward_hooks]
    if hooked:
        raise ValueError(
            f"capture: parameter {hooked[0]} has hooks, which a replay would apply twice; remove them"
        )
    return Captured(module, examples, warmup)


class Captured:
    """The graphs of a module for inputs of one shape; :func:`capture` makes them.

    A call with inputs of other shapes, dtypes or devices, in another mode (training of any part, parameters
    that require a gradient, recorded gradients, autocast), or with inputs that require a gradient runs the
    module as it is. Results belong to the caller: the next replay does not write into them. Gradients are
    those of the latest call only, and only once: backward overwrites what it reads.

    Threads that share a stream may call it, and take turns.

    The graphs hold the addresses of parameters and buffers. What writes into these (optimisers,
    `load_state_dict`) is seen by the next replay; what puts others in their place (`Module.to`, a new head)
    needs a new capture.
    """

    def __init__(self, module: nn.Module, examples: Sequence[Tensor], warmup: int) -> None:
        self._module = module
        self._device = examples[0].device
        # Listed once: a module whose parts are exchanged needs a new capture anyway.
        self._parts, self._all_parameters = tuple(module.modules()), tuple(module.parameters())
        self._state = self._now()
        recorded = self._state.gradients
        self._parameters = tuple(p for p in self._all_parameters if p.requires_grad) if recorded else ()
        if any(map(_in_a_graph, self._parameters)):
            raise ValueError("capture: a result of an earlier call is alive (a loss?); delete it first")
        self._lock = threading.Lock()
        self._calls = self._backpropagated = 0
        # Not of inference mode, in which a replay could not write into them later.
        with torch.inference_mode(False), torch.set_grad_enabled(recorded):
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
            outputs, self._form = self._results(self._module(*self._inputs))
        self._differentiable = tuple(one.requires_grad for one in outputs)
        self._grad_outputs = [torch.empty_like(one) for one in outputs if one.requires_grad]
        self._grads: tuple[Tensor | None, ...] = ()
        if self._parameters and self._grad_outputs:
            with torch.cuda.graph(self._backward, pool=self._forward.pool(), **how):
                self._grads = self._own_memory(self._gradients(outputs, self._grad_outputs))
        # Their graph of autograd would keep the parameters' nodes, which belong to the stream of the capture.
        self._outputs = [one.detach() for one in outputs]

    @staticmethod
    def _results(found: Any) -> tuple[list[Tensor], _Form]:
        leaves, tree = pytree.tree_flatten(found)
        others = [leaf for leaf in leaves if leaf is not None and not isinstance(leaf, Tensor)]
        if others:
            raise ValueError(f"capture: a module must return tensors or None, got {_described(others)}")
        there = tuple(leaf is not None for leaf in leaves)
        return [leaf for leaf in leaves if leaf is not None], _Form(tree, there)

    def _gradients(
        self, results: Sequence[Tensor], grad_outputs: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...]:
        """Of the parameters; None for those that took no part."""
        wanted = [one for one in results if one.requires_grad]
        if not (self._parameters and wanted):
            return ()
        # Captures run inside autocast, backward outside of it: products in 32 bits stay in 32 bits.
        with torch.autocast(self._device.type, enabled=False):
            return torch.autograd.grad(wanted, self._parameters, grad_outputs, allow_unused=True)

    def _own_memory(self, grads: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """Gradients of which no two share memory, nor one with what a replay is given: clipping would scale
        shared ones twice.
        """
        taken = {_storage(one) for one in (*self._inputs, *self._grad_outputs)}
        own: list[Tensor | None] = []
        for grad in grads:
            if grad is not None and _storage(grad) in taken:
                grad = grad.clone()
            if grad is not None:
                taken.add(_storage(grad))
            own.append(grad)
        return tuple(own)

    def _now(self) -> State:
        kind = self._device.type
        return State(
            tuple(part.training for part in self._parts),
            tuple(parameter.requires_grad for parameter in self._all_parameters),
            torch.is_grad_enabled(),
            torch.is_autocast_enabled(kind),
            torch.get_autocast_dtype(kind),
        )

    def fits(self, *inputs: Any) -> bool:
        """Whether a call with these inputs is a replay, now."""
        return (
            self._now() == self._state
            and len(inputs) == len(self._inputs)
            and all(
                isinstance(one, Tensor)
                and one.shape == own.shape
                and one.dtype == own.dtype
                and one.device == own.device
                and not one.requires_grad
                for one, own in zip(inputs, self._inputs, strict=True)
            )
        )

    def __call__(self, *inputs: Any) -> Any:
        """What the module returns.

        Raises:
            RuntimeError: in backward, where there was another call in between, and in a second backward of
                the same call.
        """
        if not self.fits(*inputs):
            return self._module(*inputs)
        results = iter(_Replay.apply(self, inputs, *self._parameters))
        leaves = [next(results) if there else None for there in self._form.there]
        return pytree.tree_unflatten(leaves, self._form.tree)

    def replay_forward(self, inputs: Sequence[Tensor]) -> tuple[int, tuple[Tensor, ...]]:
        """The number of this call, and fresh results."""
        with self._lock:
            self._calls += 1
            for own, given in zip(self._inputs, inputs, strict=True):
                own.copy_(given, non_blocking=True)
            self._forward.replay()
            return self._calls, tuple(one.clone() for one in self._outputs)

    def replay_backward(self, call: int, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """Gradients of the parameters, in memory that the next replay writes to again.

        Raises:
            RuntimeError: `call` is not the latest, or its backward ran already.
        """
        with self._lock:
            return self._replay_backward(call, grads)

    def _replay_backward(self, call: int, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        if call != self._calls:
            raise RuntimeError("capture: backward of an earlier call; a later one has replaced its values")
        if call == self._backpropagated:
            raise RuntimeError("capture: backward of one call runs once; call again")
        self._backpropagated = call
        wanted = [grad for grad, has in zip(grads, self._differentiable, strict=True) if has]
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
    def differentiable(self) -> tuple[bool, ...]:
        """Which results have gradients."""
        return self._differentiable


class _Form(NamedTuple):
    """What a module returns: the `tree`, and of its leaves which are ``there``, not None."""

    tree: Any
    there: tuple[bool, ...]


class _Replay(torch.autograd.Function):
    """The captured module as one node of autograd, whose inputs with gradients are the parameters."""

    @staticmethod
    def forward(ctx: Any, captured: Captured, inputs: Sequence[Tensor], *_: Tensor) -> tuple[Tensor, ...]:
        ctx.captured = captured
        ctx.call, results = captured.replay_forward(inputs)
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
    try:
        with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
            yield
    finally:
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


def _in_a_graph(parameter: Tensor) -> bool:
    """Whether a graph of autograd refers to it. Its node would then be that of another stream, which a
    capture may not wait for.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # A node that nothing refers to is gone at once, and with it the mark.
        _notes(parameter)[__name__] = True
        return __name__ in _notes(parameter)


def _notes(parameter: Tensor) -> dict[str, Any]:
    """Of the node of autograd that adds up its gradient."""
    return cast("dict[str, Any]", get_gradient_edge(parameter).node.metadata)


def _storage(tensor: Tensor) -> int:
    return cast(int, tensor.untyped_storage()._cdata)


def _described(values: Sequence[object]) -> str:
    kinds = [str(one.device) if isinstance(one, Tensor) else type(one).__name__ for one in values]
    return ", ".join(kinds) or "none"
