"""Accuracy of every candidate, in one pass over the evaluation data, or as it was stored."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimizer.digest import sha256_json
from optimizer.errors import MeasurementError, OptimizerError, StageError
from optimizer.metrics import metric_named
from optimizer.pipeline.bench import (
    GOLDEN,
    OUTCOMES,
    Bench,
    Measured,
    conditions,
    identity,
    read_document,
    store,
    writer,
)
from optimizer.pipeline.feeds import check_sizes, dynamic_axes
from optimizer.pipeline.prove import Proof
from optimizer.recipe.steps import at_least

if TYPE_CHECKING:
    from optimizer.measure.accuracy import Evaluation
    from optimizer.pipeline.subject import Subject
    from optimizer.recipe.model import Recipe

GOLDEN_SAMPLES = 8


def measure_accuracy(subjects: Sequence[Subject], bench: Bench, measured: Measured) -> None:
    """Fill in the accuracy of every subject; all that is missing is measured in one pass over the data."""
    base = subjects[0]
    recipe = bench.recipe
    # Where sizes vary, golden were the first samples alone, until the shapes began to differ.
    varied = bool(dynamic_axes(base.artifact.inputs, batch=recipe.batch_axis))
    documents = {
        s.name: {
            "measurement": "accuracy",
            "candidate": identity(s),
            "precision": s.precision,  # decides how far the proof lets it lie from float32
            "baseline": identity(base),
            "batch": recipe.evaluation_batch,
            "proof": list(check_sizes(recipe)),
            "metrics": {name: options.model_dump() for name, options in recipe.metrics.items()},
            **({"golden": "of one shape"} if varied else {}),
            **conditions(bench),
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
        bench.progress.step("accuracy", "reused", None, None)
        return
    _check_labels(subjects, bench)
    started = time.perf_counter()
    found, about = _evaluate(base, missing, bench, measured)
    bench.check_unchanged()
    seconds = time.perf_counter() - started
    for subject in missing:
        if subject.name not in found:
            continue
        try:
            document = _accuracy_document(subject, found[base.name], found[subject.name], recipe) | about[subject.name]
        except OptimizerError as error:  # a receipt that cannot be read is one candidate's fault
            if subject is base:
                raise
            measured.failures[subject.name] = error
            continue
        write = writer(document, _accuracy_arrays(found, subject.name))
        entry = store(bench, keys[subject.name], documents[subject.name], write, seconds)
        measured.accuracy[subject.name] = entry
    bench.progress.step("accuracy", "measured", seconds, None)


def refuse_shortfall(subjects: Sequence[Subject], bench: Bench, measured: Measured) -> None:
    """Fail the candidates whose runtime delivers less than their recipe asks for, measured now or stored."""
    from optimizer.pipeline.receipt import check_delivered

    for subject in subjects:
        entry = measured.accuracy.get(subject.name)
        variant = bench.recipe.variants.get(subject.variant) if entry is not None else None
        if entry is None or variant is None:
            continue
        found = read_document(entry)
        try:
            check_delivered(subject, found["delivered"], found["source"], at_least(variant))
        except StageError as error:
            measured.failures[subject.name] = error


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
) -> tuple[dict[str, Evaluation], dict[str, dict[str, Any]]]:
    """Prove every candidate, then evaluate those that stand; the second part says of each by what, and the proof."""
    from optimizer.measure.accuracy import evaluate

    recipe = bench.recipe
    about: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        threads = recipe.measure.threads
        baseline, sentence = _open(base, threads, stack)
        proof = Proof(bench, base, baseline, stack)
        proven = proof.of(base, baseline) if base.graph is not None and base in missing else ()
        about[base.name] = {"runtime": sentence, "proof": list(proven)}
        others: dict[str, Any] = {}
        for subject in missing:
            if subject.name == base.name:
                continue
            bench.progress.advance(f"accuracy: proof of {subject.name}", len(others), len(missing))
            try:
                opened, sentence = _open(subject, threads, stack, proof)
                about[subject.name] = {"runtime": sentence, "proof": list(proof.of(subject, opened))}
                others[subject.name] = opened
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
    measured.failures |= result.failures
    return {base.name: result.baseline, **result.candidates}, about


def _open(subject: Subject, threads: int, stack: contextlib.ExitStack, proof: Proof | None = None) -> tuple[Any, str]:
    """Open what computes the subject's outputs on this machine: itself, or its graph under the judge."""
    if subject.executes:
        return stack.enter_context(subject.runner(threads)), f"{subject.runtime} on {subject.device}"
    if subject.graph is None:
        raise MeasurementError(f"cannot execute here: {subject.missing}", where=subject.name)
    if proof is not None:
        return proof.judge(subject.graph)
    from optimizer.judge import open_judge

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
