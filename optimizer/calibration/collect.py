"""Run real samples through a graph once and fold what its activations are into histograms."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock
from typing import ClassVar, Literal

import numpy as np
import onnx

from optimizer.calibration.batching import Fit, fitting_batches
from optimizer.calibration.histogram import CountingRoom, RunningHistogram
from optimizer.calibration.noise import NoiseTest
from optimizer.calibration.reading import stand_ins
from optimizer.data.samples import Array, Batch, Samples
from optimizer.environment import usable_cores
from optimizer.errors import StageError
from optimizer.graph.files import save_with_outputs
from optimizer.runtime.onnx import OnnxSession
from optimizer.types import TensorSpec

# A larger batch is no faster on a CPU, and holds more activations at once.
BATCH = 16
# Activations held at once: large pictures come in smaller batches. Half of it, and half as much again, take longer
# (ResNet-18, 224x224): every batch costs some, and so does memory that is touched for the first time.
_BUDGET_BYTES = 112 << 20
# Batches run side by side, each on its share of the processors: while one is counted, another is inferred. Histograms
# do not depend on the order in which they are fed.
_MOST_WORKERS = 4

Role = Literal["calibration", "evaluation"]
Progress = Callable[[int, int], None]
Snapshots = Mapping[RunningHistogram, RunningHistogram]


@dataclass(slots=True)
class Collected:
    """What one pass found. `repeated` counts samples run twice to fill the last batch of a graph of fixed batch.

    `histograms` are those of the tensors that were read; once the pass is over, tensors that one of them stood in for
    share its histogram.
    """

    histograms: dict[str, RunningHistogram]
    role: Role = "calibration"
    samples: int = 0
    repeated: int = 0
    first_content: str = ""
    varied: bool = field(default=False)
    noise: dict[str, NoiseTest] = field(default_factory=dict)
    locks: dict[str, Lock] = field(default_factory=dict)
    rooms: SimpleQueue[CountingRoom] = field(default_factory=SimpleQueue)  # one for each worker

    @property
    def where(self) -> str:
        """What an error is located by."""
        return f"{self.role} data"


@dataclass(frozen=True, slots=True)
class Watch:
    """`call` is given the samples so far and, of each histogram, what it then was; once for each share in `shares`.

    It is called in another thread, beside the batches that follow; they are counted once the state before them is kept.
    """

    call: Callable[[int, Snapshots], None]
    shares: tuple[float, ...] = (0.25, 0.5, 0.75)

    def due(self, before: int, now: int, total: int) -> bool:
        """Return whether a share was reached between the two counts; the last batch is no checkpoint."""
        return now < total and any(before < share * total <= now for share in self.shares)


def collect(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    samples: Samples,
    progress: Progress,
    watch: Watch | None = None,
    role: Role = "calibration",
) -> Collected:
    """Return a histogram per tensor over all samples.

    Samples of unlike shapes run in batches of their own, each as large as the budget allows that shape; none is left
    out. A tensor for which another stands (`stand_ins`) shares its histogram.
    Memory: the activations of a batch per worker, and 64 KiB a tensor; nothing of a batch outlives it.
    Raises: StageError for no samples, fewer than announced, values that are NaN or infinite, or, where they calibrate,
    samples that are all alike.
    """
    if len(samples) == 0:
        raise StageError(
            "holds no samples", where=f"{role} data", hint=f"Check data.{role}: the split's name, its place."
        )
    standing = stand_ins(model, tensors)
    read = sorted(set(standing.values()))
    collected = Collected({name: RunningHistogram() for name in read}, role, locks={name: Lock() for name in read})
    cores = usable_cores()
    workers = min(cores, _MOST_WORKERS)
    for _ in range(workers):
        collected.rooms.put(CountingRoom())
    with tempfile.TemporaryDirectory(prefix="calibrate-") as folder:
        path = Path(folder) / "model.onnx"
        weights = save_with_outputs(model, read, path)
        with _Reading(path, threads=cores // workers, weights=weights) as session:
            _pass(session, samples, collected, workers, (progress, watch))
    _check_complete(collected, len(samples))
    collected.histograms = {name: collected.histograms[standing[name]] for name in tensors}
    return collected


def _pass(
    session: OnnxSession,
    samples: Samples,
    collected: Collected,
    workers: int,
    tell: tuple[Progress, Watch | None],
) -> None:
    progress, watch = tell
    fixed = fixed_batch(session.inputs)
    fit = Fit(BATCH, _BUDGET_BYTES // workers)
    pending: deque[Future[None]] = deque()
    looks: list[Future[None]] = []
    kept = Event()
    kept.set()
    with ThreadPoolExecutor(workers) as pool, ThreadPoolExecutor(1) as looking:
        for batch in fitting_batches(samples, (lambda _: fixed) if fixed else fit.size):
            _check_inputs(batch, collected)
            feed = _filled(batch, fixed, collected)
            pending.append(pool.submit(_fold, session, batch, feed, collected, (fit, kept)))
            before, collected.samples = collected.samples, collected.samples + len(batch)
            if watch is not None and watch.due(before, collected.samples, len(samples)):
                kept = Event()
                looks.append(looking.submit(_look_back, watch, list(pending), collected, collected.samples, kept))
            # Errors come in the order of the samples, and no more batches are held than are worked on.
            while len(pending) > workers:
                pending.popleft().result()
            progress(collected.samples, len(samples))
        for last in (*pending, *looks):
            last.result()


class _Reading(OnnxSession):
    """A session most of whose tensors are outputs: each takes its memory as it is needed, less of it and warmer."""

    memory_pattern: ClassVar[bool] = False


def refuse_noise(collected: Collected) -> None:
    """Raise StageError if an input was fed random numbers instead of data."""
    for name, test in collected.noise.items():
        if law := test.law():
            raise StageError(
                f"input '{name}' is random numbers ({law}, alike at every position and unrelated to their neighbours): "
                "ranges found from them say nothing about real inputs",
                where=collected.where,
                hint="Give real samples. Where the model is fed noise in use, too: data.calibration.synthetic: true.",
            )


def fixed_batch(inputs: Iterable[TensorSpec]) -> int | None:
    """Return the batch that a graph is fixed to, by the first of its inputs whose first axis is a number, or None."""
    sizes = [spec.shape[0] for spec in inputs if spec.shape]
    return next((size for size in sizes if isinstance(size, int)), None)


def _filled(batch: Batch, fixed: int | None, collected: Collected) -> dict[str, Array]:
    missing = fixed - len(batch) if fixed else 0
    if not missing:
        return dict(batch.inputs)
    collected.repeated += missing
    return {name: _fill(array, missing) for name, array in batch.inputs.items()}


def _look_back(watch: Watch, before: Sequence[Future[None]], collected: Collected, samples: int, kept: Event) -> None:
    """Keep the histograms as they are after the batches `before`, let the others be counted, and call the watch."""
    try:
        wait(before)
        then = {histogram: histogram.copy() for histogram in collected.histograms.values()}
    finally:
        kept.set()
    watch.call(samples, then)


def _fold(
    session: OnnxSession, batch: Batch, feed: dict[str, Array], collected: Collected, turn: tuple[Fit, Event]
) -> None:
    """Infer a batch, and count it once those histograms are kept that it is no part of."""
    fit, kept = turn
    held = 0
    try:
        outputs: dict[str, Array] = session.infer(feed)
        held = sum(outputs[name].nbytes for name in collected.histograms if name in outputs)
    finally:
        fit.took(batch, held)  # whatever happened: another thread waits for it
    kept.wait()
    room = collected.rooms.get()
    try:
        for name, histogram in collected.histograms.items():
            values = feed[name] if name in feed else outputs.pop(name)
            with collected.locks[name]:
                finite = histogram.fold(values, room)
            if not finite:
                raise not_finite(name, _culprits(values, batch), collected.where)
    finally:
        collected.rooms.put(room)


def not_finite(activation: str, samples: str, where: str) -> StageError:
    """Return the error for an activation that no range can be found of; `samples` says on which it happens."""
    return StageError(
        f"activation '{activation}' becomes NaN or infinite on {samples}",
        where=where,
        hint="The float32 model itself overflows there: check the preprocessing and the checkpoint.",
    )


def _fill(array: Array, missing: int) -> Array:
    rows = np.arange(missing) % len(array)
    return np.concatenate([array, array[rows]])


def _check_inputs(batch: Batch, collected: Collected) -> None:
    for name, array in batch.inputs.items():
        collected.noise.setdefault(name, NoiseTest()).fold(array)
        # Extremes show what is not finite, and need no memory of their own.
        if array.dtype.kind != "f" or not array.size or np.isfinite([array.min(), array.max()]).all():
            continue
        if bad := [i for i, row in enumerate(array) if not np.isfinite(row).all()]:
            raise StageError(
                f"input '{name}' holds NaN or infinite values",
                where=f"{collected.where}, sample {batch.identities[bad[0]]}",
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
            where=collected.where,
            hint="The source ended early: correct its length, or ask for fewer samples.",
        )
    if not collected.varied and collected.role == "calibration":
        what = "holds one sample" if asked == 1 else f"all {asked} samples are identical"
        raise StageError(
            f"{what}: ranges found from it say nothing about other inputs",
            where=collected.where,
            hint="Give real, varied samples; 128 to 512 are usual.",
        )
