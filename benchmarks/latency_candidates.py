"""What latency.py times: our runners, a bare loop around each runtime, and the peers' artifacts in theirs."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from optimizer.graph.openvino_receipt import executed_layers
from optimizer.graph.receipt import onnxruntime_receipt
from optimizer.runner import Runner
from optimizer.runners.onnxruntime import OnnxRuntimeRunner
from optimizer.runners.openvino import OpenVinoRunner
from optimizer.runners.torch import TorchRunner
from optimizer.runners.torch_compile import TorchCompileRunner
from optimizer.runtime.openvino import compile_model, load_openvino
from optimizer.types import Artifact

Feed = Mapping[str, np.ndarray]
# What computes in fewer bits has the lower rank. Both 16-bit floats are one class; the SQNR tells their digits.
RANKS = {"fp32": 3, "fp16": 2, "bf16": 2, "int8": 1, "int8+bf16": 0, "int8+fp16": 0}
HEAVY = ("Convolution", "GroupConvolution", "FullyConnected", "MatMul")
AS_WRITTEN = {"EXECUTION_MODE_HINT": "ACCURACY"}  # OpenVINO's own words for: compute in the types of the model


class BareTorch:
    """`module(x)`; the caller is inside torch.inference_mode() for the whole loop."""

    def __init__(self, folder: pathlib.Path, threads: int, dtype: str = "float32", compiled: bool = False) -> None:
        import torch

        from optimizer.checkpoint import load_module

        torch.set_num_threads(threads)
        self.dtype = getattr(torch, dtype)
        self.module: Any = load_module(folder).module.to(self.dtype)
        if compiled:
            self.module = torch.compile(self.module, dynamic=False)

    def tensor(self, feed: Feed) -> Any:
        import torch

        (array,) = feed.values()
        return torch.from_numpy(array.copy()).to(self.dtype)

    def bind(self, feed: Feed) -> Callable[[], Any]:
        return partial(self.module, self.tensor(feed))

    def infer(self, feed: Feed) -> np.ndarray:
        found: np.ndarray = self.module(self.tensor(feed)).float().numpy()
        return found


class PerCallTorch(BareTorch):
    """The same, entering torch.inference_mode() anew for each call."""

    def bind(self, feed: Feed) -> Callable[[], Any]:
        import torch

        call = super().bind(feed)

        def entering() -> None:
            with torch.inference_mode():
                call()

        return entering


class BareOnnxRuntime:
    """`session.run_with_iobinding(binding)` with onnxruntime's own options, but for the threads."""

    def __init__(self, path: pathlib.Path, threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self.ort = ort
        self.session: Any = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.given, self.made = self.session.get_inputs()[0].name, self.session.get_outputs()[0].name

    def infer(self, feed: Feed) -> np.ndarray:
        (array,) = feed.values()
        found: np.ndarray = self.session.run(None, {self.given: array})[0]
        return found

    def bind(self, feed: Feed) -> Callable[[], Any]:
        (array,) = feed.values()
        answer = self.infer(feed)
        binding = self.session.io_binding()
        binding.held = self.ort.OrtValue.ortvalue_from_numpy(array.copy())
        binding.bind_ortvalue_input(self.given, binding.held)
        place = self.ort.OrtValue.ortvalue_from_shape_and_type(list(answer.shape), answer.dtype)
        binding.bind_ortvalue_output(self.made, place)
        return partial(self.session.run_with_iobinding, binding)


# OpenVINO 2026.4 goes on using the tensors of a request that is gone.
_KEPT: list[Any] = []


class BareOpenVino:
    """`request.infer()` over tensors that are set, one stream; `properties` beside the threads and the hint LATENCY."""

    def __init__(self, path: pathlib.Path, threads: int, properties: Mapping[str, str] = AS_WRITTEN) -> None:
        self.ov: Any = load_openvino()
        core = self.ov.Core()
        wanted = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, **properties}
        self.compiled: Any = core.compile_model(core.read_model(str(path)), "CPU", wanted)

    def infer(self, feed: Feed) -> np.ndarray:
        (array,) = feed.values()
        return np.array(self.compiled.create_infer_request().infer([array])[self.compiled.outputs[0]])

    def bind(self, feed: Feed) -> Callable[[], Any]:
        (array,) = feed.values()
        answer = self.infer(feed)
        tensors = [self.ov.Tensor(self.ov.Type(a.dtype), self.ov.Shape(a.shape)) for a in (array, answer)]
        tensors[0].data[...] = array
        _KEPT.extend(tensors)
        request = self.compiled.create_infer_request()
        request.set_input_tensor(0, tensors[0])
        request.set_output_tensor(0, tensors[1])
        infer: Callable[[], Any] = request.infer
        return infer


@dataclass(frozen=True)
class Candidate:
    """One row. `kind`: ours, bare (the loop around the runtime of ours called `of`) or peer.

    `held` ones are opened once however often the others are opened anew: they compile for seconds.
    """

    name: str
    kind: str
    artifact: str
    make: Callable[[pathlib.Path, int], Any]
    of: str = ""
    held: bool = False

    @contextlib.contextmanager
    def opened(self, artifacts: Mapping[str, str], threads: int) -> Iterator[Any]:
        found = self.make(pathlib.Path(artifacts[self.artifact]), threads)
        with found if isinstance(found, Runner) else contextlib.nullcontext(found) as opened:
            yield opened


def runner(kind: type[Runner]) -> Callable[[pathlib.Path, int], Runner]:
    """Return what opens an artifact in a runner of ours, as a build does."""
    form = kind.formats[0]
    return lambda path, threads: kind(
        Artifact(form, path if form == "checkpoint" else path.parent, ""),  # type: ignore[arg-type]
        threads=threads,
    )


def candidates(artifacts: Mapping[str, str]) -> list[Candidate]:
    """Return all rows whose artifact is there."""
    compiled = partial(BareTorch, compiled=True)
    found = [
        Candidate("torch fp32", "ours", "module", runner(TorchRunner)),
        Candidate("torch fp32, bare", "bare", "module", BareTorch, "torch fp32"),
        Candidate("torch_compile fp32", "ours", "module", runner(TorchCompileRunner), held=True),
        Candidate("torch_compile fp32, bare", "bare", "module", compiled, "torch_compile fp32", held=True),
        Candidate("torch bf16", "peer", "module", partial(BareTorch, dtype="bfloat16")),
        Candidate("torch_compile bf16", "peer", "module", partial(compiled, dtype="bfloat16"), held=True),
        Candidate("onnxruntime quantize_static", "peer", "onnxruntime uint8", BareOnnxRuntime),
        Candidate("openvino default hint", "peer", "fp32", partial(BareOpenVino, properties={})),
        Candidate("NNCF", "peer", "NNCF int8", BareOpenVino),
        Candidate("NNCF, default hint", "peer", "NNCF int8", partial(BareOpenVino, properties={})),
        Candidate("our int8, default hint", "peer", "openvino int8", partial(BareOpenVino, properties={})),
    ]
    for runtime, ours, bare, written in (
        ("onnxruntime", OnnxRuntimeRunner, BareOnnxRuntime, ("fp32", "fp16")),
        ("openvino", OpenVinoRunner, BareOpenVino, ("fp32", "fp16", "bf16")),
    ):
        made = {f"{runtime} {artifact}": artifact for artifact in written}
        made |= {name: name for name in (f"{runtime} int8", f"{runtime} int8 sums")}
        for name, artifact in made.items():
            found.append(Candidate(name, "ours", artifact, runner(ours)))
            found.append(Candidate(f"{name}, bare", "bare", artifact, bare, name))
    return [candidate for candidate in found if candidate.artifact in artifacts]


def precision(candidate: Candidate, opened: Any, path: pathlib.Path, threads: int) -> dict[str, Any]:
    """Return what a candidate computes in, as its runtime tells: the lowest precision of its convolutions and products,
    and how many of them have which. OpenVINO in int8 with all else in 16 bits is a class of its own, below.
    """
    if candidate.artifact == "module":
        return {"class": {"bfloat16": "bf16"}.get(str(getattr(opened, "dtype", "")).partition(".")[2], "fp32")}
    if candidate.name.startswith("onnxruntime"):
        counted = list(onnxruntime_receipt(path, threads).precisions.values())
        return {"class": lowest(counted), "layers": {kind: counted.count(kind) for kind in set(counted)}}
    compiled = opened.compiled if isinstance(opened, BareOpenVino) else compile_model(path, threads)
    layers = executed_layers(compiled)
    heavy = [layer.precision for layer in layers if layer.kind in HEAVY]
    others = {layer.precision for layer in layers if layer.kind not in (*HEAVY, "Const", "Input", "Output")}
    label, narrow = lowest(heavy), sorted(others & {"bf16", "fp16"})
    label = f"int8+{narrow[0]}" if label == "int8" and narrow else label
    return {"class": label, "layers": {kind: heavy.count(kind) for kind in set(heavy)}, "others": sorted(others)}


def lowest(precisions: list[str]) -> str:
    """Return the one of the lowest rank; what a runtime does not tell counts as the lowest of all."""
    return min(precisions, key=lambda kind: RANKS.get(kind, -1), default="unknown")


def sqnr_db(reference: np.ndarray, found: np.ndarray) -> float | None:
    """10 log10(sum ref^2 / sum err^2); None where there is no error."""
    wide = reference.astype(np.float64)
    error = float(((wide - found) ** 2).sum())
    return 10 * float(np.log10(float((wide**2).sum()) / error)) if error else None
