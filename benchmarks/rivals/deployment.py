"""Deployment runtimes: ONNX Runtime and OpenVINO on the exported original network and on our own export.

Inference only. A file is exported for one batch: with fixed sizes both runtimes are faster than with a
symbolic batch. Exporting takes about a minute per file, so files stay in the user's cache until the network,
its weights or the exporter change.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import benchmarks.original
import ifdd
import ifdd_kernels
from benchmarks.rivals.contender import Bound, Contender, Inputs, Outputs, Setup
from ifdd import IFDD, IFDDConfig
from ifdd.checkpoint import from_original
from ifdd.export.formats import FORMATS, OPSET
from ifdd.export.program import INPUT, OUTPUTS
from ifdd_kernels import _kept

EXPORT_S = 60.0
"""Seconds of one export on a quiet CPU, for the budget only."""
EXPORTERS = ("torch", "onnx", "onnxscript")
RESULTS = OUTPUTS[:2]
"""Logits and lifting residual, the outputs that all implementations of the network are compared by."""

Run = Callable[[Tensor], Outputs]


@dataclass(frozen=True)
class Export(Setup):
    """One network's ONNX file: found in the cache, or exported into it."""

    name: str
    config: IFDDConfig
    #: From the original's module to the network that is exported.
    make: Callable[[nn.Module], nn.Module]
    #: What the network is written in; a change of it makes another file.
    sources: tuple[Path, ...]

    def path(self, inputs: Inputs) -> Path:
        """The file for these inputs' sizes and weights, whether it is there or not.

        Raises:
            OSError: the user has no home, and thus no cache.
        """
        folder = _kept.folder()
        if folder is None:
            raise FileNotFoundError("no folder for exported networks: set XDG_CACHE_HOME")
        return folder / "exports" / f"{self._sizes(inputs)}-{self.key(inputs)}.onnx"

    def _sizes(self, inputs: Inputs) -> str:
        return f"{self.name}-{'x'.join(str(size) for size in _clips(inputs).shape)}"

    def key(self, inputs: Inputs) -> str:
        """Digest of configuration, sizes, weights, source and the versions of the exporters."""
        versions = {name: importlib.metadata.version(name) for name in EXPORTERS}
        facts = (self.config.to_dict(), tuple(_clips(inputs).shape), OPSET, versions)
        digest = hashlib.sha256(repr(facts).encode())
        for file in source_files((*self.sources, Path(__file__))):
            digest.update(file.read_bytes())
        for name, value in inputs.constants["original"].state_dict().items():
            digest.update(name.encode())
            digest.update(value.numpy())
        return digest.hexdigest()[:32]

    def seconds(self, inputs: Inputs) -> float:
        return 0.0 if self.path(inputs).exists() else EXPORT_S

    def run(self, inputs: Inputs, say: Callable[[str], None]) -> None:
        self.file(inputs, say)

    def file(self, inputs: Inputs, say: Callable[[str], None] = lambda line: None) -> Path:
        """The file, exported if it is not there; it appears whole or not at all."""
        path = self.path(inputs)
        if path.exists():
            return path
        say(f"  exporting the network of {self.name!r} to {path} (about a minute, once)")
        network = self.make(inputs.constants["original"]).eval()
        # Whatever the run's precision is, the file is in float32.
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            program = torch.export.export(network, (torch.rand(_clips(inputs).shape),))
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            FORMATS["onnx"].write(program, made, {})
            made.replace(path)
        # 150 MB each: those of other weights, sources and versions would fill the disk over time.
        for other in path.parent.glob(f"{self._sizes(inputs)}-*.onnx"):
            if other != path:
                other.unlink(missing_ok=True)
        return path


def _clips(inputs: Inputs) -> Tensor:
    (clips,) = inputs.activations.values()
    return clips


def source_files(places: Sequence[Path]) -> list[Path]:
    """Python files among these files and in these folders."""
    return sorted(file for place in places for file in ([place] if place.is_file() else place.rglob("*.py")))


@dataclass(frozen=True)
class Runtime:
    """A program that runs ONNX files."""

    name: str
    #: (file, precision of the computation, threads) -> the network.
    load: Callable[[Path, torch.dtype, int], Run]
    #: Why it does not compute in a precision here; empty if it does.
    refusal: Callable[[torch.dtype], str]


def _onnxruntime(path: Path, precision: torch.dtype, threads: int) -> Run:
    import onnxruntime

    del precision  # it computes in that of the file, float32
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Its threads wait for the next call in a loop: they would take a core from whoever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(clips: Tensor) -> Outputs:
        return tuple(torch.from_numpy(out) for out in session.run(list(RESULTS), {INPUT: clips.numpy()}))

    return run


def _only_float32(precision: torch.dtype) -> str:
    if precision == torch.float32:
        return ""
    return (
        "ONNX Runtime computes a float32 network in float32 on x86-64 "
        "(its bfloat16 products, mlas.enable_gemm_fastmath_arm64_bfloat16, are for ARM)"
    )


_OPENVINO_TYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
_OPENVINO_CAPABILITIES = {torch.float32: "FP32", torch.bfloat16: "BF16", torch.float16: "FP16"}


def _openvino(path: Path, precision: torch.dtype, threads: int) -> Run:
    import openvino

    core = openvino.Core()
    wanted = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        # By default it takes bfloat16 wherever the CPU has it.
        "INFERENCE_PRECISION_HINT": _OPENVINO_TYPES[precision],
        "ENABLE_HYPER_THREADING": True,
    }
    compiled = core.compile_model(core.read_model(path), "CPU", wanted)
    threads_taken = compiled.get_property("INFERENCE_NUM_THREADS")
    type_taken = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if (threads_taken, type_taken) != (threads, _OPENVINO_TYPES[precision]):
        raise RuntimeError(
            f"OpenVINO took {threads_taken} threads and {type_taken}, "
            f"asked for {threads} and {_OPENVINO_TYPES[precision]}"
        )
    request = compiled.create_infer_request()

    def run(clips: Tensor) -> Outputs:
        results = request.infer({INPUT: clips.numpy()}, share_inputs=True)
        return tuple(torch.from_numpy(results[name].copy()) for name in RESULTS)

    return run


def _not_on_this_cpu(precision: torch.dtype) -> str:
    if precision == torch.float32:
        return ""
    import openvino

    found = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    wanted = _OPENVINO_CAPABILITIES[precision]
    return "" if wanted in found else f"OpenVINO has no {wanted} on this CPU, only {', '.join(found)}"


RUNTIMES = (
    Runtime("onnxruntime", _onnxruntime, _only_float32),
    Runtime("openvino", _openvino, _not_on_this_cpu),
)


def _refusal(runtime: Runtime, precision: torch.dtype) -> str:
    missing = [name for name in (runtime.name, *EXPORTERS[1:]) if importlib.util.find_spec(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}; pip install 'ifdd-kernels[bench]'"
    return runtime.refusal(precision)


def _contender(export: Export, runtime: Runtime) -> Contender:
    def bind(inputs: Inputs) -> Bound:
        precision = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        return Bound(runtime.load(export.file(inputs), precision, torch.get_num_threads()), {})

    refusal = functools.partial(_refusal, runtime)
    return Contender(
        f"{export.name}+{runtime.name}",
        bind,
        capturable=False,
        refusal=refusal,
        setup=export,
        counted_memory=False,
        fields={} if refusal(torch.float32) else {"runtime": importlib.metadata.version(runtime.name)},
    )


def exports(config: IFDDConfig) -> list[Export]:
    """The original's file and ours, with the same weights."""

    def ours(original: nn.Module) -> nn.Module:
        model = IFDD(config)
        model.load_state_dict(from_original(original.state_dict(), "model", target=model).state_dict)
        return model

    network, ops = (Path(str(package.__file__)).parent for package in (ifdd, ifdd_kernels))
    mine = ("model.py", "modules", "checkpoint", "export")
    originals = (Path(str(benchmarks.original.__file__)).parent,)
    sources = (*(network / name for name in mine), ops / "reference", ops / "ops")
    return [Export("original", config, copy.deepcopy, originals), Export("ifdd", config, ours, sources)]


def contenders(config: IFDDConfig) -> list[Contender]:
    """Every runtime on both files. What is not installed is among them and says so."""
    return [_contender(export, runtime) for export in exports(config) for runtime in RUNTIMES]
