"""Arguments of the ops for given sizes, by name: of samples, tests, benchmarks and cost models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ifdd_kernels._operator import OPERATORS
from ifdd_kernels.grids import table_length
from ifdd_kernels.reference._common import accumulator


@dataclass
class Arguments:
    """Named arguments of an op: what is computed on, what is learned, and what is fixed."""

    activations: dict[str, Tensor]
    parameters: dict[str, Tensor] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)

    def named(self) -> dict[str, Any]:
        """All of them."""
        return {**self.activations, **self.parameters, **self.constants}

    def of(self, op: str) -> tuple[Any, ...]:
        """In the order of the op's schema, None for what is not given."""
        return OPERATORS[op].signature.order(self.named())


class Maker:
    """Random tensors of one dtype on one device, never zero and never alike twice."""

    def __init__(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> None:
        self.dtype = dtype
        self.device = device
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Contiguous normal values."""
        values = torch.randn(shape, generator=self._generator, dtype=torch.float64) * scale
        return values.to(device=self.device, dtype=self.dtype)

    def strided(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal values in a view with permuted axes and a gap in its memory."""
        order = (len(shape) - 1, *range(len(shape) - 1))
        stored = [shape[axis] for axis in order]
        values = self.normal(*stored[:-1], 2 * stored[-1] + 1, scale=scale)[..., 1::2]
        return values.permute(*(order.index(axis) for axis in range(len(shape))))

    def parameter(self, *shape: int, mean: float = 0.0, scale: float = 1.0) -> Tensor:
        """Values of a parameter: float32 beside 16-bit activations."""
        values = torch.randn(shape, generator=self._generator, dtype=torch.float64) * scale + mean
        return values.to(device=self.device, dtype=accumulator(self.dtype))

    def positions(self, batch: int, count: int, frames: int) -> Tensor:
        """Sampling positions, some of them beyond either end."""
        values = torch.rand(batch, count, generator=self._generator, dtype=torch.float64)
        return (values * (frames + 3) - 2).to(device=self.device, dtype=accumulator(self.dtype))

    def frame_numbers(self, batch: int, count: int, frames: int) -> Tensor:
        """Integer frame numbers in range."""
        return torch.randint(0, frames, (batch, count), generator=self._generator).to(self.device)

    def pixels(self, *shape: int) -> Tensor:
        """Bytes of frames."""
        values = torch.randint(0, 256, shape, generator=self._generator, dtype=torch.uint8)
        return values.to(self.device)


class Unfilled(Maker):
    """Tensors whose values nobody reads; without memory on the meta device, which is the default one."""

    def __init__(self, dtype: torch.dtype, device: str = "meta") -> None:
        super().__init__(dtype, device)

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, device=self.device)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Contiguous activations."""
        return self._empty(shape, self.dtype)

    def parameter(self, *shape: int, mean: float = 0.0, scale: float = 1.0) -> Tensor:
        """A parameter."""
        return self._empty(shape, accumulator(self.dtype))

    def positions(self, batch: int, count: int, frames: int) -> Tensor:
        """Sampling positions."""
        return self._empty((batch, count), accumulator(self.dtype))

    def frame_numbers(self, batch: int, count: int, frames: int) -> Tensor:
        """Frame numbers."""
        return self._empty((batch, count), torch.int64)

    def pixels(self, *shape: int) -> Tensor:
        """Bytes of frames."""
        return self._empty(shape, torch.uint8)


def norm(make: Maker, name: str, channels: int) -> dict[str, Tensor]:
    """Weight and bias of a LayerNorm; ``name`` has ``{}`` where the two words go."""
    return {
        name.format(kind): make.parameter(channels, mean=mean, scale=0.3)
        for kind, mean in (("weight", 1.0), ("bias", 0.0))
    }


def add_layer_norm(
    make: Maker, shape: Sequence[int], dropped: bool = True, strided: bool = False, eps: float = 1e-6
) -> Arguments:
    """Of a stream (B, ..., C) and its branch, dropped for some samples or for none."""
    build = make.strided if strided else make.normal
    activations = {name: build(*shape) for name in ("x", "branch")}
    kept = make.frame_numbers(1, shape[0], 2)[0].bool() if dropped else None
    return Arguments(activations, norm(make, "{}", shape[-1]), {"kept": kept, "keep": 0.75, "eps": eps})


def augment_clips(
    make: Maker,
    frames: Tensor,
    crops: Sequence[Sequence[int]],
    steps: Sequence[Sequence[int]],
    size: int,
) -> Arguments:
    """Of frames (B, T, H, W, 3); every second clip is flipped."""
    batch = len(frames)
    factors = make.normal(batch, 4, scale=0.2) + torch.tensor(
        [1.0, 1.0, 1.0, 0.0], dtype=make.dtype, device=make.device
    )
    numbers = {
        name: torch.tensor(value, dtype=torch.int64, device=make.device).reshape(batch, 4)
        for name, value in (("crop", crops), ("steps", steps))
    }
    flip = torch.arange(batch, device=make.device) % 2 == 0
    activations = {"strengths": factors, "frames": frames, **numbers, "flip": flip}
    return Arguments(activations, {}, {"size": size})


def frame_tokens(make: Maker, x: Tensor, height: int, width: int, pool: int, rows: int) -> Arguments:
    """Of frames x (B, T, N, C), to ``rows`` channels a token."""
    channels = x.shape[3]
    parameters = {
        "weight": make.parameter(rows, channels, scale=channels**-0.5),
        "bias": make.parameter(rows, scale=0.3),
    }
    return Arguments({"x": x}, parameters, {"height": height, "width": width, "pool": pool})


def split_index(
    make: Maker, x: Tensor, height: int, width: int, pool: int, rows: int, reach: float = 2.0
) -> Arguments:
    """Of frames x (B, T, N, C), by tokens of ``rows`` channels."""
    frames, channels = x.shape[1], x.shape[3]
    parameters = {
        "token_weight": make.parameter(rows, channels, scale=0.5 * channels**-0.5),
        "token_bias": make.parameter(rows, scale=0.1),
    }
    for group in ("static", "dynamic"):
        # Offsets of about a frame, for any T.
        parameters[f"{group}_weight"] = make.parameter(frames // 2, frames * frames, scale=2.4 / frames)
    constants = {"height": height, "width": width, "pool": pool, "reach": reach}
    return Arguments({"x": x}, parameters, constants)


def split_frames(
    make: Maker,
    x: Tensor,
    static_index: Tensor,
    dynamic_index: Tensor,
    normed: bool = True,
    eps: float = 1e-5,
    aligned: bool = False,
) -> Arguments:
    """Of frames x (B, T, N, C) at these indexes, with or without the norms."""
    parameters = {}
    if normed:
        for group in ("static", "dynamic"):
            parameters.update(norm(make, f"{group}_norm_{{}}", x.shape[3]))
    activations = {"x": x, "static_index": static_index, "dynamic_index": dynamic_index}
    return Arguments(activations, parameters, {"eps": eps, "aligned": aligned})


def static_dynamic_split(
    make: Maker,
    x: Tensor,
    height: int,
    width: int,
    pool: int,
    rows: int,
    normed: bool = True,
    eps: float = 1e-5,
    aligned: bool = False,
) -> Arguments:
    """As :func:`split_index`, with or without the norms."""
    found = split_index(make, x, height, width, pool, rows)
    if normed:
        for group in ("static", "dynamic"):
            found.parameters.update(norm(make, f"{group}_norm_{{}}", x.shape[3]))
    found.constants.update(eps=eps, aligned=aligned)
    return found


def lifting_attention(make: Maker, batch: int, tokens: int, heads: int, head_dim: int) -> Arguments:
    """Query, key and value (B, M, h, d), key and value packed."""
    query = make.normal(batch, tokens, heads, head_dim)
    key, value = make.normal(batch, tokens, 2, heads, head_dim).unbind(2)
    return Arguments({"query": query, "key": key, "value": value}, {}, {"scale": head_dim**-0.5})


def lifting_step(
    make: Maker,
    target: Tensor,
    source: Tensor,
    num_heads: int,
    self_conditioned: bool = False,
    autocast: bool = False,
) -> Arguments:
    """Of groups (B, M, C); parameters in the groups' dtype, or wide as autocast finds them."""
    channels = target.shape[2]
    draw = make.parameter if autocast else make.normal
    parameters = {}
    for layer, rows in (("query", channels), ("key_value", 2 * channels), ("output", channels)):
        parameters[f"{layer}_weight"] = draw(rows, channels, scale=channels**-0.5)
        parameters[f"{layer}_bias"] = draw(rows, scale=0.1)
    constants = {"num_heads": num_heads, "self_conditioned": self_conditioned}
    return Arguments({"target": target, "source": source}, parameters, constants)


def pool_tokens(
    make: Maker,
    batch: int,
    grid: Sequence[int],
    heads: int,
    head_dim: int,
    stride_q: Sequence[int] = (1, 1, 1),
    stride_kv: Sequence[int] = (1, 1, 1),
    key_value_grid: Sequence[int] | None = None,
    strided: bool = False,
    eps: float = 1e-6,
) -> Arguments:
    """Packed (B, 1 + T*H*W, 3*h*d), or with ``key_value_grid`` the queries apart from keys and values."""
    build = make.strided if strided else make.normal
    width = heads * head_dim
    apart = key_value_grid is not None
    activations = {"qkv": build(batch, 1 + math.prod(grid), width if apart else 3 * width)}
    if key_value_grid is not None:
        activations["key_value"] = build(batch, 1 + math.prod(key_value_grid), 2 * width)
    parameters = {f"weight_{part}": make.parameter(head_dim, 1, 3, 3, 3, scale=0.2) for part in "qkv"}
    for part in "qkv":
        parameters.update(norm(make, f"norm_{{}}_{part}", head_dim))
    constants = {
        "grid": list(grid),
        "key_value_grid": list(grid if key_value_grid is None else key_value_grid),
        "heads": heads,
        "stride_q": list(stride_q),
        "stride_kv": list(stride_kv),
        "eps": eps,
    }
    return Arguments(activations, parameters, constants)


def pooled_attention(
    make: Maker,
    batch: int,
    q_grid: Sequence[int],
    k_grid: Sequence[int],
    heads: int,
    head_dim: int,
    strided: bool = False,
    size: float = 1.0,
    bias: float = 0.5,
) -> Arguments:
    """Query, key and value (B, 1 + T*H*W, h, d); ``size`` multiplies query and tables, ``bias`` tables."""
    build = make.strided if strided else make.normal
    q, k = (1 + math.prod(grid) for grid in (q_grid, k_grid))
    activations = {
        name: build(batch, rows, heads, head_dim, scale=scale)
        for name, rows, scale in (("query", q, size), ("key", k, 1.0), ("value", k, 1.0))
    }
    parameters = {
        f"table_{name}": make.parameter(table_length(q_grid[axis], k_grid[axis]), head_dim, scale=bias * size)
        for name, axis in (("h", 1), ("w", 2), ("t", 0))
    }
    constants = {"q_grid": list(q_grid), "k_grid": list(k_grid), "scale": head_dim**-0.5}
    return Arguments(activations, parameters, constants)


def linear(make: Maker, x: Tensor, width: int) -> Arguments:
    """Of x (..., K) to (..., width)."""
    parameters = {
        "weight": make.parameter(width, x.shape[-1], scale=x.shape[-1] ** -0.5),
        "bias": make.parameter(width, scale=0.3),
    }
    return Arguments({"x": x}, parameters)


def public(op: str, named: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of an op's public function for the arguments of its schema."""
    found = dict(named)
    if "height" in found:
        found["grid"] = (found.pop("height"), found.pop("width"))
    if "mean" in found:
        found["reduction"] = "mean" if found.pop("mean") else "sum"
    if op == "pool_tokens":
        found["num_heads"] = found.pop("heads")
    if op == "lifting_update":
        found["static"], found["dynamic"] = found.pop("target"), found.pop("source")
    if op == "lifting_predict":
        found["dynamic"], found["static"] = found.pop("target"), found.pop("source")
    for name in [name for name in found if "norm_weight" in name]:
        weight, bias = found.pop(name), found.pop(name.replace("weight", "bias"))
        found[name.replace("_weight", "")] = None if weight is None else (weight, bias)
    return found
