"""Run real samples through a graph once and find how large and how small each of its activations becomes."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx

from optimizer.calibration.batching import Fit, fitting_batches
from optimizer.calibration.collect import fixed_batch
from optimizer.data.samples import Array, Batch, Samples
from optimizer.environment import usable_cores
from optimizer.errors import StageError
from optimizer.graph.files import save_with_outputs
from optimizer.graph.formats import FLOAT16
from optimizer.graph.magnitudes import Magnitudes, float_activations
from optimizer.graph.narrow import prepare
from optimizer.graph.typed import read_model
from optimizer.runtime.onnx import OnnxSession

if TYPE_CHECKING:
    from optimizer.stage import StageContext
    from optimizer.types import Artifact

# A larger batch is no faster on a CPU, and holds more activations at once.
_BATCH = 16
# Activations held at once: large pictures come in smaller batches.
_BUDGET_BYTES = 256 << 20
_COARSE = 2.0**-18
_WHERE = "calibration data"
# Squares of float32 values between these and their sums are float32 numbers too.
_SQUARE_LOW, _SQUARE_HIGH = 1e-15, 1e15
_LOOKED_AT = 256

Progress = Callable[[int, int], None]


class RunningMagnitudes:
    """One tensor's extremes so far: a few numbers, whatever was folded in."""

    def __init__(self) -> None:
        self.values = 0
        self.largest = 0.0
        self.highest = -math.inf
        self.nonzero = 0
        self.coarse = 0
        self.lost = 0
        self.small_noise = 0.0
        self.rms = 0.0
        self.whole = True

    def fold(self, batch: Array) -> bool:
        """Take in one batch; return False, and nothing changes, where it holds NaN. Infinite values are left out."""
        values = batch.reshape(-1).astype(np.float32, copy=False)
        if values.size == 0:
            return True
        high, low = float(values.max()), float(values.min())
        if math.isnan(high):
            return False
        if math.isinf(high) or math.isinf(low):
            values = values[np.isfinite(values)]
            high, low = float(values.max(initial=-math.inf)), float(values.min(initial=math.inf))
            if not values.size:
                return True
        self.values += values.size
        self.highest = max(self.highest, high)
        self.whole = self.whole and _is_whole(values)
        self._fold_sizes(values, max(high, -low))
        return True

    def _fold_sizes(self, values: npt.NDArray[np.float32], largest: float) -> None:
        self.largest = max(self.largest, largest)
        magnitude = np.abs(values)
        positive = magnitude > 0
        nonzero = int(np.count_nonzero(positive))
        if not nonzero:
            return
        self.nonzero += nonzero
        small = magnitude[(magnitude < FLOAT16.smallest_normal) & positive].astype(np.float64)
        self.coarse += int(np.count_nonzero(small < _COARSE))
        self.lost += int(np.count_nonzero(small <= FLOAT16.flushes))
        fits = _SQUARE_LOW < largest < _SQUARE_HIGH
        squared = values if fits else values.astype(np.float64)
        energy = float(np.dot(squared, squared))
        error = small - small.astype(np.float16)
        noise = float(np.dot(error, error)) / energy
        if noise >= self.small_noise:
            self.small_noise, self.rms = noise, math.sqrt(energy / nonzero)

    def result(self) -> Magnitudes | None:
        """Return what was found, or None for a tensor that no sample reached."""
        if not self.values:
            return None
        return Magnitudes(
            self.largest, self.highest, self.nonzero, self.small_noise, self.rms, self.coarse, self.lost, self.whole
        )


def measure_graph(path: Path, samples: Samples, progress: Progress, where: str) -> dict[str, Magnitudes]:
    """Return the magnitudes of every float32 activation of the main graph of a float32 file.

    Raises: StageError when the file is no float32 graph (`where` names who asks), and for samples as
    `measure_magnitudes` says.
    """
    model = read_model(path)
    return measure_magnitudes(model, float_activations(prepare(model, where)), samples, progress)


def measure_if_given(
    sources: Mapping[str, Artifact], context: StageContext, judged: str, where: str
) -> dict[str, Magnitudes] | None:
    """Return the magnitudes on the samples that a stage was given, or None without any; either way it is noted.

    `judged` is what the graph alone must then decide.
    """
    if "samples" not in sources:
        context.note(
            f"{judged} judged from the graph alone, for want of data: with data.calibration in the recipe, "
            "ranges on real samples decide"
        )
        return None
    samples = context.samples("calibration")
    found = measure_graph(
        sources["graph"].file, samples, lambda done, n: context.progress("calibration samples", done, n), where
    )
    context.note(f"ranges of {len(found)} tensors over {len(samples)} samples decide what stays float32")
    return found


def measure_magnitudes(
    model: onnx.ModelProto, tensors: Sequence[str], samples: Samples, progress: Progress
) -> dict[str, Magnitudes]:
    """Return the magnitudes of float32 tensors over all samples.

    Memory: the activations of one batch; a few numbers a tensor outlive it.
    Raises: StageError for fewer than two samples, fewer than announced, or values that are NaN.
    """
    if len(samples) < 2:
        what = "holds one sample: the ranges of others cannot be told from it" if len(samples) else "holds no samples"
        raise StageError(what, where=_WHERE, hint="Give real, varied samples; 128 to 512 are usual.")
    running = {name: RunningMagnitudes() for name in tensors}
    with tempfile.TemporaryDirectory(prefix="ranges-") as folder:
        path = Path(folder) / "model.onnx"
        weights = save_with_outputs(model, tensors, path)
        with OnnxSession(path, threads=usable_cores(), weights=weights) as session:
            done = _run(session, samples, running, progress)
    if done < len(samples):
        raise StageError(
            f"announced {len(samples)} samples and yielded {done}",
            where=_WHERE,
            hint="The source ended early: correct its length, or ask for fewer samples.",
        )
    found = {name: numbers.result() for name, numbers in running.items()}
    return {name: magnitudes for name, magnitudes in found.items() if magnitudes is not None}


def _run(session: OnnxSession, samples: Samples, running: dict[str, RunningMagnitudes], progress: Progress) -> int:
    fixed = fixed_batch(session.inputs)
    done = 0
    fit = Fit(_BATCH, _BUDGET_BYTES)
    for batch in fitting_batches(samples, (lambda _: fixed) if fixed else fit.size):
        feed: dict[str, Array] = dict(batch.inputs)
        if fixed:
            rows = np.arange(fixed) % len(batch)  # the last batch is filled with its own samples again
            feed = {name: array[rows] for name, array in feed.items()}
        outputs = session.infer(feed)
        fit.took(batch, sum(outputs[name].nbytes for name in running if name in outputs))
        for name, numbers in running.items():
            if not numbers.fold(feed[name] if name in feed else outputs.pop(name)):
                raise _not_a_number(name, batch)
        done += len(batch)
        progress(done, len(samples))
    return done


def _not_a_number(name: str, batch: Batch) -> StageError:
    first, last = batch.identities[0], batch.identities[-1]
    span = f"samples {first} to {last}" if len(batch) > 1 else f"sample {first}"
    if name in batch.inputs:
        return StageError(f"input '{name}' holds NaN", where=f"{_WHERE}, {span}", hint="Clean the data.")
    return StageError(
        f"activation '{name}' becomes NaN on {span}",
        where=_WHERE,
        hint="The float32 model itself fails there: check the preprocessing and the checkpoint.",
    )


def _is_whole(values: npt.NDArray[np.float32]) -> bool:
    head = values[:_LOOKED_AT]
    return bool((np.rint(head) == head).all() and (np.rint(values) == values).all())
