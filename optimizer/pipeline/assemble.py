"""Assemble report.json's data from what was executed and measured."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optimizer.digest import sha256_bytes
from optimizer.environment import environment
from optimizer.errors import OptimizerError
from optimizer.gate import Better, judge, overall, pareto, recommend
from optimizer.measure.observed import causes
from optimizer.metrics import metric_named
from optimizer.pipeline.against_fp32 import against_fp32
from optimizer.pipeline.bench import Measured, read_document
from optimizer.pipeline.calibration import Calibrated, summaries
from optimizer.pipeline.layers import layer_table
from optimizer.pipeline.numbers import doubts, latency_fields, load_fields, trtexec_line
from optimizer.results import (
    AgainstFp32,
    ArtifactRef,
    CandidateReport,
    Precision,
    RecipeRef,
    Report,
    StageReport,
)

if TYPE_CHECKING:
    from optimizer.pipeline.subject import Subject
    from optimizer.recipe.model import Recipe
    from optimizer.recipe.steps import Candidate


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that a report is made of."""

    recipe: Recipe
    subjects: Sequence[Subject]
    failed: Sequence[CandidateReport]
    artifacts: Mapping[str, ArtifactRef]
    measured: Measured
    stages: Sequence[StageReport]
    command: str
    notes: tuple[str, ...] = ()
    calibrated: Mapping[str, Calibrated] = field(default_factory=dict)


def assemble(outcome: Outcome) -> Report:
    """Return the report: candidates with their numbers, each one's verdict, the front, the recommendation."""
    recipe, measured = outcome.recipe, outcome.measured
    latency = read_document(measured.latency) if measured.latency else {"candidates": {}, "affinity": []}
    surroundings: dict[str, dict[str, Any]] = latency.get("surroundings", {})
    gains = against_fp32(outcome.subjects, measured, latency)
    candidates = [_candidate(s, outcome, latency, gains.get(s.name)) for s in outcome.subjects]
    candidates += outcome.failed
    baseline = candidates[0]
    metric = next(iter(recipe.metrics), None)
    batch = str((recipe.gate.batch if recipe.gate else None) or recipe.measure.batches[0])
    better: dict[str, Better] = {name: metric_named(name).better for name in recipe.metrics}
    disturbed = causes(surroundings[batch]) if batch in surroundings else []

    def judged_by(candidate: CandidateReport) -> CandidateReport:
        if candidate.status != "measured" or candidate.name == baseline.name:
            return candidate
        verdict = judge(candidate, recipe.gate, batch, better, baseline, disturbed)
        return candidate.model_copy(update={"verdict": verdict})

    judged = [judged_by(c) for c in candidates]
    return Report(
        recipe=RecipeRef(name=recipe.name, path=str(recipe.path), sha256=sha256_bytes(recipe.text)),
        environment=environment(
            recipe.measure.threads,
            latency["affinity"],
            next((s.device for s in outcome.subjects if s.device != "cpu"), "cuda:0"),
        ).model_copy(update={"surroundings": surroundings}),
        baseline=baseline.name,
        candidates=tuple(judged),
        stages=tuple(outcome.stages),
        pareto=pareto(judged, metric, batch, better.get(metric or "", "higher")),
        recommended=recommend(judged, baseline.name, recipe.gate, batch),
        verdict=overall(judged, recipe.gate),
        gate=recipe.gate.model_dump(mode="json", exclude_none=True) if recipe.gate else None,
        metrics=better,
        command=outcome.command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        notes=(
            *outcome.notes,
            *_doubts(baseline, outcome),
            *_notes(outcome.measured),
            *_complaints(surroundings),
            *size_notes(recipe, latency.get("sizes", {})),
            *output_notes(recipe, candidates),
            *doubts(judged),
        ),
        calibration=summaries(outcome.calibrated),
    )


def _doubts(baseline: CandidateReport, outcome: Outcome) -> list[str]:
    """Say of a baseline that guesses: what is no better than chance cannot be shown to lose anything."""
    outputs = next((s.artifact.outputs for s in outcome.subjects if s.artifact.outputs), ())
    shapes = {spec.name: spec.shape for spec in outputs}
    found = []
    for name, options in outcome.recipe.metrics.items():
        value = baseline.accuracy.get(name)
        output = options.output or outcome.recipe.model.outputs[0]
        chance = metric_named(name).chance(shapes.get(output, ()))
        if value is not None and chance is not None and value.ci95[0] <= chance:
            found.append(
                f"The baseline's {name} of {value.value:.4f} on output '{output}' is not above chance ({chance:.4f}): "
                "do labels, data.transform, the metric's output and the checkpoint belong together?"
            )
    return found


def _notes(measured: Measured) -> list[str]:
    return [f"{name}: {note}" for name, entry in measured.accuracy.items() for note in read_document(entry)["notes"]]


def _complaints(surroundings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [
        f"latency at batch {batch}: {said}" for batch, facts in surroundings.items() for said in facts["complaints"]
    ]


def size_notes(recipe: Recipe, sizes: Mapping[str, Sequence[int]]) -> list[str]:
    """Say at which sizes of the axes besides the batch latency was timed: others of the profile take other times."""
    said = []
    for axis, found in sizes.items():
        covered = recipe.profile.get(axis)
        span = f" (the profile covers {covered.min} to {covered.max})" if covered is not None else ""
        said.append(f"{axis} {', '.join(map(str, found))}{span}")
    return [f"latency was timed at {'; '.join(said)}; other sizes take other times"] if said else []


def output_notes(recipe: Recipe, candidates: Sequence[CandidateReport]) -> list[str]:
    """Say of a model of several outputs which of them the metrics read: the SQNR shown is that of the worst."""
    outputs = list(dict.fromkeys(name for c in candidates for name in c.numerics))
    if len(outputs) < 2 or not recipe.metrics:
        return []
    read = ", ".join(f"{name} reads '{o.output or recipe.model.outputs[0]}'" for name, o in recipe.metrics.items())
    return [f"SQNR in the overview is of the worst of {len(outputs)} outputs ({', '.join(outputs)}); {read}"]


def _candidate(
    subject: Subject, outcome: Outcome, latency: Mapping[str, Any], gain: AgainstFp32 | None
) -> CandidateReport:
    error = outcome.measured.failures.get(subject.name)
    entry = outcome.measured.accuracy.get(subject.name)
    about = read_document(entry) if entry is not None else None
    common: dict[str, Any] = {
        "name": subject.name,
        "variant": subject.variant,
        "runtime": subject.runtime,
        "device": subject.device,
        "artifact": outcome.artifacts[subject.name],
        **layer_table(subject, about["delivered"] if about else {}),
        "trtexec": trtexec_line(subject),
    }
    if error is not None or about is None:
        reason = error.render() if error is not None else "its accuracy could not be measured"
        return CandidateReport(
            **common, status="failed", reason=reason, precision=Precision(requested=subject.precision)
        )
    precision = Precision(requested=subject.precision, delivered=about["delivered"], source=about["source"])
    common |= {
        "precision": precision,
        "accuracy": about["accuracy"],
        "accuracy_runtime": about["runtime"],
        "accuracy_delta": about["delta"],
        "numerics": about["numerics"],
        "proof": about["proof"],
    }
    if not subject.executes:
        return CandidateReport(**common, status="built", reason=subject.missing)
    timed = latency_fields(latency["candidates"].get(subject.name))
    load = load_fields(outcome.measured.load.get(subject.name, {}))
    execution = latency.get("executions", {}).get(subject.name, {})
    return CandidateReport(**common, status="measured", **timed, **load, execution=execution, against_fp32=gain)


def failed_candidate(candidate: Candidate, error: OptimizerError) -> CandidateReport:
    """Report a candidate that could not be built."""
    return CandidateReport(
        name=candidate.name,
        variant=candidate.variant,
        runtime=candidate.target,
        device="",
        status="failed",
        reason=error.render(),
        precision=Precision(requested=candidate.precision),
    )
