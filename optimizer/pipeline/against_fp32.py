"""Reduced precision against fp32 on the same target: what a user decides about is not the baseline in PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.pipeline.bench import LATENCY, OUTCOMES, Measured
from optimizer.results import AgainstFp32, MetricDelta, Speedup

if TYPE_CHECKING:
    from optimizer.measure.between import Arrays
    from optimizer.pipeline.subject import Subject

_FULL = "fp32"


def fp32_of(subjects: Sequence[Subject], timed: Iterable[str]) -> dict[str, str]:
    """Return, for each timed candidate of reduced precision, the timed fp32 one of its runtime and device.

    Of several fp32 variants the first in the recipe; a target without one has none to compare with.
    """
    names = set(timed)
    full: dict[tuple[str, str], str] = {}
    for s in subjects:
        if s.name in names and s.precision == _FULL:
            full.setdefault((s.runtime, s.device), s.name)
    reduced = (s for s in subjects if s.name in names and s.precision != _FULL)
    return {s.name: full[s.runtime, s.device] for s in reduced if (s.runtime, s.device) in full}


def speedups_over_fp32(arrays: Arrays, pairs: Mapping[str, str], batches: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return, per candidate, its fp32 candidate and by batch the speedup over it, as JSON."""
    from optimizer.measure.between import speedup_over

    sizes = tuple(batches)
    return {
        name: {
            "candidate": other,
            "speedup": {batch: speedup_over(arrays, name, other, batch).model_dump(mode="json") for batch in sizes},
        }
        for name, other in pairs.items()
    }


def against_fp32(subjects: Sequence[Subject], measured: Measured, latency: Mapping[str, Any]) -> dict[str, AgainstFp32]:
    """Return what each candidate of reduced precision gains and gives up against its target's fp32 candidate.

    A session that was stored without these speedups has all of its samples: they are computed from those.
    """
    if measured.latency is None:
        return {}
    pairs = fp32_of(subjects, latency["candidates"])
    stored: Mapping[str, Any] = latency.get("against_fp32", {})
    missing = {name: other for name, other in pairs.items() if stored.get(name, {}).get("candidate") != other}
    found = {name: stored[name] for name in pairs if name not in missing}
    if missing:
        batches = next(iter(latency["candidates"].values()))
        with np.load(measured.latency.artifact("measurement").path / LATENCY) as arrays:
            found |= speedups_over_fp32(arrays, missing, batches)
    return {
        name: AgainstFp32(
            candidate=other,
            speedup={batch: Speedup.model_validate(ratio) for batch, ratio in found[name]["speedup"].items()},
            accuracy_delta=_accuracy_delta(measured, name, other),
        )
        for name, other in pairs.items()
    }


def _accuracy_delta(measured: Measured, name: str, other: str) -> dict[str, MetricDelta]:
    from optimizer.measure.accuracy import metric_delta

    own, base = (_outcomes(measured, each) for each in (name, other))
    return {metric: metric_delta(metric, base[metric], own[metric]) for metric in own if metric in base}


def _outcomes(measured: Measured, name: str) -> dict[str, Any]:
    with np.load(measured.accuracy[name].artifact("measurement").path / OUTCOMES) as arrays:
        return {metric: arrays[metric] for metric in arrays.files}
