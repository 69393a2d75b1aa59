"""Measure candidates, or reuse what was measured: accuracy in one pass over the data, latency in one session."""

from __future__ import annotations

import contextlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.digest import sha256_json
from optimizer.environment import device_fingerprint, installed, machine_fingerprint
from optimizer.errors import MeasurementError, OptimizerError, StageError
from optimizer.metrics import metric_named
from optimizer.pipeline.feeds import feed
from optimizer.types import MAIN_FILE, StageRecord

if TYPE_CHECKING:
    from optimizer.data.splits import Splits
    from optimizer.measure.accuracy import Evaluation
    from optimizer.measure.latency import LatencySession
    from optimizer.pipeline.subject import Subject
    from optimizer.progress import Progress
    from optimizer.recipe.model import Recipe
    from optimizer.store import Entry, Store

OUTCOMES = "outcomes.npz"  # per metric, the outcome of every evaluation sample
GOLDEN = "golden.npz"  # real inputs and this candidate's outputs
LATENCY = "latency.npz"  # per candidate and batch, every sample in milliseconds
GOLDEN_SAMPLES = 8
_MEASURES_WITH = (
    "optimizer",
    "numpy",
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt_rtx",
    "Pillow",
)
_VERSION = 1


@dataclass(slots=True)
class Measured:
    """Stored measurements of a run, and the error of every candidate that could not be measured."""

    accuracy: dict[str, Entry] = field(default_factory=dict)
    latency: Entry | None = None
    failures: dict[str, OptimizerError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bench:
    """What measuring needs besides the candidates."""

    recipe: Recipe
    store: Store
    splits: Splits
    progress: Progress
    evaluation_digest: str
    device: str
    remeasure: bool
    check_unchanged: Callable[[], None] = lambda: None  # raises when the evaluation data changed meanwhile


def measure(subjects: Sequence[Subject], bench: Bench) -> Measured:
    """Measure every subject; the first is the baseline.

    Raises: the error of the baseline, without which nothing can be compared.
    """
    measured = Measured()
    _accuracy(subjects, bench, measured)
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


def _conditions(bench: Bench) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "python": platform.python_version(),
        "evaluation": bench.evaluation_digest,
        "packages": installed(_MEASURES_WITH),
        "machine": machine_fingerprint(),
        "device": device_fingerprint(bench.device),
        "threads": bench.recipe.measure.threads,
    }


def _identity(subject: Subject) -> dict[str, Any]:
    return {
        "artifact": subject.artifact.digest,
        "graph": subject.graph.digest if subject.graph else None,
        "runtime": subject.runtime,
        "executes": subject.executes,
    }


def _accuracy(subjects: Sequence[Subject], bench: Bench, measured: Measured) -> None:
    """Fill in the accuracy of every subject; all that is missing is measured in one pass over the data."""
    base = subjects[0]
    recipe = bench.recipe
    documents = {
        s.name: {
            "measurement": "accuracy",
            "candidate": _identity(s),
            "baseline": _identity(base),
            "batch": recipe.evaluation_batch,
            "metrics": {name: options.model_dump() for name, options in recipe.metrics.items()},
            **_conditions(bench),
        }
        for s in subjects
    }
    keys = {name: sha256_json(document) for name, document in documents.items()}
    missing: list[Subject] = []
    for subject in subjects:
        entry = None if bench.remeasure else bench.store.use(keys[subject.name])
        if entry is None:
            missing.append(subject)
        else:
            measured.accuracy[subject.name] = entry
    if not missing:
        return
    _check_labels(subjects, bench)
    started = time.perf_counter()
    found, sentences = _evaluate(base, missing, bench, measured)
    bench.check_unchanged()
    seconds = time.perf_counter() - started
    for subject in missing:
        if subject.name not in found:
            continue
        document = _accuracy_document(subject, found[base.name], found[subject.name], recipe) | {
            "runtime": sentences[subject.name]
        }
        write = _writer(document, _accuracy_arrays(found, subject.name))
        entry = _store(bench, keys[subject.name], documents[subject.name], write, seconds)
        measured.accuracy[subject.name] = entry
    bench.progress.step("accuracy", "measured", seconds, None)


def _check_labels(subjects: Sequence[Subject], bench: Bench) -> None:
    """Refuse class names that are more or fewer than the classes of the output that a metric reads."""
    labels = bench.splits.evaluation.labels
    shapes = {spec.name: spec.shape for s in subjects for spec in s.artifact.outputs}
    for name, options in bench.recipe.metrics.items():
        output = options.output or bench.recipe.model.outputs[0]
        shape = shapes.get(output, ())
        if labels and metric_named(name).chance(shape) is not None and len(labels) != shape[-1]:
            raise StageError(
                f"there are {len(labels)} class names and output '{output}' has {shape[-1]} classes",
                where="data.labels",
                hint=f"Name every class once, in the order of '{output}'; a folder of pictures names its subfolders.",
            )


def _evaluate(
    base: Subject, missing: Sequence[Subject], bench: Bench, measured: Measured
) -> tuple[dict[str, Evaluation], dict[str, str]]:
    from optimizer.measure.accuracy import evaluate

    recipe = bench.recipe
    sentences: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        threads = recipe.measure.threads
        baseline, sentences[base.name] = _open(base, threads, stack)
        others = {}
        for subject in missing:
            if subject.name == base.name:
                continue
            try:
                others[subject.name], sentences[subject.name] = _open(subject, threads, stack)
            except OptimizerError as error:
                measured.failures[subject.name] = error
        outputs = {name: options.output for name, options in recipe.metrics.items()}
        result = evaluate(
            baseline,
            others,
            bench.splits.evaluation,
            batch=recipe.evaluation_batch,
            metrics=outputs,
            progress=lambda done, total: bench.progress.advance("accuracy", done, total),
            golden_samples=GOLDEN_SAMPLES,
        )
    found = {base.name: result.baseline, **result.candidates}
    measured.failures |= result.failures
    return found, sentences


def _open(subject: Subject, threads: int, stack: contextlib.ExitStack) -> tuple[Any, str]:
    """Open what computes the subject's outputs on this machine: itself, or its graph under the judge."""
    if subject.executes:
        runner = stack.enter_context(subject.runner(threads))
        return runner, f"{subject.runtime} on {subject.device}"
    from optimizer.judge import open_judge

    if subject.graph is None:
        raise MeasurementError(f"cannot execute here: {subject.missing}", where=subject.name)
    session, sentence = open_judge(subject.graph.file, threads)
    return stack.enter_context(session), sentence


def _accuracy_document(subject: Subject, base: Evaluation, own: Evaluation, recipe: Recipe) -> dict[str, Any]:
    from optimizer.measure.accuracy import metric_delta, metric_value
    from optimizer.pipeline.receipt import delivered

    shares, source = delivered(subject, recipe.measure.threads)
    is_base = base is own
    return {
        "accuracy": {m: metric_value(m, own.outcomes[m]).model_dump(mode="json") for m in recipe.metrics},
        "delta": {}
        if is_base
        else {m: metric_delta(m, base.outcomes[m], own.outcomes[m]).model_dump(mode="json") for m in recipe.metrics},
        "numerics": {} if is_base else {n: v.model_dump(mode="json") for n, v in own.numerics.items()},
        "delivered": shares,
        "source": source,
        "notes": list(own.notes),
    }


def _accuracy_arrays(found: Mapping[str, Evaluation], name: str) -> dict[str, dict[str, Any]]:
    own = found[name]
    golden = {f"output/{k}": v for k, v in own.golden_outputs.items()}
    golden |= {f"input/{k}": v for k, v in own.golden_inputs.items()}
    return {OUTCOMES: dict(own.outcomes), GOLDEN: golden}


def _latency(subjects: Sequence[Subject], bench: Bench, measured: Measured) -> None:
    """Time every subject that executes here in one session, so that all of them saw the same machine."""
    settings = bench.recipe.measure
    document = {
        "measurement": "latency",
        "candidates": {s.name: _identity(s) for s in subjects},
        "baseline": subjects[0].name,
        "batches": list(settings.batches),
        "seconds": settings.seconds,
        **_conditions(bench),
    }
    key = sha256_json(document)
    entry = None if bench.remeasure else bench.store.use(key)
    if entry is not None:
        measured.latency = entry
        return
    started = time.perf_counter()
    session, affinity = _time(subjects, bench)
    seconds = time.perf_counter() - started
    write = _writer(
        {"affinity": list(affinity), "candidates": session.to_json()},
        {LATENCY: {f"{name}/{batch}": a for name, per in session.samples_ms().items() for batch, a in per.items()}},
    )
    measured.latency = _store(bench, key, document, write, seconds)
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


def _writer(document: Mapping[str, Any], arrays: Mapping[str, Mapping[str, Any]]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / MAIN_FILE["measurement"]).write_text(json.dumps(document, indent=1, allow_nan=False))
        for name, content in arrays.items():
            np.savez_compressed(folder / name, **content)

    return write


def _store(bench: Bench, key: str, document: dict[str, Any], write: Callable[[Path], None], seconds: float) -> Entry:
    """Put a measurement into the store, in place of an older one of the same key."""

    def fill(folder: Path) -> StageRecord:
        write(folder)
        return StageRecord(str(document["measurement"]), key, document, "", seconds, 0)

    entry, _ = bench.store.build(key, fill, replace=bench.remeasure)
    return entry


def read_document(entry: Entry) -> dict[str, Any]:
    """Return the JSON of a stored measurement."""
    document: dict[str, Any] = json.loads(entry.artifact("measurement").file.read_text())
    return document
