"""What a passport says: the facts of a candidate, drawn from the run's report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.digest import sha256_file
from optimizer.results import CandidateReport, Report
from optimizer.runtime.passport import SCHEMA_VERSION
from optimizer.runtime.session import Array
from optimizer.runtime.tensorrt import RECEIPT
from optimizer.verify import MIN_EQUAL_SHARE

# How far a golden output may lie from its value, as a share of the largest value of that output, and why.
_SHARES: Mapping[str, tuple[float, str]] = {
    "fp32": (1e-3, "float32 on another processor sums in another order"),
    "tf32": (2e-2, "TensorRT multiplies float32 as TF32, with 11 bits"),
    "fp16": (2e-2, "float16 has 11 bits, and every kernel rounds at other places"),
    "bf16": (1e-1, "bfloat16 has 8 bits, and every kernel rounds at other places"),
    "fp8": (2e-1, "a value at the edge of an E4M3 step falls to the other side where a kernel rounds otherwise"),
    "int4": (2e-2, "weights are the same 4-bit values everywhere; TensorRT multiplies them in TF32"),
    "int8": (1e-1, "a value at the edge of an 8-bit step falls to the other side where a kernel rounds otherwise"),
}
_ENGINES = ("tensorrt", "tensorrt_rtx")
_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "onnxruntime_tensorrt": ("onnxruntime-gpu", "tensorrt"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt_rtx"),
}


def describe(
    report: Report, candidate: CandidateReport, record: Mapping[str, Any], folder: Path, golden: Mapping[str, Array]
) -> dict[str, Any]:
    """Return the passport, unsealed; `folder` holds every other file of the bundle already."""
    facts = candidate.model_dump(mode="json")
    return {
        "schema_version": SCHEMA_VERSION,
        "name": report.recipe.name,
        "candidate": candidate.name,
        "variant": candidate.variant,
        "from": {"recipe": {"name": report.recipe.name, "sha256": report.recipe.sha256}, "created": report.created},
        "files": _files(folder),
        "inputs": record["inputs"],
        "outputs": record["outputs"],
        "profile": record["profile"],
        "batch_axis": record["batch_axis"],
        "runs_on": runs_on(report, candidate, folder),
        "golden": _golden(candidate, golden),
        "status": candidate.status,
        # In the recipe's order, which a passport's sorted keys lose: a gate asks at the first.
        "timed_batches": [int(batch) for batch in candidate.latency_ms or {}],
        "environment": report.environment.model_dump(mode="json"),
        **{key: facts[key] for key in _FACTS},
    }


def tolerance(precision: str, array: Array) -> dict[str, Any]:
    """Return how far this output may lie from its golden values, with the reason.

    `max_abs` is an absolute bound. `min_equal` stands in its place for integers and booleans where precision was
    changed: the smallest share of values that must be equal.
    """
    share, reason = _SHARES[precision]
    if array.dtype.kind not in "fc":
        if precision == "fp32":
            return {"max_abs": 0.0, "reason": "integers must be equal"}
        return {"min_equal": MIN_EQUAL_SHARE, "reason": f"a choice between near values may flip: {reason}"}
    largest = float(np.abs(array.astype(np.float64)).max()) if array.size else 0.0
    return {"max_abs": share * largest, "reason": f"{share:g} of the largest value: {reason}"}


def tolerances(candidate: CandidateReport, outputs: Mapping[str, Array]) -> dict[str, dict[str, Any]]:
    """Return the tolerance of each golden output."""
    precision = candidate.precision.requested
    if precision == "fp32" and candidate.runtime in _ENGINES:
        precision = "tf32"
    return {name: tolerance(precision, array) for name, array in outputs.items()}


def _golden(candidate: CandidateReport, outputs: Mapping[str, Array]) -> dict[str, Any]:
    return {
        "samples": len(next(iter(outputs.values()))),
        # What could not execute here was computed by the judge; a passport does not pass that off as the engine's.
        "computed_by": candidate.accuracy_runtime if candidate.status == "built" else candidate.runtime,
        "tolerance": tolerances(candidate, outputs),
    }


def _files(folder: Path) -> dict[str, Any]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in paths
    }


def runs_on(report: Report, candidate: CandidateReport, folder: Path) -> dict[str, Any]:
    """Return where it may run: runtime, device, the packages that it was built with, an engine's capabilities."""
    built = report.environment.packages
    engine = candidate.runtime in _ENGINES
    # What was built and cannot execute on the CPU (an engine, bfloat16 in onnxruntime) is for a GPU.
    built_for_gpu = candidate.status == "built" and candidate.runtime != "openvino"
    needs_gpu = candidate.device == "cpu" and (engine or built_for_gpu)
    device = "cuda:0" if needs_gpu else candidate.device
    receipt = json.loads((folder / RECEIPT).read_text(encoding="utf-8")) if (folder / RECEIPT).is_file() else {}
    return {
        "runtime": candidate.runtime,
        "device": device,
        "packages": {name: built[name] for name in _PACKAGES.get(candidate.runtime, ()) if name in built},
        "compute_capabilities": receipt.get("compute_capabilities"),
    }


_FACTS = (
    "precision",
    "accuracy",
    "accuracy_delta",
    "accuracy_runtime",
    "latency_ms",
    "throughput",
    "speedup",
    "peak_memory_bytes",
    "verdict",
)
