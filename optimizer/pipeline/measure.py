"""Measure candidates, or reuse what was measured: accuracy in one pass over the data, latency in one session."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimizer.digest import sha256_json
from optimizer.errors import MeasurementError
from optimizer.pipeline.against_fp32 import fp32_of, speedups_over_fp32
from optimizer.pipeline.bench import LATENCY, Bench, Measured, conditions, identity, store, writer
from optimizer.pipeline.evaluate import measure_accuracy, refuse_shortfall
from optimizer.pipeline.feeds import feed, usual_sizes, usual_start
from optimizer.pipeline.load import measure_load

if TYPE_CHECKING:
    from optimizer.data.samples import Array
    from optimizer.measure.series import LatencySession
    from optimizer.pipeline.subject import Subject
    from optimizer.runner import Runner
    from optimizer.runtime.session import Feed
    from optimizer.types import TensorSpec


def measure(subjects: Sequence[Subject], bench: Bench) -> Measured:
    """Measure every subject; the first is the baseline.

    Raises: the error of the baseline, without which nothing can be compared.
    """
    measured = Measured()
    measure_accuracy(subjects, bench, measured)
    refuse_shortfall(subjects, bench, measured)
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
    measure_load(running, bench, measured)
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
    usual = usual_sizes(bench.recipe, subjects[0].artifact.inputs)
    if usual:  # they choose the samples that are timed
        document["usual_sizes"] = usual
    key = sha256_json(document)
    entry = None if bench.remeasure else bench.store.use(key)
    if entry is not None:
        measured.latency = entry
        bench.progress.step("latency", "reused", None, key)
        return
    started = time.perf_counter()
    feeds = _feeds(subjects[0], bench)
    session, affinity, executions = _time(subjects, bench, feeds)
    seconds = time.perf_counter() - started
    arrays, candidates = session.arrays(), session.to_json()
    about = {
        "affinity": list(affinity),
        "candidates": candidates,
        "surroundings": {str(batch): facts for batch, facts in session.surroundings.items()},
        "executions": executions,
        "against_fp32": speedups_over_fp32(arrays, fp32_of(subjects, candidates), map(str, settings.batches)),
        "sizes": timed_sizes(subjects[0].artifact.inputs, feeds.values(), bench.recipe.batch_axis),
    }
    measured.latency = store(bench, key, document, writer(about, {LATENCY: arrays}), seconds)
    bench.progress.step("latency", "measured", seconds, None)


def _feeds(subject: Subject, bench: Bench) -> dict[int, dict[str, Array]]:
    samples, inputs = bench.splits.evaluation, subject.artifact.inputs
    start = usual_start(samples, inputs, usual_sizes(bench.recipe, inputs))
    return {batch: feed(samples, inputs, batch, start) for batch in bench.recipe.measure.batches}


def timed_sizes(
    inputs: Sequence[TensorSpec], feeds: Iterable[Mapping[str, Array]], batch_axis: str | None
) -> dict[str, list[int]]:
    """Return the sizes that the axes besides the batch have in these feeds, smallest first."""
    found: dict[str, set[int]] = {}
    for one in feeds:
        for spec in inputs:
            for axis, size in zip(spec.shape[1:], one[spec.name].shape[1:], strict=True):
                if isinstance(axis, str) and axis != batch_axis:
                    found.setdefault(axis, set()).add(int(size))
    return {axis: sorted(sizes) for axis, sizes in found.items()}


def _time(
    subjects: Sequence[Subject], bench: Bench, feeds: Mapping[int, dict[str, Array]]
) -> tuple[LatencySession, tuple[int, ...], dict[str, dict[str, Any]]]:
    """Time all subjects; the last part is what their sessions say of how they executed."""
    from optimizer.measure.affinity import pinned
    from optimizer.measure.latency import blamed, measure_openings
    from optimizer.measure.surroundings import Watch

    settings = bench.recipe.measure
    executions: dict[str, dict[str, Any]] = {}

    @contextlib.contextmanager
    def opened() -> Iterator[Mapping[str, Runner]]:
        with contextlib.ExitStack() as stack:
            runners = {}
            for subject in subjects:
                with blamed(subject.name) if subject is not subjects[0] else contextlib.nullcontext():
                    runners[subject.name] = stack.enter_context(subject.runner(settings.threads))
            yield runners
            for name, runner in runners.items():
                if name not in executions:  # the first of several openings
                    with blamed(name) if name != subjects[0].name else contextlib.nullcontext():
                        executions[name] = told(runner, feeds[settings.batches[0]])

    device = next((s.device for s in subjects if s.device != "cpu"), "cpu")
    with pinned(settings.threads) as affinity, Watch(affinity, device) as watch:
        session = measure_openings(
            opened,
            feeds,
            baseline=subjects[0].name,
            seconds=settings.seconds,
            progress=lambda done, total: bench.progress.advance("latency", done, total),
            watch=watch,
        )
    return session, affinity, executions


def told(runner: Runner, feed: Feed) -> dict[str, Any]:
    """Return what a session on a GPU says of itself: CUDA graphs, nodes run elsewhere, what copies in and out take."""
    session = runner.session
    found: dict[str, Any] = {}
    captures = getattr(session, "captures", None)
    if captures:
        found["cuda_graphs"] = [dataclasses.asdict(capture) for capture in captures]
    if getattr(session, "leftovers", None) is not None:
        found["nodes_elsewhere"] = session.leftovers  # type: ignore[attr-defined]
    if runner.device != "cpu" and hasattr(session, "transfers"):
        copies = session.transfers(feed)
        found["transfers"] = dataclasses.asdict(copies) if copies is not None else None
    return found
