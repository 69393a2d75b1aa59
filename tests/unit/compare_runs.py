"""Two runs' folders with known outcomes and latencies; for the tests of `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from optimizer.measure.latency import Series
from optimizer.report.read import write_json
from optimizer.results import Report

RIGHT = np.array([1.0] * 900 + [0.0] * 100)


def lose(count: int, right: np.ndarray = RIGHT, gain: int = 0) -> np.ndarray:
    """`count` right answers become wrong, `gain` wrong ones right."""
    changed = right.copy()
    changed[:count] = 0
    changed[len(right) - gain :] = 1
    return changed


def paces(seed: int, pace: float, calls: int = 5, rounds: int = 60, noise: float = 0.02) -> np.ndarray:
    return pace * np.random.default_rng(seed).lognormal(0, noise, (rounds, calls))


def candidate(name: str, top1: np.ndarray | None, timed: np.ndarray | None, **more: Any) -> dict[str, Any]:
    variant, _, runtime = name.partition("@")
    accuracy = {}
    if top1 is not None:
        accuracy["top1"] = {"value": float(top1.mean()), "samples": len(top1), "ci95": [0.0, 1.0]}
    return {
        "name": name,
        "variant": variant,
        "runtime": runtime,
        "device": "cpu",
        "status": "measured" if timed is not None else "built",
        "precision": {"requested": variant, "delivered": {variant: 1.0}},
        "artifact": {"path": f"artifacts/{name}/m", "sha256": name.encode().hex().ljust(64, "0")[:64], "bytes": 10_000}
        | {"format": "onnx"},
        "accuracy": accuracy,
        "latency_ms": None if timed is None else {"1": Series(timed, 3).latency().model_dump(mode="json")},
    } | more


ENVIRONMENT: dict[str, Any] = {
    "python": "3.11.4",
    "platform": "Linux",
    "cpu": "A processor",
    "cores": 2,
    "memory_bytes": 8 << 30,
    "gpu": None,
    "packages": {"torch": "2.9.0", "onnxruntime": "1.23.0", "numpy": "2.1.0"},
    "threads": 1,
}


def write(
    folder: Path,
    outcomes: dict[str, np.ndarray],
    latency: dict[str, np.ndarray],
    *,
    changed: dict[str, dict[str, Any]] | None = None,
    environment: dict[str, Any] | None = None,
) -> Path:
    """Write report.json, outcomes.npz and latency.npz for the candidates that `outcomes` names, the baseline first."""
    folder.mkdir(parents=True)
    listed = [candidate(n, o, latency.get(n), **(changed or {}).get(n, {})) for n, o in outcomes.items()]
    document = {
        "schema_version": 1,
        "recipe": {"name": "demo", "path": "recipe.yaml", "sha256": "0" * 64},
        "environment": ENVIRONMENT | (environment or {}),
        "baseline": next(iter(outcomes)),
        "candidates": listed,
        "stages": [],
        "pareto": [],
        "recommended": {},
        "verdict": {"status": "pass", "reasons": []},
        "metrics": {"top1": "higher"},
    }
    write_json(Report.model_validate(document), folder / "report.json")
    np.savez(folder / "outcomes.npz", **{f"{n}/top1": o for n, o in outcomes.items()})
    np.savez(folder / "latency.npz", **{f"{n}/1": rounds for n, rounds in latency.items()})
    return folder


def usual(folder: Path, seed: int = 0, **more: Any) -> Path:
    """A run of a baseline and one candidate, quantized anew for every seed; `seed` makes the noise of its session."""
    int8 = "int8@onnxruntime"
    outcomes = {"fp32@torch": RIGHT, int8: lose(3, gain=3)}
    latency = {"fp32@torch": paces(seed, 4.0), int8: paces(seed + 100, 1.0)}
    artifact = {"path": "m", "sha256": f"{seed:064x}", "bytes": 10_000, "format": "onnx"}
    changed = {**more.pop("changed", {})}
    changed[int8] = {"artifact": artifact} | changed.get(int8, {})
    return write(folder, more.pop("outcomes", outcomes), more.pop("latency", latency), changed=changed, **more)
