"""Every call of an op that the network makes, at its shapes and strides, on every backend.

The bound is that of the registry or, for sums over many more terms, four times the error of the definition in
the same precision. On the CPU the network is that of small frames, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from benchmarks.gpu.network_calls import RECORDED_BATCH, TESTED, Instance, instances
from ifdd import IFDDConfig
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels._schema import outputs_of
from ifdd_kernels.backends import LIBRARY_OPS, can_run
from ifdd_kernels.registry import REGISTRY
from ops.backend_checks import check_call
from ops.devices import (
    BACKENDS,
    DTYPES,
    NETWORKS,
    affordable,
    call_of,
    devices,
    parameter,
    short,
)

#: Whole steps are public functions over other ops and have no definition of their own.
OPS = {name for name, entry in REGISTRY.items() if entry.operator is not None}


def _calls(device: str) -> Iterator[Any]:
    for call in instances(NETWORKS[device]):
        for backend in BACKENDS:
            if not _wanted(call, backend, device):
                continue
            for dtype, batch in TESTED if device == "cuda" else TESTED[:1]:
                name = f"{call.op}-{backend}-{call.label}-{short(dtype)}-B={batch}"
                yield parameter(device, call, backend, dtype, batch, name=name)


def _wanted(call: Instance, backend: str, device: str) -> bool:
    """The reference where it is what a GPU runs."""
    if device == "cuda":
        return backend != "reference" or call.op in LIBRARY_OPS
    return backend != "reference" and affordable(call.op, backend, device)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The CPU's tests, and the GPU's where they are wanted."""
    if "call" in metafunc.fixturenames:
        found = [one for device in devices(metafunc.config) for one in _calls(device)]
        metafunc.parametrize(("device", "call", "backend", "dtype", "batch"), found)


def test_values_and_gradients(
    device: str, call: Instance, backend: str, dtype: torch.dtype, batch: int
) -> None:
    entry = REGISTRY[call.op]
    run = call_of(entry, backend, device, dtype)
    check_call(entry, call.sample(batch, dtype, device), run, against_eager=True)


def test_every_op_is_called_somewhere() -> None:
    """Outside of the network clips are augmented, and only on a GPU is add_layer_norm called: both are tested
    by the samples of the registry.
    """
    assert {call.op for call in instances(NETWORKS["cpu"])} == OPS - {"add_layer_norm", "augment_clips"}


def test_calls_lie_in_memory_as_in_the_network() -> None:
    """Views of packed tensors and of tokens behind the class token, as the paper's network has them."""
    calls = instances(IFDDConfig())
    heads = {call.args[0].shape[-1] for call in calls if call.op == "pooled_attention"}
    assert heads == {96}
    strides = {tuple(call.args[15]) for call in calls if call.op == "pool_tokens"}
    assert len(strides) >= 3
    (attention,) = (call for call in calls if call.op == "lifting_attention")
    query, key, value = (arg.empty(2, torch.float32, "cpu") for arg in attention.args[:3])
    assert query.shape == key.shape == (2, 196, 8, 96)
    assert key.stride() == (2 * 196 * 768, 2 * 768, 96, 1)
    assert (key.storage_offset(), value.storage_offset()) == (0, 768)
    frames = [call.args[0] for call in calls if call.op == "split_frames"]
    assert {layout.offset for layout in frames} == {0, 768}  # tokens[:, 1:]
    assert all(layout.shape == (1, 8, 49, 768) for layout in frames)


def test_an_instance_for_the_recorded_batch_is_the_recorded_call() -> None:
    for call in instances(NETWORKS["cpu"]):
        for layout in call.layouts:
            made = layout.empty(RECORDED_BATCH, torch.float32, "meta")
            assert made.stride() == layout.strides
            assert made.storage_offset() == layout.offset
            assert layout.per_clip == (made.shape[0] == RECORDED_BATCH)


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_a_fake_gpu_takes_every_call(dtype: torch.dtype, batch: int) -> None:
    """Choice of a backend, checks, and shapes and dtypes of results and gradients, without a device."""
    with FakeTensorMode():
        for call in instances(NETWORKS["cpu"]):
            args = call.empty(batch, dtype, "cuda")
            tensors = [a for a in args if a is None or isinstance(a, Tensor)]
            for backend in ("native", "triton", "auto"):
                assert can_run(call.op, backend, *tensors).reason
            operator = OPERATORS[call.op]
            outputs = outputs_of(operator.overload("reference")(*args))
            assert all(out.device.type == "cuda" for out in outputs)
            if operator.wiring is None:
                continue
            taken = operator.wiring.arguments(args, outputs, outputs)
            grads = outputs_of(operator.overload("reference", backward=True)(*taken))
            for place, grad in zip(operator.wiring.inputs, grads, strict=True):
                if isinstance(args[place], Tensor) and grad.numel():
                    assert (grad.shape, grad.dtype) == (args[place].shape, args[place].dtype)
