"""Measure candidates, or reuse what was measured: accuracy in one pass over the data, latency in one session."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from optimizer.digest import sha256_json
from optimizer.errors import MeasurementError
from optimizer.pipeline.bench import LATENCY, Bench, Measured, conditions, identity, store, writer
from optimizer.pipeline.evaluate import measure_accuracy
from optimizer.pipeline.feeds import feed

if TYPE_CHECKING:
    from optimizer.measure.latency import LatencySession
    from optimizer.pipeline.subject import Subject


def measure(subjects: Sequence[Subject], bench: Bench) -> Measured:
    """Measure every subject; the first is the baseline.

    Raises: the error of the baseline, without which nothing can be compared.
    """
    measured = Measured()
    measure_accuracy(subjects, bench, measured)
    running = [s for s in subjects if s.executes and s.name not in measured.failures]
    while running and running[0] is subjects[0]:
        try:
            _latency(running, bench, measured)
            break
        except MeasurementError as error:  # one that has no memory left, say: the others are timed without it
            culprit = next((s for s in running[1:] if s.name == error.where), None)
            if culprit is None:
                raise
            measured.failures[culprit.name] = error
            running.remove(culprit)
    return measured


def _latency(subjects: Sequence[Subject], bench: Bench, measured: Measured) -> None:
    """Time every subject that executes here in one session, so that all of them saw the same machine."""
    settings = bench.recipe.measure
    document = {
        "measurement": "latency",
        "candidates": {s.name: identity(s) for s in subjects},
        "baseline": subjects[0].name,
        "batches": list(settings.batches),
        "seconds": settings.seconds,
        **conditions(bench),
    }
    key = sha256_json(document)
    entry = None if bench.remeasure else bench.store.use(key)
    if entry is not None:
        measured.latency = entry
        return
    started = time.perf_counter()
    session, affinity = _time(subjects, bench)
    seconds = time.perf_counter() - started
    write = writer(
        {"affinity": list(affinity), "candidates": session.to_json()},
        {LATENCY: {f"{name}/{batch}": a for name, per in session.samples_ms().items() for batch, a in per.items()}},
    )
    measured.latency = store(bench, key, document, write, seconds)
    bench.progress.step("latency", "measured", seconds, None)


def _time(subjects: Sequence[Subject], bench: Bench) -> tuple[LatencySession, tuple[int, ...]]:
    from optimizer.measure.latency import blamed, measure_latency, pinned

    settings = bench.recipe.measure
    samples = bench.splits.evaluation
    with contextlib.ExitStack() as stack:
        affinity = stack.enter_context(pinned(settings.threads))
        runners = {}
        for subject in subjects:
            with blamed(subject.name) if subject is not subjects[0] else contextlib.nullcontext():
                runners[subject.name] = stack.enter_context(subject.runner(settings.threads))
        inputs = subjects[0].artifact.inputs
        feeds = {batch: feed(samples, inputs, batch) for batch in settings.batches}
        session = measure_latency(
            runners,
            feeds,
            baseline=subjects[0].name,
            seconds=settings.seconds,
            progress=lambda done, total: bench.progress.advance("latency", done, total),
        )
    return session, affinity
