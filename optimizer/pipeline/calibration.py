"""What a report says of each variant's calibration, from the tables and diagnoses of a build or of a run's folder."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.results import Calibration, TensorCalibration
from optimizer.types import MAIN_FILE, Artifact

if TYPE_CHECKING:
    from optimizer.calibration.doctor import Drift, Health
    from optimizer.calibration.table import CalibrationTable, TensorRange

FOLDER = "calibration"
_TABLE, _DIAGNOSIS = MAIN_FILE["calibration"], MAIN_FILE["diagnosis"]
_WORST = 12


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The files of one calibration; where nothing was held against evaluation data there is no diagnosis."""

    table: Path
    diagnosis: Path | None


def of_steps(outputs: Mapping[str, Artifact]) -> dict[str, Calibrated]:
    """Return each variant's calibration by the outputs of its steps, `<variant>/<stage>` or `<variant>@<dialect>/...`.

    The last table of a variant counts: where methods were picked for a dialect, the one of that dialect.
    """
    tables: dict[str, Path] = {}
    diagnoses: dict[str, Path] = {}
    for step, artifact in outputs.items():
        if artifact.format in ("calibration", "diagnosis"):
            kept = tables if artifact.format == "calibration" else diagnoses
            kept[step.rpartition("/")[0]] = artifact.file
    narrower = {place.partition("@")[0] for place in tables if "@" in place}
    return {
        place: Calibrated(table, diagnoses.get(place) or diagnoses.get(place.partition("@")[0]))
        for place, table in tables.items()
        if place not in narrower
    }


def of_run(run: Path) -> dict[str, Calibrated]:
    """Return the calibrations that `place` put into a run's folder."""
    found = {}
    for table in sorted((run / FOLDER).glob(f"*/{_TABLE}")):
        diagnosis = table.with_name(_DIAGNOSIS)
        found[table.parent.name] = Calibrated(table, diagnosis if diagnosis.is_file() else None)
    return found


def place(calibrated: Mapping[str, Calibrated], run: Path) -> None:
    """Copy tables and diagnoses into the run's folder; what an earlier run left there goes first."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)
    for name, files in calibrated.items():
        folder = run / FOLDER / name
        folder.mkdir(parents=True)
        shutil.copyfile(files.table, folder / _TABLE)
        if files.diagnosis is not None:
            shutil.copyfile(files.diagnosis, folder / _DIAGNOSIS)


def summaries(calibrated: Mapping[str, Calibrated]) -> dict[str, Calibration]:
    """Return what the doctor says of every calibration, under the names that `of_steps` gave.

    Raises: StageError for a file that is no calibration table.
    """
    return {name: _summary(name, files) for name, files in calibrated.items()}


def _summary(name: str, files: Calibrated) -> Calibration:
    from optimizer.calibration.doctor import drift_sentences, findings, patients
    from optimizer.calibration.table import CalibrationTable

    table = CalibrationTable.read(files.table)
    drifts, samples = _drifts(files.diagnosis)
    found = {drift.tensor: drift for drift in drifts}
    drifted = {drift.tensor for drift in drifts if drift.drifted}
    # The doctor's order, but what drifted stands before what nobody complains about.
    worst = sorted(patients(table), key=lambda h: not (h.complaints or h.tensor in drifted))[:_WORST]
    return Calibration(
        method=table.method,
        samples=table.samples,
        tensors=len(table.tensors),
        picked=dict(Counter(tensor.method for tensor in table.tensors.values()).most_common()),
        findings=tuple(findings(table)),
        drift=tuple(drift_sentences(drifts, samples)),
        worst=tuple(_tensor(h, table, found.get(h.tensor)) for h in worst),
        spared=table.spared,
        table=f"{FOLDER}/{name}/{_TABLE}",
    )


def _drifts(file: Path | None) -> tuple[list[Drift], int]:
    """Return what a diagnosis holds, the worst first, and the number of its evaluation samples."""
    from optimizer.calibration.doctor import Drift

    if file is None:
        return [], 0
    document = json.loads(file.read_text(encoding="utf-8"))
    names = [field.name for field in fields(Drift) if field.name != "tensor"]
    found = [Drift(tensor, **{name: row[name] for name in names}) for tensor, row in document["tensors"].items()]
    return found, document["evaluation_samples"]


def _tensor(health: Health, table: CalibrationTable, drift: Drift | None) -> TensorCalibration:
    beyond = [f"{100 * drift.outside:.2g} % of the evaluation values outside"] if drift and drift.drifted else []
    moved = _moved(table.tensors[health.tensor]) if health.unsettled is None else health.unsettled
    return TensorCalibration(
        tensor=health.tensor,
        module=table.tensors[health.tensor].module,
        method=table.tensors[health.tensor].method,
        clipped=health.clipped,
        sqnr_db=health.sqnr_db,
        convergence=None if moved is None else float(f"{moved:.4g}"),
        outside=drift.outside if drift else None,
        complaints=(*health.complaints, *beyond),
    )


def _moved(tensor: TensorRange) -> float | None:
    """Return the convergence by the one method that was followed, where another was picked in the end."""
    followed = next((found for found in tensor.methods.values() if found.earlier and found.magnitude > 0), None)
    return abs(followed.magnitude - followed.earlier[-1]) / followed.magnitude if followed else None
