"""Run a graph over some samples and measure its floating-point outputs: what trials are judged by."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from optimizer.calibration.collect import fixed_batch
from optimizer.data.samples import Array, Sample, Samples, batches
from optimizer.errors import StageError
from optimizer.graph.affine import Float64
from optimizer.graph.files import save_model
from optimizer.runtime.onnx import OnnxSession
from optimizer.runtime.session import Session

_BATCH = 16
# Samples that choose, and as many others that judge the choice.
MOST_SAMPLES = 128
FEWEST_SAMPLES = 8


class Picked(Samples):
    """Some of the samples, by position."""

    def __init__(self, samples: Samples, positions: Sequence[int]) -> None:
        self._samples = samples
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        return self._samples[self._positions[index]]


def halves(samples: Samples, what: str) -> tuple[Picked, Picked]:
    """Return samples to choose by and as many others to judge by, spread over all of them.

    Raises: StageError for fewer than eight.
    """
    if len(samples) < FEWEST_SAMPLES:
        raise StageError(
            f"{what} needs samples to choose by and others to judge by; there are {len(samples)}",
            where="calibration data",
            hint=f"Ask for more samples ({2 * MOST_SAMPLES} are used), or leave {what} out.",
        )
    count = min(MOST_SAMPLES, len(samples) // 2)
    spread = [i * len(samples) // (2 * count) for i in range(2 * count)]
    return Picked(samples, spread[::2]), Picked(samples, spread[1::2])


def infer_all(
    session: Session, samples: Samples, constants: Mapping[str, Array] | None = None
) -> list[dict[str, Array]]:
    """Return the floating-point outputs of every batch; `constants` are inputs that are the same for all.

    A batch that a graph of fixed batch needs more samples for is filled with its own from the start again.
    """
    given = dict(constants or {})
    fixed = fixed_batch(spec for spec in session.inputs if spec.name not in given)
    found: list[dict[str, Array]] = []
    for batch in batches(samples, fixed or _BATCH):
        rows = np.arange(fixed or len(batch)) % len(batch)
        values = session.infer({**{name: array[rows] for name, array in batch.inputs.items()}, **given})
        found.append({name: value for name, value in values.items() if value.dtype.kind == "f"})
    return found


def outputs(model: onnx.ModelProto, samples: Samples) -> list[dict[str, Array]]:
    """Return the floating-point outputs of every batch, node by node as the graph is written."""
    with tempfile.TemporaryDirectory(prefix="judge-") as folder:
        path = Path(folder) / "model.onnx"
        save_model(model, path)
        with OnnxSession(path, optimize=False) as session:
            return infer_all(session, samples)


def mean_sqnr_db(reference: Sequence[Mapping[str, Array]], found: Sequence[Mapping[str, Array]]) -> float:
    """Return the SQNR in dB over all samples, of the mean share of error where there are several outputs.

    Raises: StageError when no output is floating point: an integer says nothing of how far it was from another.
    """
    if not reference or not reference[0]:
        raise StageError(
            "auto measures floating-point outputs, and the model has none",
            where="calibration",
            hint="Write what to take in place of auto: a number for smooth_quant, a name for method.",
        )
    shares: list[float] = []
    for name in reference[0]:
        signal = error = 0.0
        for expected, got in zip(reference, found, strict=True):
            wide: Float64 = np.asarray(expected[name], dtype=np.float64)
            signal += float((wide**2).sum())
            error += float(((np.asarray(got[name], dtype=np.float64) - wide) ** 2).sum())
        if signal > 0:
            shares.append(error / signal)
    share = float(np.mean(shares)) if shares else 0.0
    if math.isnan(share):
        return -math.inf
    return -10.0 * math.log10(share) if share > 0 else math.inf
