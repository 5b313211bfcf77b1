"""How an op is registered: one description in, forward, backward, fake, autograd and autocast rules out.

Every rule is a function of some of the op's arguments, and says which by the names of its parameters; the
backward op is wired by the names in its schema (:mod:`ifdd_kernels._schema`).

Each op ``f`` becomes a family of registered ops with one schema: ``torch.ops.ifdd.f``, whose kernels are
the compiled ones where the native library has them and the reference elsewhere, and
``torch.ops.ifdd.f_reference``, which is always the reference. Every differentiable member has its own
registered backward (``f_backward``, ``f_backward_reference``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.autograd import forward_ad

from ifdd_kernels import _check, recording
from ifdd_kernels._guard import ArgumentTypes, guard, guard_of
from ifdd_kernels._schema import NAMESPACE, Signature, Wiring, by_name, outputs_of

LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
AUTOCAST_DEVICES = ("cpu", "cuda")

# Asked on every call: a name of this module is found faster than an attribute of an attribute.
_transforms_active = torch._C._are_functorch_transforms_active
_autocast_enabled = torch._C._is_any_autocast_enabled
_tracing_state = torch._C._get_tracing_state

_AUTOCAST_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)
# Without it PyTorch does not note that a result was made as a view of a tensor nobody else has, and allows to
# change it in place. No op returns a view of anything else.
_VIEW_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)


@dataclass(frozen=True)
class Backward:
    """The backward op of an op: its schema says what it takes and returns."""

    schema: str
    reference: Callable[..., Any]
    #: Shapes and dtypes of the gradients.
    fake: Callable[..., Any]
    #: For the checks: arguments of the op that its backward is not given, from those that it is.
    missing: Mapping[str, Callable[..., Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Operator:
    """A registered op. Its rules take all arguments, as :func:`register` has made them."""

    name: str
    schema: str
    signature: Signature
    reference: Callable[..., Any]
    #: Shapes and dtypes of the results; called with checked arguments.
    fake: Callable[..., Any]
    #: Raises on arguments the op cannot take: of a wrong type, on several devices, or against the op's rule.
    check: Callable[..., None]
    backward: Backward | None
    wiring: Wiring | None
    non_differentiable: tuple[str, ...]
    autocast: tuple[str, ...]
    parameters: tuple[str, ...]
    backends: Mapping[str, BackendKernels]
    cuda_limit: Callable[..., str] | None
    compositions: Mapping[str, Callable[..., tuple[Tensor, ...]]]
    sizes: Callable[..., tuple[int, ...]]
    parts: tuple[str, ...]
    instead: Callable[..., str] | None

    @property
    def casts_input(self) -> bool:
        """Whether autocast casts the first argument, whose dtype decides the kernel."""
        return self.signature.arguments[0] in self.autocast

    def differentiable(self, results: Sequence[Tensor]) -> list[Tensor]:
        """Of all results, or the first of them, those that gradients flow through."""
        named = zip(self.signature.results, results, strict=False)
        return [result for name, result in named if name not in self.non_differentiable]

    def overload(self, backend: str = "native", backward: bool = False) -> torch._ops.OpOverload:
        """The registered op of a backend; ``"native"`` is ``torch.ops.ifdd.f`` itself."""
        name = _op_name(self.name, backend, backward)
        overload: torch._ops.OpOverload = getattr(getattr(torch.ops, NAMESPACE), name).default
        return overload

    def __call__(self, backend: str, *args: Any) -> Any:
        """Runs the op of a backend, and raises what :attr:`check` has to say of arguments it refuses.

        Good arguments are not checked in Python: the kernels check them (the native ones themselves, those of
        other backends through :attr:`check`), and only their refusal is looked into, for the error that names
        op and argument in Python's terms.
        """
        if backend in self.compositions:
            args = tuple(_under_autocast(args, _Casts.of(self)))
            self.check(*args)
            if recording.active:
                recording.note(self.name, backend, args)
            return self.compositions[backend](*args)
        if torch.compiler.is_compiling():
            self.check(*args)
            return self.overload(backend)(*args)
        try:
            return _EAGER[self.name, backend](*args)
        except RuntimeError:
            self.check(*args)
            raise


@dataclass(frozen=True)
class BackendKernels:
    """Kernels of one backend for an :class:`Operator`, with the signatures of its schemas."""

    forward: Callable[..., Any]
    backward: Callable[..., Any] | None = None
    #: Compilers trace into it (as ``torch.library.triton_op`` does) and optimise its launches and
    #: allocations with the rest of the graph; otherwise they call it as one opaque op.
    traced: bool = False


#: The name in `ifdd_kernels.triton`, whose sources a rehearsal for GPUs is bound to.
Twin = BackendKernels
#: Every registered operator by name.
OPERATORS: dict[str, Operator] = {}
#: The ops by name and backend as the public functions call them outside of compilers.
_EAGER: dict[tuple[str, str], Callable[..., Any]] = {}


def register(
    name: str,
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    check: Callable[..., None],
    backward: Backward | None = None,
    non_differentiable: tuple[str, ...] = (),
    autocast: tuple[str, ...] = (),
    parameters: tuple[str, ...] = (),
    backends: Mapping[str, BackendKernels] | None = None,
    cuda_limit: Callable[..., str] | None = None,
    compositions: Mapping[str, Callable[..., tuple[Tensor, ...]]] | None = None,
    sizes: Callable[..., tuple[int, ...]] | None = None,
    parts: tuple[str, ...] = (),
    instead: Callable[..., str] | None = None,
) -> Operator:
    """Registers an op and its backends with PyTorch.

    The rules ``fake``, ``check``, ``cuda_limit`` and ``sizes`` are functions of the arguments that their
    parameters name.

    Args:
        name: of the op, ``torch.ops.ifdd.<name>``.
        schema: its arguments and results, each with a name.
        reference: its definition in plain PyTorch, with the schema's arguments.
        fake: shapes and dtypes of the results.
        check: raises on arguments the op cannot take; called before anything runs.
        backward: its backward op; without one the op cuts the graph.
        non_differentiable: results no gradient flows through (statistics kept for backward, indexes).
        autocast: arguments cast to autocast's dtype. The others keep theirs: statistics, indexes and
            parameters are read as they are, since rounding an index chain to bfloat16 moves a sample by 0.04
            frames.
        parameters: arguments that are widened to float32 under autocast where they are 16-bit and not all of
            the dtype of the first argument: a layer of float16 runs under autocast to bfloat16, as PyTorch's.
        backends: those beside ``"native"`` and ``"reference"``; each has ops of its own, ``name_backend``.
        cuda_limit: why the native CUDA kernels do not take these shapes, empty if they do; it is asked with
            arguments missing, too (None).
        compositions: backends that are plain PyTorch calls, differentiated by PyTorch, and no ops of their
            own: functions of all arguments that return the results or the first of them.
        sizes: the sizes that determine run time, the key of the table of measurements; those of the first
            argument by default.
        parts: ops that the public function calls in place of this one wherever
            :func:`ifdd_kernels.backends.composed` says so.
        instead: what the public function calls in place of this op with ``backend="auto"``, by PyTorch's name
            and with the reason; empty where it calls the op. It is asked with arguments missing, too (None).

    Raises:
        ValueError: a rule, or the backward op, names what the schema does not have.
    """
    signature = Signature.of(name, schema)
    _known(name, "autocast", autocast, signature.arguments)
    _known(name, "parameters", parameters, signature.arguments)
    _known(name, "non_differentiable", non_differentiable, signature.results)
    wiring = None
    if backward is not None:
        taken = Signature.of(f"{name}_backward", backward.schema)
        wiring = Wiring.of(name, signature, taken)
        _complete(name, signature, taken, backward.missing)
        backward = replace(backward, fake=by_name(backward.fake, taken, f"{name}: fake of backward"))
    operator = Operator(
        name=name,
        schema=schema,
        signature=signature,
        reference=reference,
        fake=by_name(fake, signature, f"{name}: fake"),
        check=_whole_check(name, signature, by_name(check, signature, f"{name}: check")),
        backward=backward,
        wiring=wiring,
        non_differentiable=non_differentiable,
        autocast=autocast,
        parameters=parameters,
        backends=backends or {},
        cuda_limit=None if cuda_limit is None else by_name(cuda_limit, signature, f"{name}: cuda_limit"),
        compositions=compositions or {},
        sizes=_first_shape if sizes is None else by_name(sizes, signature, f"{name}: sizes"),
        parts=parts,
        instead=None if instead is None else by_name(instead, signature, f"{name}: instead"),
    )
    OPERATORS[name] = operator
    backward_kernel = None
    if backward is not None:
        backward_kernel = _kernel(_checked(backward.reference, _backward_check(operator)))
    plain = BackendKernels(_kernel(_checked(reference, operator.check)), backward_kernel)
    checked = {
        backend: replace(kernels, forward=_checked(kernels.forward, operator.check))
        for backend, kernels in operator.backends.items()
    }
    for backend, kernels in {"native": plain, "reference": plain, **checked}.items():
        _register_family(operator, backend, kernels)
    return operator


def _known(op: str, rule: str, names: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{op}: {rule}: the schema has no {', '.join(unknown)}")


def _complete(op: str, signature: Signature, taken: Signature, missing: Mapping[str, object]) -> None:
    """Checks that the op's arguments, which its check is asked for, follow from those of its backward op."""
    known = {*taken.arguments, *missing}
    unknown = [
        name
        for name, kind in zip(signature.arguments, signature.kinds, strict=True)
        if name not in known and not kind.startswith("Optional")
    ]
    if unknown:
        raise ValueError(
            f"{op}: its backward op does not receive {', '.join(unknown)}: take it there, or say"
            " what stands for it in Backward(missing=...)"
        )


def _first_shape(x: Tensor, *_: Any) -> tuple[int, ...]:
    return tuple(x.shape)


def _op_name(op: str, backend: str, backward: bool = False) -> str:
    return op + ("_backward" if backward else "") + ("" if backend == "native" else f"_{backend}")


def _register_family(operator: Operator, backend: str, kernels: BackendKernels) -> None:
    """The op of one backend, its backward and its rules."""
    name, backward = _op_name(operator.name, backend), operator.backward
    _define(name, operator.schema, kernels.forward, _checked(operator.fake, operator.check), operator)
    if backward is not None:
        assert kernels.backward is not None, f"{name}: no backward"
        backward_name = _op_name(operator.name, backend, backward=True)
        fake = _checked(backward.fake, _backward_check(operator))
        _define(backward_name, backward.schema, kernels.backward, fake)
        refuse = _second_derivatives(backward_name)
        torch.library.register_autograd(f"{NAMESPACE}::{backward_name}", refuse, lib=LIBRARY)
        if kernels.traced:
            _trace_into(backward_name, kernels.backward)
    if kernels.traced:
        _trace_into(name, kernels.forward)
    _register_autograd(operator, backend)


def _whole_check(op: str, signature: Signature, rule: Callable[..., None]) -> Callable[..., None]:
    """An op's rule for its arguments with what holds for every op: types before, one device after it."""
    types = ArgumentTypes(op, signature)

    def check(*args: Any) -> None:
        if torch.compiler.is_compiling():  # the types are those of the traced call, and looked at there
            rule(*args)
            return
        types.check(args)
        rule(*args)
        _check.one_device(op, signature.arguments, args)

    return check


def forward_arguments(operator: Operator) -> Callable[..., tuple[Any, ...]]:
    """From the arguments of an op's backward op to those of the op, with stand-ins for what is missing."""
    backward, names = operator.backward, operator.signature.arguments
    assert backward is not None
    taken = Signature.of(f"{operator.name}_backward", backward.schema)
    missing = {
        name: by_name(rule, taken, f"{operator.name}: missing") for name, rule in backward.missing.items()
    }

    def arguments(*args: Any) -> tuple[Any, ...]:
        named = dict(zip(taken.arguments, args, strict=True))
        named.update({name: rule(*args) for name, rule in missing.items()})
        return tuple(named.get(name) for name in names)

    return arguments


def _backward_check(operator: Operator) -> Callable[..., None]:
    """Raises on arguments that an op's backward op cannot take.

    They are arguments and results of the op, and gradients of results: the op's own check is made of the
    first, and what its fake makes of them says what the others are.
    """
    backward, forward = operator.backward, operator.signature
    assert backward is not None
    op = f"{operator.name}_backward"
    taken = Signature.of(op, backward.schema)
    types, complete = ArgumentTypes(op, taken), forward_arguments(operator)

    def check(*args: Any) -> None:
        types.check(args)
        named = dict(zip(taken.arguments, args, strict=True))
        try:
            given = [_shape_of(value) for value in complete(*args)]
            operator.check(*given)
        except (TypeError, ValueError) as error:
            message = str(error).replace(f"{operator.name}:", f"{op}:", 1)
            raise type(error)(message) from None
        for name, result in zip(forward.results, outputs_of(operator.fake(*given)), strict=True):
            for argument in (name, f"grad_{name}"):
                if named.get(argument) is None:
                    continue
                _check.shape(op, argument, named[argument], result.shape)
                if named[argument].dtype != result.dtype:
                    raise TypeError(f"{op}: {argument} must be {result.dtype}, got {named[argument].dtype}")
        _check.one_device(op, taken.arguments, args)

    return check


def _shape_of(value: Any) -> Any:
    """A tensor without memory in place of one; other values as they are."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, (0,) * value.dim(), dtype=value.dtype, device="meta")


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


def _without_views(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel whose results own their memory as far as autograd knows, as those of PyTorch's ops do."""

    def owning(*args: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_VIEW_KEYS):
            return kernel(*args)

    return owning


def _define(
    name: str,
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    operator: Operator | None = None,
) -> None:
    """Defines an op with its kernel, fake and autocast rule; a backward op (no operator) casts nothing."""
    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    guard(name, schema)
    LIBRARY.impl(name, _without_views(kernel), "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    overload = getattr(getattr(torch.ops, NAMESPACE), name).default
    cast = _Casts() if operator is None else _Casts.of(operator)
    for device in AUTOCAST_DEVICES:
        key = f"Autocast{device.upper()}"
        LIBRARY.impl(name, _autocast_kernel(overload, device, key, cast), key)


@dataclass(frozen=True)
class _Casts:
    """The rule of autocast for the arguments of an op, by their places."""

    #: Cast to autocast's dtype.
    lowered: tuple[int, ...] = ()
    #: See ``parameters`` of :func:`register`.
    parameters: tuple[int, ...] = ()

    @classmethod
    def of(cls, operator: Operator) -> _Casts:
        place = operator.signature.arguments.index
        return cls(tuple(map(place, operator.autocast)), tuple(map(place, operator.parameters)))

    def apply(self, args: Sequence[Any], device: str) -> list[Any]:
        """The arguments of a call under autocast of a device."""
        dtype = torch.get_autocast_dtype(device)
        found = list(args)
        for place in self.lowered:
            if _narrowable(found[place]):
                found[place] = found[place].to(dtype)
        given = [place for place in self.parameters if _narrowable(found[place])]
        if given and _narrowable(found[0]) and any(found[p].dtype != found[0].dtype for p in given):
            for place in given:
                found[place] = found[place].float()
        return found


def _narrowable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64


def _under_autocast(args: Sequence[Any], cast: _Casts) -> Sequence[Any]:
    """Arguments as autocast, where it is on for the device of the first tensor, leaves them."""
    device = next((arg.device.type for arg in args if isinstance(arg, Tensor)), "")
    on = device in AUTOCAST_DEVICES and torch.is_autocast_enabled(device)
    return cast.apply(args, device) if on else args


def _autocast_kernel(
    overload: torch._ops.OpOverload, device: str, key: str, cast: _Casts
) -> Callable[..., Any]:
    """Casts the arguments, then runs the op without autocast: kernels sum in float32."""
    exclude = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def kernel(*args: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(exclude):
            return overload(*cast.apply(args, device))

    return kernel


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


def _register_autograd(operator: Operator, backend: str) -> None:
    """Gradients through the backward op of the same backend; an op without one cuts the graph."""
    wiring, count = operator.wiring, len(operator.signature.arguments)
    hidden = [operator.signature.results.index(name) for name in operator.non_differentiable]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = outputs_of(output)
        # Autograd would fill zeros for every output without a gradient, statistics and indexes among them.
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(outputs[place] for place in hidden))
        if wiring is None:
            return
        values = (*inputs, *outputs)
        ctx.save_for_backward(*(values[place] for place in wiring.kept))
        ctx.constants = tuple(values[place] for place in wiring.constants)
        wanted = (outputs[place] for place in wiring.gradients)
        ctx.wanted = tuple((out.shape, out.dtype, out.device) for out in wanted)

    run_backward: Callable[..., Any] | None = None
    transformed_backward: Callable[..., Any] | None = None
    if wiring is not None:
        backward_op = operator.overload(backend, backward=True)
        run_backward = functools.partial(_run, guard_of(backward_op).call)
        refuse = _second_derivatives(_op_name(operator.name, backend, backward=True))
        transformed_backward = _transformable(backward_op, lambda *_: None, refuse)

    def grads(
        ctx: Any, *output_grads: Tensor | None, run: Callable[..., Any] | None = run_backward
    ) -> tuple[Tensor | None, ...]:
        results: list[Tensor | None] = [None] * count
        if wiring is None or run is None or all(grad is None for grad in output_grads):
            return tuple(results)
        given = [
            _zeros(*wanted) if output_grads[place] is None and needed else output_grads[place]
            for place, wanted, needed in zip(wiring.gradients, ctx.wanted, wiring.needed, strict=True)
        ]
        values = (*given, *ctx.saved_tensors, *ctx.constants)
        computed = outputs_of(run(*(values[place] for place in wiring.order)))
        for place, grad in zip(wiring.inputs, computed, strict=True):
            # A backward op returns an empty tensor for an input that was not given or is an integer.
            if ctx.needs_input_grad[place]:
                results[place] = grad
        return tuple(results)

    overload = operator.overload(backend)
    name = f"{NAMESPACE}::{_op_name(operator.name, backend)}"
    # Typed as the library, whose one method in use it has.
    refusing: Any = _RefusingForwardMode(overload._schema.name)
    torch.library.register_autograd(name, grads, setup_context=setup_context, lib=refusing)
    transformed = _transformable(overload, setup_context, functools.partial(grads, run=transformed_backward))
    cast = _Casts.of(operator)
    _EAGER[operator.name, backend] = _eager(overload, setup_context, grads, transformed, cast)


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The gradient of an output nothing was made of, for a backward op that takes those of all."""
    return torch.zeros(shape, dtype=dtype, device=device)


def _run(overload: Callable[..., Any], *args: Any) -> Any:
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
    cast: _Casts,
) -> Callable[..., Any]:
    """The op with the same rules for gradients and autocast, entered from Python and not the dispatcher."""
    guarded = guard_of(overload)
    call, check_numbers = guarded.call, guarded.types.check_numbers

    def forward(ctx: Any, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd(), torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
            output = call(*args)
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
            return transformed(*cast.apply(args, device))

    def eager(*args: Any) -> Any:
        check_numbers(args)
        if forward_ad._current_level >= 0:
            _refuse_forward_mode(overload._schema.name, args)
        if _transforms_active():
            return _transformed(*args)
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)):
            return _run(call, *args)
        if _tracing_state() is not None:
            # The traced program holds the op, which has gradients of its own, and no Python function.
            with torch._C._AutoDispatchBelowAutograd():
                return call(*args)
        if _autocast_enabled():
            # Before the rule for gradients, as in the dispatcher: the lowered call is the one that is saved.
            args = tuple(_under_autocast(args, cast))
        return rule.apply(*args)

    return eager


class _RefusingForwardMode:
    """Stands for `LIBRARY` where a rule for gradients is registered, and refuses tangents before the rule.

    So calls of `torch.ops.ifdd.*` are refused as those of the public functions are.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def impl(self, name: str, rule: Callable[..., Any], key: str, *, with_keyset: bool) -> None:
        @functools.wraps(rule)
        def checked(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            if forward_ad._current_level >= 0:
                _refuse_forward_mode(self._name, args)
            return rule(keyset, *args, **kwargs)

        LIBRARY.impl(name, checked, key, with_keyset=with_keyset)


def _refuse_forward_mode(name: str, args: Sequence[Any]) -> None:
    """The dispatcher would drop tangents without a word: every derivative would be zero."""
    if any(isinstance(arg, Tensor) and forward_ad.unpack_dual(arg).tangent is not None for arg in args):
        raise NotImplementedError(
            f"{name}: forward-mode derivatives are not implemented; call "
            f"ifdd_kernels.reference.{name.split('::')[1]} (plain PyTorch) where they are needed"
        )
