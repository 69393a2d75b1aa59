"""Run real samples through a graph once and fold what its activations are into histograms."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from optimizer.calibration.histogram import RunningHistogram
from optimizer.data.samples import Array, Batch, Samples, batches
from optimizer.errors import StageError
from optimizer.graph.files import save_model
from optimizer.runtime.onnx import OnnxSession
from optimizer.types import TensorSpec

# A larger batch is no faster on a CPU, and holds more activations at once.
BATCH = 16
# Activations held at once: large pictures come in smaller batches.
_BUDGET_BYTES = 256 << 20
_WHERE = "calibration data"

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Collected:
    """What one pass found. `repeated` counts samples run twice to fill the last batch of a graph of fixed batch."""

    histograms: dict[str, RunningHistogram]
    samples: int = 0
    repeated: int = 0
    first_content: str = ""
    varied: bool = field(default=False)


def collect(model: onnx.ModelProto, tensors: Sequence[str], samples: Samples, progress: Progress) -> Collected:
    """Return a histogram per tensor over all samples; `model` gets them as outputs.

    Memory: the activations of one batch, and 64 KiB a tensor; nothing of a batch outlives it.
    Raises: StageError for no samples, fewer than announced, all alike, or values that are NaN or infinite.
    """
    if len(samples) == 0:
        raise StageError("holds no samples", where=_WHERE, hint="Check data.calibration: the split's name, its place.")
    collected = Collected({name: RunningHistogram() for name in tensors})
    _add_outputs(model, tensors)
    with tempfile.TemporaryDirectory(prefix="calibrate-") as folder:
        path = Path(folder) / "model.onnx"
        save_model(model, path)
        with OnnxSession(path, threads=len(os.sched_getaffinity(0))) as session:
            fixed = _fixed_batch(session.inputs)
            size = fixed or _batch_size(session, samples, tensors)
            for batch in batches(samples, size):
                _fold(session, batch, fixed, collected)
                progress(collected.samples, len(samples))
    _check_complete(collected, len(samples))
    return collected


def _add_outputs(model: onnx.ModelProto, tensors: Sequence[str]) -> None:
    present = {o.name for o in model.graph.output} | {i.name for i in model.graph.input}
    for name in tensors:
        if name not in present:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))


def _fixed_batch(inputs: Sequence[TensorSpec]) -> int | None:
    sizes = {spec.shape[0] for spec in inputs if spec.shape}
    return next((s for s in sizes if isinstance(s, int)), None)


def _batch_size(session: OnnxSession, samples: Samples, tensors: Sequence[str]) -> int:
    """Return how many samples' activations fit the budget, by running the first one."""
    first = samples[0]
    outputs = session.infer({name: array[np.newaxis] for name, array in first.inputs.items()})
    each = sum(outputs[name].nbytes for name in tensors if name in outputs)
    return max(1, min(BATCH, _BUDGET_BYTES // max(each, 1)))


def _fold(session: OnnxSession, batch: Batch, fixed: int | None, collected: Collected) -> None:
    _check_inputs(batch, collected)
    feed: dict[str, Array] = dict(batch.inputs)
    missing = fixed - len(batch) if fixed else 0
    if missing:
        feed = {name: _fill(array, missing) for name, array in feed.items()}
        collected.repeated += missing
    outputs: dict[str, Array] = session.infer(feed)
    for name, histogram in collected.histograms.items():
        values = feed[name] if name in feed else outputs.pop(name)
        if not histogram.fold(values):
            raise StageError(
                f"activation '{name}' becomes NaN or infinite on {_culprits(values, batch)}",
                where=_WHERE,
                hint="The float32 model itself overflows there: check the preprocessing and the checkpoint.",
            )
    collected.samples += len(batch)


def _fill(array: Array, missing: int) -> Array:
    rows = np.arange(missing) % len(array)
    return np.concatenate([array, array[rows]])


def _check_inputs(batch: Batch, collected: Collected) -> None:
    for name, array in batch.inputs.items():
        if array.dtype.kind != "f":
            continue
        bad = [i for i, row in enumerate(array) if not np.isfinite(row).all()]
        if bad:
            raise StageError(
                f"input '{name}' holds NaN or infinite values",
                where=f"{_WHERE}, sample {batch.identities[bad[0]]}",
                hint="Clean the data: no range can be found from such a sample.",
            )
    if not collected.varied:
        _compare_contents(batch.inputs, collected)


def _compare_contents(inputs: Mapping[str, Array], collected: Collected) -> None:
    """Remember whether any two samples differ: calibrating on copies of one finds its range alone."""
    import hashlib

    for row in range(len(next(iter(inputs.values())))):
        content = hashlib.sha256(b"".join(np.ascontiguousarray(a[row]).tobytes() for a in inputs.values())).hexdigest()
        collected.varied |= bool(collected.first_content) and content != collected.first_content
        collected.first_content = collected.first_content or content
        if collected.varied:
            return


def _culprits(values: Array, batch: Batch) -> str:
    rows = [i for i, row in enumerate(values) if not np.isfinite(row).all()] if values.ndim else []
    if len(values.shape) and len(values) == len(batch) and rows:
        return f"sample {batch.identities[rows[0]]}"
    return f"one of the samples {batch.identities[0]} to {batch.identities[-1]}"


def _check_complete(collected: Collected, asked: int) -> None:
    if collected.samples < asked:
        raise StageError(
            f"announced {asked} samples and yielded {collected.samples}",
            where=_WHERE,
            hint="The source ended early: correct its length, or ask for fewer samples.",
        )
    if not collected.varied:
        what = "holds one sample" if asked == 1 else f"all {asked} samples are identical"
        raise StageError(
            f"{what}: ranges found from it say nothing about other inputs",
            where=_WHERE,
            hint="Give real, varied samples; 128 to 512 are usual.",
        )
