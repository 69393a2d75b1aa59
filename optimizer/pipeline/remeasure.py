"""Measure a run's stored artifacts on this machine: a new report, the same recipe, another environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from optimizer.data.identity import data_document
from optimizer.data.splits import Splits, about_replaced
from optimizer.digest import sha256_file, sha256_json
from optimizer.errors import OptimizerError, StageError, UsageError
from optimizer.pipeline.assemble import Outcome, assemble
from optimizer.pipeline.bench import Bench
from optimizer.pipeline.build import Built, Options, check_baseline, distinct, unstable
from optimizer.pipeline.calibration import of_run
from optimizer.pipeline.execute import read_interface
from optimizer.pipeline.load import check_load_tools
from optimizer.pipeline.measure import measure
from optimizer.pipeline.run import RUN_FILE, SCHEMA, begin_logs, place_artifacts, write_run
from optimizer.pipeline.subject import Subject, device_of, why_not
from optimizer.runners import RUNNERS
from optimizer.types import Artifact, Format

if TYPE_CHECKING:
    from optimizer.progress import Progress
    from optimizer.recipe.model import Recipe
    from optimizer.results import Report
    from optimizer.store import Store


@dataclass(frozen=True, slots=True)
class Carried:
    """A run's folder, opened: its recipe, what `run.json` says, and the report it had where it was built."""

    folder: Path
    recipe: Recipe
    about: Mapping[str, Any]
    report: Report


def open_run(run: Path, report: Report, settings: Mapping[str, str]) -> Carried:
    """Read a run's recipe and description, and check that its files are those that were built.

    Raises: UsageError when the folder is no run, StageError when a file was changed.
    """
    from optimizer.recipe.loader import load_recipe

    about = _read_about(run / RUN_FILE, report.baseline)
    for name, digest in about["files"].items():
        if not (run / name).is_file():
            raise StageError("is missing", where=str(run / name), hint="Copy the run's folder again, whole.")
        if sha256_file(run / name) != digest:
            raise StageError("is not what was built", where=str(run / name), hint="Copy the run's folder again.")
    filled = {n: v for n, v in about["settings"].items() if f"OPTIMIZE_{n.upper()}" not in os.environ} | dict(settings)
    recipe = load_recipe(run / "recipe" / "recipe.yaml", filled, model_files=False, origin=Path(about["origin"]))
    return Carried(run, recipe, about, report)


# What open_run and remeasure read of run.json, and of each of its candidates.
_ABOUT = {"files": dict, "settings": dict, "origin": str, "evaluation": dict, "candidates": dict}
_CANDIDATE = ("artifact", "format", "digest", "variant", "precision", "runtime")


def _read_about(file: Path, baseline: str) -> dict[str, Any]:
    hint = "Build it again, or give a run that this version built."
    try:
        about = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot be read: {error}", where=str(file)) from error
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        given = about.get("schema", "none") if isinstance(about, dict) else "none"
        raise UsageError(f"its schema is {given}, this version reads {SCHEMA}", where=str(file), hint=hint)
    wrong = [name for name, kind in _ABOUT.items() if not isinstance(about.get(name), kind)]
    if not wrong:
        wrong = [f"candidates.{name}" for name, part in about["candidates"].items() if not _is_candidate(part)]
    if not wrong and baseline not in about["candidates"]:
        wrong.append(f"candidates.{baseline}")
    if wrong:
        raise UsageError(f"lacks or misstates {', '.join(wrong)}", where=str(file), hint=hint)
    return about


def _is_candidate(part: object) -> bool:
    if not isinstance(part, dict) or not all(isinstance(part.get(field), str) for field in _CANDIDATE):
        return False
    known = part["format"] in get_args(Format) and any(kind.runtime == part["runtime"] for kind in RUNNERS)
    graph = [part.get("graph"), part.get("graph_digest")]
    return known and (graph[0] is None or all(isinstance(text, str) for text in graph))


def remeasure(run: Carried, store: Store, new: Path, options: Options, progress: Progress) -> Built:
    """Measure every artifact of `run` here and write what belongs into the folder `new`; nothing is built.

    Raises: OptimizerError when its data is not here, or the baseline cannot be measured.
    """
    recipe, about, before = run.recipe, run.about, run.report
    document = data_document(recipe.data, recipe.data.evaluation, recipe.folder, store.index, recipe.settings)
    if {k: v for k, v in document.items() if k != "packages"} != about["evaluation"]:
        raise StageError(
            "is not the data that this run was judged on",
            where="data.evaluation",
            hint="Give the same data, by --set NAME=DIR where the recipe has ${NAME}.",
        )
    check_baseline(about["candidates"][before.baseline]["runtime"], options.device)
    check_load_tools(recipe)
    bench = Bench(
        recipe,
        store,
        Splits(recipe),
        progress,
        sha256_json(document),
        options.device,
        options.remeasure,
        begin_logs(new),
    )
    subjects = [_subject(run.folder, name, part, options.device) for name, part in about["candidates"].items()]
    subjects.sort(key=lambda s: s.name != before.baseline)
    measured = measure(subjects, bench)
    errors: list[OptimizerError] = distinct([*measured.failures.values(), *measured.errors])
    calibrated = of_run(run.folder)
    artifacts = place_artifacts(subjects, new, calibrated)
    failed = [c for c in before.candidates if c.status == "failed" and c.artifact is None]
    notes = about_replaced(note for stage in before.stages for note in stage.notes)
    outcome = Outcome(recipe, subjects, failed, artifacts, measured, before.stages, options.command, notes, calibrated)
    report = assemble(outcome)
    write_run(new, recipe, subjects, measured, document)
    return Built(report, new, tuple(errors + unstable(report, recipe)))


def _subject(run: Path, name: str, about: Mapping[str, Any], device: str) -> Subject:
    folder = run / about["artifact"]
    artifact = Artifact(about["format"], folder, about["digest"], *read_interface(about["format"], folder))
    graph = None
    if about.get("graph") is not None:
        place = run / about["graph"]
        graph = Artifact("onnx", place, about["graph_digest"], *read_interface("onnx", place))
    elif about["format"] == "onnx":
        graph = artifact
    runtime = about["runtime"]
    return Subject(
        name,
        about["variant"],
        about["precision"],
        runtime,
        device_of(runtime, device),
        artifact,
        graph,
        why_not(runtime, artifact, device),
    )
