"""Runs a bundle's model with the settings of Triton's backends, before Triton does: in a child process.

Triton's backends have fewer settings than the sessions that measured. Where the golden outputs depend on one that they
lack, or the model crashes without it, that is found here and not in service.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.errors import StageError
from optimizer.isolated import run_isolated
from optimizer.runtime.golden import batch_sizes, compare, failed, read_golden, replay
from optimizer.runtime.onnx import OnnxSession
from optimizer.runtime.onnx_interface import read_interface
from optimizer.runtime.onnx_optimizers import keep_arithmetic
from optimizer.runtime.openvino import OpenVinoSession
from optimizer.runtime.session import Array
from optimizer.types import TensorSpec

_ANSWERS = "answers.npz"
_LIMIT_S = 900.0
_REFUSED = (
    "The bundle's own loader takes more, and has settings that the backend lacks. Bundle another variant or target, or "
    "bundle without --triton."
)
_OTHERWISE = {
    "onnxruntime": _REFUSED,
    "openvino": "On a CPU that multiplies bfloat16 in tiles OpenVINO computes float32 in it, and it rounds what meets "
    "4-bit weights to 8 bits. The bundle's own loader switches both off, the backend cannot. Bundle the target "
    "onnxruntime, or bundle without --triton.",
}


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The interface as the backend's library reports it, else as the file declares it, and what was seen.

    `lacking`, where nothing was run: what the bundle's own loader sets for this graph and the backend cannot.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    done: bool
    said: str
    lacking: tuple[str, ...] = ()


def rehearse(
    backend: str,
    model: Path,
    golden: Path,
    allowed: Mapping[str, Mapping[str, Any]],
    *,
    threads: int,
    ranges: Mapping[str, Mapping[str, int]],
) -> Rehearsal:
    """Run the golden inputs as the backend would on the CPU; `allowed` is the tolerance of each output.

    Raises: StageError where the library refuses the model or crashes on it, or the golden outputs do not come out.
    """
    if importlib.util.find_spec(backend) is None:
        return not_rehearsed(backend, model, f"{backend} is not installed where it was written")
    what = f"the model with the settings of Triton's {backend} backend"
    found, answers = _run(backend, model, golden, what=what, threads=threads, ranges=ranges)
    wrong = failed(compare(answers, read_golden(golden)[1], allowed))
    if wrong:
        raise StageError(
            f"does not compute its golden outputs: {'; '.join(wrong)}", where=what, hint=_OTHERWISE[backend]
        )
    said = f"rehearsed with {backend} {found['version']} on the CPU: the golden outputs come out"
    return Rehearsal(_specs(found["inputs"]), _specs(found["outputs"]), True, said)


def not_rehearsed(backend: str, model: Path, why: str) -> Rehearsal:
    """Return what the file declares, and the settings that a rehearsal would have shown to matter or not."""
    lacking = _own_settings(model) if backend == "onnxruntime" else ()
    return Rehearsal(*read_interface(model), False, f"not rehearsed: {why}", lacking)


class _Settings(dict[str, str]):
    """Takes the entries of a session's options, without onnxruntime."""

    def add_session_config_entry(self, key: str, value: str) -> None:
        self[key] = value


def _own_settings(model: Path) -> tuple[str, ...]:
    settings = _Settings()
    without = keep_arithmetic(settings, model)
    return (*(f"`{key}` = {value}" for key, value in settings.items()), *(f"no `{name}`" for name in without))


def _run(
    backend: str, model: Path, golden: Path, *, what: str, threads: int, ranges: Mapping[str, Mapping[str, int]]
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return what the child tells and the outputs it computed; its log stays where an error names it."""
    folder = Path(tempfile.mkdtemp(prefix="optimizer-triton-"))
    arguments = {
        "backend": backend,
        "model": str(model),
        "golden": str(golden),
        "answers": str(folder / _ANSWERS),
        "threads": threads,
        "ranges": {axis: dict(sizes) for axis, sizes in ranges.items()},
    }
    try:
        log = folder / "rehearsal.log"
        found = run_isolated(f"{__name__}:answer", arguments, log=log, what=what, timeout_s=_LIMIT_S).value
    except StageError as error:
        if error.hint:
            raise
        shutil.rmtree(folder)
        raise StageError(error.what, where=what, hint=_REFUSED) from error
    with np.load(folder / _ANSWERS, allow_pickle=False) as archive:
        answers = {name: archive[name] for name in archive.files}
    shutil.rmtree(folder)
    return found, answers


def answer(
    backend: str, model: str, golden: str, answers: str, threads: int, ranges: dict[str, dict[str, int]]
) -> dict[str, Any]:
    """Write the outputs of the golden inputs; return the interface and the library's version. Runs in a child."""
    kind = _AsTritonOnnx if backend == "onnxruntime" else _AsTritonOpenVino
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads
    with kind(Path(model), threads=min(threads, usable)) as session:  # OpenVINO refuses more
        inputs = read_golden(Path(golden))[0]
        outputs = replay(session, inputs, batch_sizes(session.inputs, ranges))
        np.savez(answers, **{name: np.asarray(array) for name, array in outputs.items()})  # type: ignore[arg-type]
        return {
            "inputs": [spec.to_json() for spec in session.inputs],
            "outputs": [spec.to_json() for spec in session.outputs],
            "version": str(importlib.import_module(backend).__version__).partition("-")[0],
        }


class _AsTritonOnnx(OnnxSession):
    """All of onnxruntime's optimizations and none of our settings.

    Source: onnxruntime_backend, src/onnxruntime.cc, ModelState::ModelState.
    """

    def _open(self, profile: str | None = None) -> Any:
        ort = self._ort
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        try:
            return ort.InferenceSession(str(self._path), options, providers=["CPUExecutionProvider"], enable_fallback=0)
        except self._refusals() as error:
            raise StageError(f"onnxruntime refuses the model: {' '.join(str(error).split())[:400]}") from error


class _AsTritonOpenVino(OpenVinoSession):
    """OpenVINO's own choices but for the three settings that config.pbtxt makes.

    Source: openvino_backend, src/openvino.cc: ParseParameterHelper, ConfigureOpenvinoCore, LoadModel, ValidateOutputs.
    """

    def __init__(self, path: Path, *, device: str = "cpu", threads: int = 1) -> None:
        super().__init__(path, device=device, threads=threads)
        core = self._ov.Core()
        settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
        core.set_property("CPU", settings)
        model = core.read_model(str(path))
        self._compiled = core.compile_model(model, "CPU", {"ALLOW_AUTO_BATCHING": False})
        self._ports = {name: port for port in self._compiled.inputs + self._compiled.outputs for name in port.names}
        # The backend knows a tensor by one of its names alone, and compares the shapes that OpenVINO inferred.
        shapes = {port.get_any_name(): port.get_partial_shape() for port in model.inputs + model.outputs}
        unnamed = [spec.name for spec in (*self.inputs, *self.outputs) if spec.name not in shapes]
        if unnamed:
            raise StageError(f"OpenVINO knows the tensors {', '.join(unnamed)} by another name")
        self.inputs = tuple(_inferred(spec, shapes[spec.name]) for spec in self.inputs)
        self.outputs = tuple(_inferred(spec, shapes[spec.name]) for spec in self.outputs)


def _inferred(spec: TensorSpec, shape: Any) -> TensorSpec:
    """Return the tensor with the axes that OpenVINO inferred.

    Raises: StageError for an open axis with a largest size, which the backend matches with no size that it can be
    given. Source: openvino_backend, src/openvino_utils.cc, doesMatch.
    """
    bounded = [i for i, size in enumerate(shape) if size.is_dynamic and size.get_max_length() != -1]
    if bounded:
        raise StageError(
            f"tensor '{spec.name}' is {shape} to OpenVINO: axis {bounded[0]} is open and has a largest size, and "
            "Triton's openvino backend loads no such tensor"
        )
    axes = (
        (spec.shape[i] if isinstance(spec.shape[i], str) else f"{spec.name}_axis{i}")
        if size.is_dynamic
        else size.get_length()
        for i, size in enumerate(shape)
    )
    return TensorSpec(spec.name, spec.dtype, tuple(axes))


def _specs(documents: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec.from_json(document) for document in documents)
