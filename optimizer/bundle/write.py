"""Write a deployment bundle: a sealed folder that `optimizer.runtime.load` opens without torch.

A bundle holds what serves and nothing else. An engine travels with its receipt and without the ONNX that it was built
from: that graph is in TensorRT's dialect, computes something else on a CPU, and would only tempt to fall back to it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from optimizer.bundle.choose import find_candidate
from optimizer.bundle.describe import describe, runs_on, tolerances
from optimizer.digest import sha256_file, sha256_json
from optimizer.errors import StageError, UsageError
from optimizer.results import CandidateReport, Report
from optimizer.runtime.bundle import LABELS, PREPROCESSING
from optimizer.runtime.golden import GOLDEN, write_golden
from optimizer.runtime.passport import PASSPORT, render, seal
from optimizer.runtime.session import Array

# One real sample finds a wrong file, kernel or version; accuracy was judged on the whole set.
LEAST_SAMPLES = 1


def read_report(run: Path) -> Report:
    """Read a run's report. Raises: UsageError where there is none, or it does not follow the schema."""
    path = run / "report.json"
    if not path.is_file():
        raise UsageError("is no run: it has no report.json", where=str(run))
    try:
        return Report.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise UsageError(
            f"{place}: {first['msg']} ({error.error_count()} problems in all)", where=str(path), hint="build it again"
        ) from error


def write_bundle(run: Path, candidate: str, destination: Path, *, triton: bool = False) -> Path:
    """Write the candidate's bundle and return its folder; it is there whole or not at all.

    `triton` adds a model repository for NVIDIA Triton Inference Server.
    Raises: UsageError for an unknown candidate or a destination that holds something, StageError for a candidate that
    failed, a run that was changed since, or a full disk; both for what Triton does not serve.
    """
    destination = destination.resolve()
    report = read_report(run)
    chosen = find_candidate(report, candidate)
    record = _read_json(run / "run.json")
    stored = record["candidates"].get(candidate)
    if stored is None:
        raise StageError(f"has no artifact of '{candidate}'", where=str(run / "run.json"), hint="build the run again")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UsageError("exists and is not an empty folder", where=str(destination), hint="name another one with -o")
    inputs, outputs = _golden(run, candidate, record["files"])
    with _whole(destination) as folder:
        _copy_artifact(run, stored["artifact"], record["files"], folder)
        write_golden(folder / GOLDEN, inputs, outputs)
        for name in (PREPROCESSING, LABELS):
            if (run / name).is_file():
                _copy(run / name, name, record["files"], folder / name)
        served = _add_triton(folder, report, chosen, record, outputs) if triton else {}
        passport = describe(report, chosen, record, folder, outputs) | served
        passport["from"] |= {"run": run.resolve().name, "report_sha256": sha256_file(run / "report.json")}
        if "evaluation" in record:  # as `compare` tells that two bundles were evaluated on the same samples
            passport["from"]["evaluation_sha256"] = sha256_json(record["evaluation"])
        (folder / PASSPORT).write_bytes(render(seal(passport)))
    return destination


def _add_triton(
    folder: Path, report: Report, chosen: CandidateReport, record: Mapping[str, Any], outputs: Mapping[str, Array]
) -> dict[str, Any]:
    from optimizer.bundle.triton import Source, add_repository

    device = runs_on(report, chosen, folder)["device"]
    return {"triton": add_repository(Source(folder, report, chosen, record, device, tolerances(chosen, outputs)))}


@contextmanager
def _whole(destination: Path) -> Iterator[Path]:
    """Yield a temporary folder beside the destination that takes its place when all is written."""
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}-") as temporary:
            folder = Path(temporary) / destination.name
            folder.mkdir()
            yield folder
            folder.replace(destination)
    except OSError as error:
        raise StageError(f"could not be written: {error.strerror or error}", where=str(destination)) from error


def _copy_artifact(run: Path, artifact: str, recorded: Mapping[str, str], folder: Path) -> None:
    files = sorted(path for path in (run / artifact).rglob("*") if path.is_file())
    if not files:
        raise StageError("the artifact's files are not there", where=str(run / artifact), hint="build the run again")
    for file in files:
        name = file.relative_to(run / artifact)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _copy(file, file.relative_to(run).as_posix(), recorded, folder / name)


def _copy(source: Path, name: str, recorded: Mapping[str, str], destination: Path) -> None:
    """Copy one file of the run; what was copied must be what the run recorded."""
    shutil.copyfile(source, destination)
    _check(destination, source, name, recorded)


def _check(file: Path, source: Path, name: str, recorded: Mapping[str, str]) -> None:
    expected, found = recorded.get(name), sha256_file(file)
    if expected != found:
        said = f"run.json says {expected}" if expected else "run.json does not name it"
        raise StageError(
            f"was changed since the run: its sha256 is {found}, {said}", where=str(source), hint="build the run again"
        )


def _golden(run: Path, candidate: str, recorded: Mapping[str, str]) -> tuple[dict[str, Array], dict[str, Array]]:
    sides = []
    for name in ("golden/inputs.npz", f"golden/{candidate}.npz"):
        path = run / name
        if not path.is_file():
            raise StageError("the golden samples are not there", where=str(path), hint="build the run again")
        _check(path, path, name, recorded)
        with np.load(path, allow_pickle=False) as archive:
            sides.append({key: archive[key] for key in archive.files})
    inputs, outputs = sides
    counts = {len(array) for side in sides for array in side.values()}
    if len(counts) != 1 or min(counts) < LEAST_SAMPLES:
        raise StageError(
            f"hold {', '.join(map(str, sorted(counts)))} samples; all arrays must hold the same number, at least "
            f"{LEAST_SAMPLES}",
            where=f"golden samples of '{candidate}'",
            hint="evaluate on more samples",
        )
    strange = [name for name, array in outputs.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
    if strange:
        raise StageError(
            f"the outputs {', '.join(strange)} hold NaN or infinity", where=f"golden samples of '{candidate}'"
        )
    return inputs, outputs


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError("is not there", where=str(path), hint="build the run again with this release")
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError as error:
        raise StageError(f"is no JSON: {error}", where=str(path), hint="build the run again") from error
    return document
