"""Stream real samples through a graph and keep the largest magnitude of every channel."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from optimizer.calibration.batching import Fit, fitting_batches
from optimizer.calibration.collect import BATCH, Progress, fixed_batch, not_finite
from optimizer.data.samples import Array, Samples
from optimizer.graph.files import save_model
from optimizer.runtime.onnx import OnnxSession

_SUFFIX, _COUNT = "__largest", "__count"
# Activations that the graph holds at once: large pictures and long sentences come in smaller batches.
_BUDGET_BYTES = 64 << 20
_BYTES = 4  # of a float32


def channel_maxima(
    model: onnx.ModelProto, channels: Mapping[str, int], samples: Samples, progress: Progress
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the largest magnitude of each channel, along the last axis, over all samples; `model` is changed.

    Samples of unlike shapes run in batches of their own, each as large as the budget allows that shape.
    Memory: the graph itself reduces each activation, so that a vector per activation and batch comes out of it; it also
    says how many values each had, which is what the budget counts.
    Raises: StageError for no samples, or an activation that is NaN or infinite.
    """
    maxima = {name: np.zeros(size) for name, size in channels.items()}
    if not channels:
        return maxima
    for name, size in channels.items():
        _add_reduction(model, name, size)
    with tempfile.TemporaryDirectory(prefix="channels-") as folder:
        path = Path(folder) / "model.onnx"
        save_model(model, path)
        with OnnxSession(path) as session:
            fixed = fixed_batch(session.inputs)
            done = 0
            fit = Fit(BATCH, _BUDGET_BYTES)
            for batch in fitting_batches(samples, (lambda _: fixed) if fixed else fit.size):
                rows = np.arange(fixed or len(batch)) % len(batch)  # a fixed batch is filled with repetitions
                outputs = session.infer({name: array[rows] for name, array in batch.inputs.items()})
                fit.took(batch, _BYTES * sum(int(outputs[name + _COUNT]) for name in maxima))
                for name, largest in maxima.items():
                    np.maximum(largest, _checked(name, outputs[name + _SUFFIX], batch.identities), out=largest)
                done += len(batch)
                progress(done, len(samples))
    return maxima


def _checked(name: str, largest: Array, identities: list[str]) -> Array:
    if np.isfinite(largest.astype(np.float64)).all():
        return largest
    many = f"one of the samples {identities[0]} to {identities[-1]}"
    raise not_finite(name, many if len(identities) > 1 else f"sample {identities[0]}", "calibration data")


def _add_reduction(model: onnx.ModelProto, name: str, channels: int) -> None:
    """Let the graph return max|x| of each channel, and the number of values: the rank of x need not be known."""
    graph = model.graph
    rows, magnitudes, result = f"{name}__rows", f"{name}__magnitudes", name + _SUFFIX
    shape, axes = f"{name}__row", f"{name}__first"
    graph.initializer.append(numpy_helper.from_array(np.array([-1, channels]), shape))
    graph.initializer.append(numpy_helper.from_array(np.array([0]), axes))
    opset = next(o.version for o in model.opset_import if o.domain in {"", "ai.onnx"})
    reduction = (
        onnx.helper.make_node("ReduceMax", [magnitudes, axes], [result], keepdims=0)
        if opset >= 18  # from here on the axes are an input
        else onnx.helper.make_node("ReduceMax", [magnitudes], [result], keepdims=0, axes=[0])
    )
    graph.node.append(onnx.helper.make_node("Reshape", [name, shape], [rows]))
    graph.node.append(onnx.helper.make_node("Abs", [rows], [magnitudes]))
    graph.node.append(reduction)
    graph.node.append(onnx.helper.make_node("Size", [name], [name + _COUNT]))
    graph.output.append(onnx.helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, [channels]))
    graph.output.append(onnx.helper.make_tensor_value_info(name + _COUNT, onnx.TensorProto.INT64, []))
