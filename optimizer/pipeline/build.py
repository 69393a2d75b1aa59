"""Build: plan, build or reuse, measure, compare, report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.errors import MeasurementError, MissingToolError, OptimizerError, RecipeError
from optimizer.pipeline.assemble import Outcome, assemble, failed_candidate
from optimizer.pipeline.bench import Bench, Measured
from optimizer.pipeline.calibration import of_steps
from optimizer.pipeline.execute import Executed, Workshop, execute
from optimizer.pipeline.load import check_load_tools
from optimizer.pipeline.measure import measure
from optimizer.pipeline.plan import Plan, plan, write_history
from optimizer.pipeline.run import begin_logs, place_artifacts, write_run
from optimizer.pipeline.subject import Subject, device_of, runner_of, why_not

if TYPE_CHECKING:
    from optimizer.data.splits import Splits
    from optimizer.progress import Progress
    from optimizer.recipe.model import Recipe
    from optimizer.recipe.steps import Candidate
    from optimizer.results import Report
    from optimizer.store import Store


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says beyond the recipe."""

    only: tuple[str, ...] = ()
    device: str = "cpu"
    remeasure: bool = False
    locked: bool = False
    history: Path = Path()  # folder of the recipe's history; see plan.HISTORY
    command: str = ""


@dataclass(frozen=True, slots=True)
class Built:
    """A finished run. `errors` are those of single candidates; the others are whole."""

    report: Report
    run: Path
    errors: tuple[OptimizerError, ...]


def build(recipe: Recipe, store: Store, run: Path, options: Options, progress: Progress) -> Built:
    """Build every candidate, measure what can execute here, and write the report into `run`.

    A candidate that fails stops no other: the report has its reason, `Built.errors` its error.
    Raises: OptimizerError when the baseline cannot be built or measured: there is nothing to compare with; and before
    anything is built, where the data has fewer samples than the recipe asks for.
    """
    from optimizer.data.splits import Splits, about_replaced

    splits = Splits(recipe)
    locked = read_lock(recipe) if options.locked else None
    planned = _plan(recipe, store, splits, options)
    logs = begin_logs(run)
    shop = Workshop(recipe, store, splits, progress, logs, options.device, planned.sources, locked)
    done = execute(planned, shop)
    write_history(options.history, documents_of_built(done), planned.sources)
    subjects, failed = _subjects(planned, done, options.device)
    errors = distinct(failed.values())
    digest = planned.sources["evaluation"].artifact.digest
    bench = Bench(
        recipe,
        store,
        splits,
        progress,
        digest,
        options.device,
        options.remeasure,
        logs,
        lambda: shop.check_unchanged(["evaluation"]),
    )
    measured = _measure(subjects, bench, errors)
    errors += distinct([*measured.failures.values(), *measured.errors])
    calibrated = of_steps(done.outputs)
    artifacts = place_artifacts(subjects, run, calibrated)
    outcome = Outcome(
        recipe,
        subjects,
        [failed_candidate(c, e) for c, e in failed.items()],
        artifacts,
        measured,
        done.reports,
        options.command,
        about_replaced(note for stage in done.reports for note in stage.notes),
        calibrated,
    )
    report = assemble(outcome)
    write_run(run, recipe, subjects, measured, planned.sources["evaluation"].document)
    errors += unstable(report, recipe)
    return Built(report, run, tuple(errors))


def _plan(recipe: Recipe, store: Store, splits: Splits, options: Options) -> Plan:
    """Plan the build, and refuse beforehand what must fail."""
    planned = plan(recipe, store, options.history, only=options.only, device=options.device, recompute=options.locked)
    check_baseline(planned.derivation.baseline.target, options.device)
    check_load_tools(recipe)
    if calibrates(planned):
        splits.check_counts()
    return planned


def _measure(subjects: list[Subject], bench: Bench, errors: list[OptimizerError]) -> Measured:
    try:
        return measure(subjects, bench)
    except OptimizerError as error:
        # Where nothing was built either, what failed first is the cause, and the baseline stumbled over the same.
        raise together([error, *errors] if subjects[1:] else errors or [error]) from error


def documents_of_built(done: Executed) -> dict[str, Mapping[str, object]]:
    """Return the key documents of the steps that stand: of one that failed no plan shall say that it was removed."""
    return {name: document for name, document in done.documents.items() if name not in done.failures}


def calibrates(planned: Plan) -> bool:
    """Tell whether a step that is to be run reads calibration samples."""
    return any("calibration" in one.step.sources.values() for one in planned.steps if not one.reusable)


def check_baseline(runtime: str, device: str) -> None:
    """Refuse a device on which the baseline cannot run: without it nothing can be compared.

    Raises: MissingToolError.
    """
    missing = runner_of(runtime).missing(device)
    if missing is not None:
        raise MissingToolError(f"the baseline cannot run there: {missing}", where=f"{runtime} on {device}")


def _subjects(planned: Plan, done: Executed, device: str) -> tuple[list[Subject], dict[Candidate, OptimizerError]]:
    subjects: list[Subject] = []
    failed: dict[Candidate, OptimizerError] = {}
    for candidate in planned.derivation.candidates:
        error = done.failures.get(candidate.step)
        if error is not None:
            failed[candidate] = error
            if candidate is planned.derivation.baseline:
                raise error
            continue
        graph = done.outputs[candidate.graph] if candidate.graph else None
        artifact = done.outputs[candidate.step]
        subjects.append(
            Subject(
                candidate.name,
                candidate.variant,
                candidate.precision,
                candidate.target,
                device_of(candidate.target, device),
                artifact,
                graph,
                why_not(candidate.target, artifact, device),
            )
        )
    return subjects, failed


def distinct(errors: Iterable[OptimizerError]) -> list[OptimizerError]:
    """Return each error once: one failed stage fails several candidates, and two dialects fail for one reason."""
    return list({error.render(): error for error in errors}.values())


def together(errors: list[OptimizerError]) -> OptimizerError:
    """Return one error that tells each of them once, with the exit code of the gravest."""
    errors = distinct(errors)
    if len(errors) == 1:
        return errors[0]
    kind = type(max(errors, key=lambda error: error.exit_code))
    return kind("\n".join(["several things failed:", *(error.render() for error in errors)]))


def unstable(report: Report, recipe: Recipe) -> list[OptimizerError]:
    """Return the error of a run whose latency stayed unstable though the recipe demands stability."""
    if not recipe.measure.require_stable:
        return []
    shaky = [
        f"{c.name} at batch {batch}"
        for c in report.candidates
        for batch, latency in (c.latency_ms or {}).items()
        if not latency.stable
    ]
    if not shaky:
        return []
    hint = "Quieten the machine, raise measure.seconds, or drop measure.require_stable."
    return [MeasurementError(f"latency stayed unstable: {', '.join(shaky)}", where="measure", hint=hint)]


def lock_file(recipe: Recipe) -> Path:
    """Where the keys of a recipe's last full build lie: recipe.lock.json beside recipe.yaml."""
    return recipe.path.with_suffix(".lock.json")


def read_lock(recipe: Recipe) -> dict[str, str]:
    """Return the keys of the recipe's lock file.

    Raises: RecipeError when there is none, or it cannot be read.
    """
    path = lock_file(recipe)
    hint = "Build once without --locked."
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot be read: {error}", where=str(path), hint=hint) from error
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys.values()):
        raise RecipeError("holds no keys of stages", where=str(path), hint=hint)
    return keys


def write_lock(recipe: Recipe, report: Report) -> None:
    """Write the keys of a whole build beside the recipe.

    Raises: OSError where the folder cannot be written.
    """
    keys = {stage.id: stage.key for stage in report.stages if stage.key}
    text = json.dumps({"recipe": recipe.name, "keys": keys}, indent=1, sort_keys=True)
    lock_file(recipe).write_text(text + "\n")
