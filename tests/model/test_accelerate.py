"""`ifdd.accelerate` on torchvision's MViT: the same network, whatever was done or is done to it."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import ifdd
from ifdd.acceleration.pooling import same_positions
from ifdd_kernels.testing import relative_error
from ops.cases import nightly
from torchvision_mvit import clips, import_video, small

BOUND = {torch.float32: 1e-5, torch.float64: 1e-10}
ALL = [
    *(f"blocks.{place}.{part}" for place in range(2) for part in ("attn", "mlp")),
    "blocks.1.pool_skip",
    "blocks.2.attn",
    "blocks.2.mlp",
]
VERSIONS = pytest.mark.parametrize("version", [1, 2])


def pair(version: int, **options: Any) -> tuple[nn.Module, nn.Module, Any]:
    """torchvision's, an accelerated copy and the report."""
    theirs = small(version, **options)
    ours = copy.deepcopy(theirs)
    return theirs, ours, ifdd.accelerate(ours)


def step(model: nn.Module, x: Tensor, *more: Any, seed: int = 7) -> tuple[Tensor, dict[str, Tensor]]:
    """Output, and gradients of a scalar that no symmetry makes small."""
    torch.manual_seed(seed)
    model.zero_grad()
    out = model(x, *more)
    first: Tensor = out[0] if isinstance(out, tuple) else out
    weights = torch.linspace(-1, 2, first.numel(), dtype=first.dtype).view_as(first)
    (first * weights).sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return first.detach(), grads


def assert_same(theirs: nn.Module, ours: nn.Module, x: Tensor, *more: Any) -> None:
    """Output and all gradients.

    A softmax does not see what is added to all scores of a row, so the gradient of the bias behind the pooled
    keys is zero but for rounding: it is held against that of the values' bias.
    """
    bound = BOUND[x.dtype]
    (wanted, grads), (actual, found) = step(theirs, x, *more), step(ours, x, *more)
    assert relative_error(actual, wanted) <= bound
    assert found.keys() == grads.keys()
    for name, grad in grads.items():
        if "pool_k.norm_act.0.bias" in name:
            scale = grads[name.replace("pool_k", "pool_v")].norm()
            assert (found[name] - grad).norm() <= bound * scale, name
        else:
            assert relative_error(found[name], grad) <= bound, name


@contextmanager
def record_function_names() -> Iterator[set[str]]:
    """Names of the ops that run inside, there when it ends."""
    names: set[str] = set()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        yield names
    names.update(event.name for event in profiler.events())


def calls_own_forward(monkeypatch: pytest.MonkeyPatch, module: nn.Module) -> list[str]:
    """Notes calls of the class' own forward, the one that is inherited."""
    original, noted = type(module).__bases__[1], []
    own: Callable[..., Any] = original.forward

    def forward(self: nn.Module, *args: Any) -> Any:
        noted.append(original.__name__)
        return own(self, *args)

    monkeypatch.setattr(original, "forward", forward)
    return noted


@pytest.mark.parametrize("dtype", list(BOUND), ids=str)
@VERSIONS
def test_numbers_and_draws_are_torchvisions(version: int, dtype: torch.dtype) -> None:
    theirs, ours, report = pair(version, stochastic_depth_prob=0.4)
    assert sorted(report.replaced) == sorted(ALL)
    assert report.left == {}
    assert_same(theirs.to(dtype).train(), ours.to(dtype).train(), clips(dtype=dtype))
    with torch.inference_mode():
        x = clips(1, dtype=dtype)
        assert relative_error(ours.eval()(x), theirs.eval()(x)) <= BOUND[dtype]
        assert torch.equal(ours(x), ours(x.clone()))


@pytest.mark.parametrize(
    "options",
    [
        {"residual_with_cls_embed": True},
        {"residual_pool": False, "rel_pos_embed": True},
        {"residual_pool": True, "rel_pos_embed": False, "residual_with_cls_embed": True},
        {"spatial_size": (40, 24), "temporal_size": 2},
        {"proj_after_attn": False},
    ],
    ids=str,
)
def test_other_settings_and_sizes(options: dict[str, Any]) -> None:
    theirs, ours, report = pair(2, **options)
    assert len(report.replaced) == len(ALL)
    height, width = options.get("spatial_size", (32, 48))
    x = clips(2, options.get("temporal_size", 4), height, width, torch.float64)
    assert_same(theirs.double(), ours.double(), x)


@VERSIONS
@pytest.mark.parametrize("grid", [(1, 5, 7), (3, 9, 2), (2, 1, 1)])
def test_blocks_take_any_grid(version: int, grid: tuple[int, int, int]) -> None:
    """Positions of another grid than the network was made for are interpolated, as torchvision does."""
    theirs, ours, _ = pair(version)
    for place in range(3):
        width = theirs.blocks[place].norm1.normalized_shape[0]  # type: ignore[index, union-attr]
        x = torch.randn(2, 1 + math.prod(grid), width, generator=torch.Generator().manual_seed(5))
        assert_same(theirs.blocks[place].double(), ours.blocks[place].double(), x.double(), grid)  # type: ignore[index]
        assert ours.blocks[place](x.double(), grid)[1] == theirs.blocks[place](x.double(), grid)[1]  # type: ignore[index]


def test_positions_that_rounding_moves_are_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 a row of 33 queries and 39 keys rounds down; no stride here makes such grids."""
    assert not same_positions(33, 39, torch.float32)
    assert same_positions(33, 39, torch.float64)
    theirs, ours, _ = pair(2)
    noted = calls_own_forward(monkeypatch, ours.blocks[0].attn)  # type: ignore[index, union-attr]
    x = clips()
    assert torch.isfinite(ours(x)).all()
    assert noted == []
    monkeypatch.setattr("ifdd.acceleration.pooling.same_positions", lambda *_: False)
    assert torch.equal(ours.eval()(x), theirs.eval()(x)) or relative_error(ours(x), theirs(x)) <= 1e-5
    assert noted


@VERSIONS
def test_nothing_but_classes_changes(version: int) -> None:
    model = small(version)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fired: list[str] = []
    model.blocks[1].register_forward_hook(lambda *_: fired.append("forward"))  # type: ignore[index]
    model.blocks[1].register_full_backward_hook(lambda *_: fired.append("backward"))  # type: ignore[index]
    model.blocks[1].attn.project.register_forward_hook(lambda *_: fired.append("project"))  # type: ignore[index, union-attr]
    model.blocks[2].mlp.register_forward_pre_hook(lambda *_: fired.append("mlp"))  # type: ignore[index, union-attr]
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    state, text = model.state_dict(), str(model)
    report = ifdd.accelerate(model)
    assert report.left == {}
    assert all(model.get_submodule(name) is module for name, module in modules.items())
    assert all(model.get_parameter(name) is parameter for name, parameter in parameters.items())
    assert list(model.state_dict()) == list(state)
    import_video()
    from torchvision.models.video.mvit import MultiscaleAttention

    assert isinstance(model.blocks[0].attn, MultiscaleAttention)  # type: ignore[index, union-attr]
    before = model(clips()).detach()
    assert fired == ["project", "forward", "mlp"]
    step(model, clips())
    assert fired[-1] == "backward"
    optimizer.step()
    assert not torch.allclose(model(clips()), before)
    model.load_state_dict(state)
    report.undo()
    report.undo()
    assert str(model) == text
    assert "_ifdd_backend" not in vars(model.blocks[0].attn)  # type: ignore[index, union-attr]


def test_a_second_call_changes_nothing() -> None:
    _, ours, first = pair(1)
    again = ifdd.accelerate(ours)
    assert again.replaced == ()
    assert again.left == dict.fromkeys(ALL, "is accelerated already")
    again.undo()
    assert "Accelerated" in str(ours)
    first.undo()
    assert "Accelerated" not in str(ours)


@VERSIONS
def test_copies_and_pickles(version: int) -> None:
    theirs, ours, report = pair(version)
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    copies = [copy.deepcopy(ours), torch.load(file, weights_only=False)]
    report.undo()
    for made in copies:
        assert type(made.blocks[0].attn).__name__ == "AcceleratedMultiscaleAttention"
        assert_same(theirs, made, clips(1))


def read_layers(model: Any) -> dict[str, nn.Module]:
    """One of each kind of layer that a kernel reads instead of calling it."""
    block = model.blocks[1]
    return {
        "conv": block.attn.pool_k.pool,
        "norm": block.attn.pool_q.norm_act[0],
        "sequence": block.attn.pool_v.norm_act,
        "pool": block.attn.pool_v,
        "first": block.mlp[0],
        "gelu": block.mlp[1],
        "dropout": block.mlp[2],
        "second": block.mlp[3],
        "skip": block.pool_skip.pool,
        "qkv": model.blocks[0].attn.qkv,
    }


@VERSIONS
def test_hooks_that_come_later_fire(version: int) -> None:
    theirs, ours, _ = pair(version)
    for name, layer in read_layers(ours).items():
        fired: list[str] = []
        handle = layer.register_forward_hook(lambda *_, name=name, fired=fired: fired.append(name))
        assert relative_error(ours(clips(1)), theirs(clips(1))) <= 1e-5
        assert fired == [name]
        handle.remove()
    assert_same(theirs, ours, clips())


@VERSIONS
def test_hooks_that_were_there_leave_the_part(version: int) -> None:
    for name in ("conv", "norm", "sequence", "pool", "second", "gelu", "skip"):
        model = small(version)
        part = {"second": "mlp", "gelu": "mlp", "skip": "pool_skip"}.get(name, "attn")
        fired: list[str] = []
        read_layers(model)[name].register_forward_hook(lambda *_, fired=fired: fired.append(""))
        report = ifdd.accelerate(model)
        assert list(report.left) == [f"blocks.1.{part}"]
        assert "hook" in report.left[f"blocks.1.{part}"]
        model(clips(1))
        assert fired == [""]


def test_what_becomes_of_layers_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parametrizations, subclasses and other settings: their effect is that of torchvision's blocks."""

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    def double(model: Any) -> None:
        layer = model.blocks[0].mlp[3]
        layer.__class__ = Doubled

    def double_projection(model: Any) -> None:
        model.blocks[0].attn.qkv.__class__ = Doubled

    def spectral(model: Any) -> None:
        torch.manual_seed(0)
        parametrizations.spectral_norm(model.blocks[1].mlp[0])

    def other_eps(model: Any) -> None:
        model.blocks[1].attn.pool_k.norm_act[0].eps = 0.5

    def tanh(model: Any) -> None:
        model.blocks[1].mlp[1].approximate = "tanh"

    def norm_first(model: Any) -> None:
        model.blocks[2].attn.pool_k.norm_before_pool = False
        model.blocks[2].attn.pool_k.norm_act = None

    def own_forward(model: Any) -> None:
        layer = model.blocks[1].attn.pool_v.pool
        layer.forward = lambda x: 3 * type(layer).forward(layer, x)

    for change in (double, double_projection, spectral, other_eps, tanh, norm_first, own_forward):
        theirs, ours, _ = pair(2)
        untouched = ours(clips(1)).detach()
        change(theirs)
        change(ours)
        assert relative_error(ours(clips(1)), theirs(clips(1))) <= 1e-5, change.__name__
        assert relative_error(ours(clips(1)), untouched) > 1e-5, change.__name__
        ifdd.accelerate(copied := copy.deepcopy(theirs))
        assert relative_error(copied(clips(1)), theirs(clips(1))) <= 1e-5, change.__name__


def replace_activation(model: Any) -> None:
    model.blocks[0].mlp[1] = nn.ReLU()


def subclass_of_activation(model: Any) -> None:
    class Doubled(nn.GELU):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model.blocks[0].mlp[1] = Doubled()


def identity_for_dropout(model: Any) -> None:
    model.blocks[0].mlp[2] = nn.Identity()


def norm_for_dropout(model: Any) -> None:
    model.blocks[0].mlp[2] = nn.LayerNorm(model.blocks[0].mlp[0].out_features)


def one_layer_more(model: Any) -> None:
    model.blocks[0].mlp.append(nn.Tanh())


def one_layer_less(model: Any) -> None:
    del model.blocks[0].mlp[4]


def subclass_of_pool(model: Any) -> None:
    module = model.blocks[1].attn.pool_v

    class Doubled(type(module)):  # type: ignore[misc]
        def forward(self, x: Tensor, thw: Any) -> Any:
            out, grid = super().forward(x, thw)
            return 2 * out, grid

    module.__class__ = Doubled


def pool_in_a_wrapper(model: Any) -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor, thw: Any) -> Any:
            out, grid = self.inner(x, thw)
            return 3 * out, grid

    model.blocks[2].attn.pool_q = Wrapper(model.blocks[2].attn.pool_q)


def learnable_scale(model: Any) -> None:
    model.blocks[1].attn.scaler = nn.Parameter(torch.tensor(0.3))


@pytest.mark.parametrize(
    "change",
    [
        replace_activation,
        subclass_of_activation,
        identity_for_dropout,
        norm_for_dropout,
        one_layer_more,
        one_layer_less,
        subclass_of_pool,
        pool_in_a_wrapper,
        learnable_scale,
    ],
)
def test_layers_that_are_replaced_count(change: Callable[[nn.Module], None]) -> None:
    """Whether before or after: what the block computes and every gradient are torchvision's."""
    theirs, later, _ = pair(2)
    change(theirs)
    change(later)
    before = copy.deepcopy(theirs)
    ifdd.accelerate(before)
    for ours in (later, before):
        assert_same(copy.deepcopy(theirs).double(), ours.double(), clips(dtype=torch.float64))


def test_a_part_that_blocks_share() -> None:
    model = small(2)
    model.blocks[2].mlp = model.blocks[1].mlp  # type: ignore[index, union-attr]
    theirs = copy.deepcopy(model)
    report = ifdd.accelerate(model)
    assert sorted(report.replaced) == sorted(set(ALL) - {"blocks.2.mlp"})
    assert report.left == {"blocks.2.mlp": "is accelerated already"}
    assert_same(theirs, model, clips())


def test_undo_of_a_class_that_became_another() -> None:
    class Halved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 2

    theirs, ours, report = pair(2)
    for model in (theirs, ours):
        parametrize.register_parametrization(model.blocks[1].attn, "rel_pos_h", Halved())  # type: ignore[index, union-attr]
    with pytest.raises(RuntimeError, match=r"undo: blocks\.1\.attn has become a Parametrized"):
        report.undo()
    assert type(ours.blocks[0].attn).__name__ == "AcceleratedMultiscaleAttention"  # type: ignore[index, union-attr]
    assert_same(theirs, copy.deepcopy(ours), clips())
    parametrize.remove_parametrizations(ours.blocks[1].attn, "rel_pos_h")  # type: ignore[index, union-attr]
    report.undo()
    assert "Accelerated" not in str(ours)


def test_dropout_is_left_and_applied() -> None:
    theirs, ours, report = pair(1, attention_dropout=0.5)
    assert sorted(report.left) == [f"blocks.{place}.mlp" for place in range(3)]
    assert set(report.left.values()) == {"has a dropout of 0.5"}
    assert_same(theirs.train(), ours.train(), clips())
    theirs, ours, _ = pair(2)
    for model in (theirs, ours):
        model.blocks[0].mlp[2].p = 0.5  # type: ignore[index, union-attr]
    assert_same(theirs.train(), ours.train(), clips())


def test_what_is_left_says_why() -> None:
    import_video()
    from torchvision.models.video.mvit import MSBlockConfig, MultiscaleBlock

    class Mine(MultiscaleBlock):  # type: ignore[misc]
        pass

    report = ifdd.accelerate(small(2, block=Mine))
    assert report.replaced == ()
    assert report.left["blocks.0"].startswith("is a ")
    assert "subclass of MultiscaleBlock" in report.left["blocks.0"]

    setting = [MSBlockConfig(1, 16, 16, [1, 3, 3], [1, 3, 3], [1, 2, 2], [1, 2, 2])] * 2
    from torchvision.models.video.mvit import MViT

    options = dict.fromkeys(
        ("residual_pool", "residual_with_cls_embed", "rel_pos_embed", "proj_after_attn"), True
    )
    model = MViT((32, 32), 4, [*setting[:1], MSBlockConfig(1, 16, 16, [], [], [], [])], **options)
    report = ifdd.accelerate(model)
    assert report.left["blocks.0.attn"] == "pool_q pools by a kernel of (1, 3, 3), not (3, 3, 3)"
    assert report.left["blocks.1.attn"] == "does not pool keys and values"
    assert "blocks.0.attn: pool_q pools" in str(report)

    model = small(2)
    model.blocks[0].mlp.forward = lambda x: x  # type: ignore[index, union-attr]
    model.blocks[1].pool_skip.pool = nn.AvgPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))  # type: ignore[index, union-attr]
    report = ifdd.accelerate(model)
    assert report.left["blocks.0.mlp"] == "has a forward of its own"
    assert "maximum" in report.left["blocks.1.pool_skip"]


def test_parts_of_a_network_and_networks_around_it() -> None:
    theirs = small(2)
    block = theirs.blocks[1]  # type: ignore[index]
    assert sorted(ifdd.accelerate(block).replaced) == ["attn", "mlp", "pool_skip"]
    around = nn.Sequential(nn.Identity(), small(1))
    assert sorted(ifdd.accelerate(around).replaced) == sorted(f"1.{name}" for name in ALL)
    nothing = ifdd.accelerate(nn.Linear(2, 2))
    assert (nothing.replaced, nothing.left) == ((), {})
    assert str(nothing).startswith("no blocks of an MViT")


def test_refusals() -> None:
    with pytest.raises(TypeError, match=r"accelerate: model must be a torch\.nn.Module, got str"):
        ifdd.accelerate("mvit_v2_s")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="accelerate: unknown backend 'fast'"):
        ifdd.accelerate(nn.Linear(2, 2), backend="fast")


@VERSIONS
def test_the_backend_is_passed_on(version: int) -> None:
    theirs = small(version)
    for backend in ("reference", "sdpa"):
        ours = copy.deepcopy(theirs)
        ifdd.accelerate(ours, backend=backend)
        with record_function_names() as names:
            assert relative_error(ours(clips(1)), theirs(clips(1))) <= 1e-5
        assert ("ifdd::pool_tokens_reference" in names) == (backend == "reference")


@VERSIONS
def test_transforms_take_the_own_forward(version: int) -> None:
    theirs, ours, _ = pair(version)
    x = clips(1)

    def loss(model: nn.Module) -> Callable[[dict[str, Tensor]], Tensor]:
        return lambda parameters: torch.func.functional_call(model, parameters, (x,)).square().sum()

    grads = [torch.func.grad(loss(model))(dict(model.named_parameters())) for model in (theirs, ours)]
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])
    tangent = torch.ones_like(x)
    wanted, found = (torch.func.jvp(model, (x,), (tangent,))[1] for model in (theirs, ours))
    assert torch.equal(found, wanted)
    assert_same(theirs, ours, x)


@VERSIONS
def test_symbolic_tracing(version: int) -> None:
    theirs, ours, _ = pair(version)
    assert relative_error(torch.fx.symbolic_trace(ours)(clips(1)), theirs(clips(1))) <= 1e-5


@pytest.mark.parametrize("version", [nightly(1), 2])
def test_compiled(version: int) -> None:
    theirs, ours, _ = pair(version)
    theirs, ours = theirs.eval(), ours.eval()
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert relative_error(compiled(clips()), theirs(clips())) <= 1e-5


@pytest.mark.parametrize("version", [1, nightly(2)])
def test_exported(version: int) -> None:
    theirs, ours, _ = pair(version)
    theirs, ours = theirs.eval(), ours.eval()
    batch = torch.export.Dim("batch", min=1, max=8)
    with torch.no_grad():
        program = torch.export.export(ours, (clips(),), dynamic_shapes=({0: batch},), strict=False)
        assert relative_error(program.module()(clips(3)), theirs(clips(3))) <= 1e-5
    assert any("ifdd" in str(node.target) for node in program.graph.nodes)


@VERSIONS
def test_other_dtypes_and_devices(version: int) -> None:
    theirs, ours, _ = pair(version)
    wanted = theirs(clips())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = ours(clips())
    assert low.dtype == torch.bfloat16
    assert relative_error(low, wanted) <= 0.05
    out = copy.deepcopy(ours).to("meta")(clips().to("meta"))
    assert out.shape == wanted.shape
    assert relative_error(ours.bfloat16()(clips().bfloat16()), wanted) <= 0.05
    assert ours(clips()[:0].bfloat16()).shape == (0, 5)


def test_data_parallel_training(tmp_path: Any) -> None:
    theirs, ours, _ = pair(1)
    wanted = step(theirs, clips())[1]
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        found = step(nn.parallel.DistributedDataParallel(ours), clips())[1]
    finally:
        torch.distributed.destroy_process_group()
    assert {f"module.{name}" for name in wanted} == set(found)
    assert relative_error(found["module.conv_proj.weight"], wanted["conv_proj.weight"]) <= 1e-5


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("dtype", list(BOUND), ids=str)
@pytest.mark.parametrize("name", ["mvit_v1_b", "mvit_v2_s"])
def test_whole_networks(name: str, dtype: torch.dtype) -> None:
    """Kinetics' sizes, with the architecture's own initialisation."""
    torch.manual_seed(0)
    theirs: nn.Module = getattr(import_video(), name)(weights=None, dropout=0.0).to(dtype)
    ours = copy.deepcopy(theirs)
    report = ifdd.accelerate(ours)
    assert len(report.replaced) == 35
    assert report.left == {}
    assert_same(theirs.train(), ours.train(), clips(1, 16, 224, 224, dtype))
