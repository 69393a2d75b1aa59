"""What every measurement shares: the bench it is made on, what stands in its key, and how it is stored."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.environment import device_fingerprint, installed, machine_fingerprint
from optimizer.errors import OptimizerError
from optimizer.types import MAIN_FILE, StageRecord

if TYPE_CHECKING:
    from optimizer.data.splits import Splits
    from optimizer.pipeline.subject import Subject
    from optimizer.progress import Progress
    from optimizer.recipe.model import Recipe
    from optimizer.store import Entry, Store

OUTCOMES = "outcomes.npz"  # per metric, the outcome of every evaluation sample
GOLDEN = "golden.npz"  # real inputs and this candidate's outputs
LATENCY = "latency.npz"  # per candidate and batch, every sample in milliseconds
_MEASURES_WITH = (
    "optimizer",
    "numpy",
    "onnx",
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt_rtx",
    "openvino",
    "Pillow",
)
_VERSION = 5


@dataclass(slots=True)
class Measured:
    """Stored measurements of a run, and the error of every candidate that could not be measured."""

    accuracy: dict[str, Entry] = field(default_factory=dict)
    latency: Entry | None = None
    load: dict[str, dict[str, Entry]] = field(default_factory=dict)  # memory, energy, LoadGen, sweep and so on
    failures: dict[str, OptimizerError] = field(default_factory=dict)
    errors: list[OptimizerError] = field(default_factory=list)  # of measurements that no candidate fails by


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
    logs: Path  # a run's folder for what explains failures
    check_unchanged: Callable[[], None] = lambda: None  # raises when the evaluation data changed meanwhile


def conditions(bench: Bench) -> dict[str, Any]:
    """Return what every measurement depends on besides the candidates."""
    return {
        "version": _VERSION,
        "python": platform.python_version(),
        "evaluation": bench.evaluation_digest,
        "packages": installed(_MEASURES_WITH),
        "machine": machine_fingerprint(),
        "device": device_fingerprint(bench.device),
        "threads": bench.recipe.measure.threads,
    }


def identity(subject: Subject) -> dict[str, Any]:
    """Return what tells one candidate on this machine from another."""
    return {
        "artifact": subject.artifact.digest,
        "graph": subject.graph.digest if subject.graph else None,
        "runtime": subject.runtime,
        "executes": subject.executes,
    }


def writer(document: Mapping[str, Any], arrays: Mapping[str, Mapping[str, Any]]) -> Callable[[Path], None]:
    """Return what writes a measurement into a folder: its document, and its arrays by file."""

    def write(folder: Path) -> None:
        (folder / MAIN_FILE["measurement"]).write_text(json.dumps(document, indent=1, allow_nan=False))
        for name, content in arrays.items():
            np.savez_compressed(folder / name, **content)

    return write


def store(bench: Bench, key: str, document: dict[str, Any], write: Callable[[Path], None], seconds: float) -> Entry:
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
