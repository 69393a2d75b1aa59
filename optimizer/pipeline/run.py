"""A run's folder: the report, the artifacts themselves, per-sample outcomes, golden samples and the recipe."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.checkpoint import read_description
from optimizer.digest import sha256_file
from optimizer.errors import UsageError
from optimizer.paths import LOGS, MARK
from optimizer.pipeline import calibration
from optimizer.pipeline.bench import GOLDEN, LATENCY, OUTCOMES, Measured
from optimizer.pipeline.load import place_load
from optimizer.results import ArtifactRef
from optimizer.runtime.bundle import LABELS, PREPROCESSING
from optimizer.types import Artifact

if TYPE_CHECKING:
    from optimizer.pipeline.subject import Subject
    from optimizer.recipe.model import Recipe

RUN_FILE = "run.json"
SCHEMA = 1


def place_artifacts(
    subjects: Sequence[Subject], run: Path, calibrated: Mapping[str, calibration.Calibrated] | None = None
) -> dict[str, ArtifactRef]:
    """Put every candidate's artifact, the ONNX behind an engine and the calibrations into the run's folder.

    What an earlier run left there goes first, its report before all: a folder with a report is whole.
    """
    (run / MARK).touch()
    for name in ("report.json", "report.html", "report.md", RUN_FILE, OUTCOMES, LATENCY, LABELS, PREPROCESSING):
        (run / name).unlink(missing_ok=True)
    for name in ("artifacts", "golden", "recipe"):
        shutil.rmtree(run / name, ignore_errors=True)
    calibration.place(calibrated or {}, run)
    placed: dict[str, ArtifactRef] = {}
    for subject in subjects:
        folder = run / "artifacts" / subject.name
        _link_tree(subject.artifact.path, folder)
        if subject.graph is not None and subject.graph.digest != subject.artifact.digest:
            place = run / graph_folder(subject.graph)
            if not place.exists():
                _link_tree(subject.graph.path, place)
        main = folder / subject.artifact.file.name if subject.artifact.format != "checkpoint" else _weights(folder)
        placed[subject.name] = ArtifactRef(
            path=str(main.relative_to(run)),
            sha256=sha256_file(main),
            bytes=sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and f.suffix not in (".json", ".py")),
            format=subject.artifact.format,
        )
    return placed


def graph_folder(graph: Artifact) -> str:
    """Where a run keeps an ONNX that engines were built from, by content."""
    return f"artifacts/graphs/{graph.digest[:16]}"


def _weights(folder: Path) -> Path:
    return folder / str(read_description(folder)["checkpoint"])


def _link_tree(source: Path, destination: Path) -> None:
    """Link files where the file system allows it, copy them elsewhere. The store notices a change in a linked file."""
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        target = destination / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, target)
        except OSError:
            shutil.copyfile(file, target)


def write_run(
    run: Path,
    recipe: Recipe,
    subjects: Sequence[Subject],
    measured: Measured,
    evaluation: Mapping[str, Any],
) -> None:
    """Write all that lies beside the artifacts but the report, which the caller renders last."""
    _write_outcomes(run, measured)
    golden = _write_golden(run, measured)
    place_load(measured, run)
    _write_recipe(run, recipe)
    labels = _labels(recipe)
    if labels:
        (run / LABELS).write_text(json.dumps(list(labels), ensure_ascii=False) + "\n")
    steps = [step.model_dump(mode="json", exclude_none=True) for step in recipe.data.transform]
    if steps:
        (run / PREPROCESSING).write_text(json.dumps({next(iter(recipe.inputs)): steps}) + "\n")
    document = _run_document(run, recipe, subjects) | {
        "golden_samples": golden,
        "evaluation": {name: part for name, part in evaluation.items() if name != "packages"},
    }
    (run / RUN_FILE).write_text(json.dumps(document, indent=1) + "\n")
    (run / MARK).unlink(missing_ok=True)


def _run_document(run: Path, recipe: Recipe, subjects: Sequence[Subject]) -> dict[str, Any]:
    from optimizer.data.source import to_specs

    outputs = next((s.artifact.outputs for s in subjects if s.artifact.outputs), ())
    folders = ("artifacts", "golden", "recipe", calibration.FOLDER)
    kept = (*folders, OUTCOMES, LATENCY, LABELS, PREPROCESSING)
    files = sorted(p for name in kept for p in [run / name, *(run / name).rglob("*")] if p.is_file())
    return {
        "schema": SCHEMA,
        "inputs": [s.to_json() for s in to_specs(recipe.inputs)],
        "outputs": [s.to_json() for s in outputs],
        "profile": {axis: r.model_dump() for axis, r in recipe.profile.items()},
        "batch_axis": recipe.batch_axis,
        "origin": str(recipe.folder),
        "settings": dict(recipe.settings),
        "candidates": {
            s.name: {
                "artifact": f"artifacts/{s.name}",
                "format": s.artifact.format,
                "digest": s.artifact.digest,
                "variant": s.variant,
                "precision": s.precision,
                "runtime": s.runtime,
                "device": s.device,
                "graph": graph_folder(s.graph) if s.graph is not None and s.artifact.format == "engine" else None,
                "graph_digest": s.graph.digest if s.graph else None,
            }
            for s in subjects
        },
        "files": {str(p.relative_to(run)): sha256_file(p) for p in files},
    }


def _write_outcomes(run: Path, measured: Measured) -> None:
    outcomes: dict[str, Any] = {}
    for name, entry in measured.accuracy.items():
        with np.load(entry.artifact("measurement").path / OUTCOMES) as arrays:
            outcomes |= {f"{name}/{metric}": arrays[metric] for metric in arrays.files}
    np.savez_compressed(run / OUTCOMES, **outcomes)
    if measured.latency is not None:
        shutil.copyfile(measured.latency.artifact("measurement").path / LATENCY, run / LATENCY)


def _write_golden(run: Path, measured: Measured) -> int:
    """Split every candidate's golden arrays into one file of inputs and one of outputs a candidate."""
    (run / "golden").mkdir(exist_ok=True)
    count = 0
    for name, entry in measured.accuracy.items():
        with np.load(entry.artifact("measurement").path / GOLDEN) as arrays:
            by_side: dict[str, dict[str, Any]] = {"input": {}, "output": {}}
            for key in arrays.files:
                side, _, tensor = key.partition("/")
                by_side[side][tensor] = arrays[key]
        np.savez_compressed(run / "golden" / f"{name}.npz", **by_side["output"])
        if by_side["input"]:
            np.savez_compressed(run / "golden" / "inputs.npz", **by_side["input"])
            count = len(next(iter(by_side["input"].values())))
    return count


def _write_recipe(run: Path, recipe: Recipe) -> None:
    """Copy the recipe and its local Python files, so that another machine can measure this run."""
    from optimizer.imports import closure

    folder = run / "recipe"
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_bytes(recipe.text)
    wanted: list[Path] = []
    for reference in (recipe.model.factory, recipe.data.source):
        if reference is not None:
            wanted += closure(recipe.folder / reference.partition(":")[0]).files
    wanted += [recipe.folder / name for name in (*recipe.model.files, *recipe.data.files)]
    for file in wanted:
        with contextlib.suppress(ValueError):  # a file outside the recipe's folder is found through its setting
            target = folder / file.resolve().relative_to(recipe.folder.resolve())
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def _labels(recipe: Recipe) -> tuple[str, ...] | None:
    if recipe.data.labels is not None or recipe.data.folder is None:
        return recipe.data.labels
    from optimizer.data.pictures import Pictures

    layout = str(recipe.data.layout)
    return Pictures(recipe.resolve(recipe.data.folder), layout, recipe.data.evaluation.split).labels


def begin_logs(run: Path) -> Path:
    """Return the run's folder of logs, empty: an earlier build's faults must not be taken for this one's.

    Raises: UsageError where the earlier ones cannot be removed.
    """
    logs = run / LOGS
    try:
        if logs.is_symlink():
            logs.unlink()
        elif logs.exists():
            shutil.rmtree(logs)
        logs.mkdir(parents=True)
        (logs / MARK).touch()
    except OSError as error:
        raise UsageError(
            f"cannot be made anew: {error.strerror or error}", where=str(logs), hint="Name a new folder."
        ) from error
    return logs


def open_out(folder: Path) -> Path:
    """Make the folder that --out names; an earlier run there is replaced once the new one is built.

    Raises: UsageError when the folder holds something that is no run.
    """
    # A build that failed left its logs alone.
    kept = [p for p in folder.iterdir() if p.name != LOGS or not (p / MARK).is_file()] if folder.is_dir() else []
    if kept and not any((folder / name).is_file() for name in (RUN_FILE, MARK)):
        raise UsageError("is not empty and holds no run", where=f"--out {folder}", hint="Name a new folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot be made: {error.strerror}", where=f"--out {folder}") from error
    return folder
