"""A report with the samples that lie beside it, as far as they do and belong to it."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.errors import UsageError
from optimizer.measure.statistics import Floats
from optimizer.results import CandidateReport, Report

# The distributions that execute each runtime.
_EXECUTES = {
    "torch": ("torch",),
    "torch_compile": ("torch",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "onnxruntime_tensorrt": ("onnxruntime-gpu", "tensorrt"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt_rtx",),
}


class AbsentError(Exception):
    """Samples that a check needs are not there; the text says which and why."""


@dataclass(frozen=True)
class Stored:
    """A report and its folder. `side` names it in sentences: baseline or candidate."""

    report: Report
    folder: Path
    side: str

    def outcomes(self, candidate: CandidateReport, metric: str) -> Floats:
        """Return the outcome of every evaluation sample.

        Raises: AbsentError.
        """
        found = self._array(self._outcomes, "outcomes.npz", f"{candidate.name}/{metric}")
        said = candidate.accuracy[metric]
        if found.shape != (said.samples,) or abs(float(found.mean()) - said.value) > 1e-9:
            raise AbsentError(f"outcomes.npz beside the {self.side} report does not belong to it")
        return found

    def rounds(self, candidate: CandidateReport, batch: str) -> Floats:
        """Return every latency sample in milliseconds, as [rounds, calls].

        Raises: AbsentError.
        """
        found = self._array(self._latency, "latency.npz", f"{candidate.name}/{batch}")
        said = (candidate.latency_ms or {})[batch]
        if found.ndim != 2 or found.size != said.samples or not np.isclose(np.median(found), said.p50, rtol=1e-6):
            raise AbsentError(f"latency.npz beside the {self.side} report does not belong to it")
        return found

    def openings(self, batch: str) -> tuple[int, ...]:
        """Return how many of a session's rounds belong to each time that its candidates were opened; () for once."""
        return tuple(int(count) for count in self._latency.get(f"openings/{batch}", ()))

    def version(self, candidate: CandidateReport) -> tuple[tuple[str, str], ...]:
        """Return what executes the candidate, with its version."""
        packages = self.report.environment.packages
        names = _EXECUTES.get(candidate.runtime, (candidate.runtime,))
        return tuple((name, packages[name]) for name in names if name in packages)

    def evaluation(self) -> Any:
        """Return what run.json says of the evaluation data, or None without one."""
        file = self.folder / "run.json"
        if not file.is_file():
            return None
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot be read: {error}", where=str(file)) from error
        return document.get("evaluation") if isinstance(document, dict) else None

    def golden_inputs(self) -> dict[str, Any]:
        """Return the first evaluation samples, nothing where the run does not hold them."""
        return _load(self.folder / "golden" / "inputs.npz")

    @cached_property
    def _outcomes(self) -> dict[str, Any]:
        return _load(self.folder / "outcomes.npz")

    @cached_property
    def _latency(self) -> dict[str, Any]:
        return _load(self.folder / "latency.npz")

    def _array(self, arrays: dict[str, Any], file: str, key: str) -> Floats:
        if not arrays:
            raise AbsentError(f"there is no {file} beside the {self.side} report")
        if key not in arrays:
            raise AbsentError(f"{file} beside the {self.side} report has no '{key}'")
        return np.asarray(arrays[key], dtype=np.float64)


@dataclass(frozen=True)
class Pair:
    """One candidate in both reports."""

    before: Stored
    after: Stored
    old: CandidateReport
    new: CandidateReport

    @property
    def name(self) -> str:
        """The candidate's name, the same in both."""
        return self.new.name

    @property
    def same_artifact(self) -> bool:
        """Whether both are the same artifact, byte for byte."""
        one, other = self.old.artifact, self.new.artifact
        return one is not None and other is not None and one.sha256 == other.sha256

    @property
    def unchanged(self) -> bool:
        """Whether neither the artifact nor any package that the reports list is another one."""
        packages = (side.report.environment.packages for side in (self.before, self.after))
        return self.same_artifact and len({tuple(sorted(p.items())) for p in packages}) == 1

    @property
    def same_runtime(self) -> bool:
        """Whether the same version of the same runtime executes both, on a device of the same name."""
        return self.before.version(self.old) == self.after.version(self.new) and self.old.device == self.new.device


def _load(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        with file.open("rb") as stream, np.load(stream) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"cannot be read: {error}", where=str(file), hint="Copy the run's folder again.") from error
