"""Run a graph over some samples and measure its floating-point outputs: what trials are judged by.

A language model's outputs on 256 samples are gigabytes. So errors are summed batch by batch, and of the reference only
what fits a budget is kept; the rest is computed again in every trial.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx

from optimizer.calibration.batching import Fit, Shapes, fitting_batches
from optimizer.calibration.collect import fixed_batch
from optimizer.calibration.paired import FEWEST_SAMPLES
from optimizer.data.samples import Array, Sample, Samples
from optimizer.errors import StageError
from optimizer.graph.files import save_model
from optimizer.graph.live_bytes import LiveBytes
from optimizer.runtime.onnx import OnnxSession
from optimizer.runtime.session import Session

_BATCH = 16
# Outputs of a batch, and of the reference over all trials.
_BATCH_BYTES, _HELD_BYTES = 64 << 20, 256 << 20
# Activations of a batch that the float32 graph holds at once. Measured, onnxruntime takes a tenth more than that for it
# and a quarter more for the trial, one beside the other.
_LIVE_BYTES = 256 << 20
_BLOCK = 1 << 18
# Samples that choose, and as many others that judge the choice.
MOST_SAMPLES = 128


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

    Raises: StageError for fewer than `FEWEST_SAMPLES`.
    """
    if len(samples) < FEWEST_SAMPLES:
        raise StageError(
            f"{what} needs at least {FEWEST_SAMPLES} samples, to choose by some and judge by others; there are "
            f"{len(samples)}",
            where="calibration data",
            hint=f"Ask for more samples ({2 * MOST_SAMPLES} are used), or leave {what} out.",
        )
    count = min(MOST_SAMPLES, len(samples) // 2)
    spread = [i * len(samples) // (2 * count) for i in range(2 * count)]
    return Picked(samples, spread[::2]), Picked(samples, spread[1::2])


class OutputErrors:
    """Sums, per floating-point output, of the squared reference and of the squared difference from it."""

    def __init__(self) -> None:
        self._signal: dict[str, float] = {}
        self._error: dict[str, list[Any]] = {}

    def add(self, expected: Mapping[str, Array], found: Mapping[str, Array], owners: Array | None = None) -> None:
        """Take in one batch; `found` may hold more than `expected`, `owners` is the sample of each row of it.

        Where an output's first axis is not the batch, or no owners are given, the batch counts as one sample.
        """
        by_row = owners is not None and all(o.ndim and len(o) == len(owners) for o in expected.values())
        rows = owners if by_row and owners is not None else np.zeros(1, dtype=np.int64)
        for name, reference in expected.items():
            parts = list(zip(reference, found[name], strict=True)) if by_row else [(reference, found[name])]
            each = np.array([squares(np.asarray(r), np.asarray(f)) for r, f in parts]).reshape(-1, 2)
            self._signal[name] = self._signal.get(name, 0.0) + float(each[:, 0].sum())
            self._error.setdefault(name, []).append(np.bincount(rows, weights=each[:, 1]))

    def shares(self) -> Array:
        """Return what each sample adds to the share of error, the mean over the outputs; they sum to the share.

        Raises: StageError when no output is floating point: an integer says nothing of how far it was from another.
        """
        if not self._signal:
            raise StageError(
                "auto measures floating-point outputs, and the model has none",
                where="calibration",
                hint="Write what to take in place of auto: a number for smooth_quant, a name for method.",
            )
        errors = {name: np.concatenate(found) for name, found in self._error.items()}
        shares = [errors[name] / signal for name, signal in self._signal.items() if signal > 0]
        found: Array = np.mean(shares, axis=0) if shares else np.zeros_like(next(iter(errors.values())))
        return found


def decibels(shares: Array) -> float:
    """Return the SQNR in dB of shares of error by sample; what is not a number is the worst."""
    share = float(shares.sum())
    if math.isnan(share):
        return -math.inf
    return -10.0 * math.log10(share) if share > 0 else math.inf


def squares(expected: Array, found: Array) -> tuple[float, float]:
    """Return the sums of the squared reference and of the squared difference, in float64, a block at a time."""
    left, right = expected.reshape(-1), found.reshape(-1)
    signal = error = 0.0
    for start in range(0, left.size, _BLOCK):
        wide = left[start : start + _BLOCK].astype(np.float64)
        signal += float(np.dot(wide, wide))
        wide -= right[start : start + _BLOCK].astype(np.float64)
        error += float(np.dot(wide, wide))
    return signal, error


class Reference:
    """What a float32 graph gives for some samples; trials are measured against it.

    Memory: outputs up to 256 MB are held, those beyond are computed again in each trial; of a trial, one batch's. A
    batch has what fits a budget of its outputs, and one of the activations that are alive at once.
    """

    def __init__(self, model: onnx.ModelProto, samples: Samples) -> None:
        self._samples = samples
        self._folder = tempfile.TemporaryDirectory(prefix="judge-")
        self._session = self._open(model, "float32.onnx")
        self._fixed = fixed_batch(self._session.inputs)
        self._live = LiveBytes(model)
        self._most: dict[Shapes, int] = {}
        self._held: dict[int, dict[str, Array]] = {}
        self._held_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._session.close()
        self._folder.cleanup()

    def __len__(self) -> int:
        """Count the samples."""
        return len(self._samples)

    def sqnr_db(self, session: Session, constants: Mapping[str, Array] | None = None) -> float:
        """Return the SQNR of a session's outputs in dB; `constants` are inputs that are the same for all samples.

        Raises: StageError when no output is floating point.
        """
        return decibels(self.shares(session, constants))

    def shares(self, session: Session, constants: Mapping[str, Array] | None = None) -> Array:
        """Return what each sample adds to the share of error: in every trial the same samples in the same order.

        Raises: StageError when no output is floating point.
        """
        errors = OutputErrors()
        for feed, expected, owners in self._batches():
            errors.add(expected, session.infer({**feed, **(constants or {})}), owners)
        return errors.shares()

    def sqnr_db_of(self, model: onnx.ModelProto) -> float:
        """Return the SQNR of a graph's outputs in dB, node by node as the graph is written."""
        return decibels(self.shares_of(model))

    def shares_of(self, model: onnx.ModelProto) -> Array:
        """Return what each sample adds to a graph's share of error, node by node as the graph is written."""
        with self._open(model, "trial.onnx") as session:
            return self.shares(session)

    def _open(self, model: onnx.ModelProto, name: str) -> OnnxSession:
        path = Path(self._folder.name) / name
        save_model(model, path)
        return OnnxSession(path, optimize=False)

    def _batches(self) -> Iterator[tuple[dict[str, Array], dict[str, Array], Array]]:
        fixed, fit = self._fixed, Fit(_BATCH, _BATCH_BYTES)  # a new one: the same batches in every trial
        for number, batch in enumerate(fitting_batches(self._samples, self._size(fit))):
            # A batch that a graph of fixed batch needs more samples for is filled with its own from the start again.
            rows = np.arange(fixed or len(batch)) % len(batch)
            feed = {name: array[rows] for name, array in batch.inputs.items()}
            expected = self._held.get(number)
            if expected is None:
                expected = self._expected(number, feed)
            fit.took(batch, sum(value.nbytes for value in expected.values()))
            yield feed, expected, rows

    def _size(self, fit: Fit) -> Callable[[Shapes], int]:
        fixed = self._fixed
        return (lambda _: fixed) if fixed else (lambda shapes: min(fit.size(shapes), self._most_alive(shapes)))

    def _most_alive(self, shapes: Shapes) -> int:
        """Return how many samples of these shapes hold no more activations at once than the budget."""
        if shapes not in self._most:
            alive = self._live.of({name: (1, *shape) for name, shape in shapes})
            self._most[shapes] = max(1, _LIVE_BYTES // max(alive, 1))
        return self._most[shapes]

    def _expected(self, number: int, feed: Mapping[str, Array]) -> dict[str, Array]:
        found = {name: value for name, value in self._session.infer(feed).items() if value.dtype.kind == "f"}
        held = sum(value.nbytes for value in found.values())
        if self._held_bytes + held <= _HELD_BYTES:
            self._held[number] = found
            self._held_bytes += held
        return found
