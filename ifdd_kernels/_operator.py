"""How an op is registered: one description in, forward, backward, fake, autograd and autocast rules out.

Each op ``f`` becomes a family of registered ops with one schema: ``torch.ops.ifdd.f``, whose kernels are
the compiled ones where the native library has them and the reference elsewhere, and
``torch.ops.ifdd.f_reference``, which is always the reference. Every differentiable member has its own
registered backward (``f_backward``, ``f_backward_reference``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.autograd import forward_ad

NAMESPACE = "ifdd"
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
AUTOCAST_DEVICES = ("cpu", "cuda")

# Asked on every call: a name of this module is found faster than an attribute of an attribute.
_transforms_active = torch._C._are_functorch_transforms_active
_autocast_enabled = torch._C._is_any_autocast_enabled

_AUTOCAST_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)


@dataclass(frozen=True)
class Gradient:
    """A gradient of the op's outputs, by its place, where :attr:`Backward.arguments` wants it."""

    output: int


@dataclass(frozen=True)
class Backward:
    """The backward op of an :class:`Operator`."""

    schema: str
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    #: (inputs, outputs) -> the backward op's arguments, with :class:`Gradient` where a gradient goes.
    arguments: Callable[[Sequence[Any], Sequence[Any]], tuple[Any, ...]]
    #: Place of the input that each result of the backward op is the gradient of.
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Operator:
    """An op: its name, schema, definition and rules."""

    name: str
    schema: str
    reference: Callable[..., Any]
    #: Shapes and dtypes of the outputs; called with checked arguments.
    fake: Callable[..., Any]
    #: Raises on inputs the op cannot take; called with the op's arguments before anything runs.
    check: Callable[..., None]
    backward: Backward | None = None
    #: Outputs no gradient flows through (statistics kept for backward, integer indexes).
    non_differentiable: tuple[int, ...] = ()
    #: Arguments cast to autocast's dtype. The others keep theirs: statistics, indexes and parameters are
    #: read as they are, since rounding an index chain to bfloat16 moves a sample by 0.04 frames.
    autocast: tuple[int, ...] = ()
    #: Backends beside the default one; each has its own twin ``name_backend``.
    twins: dict[str, Twin] = field(default_factory=dict)
    #: (leading arguments) -> why the native CUDA kernels do not take these shapes; empty if they do.
    cuda_limit: Callable[..., str] | None = None
    #: Backends that are plain PyTorch calls, differentiated by PyTorch, and no ops of their own: functions of
    #: the op's arguments that return its outputs or the first of them.
    compositions: dict[str, Callable[..., tuple[Tensor, ...]]] = field(default_factory=dict)
    #: (arguments) -> the sizes that its time depends on, by which measurements are told apart.
    sizes: Callable[..., tuple[int, ...]] = lambda x, *_: tuple(x.shape)
    #: Ops that the public function calls in place of this one wherever :func:`backends.composed` says so.
    parts: tuple[str, ...] = ()

    def overload(self, twin: str = "", backward: bool = False) -> torch._ops.OpOverload:
        """The registered op of a backend: '' is the default one, 'reference' the reference."""
        name = self.name + ("_backward" if backward else "") + (f"_{twin}" if twin else "")
        overload: torch._ops.OpOverload = getattr(getattr(torch.ops, NAMESPACE), name).default
        return overload

    def __call__(self, twin: str, *args: Any) -> Any:
        """Runs the op of a backend, and raises what :attr:`check` has to say of arguments it refuses.

        Good arguments are not checked in Python: the kernels check them (the reference and the twins through
        :attr:`check`), and only their refusal is looked into, for the error that names op and argument in
        Python's terms.
        """
        if twin in self.compositions:
            self.check(*args)
            return self.compositions[twin](*args)
        if torch.compiler.is_compiling():
            self.check(*args)
            return self.overload(twin)(*args)
        try:
            return _EAGER[self.name, twin](*args)
        except RuntimeError:
            self.check(*args)
            raise


@dataclass(frozen=True)
class Twin:
    """Kernels of one backend for an :class:`Operator`, with the signatures of its schemas."""

    forward: Callable[..., Any]
    backward: Callable[..., Any] | None = None
    #: Compilers trace into it (as ``torch.library.triton_op`` does) and optimise its launches and
    #: allocations with the rest of the graph; otherwise they call it as one opaque op.
    traced: bool = False


#: Every registered operator by name.
OPERATORS: dict[str, Operator] = {}
#: The ops by name and twin as the public functions call them outside of compilers.
_EAGER: dict[tuple[str, str], Callable[..., Any]] = {}


def register(operator: Operator) -> Operator:
    """Registers an op and its twins with PyTorch; returns it."""
    OPERATORS[operator.name] = operator
    backward = operator.backward
    reference = Twin(
        _kernel(_checked(operator.reference, operator.check)),
        _kernel(backward.reference) if backward else None,
    )
    checked = {
        name: replace(twin, forward=_checked(twin.forward, operator.check))
        for name, twin in operator.twins.items()
    }
    for name, twin in {"": reference, "reference": reference, **checked}.items():
        suffix = f"_{name}" if name else ""
        fake = _checked(operator.fake, operator.check)
        _define(operator.name + suffix, operator.schema, twin.forward, fake, operator.autocast)
        if backward is not None:
            assert twin.backward is not None, f"{operator.name}: twin {name} has no backward"
            backward_name = f"{operator.name}_backward{suffix}"
            _define(backward_name, backward.schema, twin.backward, backward.fake, ())
            rule = _second_derivatives(backward_name)
            torch.library.register_autograd(f"{NAMESPACE}::{backward_name}", rule, lib=LIBRARY)
        if twin.traced:
            _trace_into(operator.name + suffix, twin.forward)
            if twin.backward is not None and backward is not None:
                _trace_into(f"{operator.name}_backward{suffix}", twin.backward)
        _register_autograd(operator, name)
    return operator


def _checked(function: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    """A function of an op's arguments that refuses bad ones first."""

    def checked(*args: Any) -> Any:
        check(*args)
        return function(*args)

    return checked


def _kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """A plain PyTorch function as an op's kernel: its outputs are contiguous, as the fake says."""

    def kernel(*args: Any) -> Any:
        results = function(*args)
        if isinstance(results, Tensor):
            return results.contiguous()
        return tuple(result.contiguous() for result in results)

    return kernel


def _define(
    name: str, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any], autocast: tuple[int, ...]
) -> None:
    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    overload = getattr(getattr(torch.ops, NAMESPACE), name).default
    for device in AUTOCAST_DEVICES:
        key = f"Autocast{device.upper()}"
        LIBRARY.impl(name, _autocast_kernel(overload, device, key, autocast), key)


def _autocast_kernel(
    overload: torch._ops.OpOverload, device: str, key: str, cast: tuple[int, ...]
) -> Callable[..., Any]:
    """Casts the named arguments, then runs the op with autocast off: its kernels accumulate in float32."""
    exclude = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def kernel(*args: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(exclude):
            return overload(*_lowered(args, cast, device))

    return kernel


def _lowered(args: Sequence[Any], cast: tuple[int, ...], device: str) -> list[Any]:
    """Arguments of which autocast of the device has cast those at the places ``cast``."""
    dtype = torch.get_autocast_dtype(device)

    def lower(value: Any) -> Any:
        wide = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(dtype) if wide else value

    return [lower(arg) if i in cast else arg for i, arg in enumerate(args)]


def _trace_into(name: str, function: Callable[..., Any]) -> None:
    """AOTAutograd replaces the op by what its function does; exported programs keep the op."""

    def decompose(mode: Any, op: Any, types: Any, args: Any, kwargs: Any) -> Any:
        from torch.export._trace import custom_triton_ops_decomposition_disabled

        if custom_triton_ops_decomposition_disabled():
            return mode.__torch_dispatch__(op, types, args, kwargs)
        with mode:
            return function(*args, **kwargs)

    torch.library.register_torch_dispatch(
        f"{NAMESPACE}::{name}", FunctionalTensorMode, decompose, lib=LIBRARY
    )


def _second_derivatives(name: str) -> Callable[..., None]:
    """The rule for gradients of a backward op: a refusal."""

    def refuse(ctx: Any, *grads: Any) -> None:
        raise NotImplementedError(
            f"{NAMESPACE}::{name}: second derivatives are not implemented; call "
            f"ifdd_kernels.reference.{name.split('_backward')[0]} (plain PyTorch) where they are needed"
        )

    return refuse


def _register_autograd(operator: Operator, twin: str) -> None:
    """Gradients through the backward op of the same twin; an op without one cuts the graph."""
    backward = operator.backward

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = (output,) if isinstance(output, Tensor) else tuple(output)
        # Autograd would fill zeros for every output without a gradient, statistics and indexes among them.
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(outputs[i] for i in operator.non_differentiable))
        ctx.input_count = len(inputs)
        if backward is None:
            return
        arguments = backward.arguments(inputs, outputs)
        ctx.save_for_backward(*(a for a in arguments if isinstance(a, Tensor)))
        ctx.layout = tuple(None if isinstance(a, Tensor) else (a,) for a in arguments)
        ctx.outputs = tuple((out.shape, out.dtype, out.device) for out in outputs)

    suffix = f"_{twin}" if twin else ""
    run_backward: Callable[..., Any] | None = None
    transformed_backward: Callable[..., Any] | None = None
    if backward is not None:
        backward_op = operator.overload(twin, backward=True)
        run_backward = functools.partial(_run, backward_op)
        transformed_backward = _transformable(
            backward_op, lambda *_: None, _second_derivatives(f"{operator.name}_backward{suffix}")
        )

    def grads(
        ctx: Any, *output_grads: Tensor | None, run: Callable[..., Any] | None = run_backward
    ) -> tuple[Tensor | None, ...]:
        results: list[Tensor | None] = [None] * ctx.input_count
        if backward is None or run is None or all(grad is None for grad in output_grads):
            return tuple(results)
        tensors = iter(ctx.saved_tensors)
        arguments = []
        for place in ctx.layout:
            argument = next(tensors) if place is None else place[0]
            if isinstance(argument, Gradient):
                grad = output_grads[argument.output]
                argument = _zeros(*ctx.outputs[argument.output]) if grad is None else grad
            arguments.append(argument)
        computed = run(*arguments)
        computed = (computed,) if isinstance(computed, Tensor) else computed
        for place, grad in zip(backward.inputs, computed, strict=True):
            # A backward op returns an empty tensor for an input that was not given or is an integer.
            if ctx.needs_input_grad[place]:
                results[place] = grad
        return tuple(results)

    overload = operator.overload(twin)
    torch.library.register_autograd(
        f"{NAMESPACE}::{operator.name}{suffix}", grads, setup_context=setup_context, lib=LIBRARY
    )
    transformed = _transformable(overload, setup_context, functools.partial(grads, run=transformed_backward))
    _EAGER[operator.name, twin] = _eager(overload, setup_context, grads, transformed, operator.autocast)


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The gradient of an output nothing was made of, for a backward op that takes those of all."""
    return torch.zeros(shape, dtype=dtype, device=device)


def _run(overload: torch._ops.OpOverload, *args: Any) -> Any:
    """Calls an op; where there is nothing to differentiate, without its rule for gradients.

    That rule is a Python function between the dispatcher and a C++ kernel: it costs more than the kernel of a
    small input.
    """
    if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
        return overload(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return overload(*args)


def _transformable(
    overload: torch._ops.OpOverload, setup_context: Callable[..., None], grads: Callable[..., Any]
) -> Callable[..., Any]:
    """The op with its rule for gradients as torch.func takes them: custom ops have none it would take.

    It wants the context set up apart from the forward pass, and a call then costs more than the kernel of a
    small input: nothing else goes this way.
    """

    def forward(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*args)

    rule: Any = type(
        overload._schema.name.replace("::", "_"),
        (torch.autograd.Function,),
        {
            "forward": staticmethod(forward),
            "setup_context": staticmethod(setup_context),
            "backward": staticmethod(grads),
            "generate_vmap_rule": True,
        },
    )
    apply: Callable[..., Any] = rule.apply
    return apply


def _eager(
    overload: torch._ops.OpOverload,
    setup_context: Callable[..., None],
    grads: Callable[..., Any],
    transformed: Callable[..., Any],
    cast: tuple[int, ...],
) -> Callable[..., Any]:
    """The op with the same rules for gradients and autocast, entered from Python and not the dispatcher."""

    def forward(ctx: Any, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd(), torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
            output = overload(*args)
        setup_context(ctx, args, output)
        return output

    rule: Any = type(
        overload._schema.name.replace("::", "_"),
        (torch.autograd.Function,),
        {"forward": staticmethod(forward), "backward": staticmethod(grads)},
    )

    def _transformed(*args: Any) -> Any:
        device = next(arg.device.type for arg in args if isinstance(arg, Tensor))
        if not (device in AUTOCAST_DEVICES and torch.is_autocast_enabled(device)):
            return transformed(*args)
        # Lowered here: the dispatcher would run the op below the transforms, which then see no gradient.
        with torch.autocast(device, enabled=False):
            return transformed(*_lowered(args, cast, device))

    def eager(*args: Any) -> Any:
        if forward_ad._current_level >= 0:
            _refuse_forward_mode(overload._schema.name, args)
        if _transforms_active():
            return _transformed(*args)
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)):
            return _run(overload, *args)
        if _autocast_enabled():
            # Before the rule for gradients, as in the dispatcher: the lowered call is the one that is saved.
            device = next(arg.device.type for arg in args if isinstance(arg, Tensor))
            if device in AUTOCAST_DEVICES and torch.is_autocast_enabled(device):
                args = tuple(_lowered(args, cast, device))
        return rule.apply(*args)

    return eager


def _refuse_forward_mode(name: str, args: Sequence[Any]) -> None:
    """The dispatcher would drop tangents without a word: every derivative would be zero."""
    if any(isinstance(arg, Tensor) and forward_ad.unpack_dual(arg).tangent is not None for arg in args):
        raise NotImplementedError(
            f"{name}: forward-mode derivatives are not implemented; call "
            f"ifdd_kernels.reference.{name.split('::')[1]} (plain PyTorch) where they are needed"
        )
