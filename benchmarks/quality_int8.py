"""int8 as onnxruntime and modelopt quantize."""

from __future__ import annotations

import pathlib
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimizer.data.samples import Samples, batches


@dataclass(frozen=True)
class Sources:
    """What a peer is given: float32 graph, module, calibration samples and how many at a time, modelopt's python."""

    graph: pathlib.Path
    module: pathlib.Path
    samples: Samples
    together: int
    python: str


def feeds(samples: Samples, size: int) -> list[dict[str, Any]]:
    """Return the samples in batches."""
    return [batch.inputs for batch in batches(samples, size)]


def padded(samples: Samples) -> dict[str, Any]:
    """Return all samples in one shape: what is shorter, ids and masks, filled up with zeros."""
    arrays: dict[str, Any] = {}
    for name, first in samples[0].inputs.items():
        if first.ndim > 1:
            arrays[name] = np.stack([s.inputs[name] for s in samples])
            continue
        longest = max(len(s.inputs[name]) for s in samples)
        arrays[name] = np.stack([np.pad(s.inputs[name], (0, longest - len(s.inputs[name]))) for s in samples])
    return arrays


def onnxruntime_quantized(
    method: str, dialect: str, graph: pathlib.Path, target: pathlib.Path, held: Sequence[Any]
) -> None:
    """Quantize with onnxruntime's quantize_static, in the form that either target takes."""
    from onnxruntime import quantization as ort

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self.feeds = iter(held)

        def get_next(self) -> Any:
            return next(self.feeds, None)

    tensorrt = dialect == "tensorrt"
    extra: dict[str, Any] = {"ActivationSymmetric": tensorrt, "WeightSymmetric": True}
    if tensorrt:
        extra |= {"QuantizeBias": False}
    if method == "Percentile":
        extra |= {"CalibPercentile": 99.999}
    ort.quantize_static(
        str(graph),
        str(target),
        Reader(),
        quant_format=ort.QuantFormat.QDQ,
        per_channel=True,
        activation_type=ort.QuantType.QInt8 if tensorrt else ort.QuantType.QUInt8,
        weight_type=ort.QuantType.QInt8,
        calibrate_method=getattr(ort.CalibrationMethod, method),
        extra_options=extra,
    )


def _onnxruntime(sources: Sources, method: str, dialect: str, target: pathlib.Path) -> None:
    if method == "dynamic":
        from onnxruntime import quantization as ort

        ort.quantize_dynamic(str(sources.graph), str(target), per_channel=True)
    else:
        onnxruntime_quantized(method, dialect, sources.graph, target, feeds(sources.samples, sources.together))


_MODELOPT_CHILD = """
import sys, numpy as np
from modelopt.onnx.quantization import quantize
graph, data, method, target = sys.argv[1:]
quantize(graph, quantize_mode="int8", calibration_data=dict(np.load(data)), calibration_method=method,
         calibration_eps=["cpu"], output_path=target)
"""


def _modelopt(sources: Sources, method: str, _: str, target: pathlib.Path) -> None:
    """Quantize with modelopt in its own environment."""
    saved = target.with_suffix(".npz")
    np.savez(saved, **padded(sources.samples))
    command = [sources.python, "-c", _MODELOPT_CHILD, str(sources.graph), str(saved), method, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=target.parent)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1][:300])


# tool -> quantize(sources, method, dialect, target)
QUANTIZERS: dict[str, Callable[[Sources, str, str, pathlib.Path], None]] = {
    "onnxruntime": _onnxruntime,
    "modelopt": _modelopt,
}
