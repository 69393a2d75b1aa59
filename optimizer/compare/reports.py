"""Pair the candidates of two reports by name and judge each pair."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.compare.accuracy import compare_metrics
from optimizer.compare.footprint import absent, compare_footprint, compare_status
from optimizer.compare.latency import compare_latency
from optimizer.compare.result import Check, Comparison, conclude
from optimizer.compare.stored import Pair, Stored
from optimizer.results import Report

if TYPE_CHECKING:
    from optimizer.recipe.model import Gate


def compare(
    baseline: Report, candidate: Report, gate: Gate | None = None, *, baseline_folder: Path, candidate_folder: Path
) -> Comparison:
    """Judge the candidate report against the baseline report.

    Without a gate only regressions are judged, each beyond its 99 % interval and a stated tolerance. With one its
    limits decide: the drop of a metric and the speedup between the two reports, at 95 % as in a build.
    Raises: UsageError when samples beside a report cannot be read.
    """
    before, after = Stored(baseline, baseline_folder, "baseline"), Stored(candidate, candidate_folder, "candidate")
    checks: list[Check] = []
    for old in baseline.candidates:
        new = candidate.candidate(old.name)
        if new is None:
            checks.append(absent(old))
            continue
        pair = Pair(before, after, old, new)
        checks += compare_status(pair)
        if "failed" in (old.status, new.status):
            continue
        checks += compare_metrics(pair, gate)
        if old.status == new.status == "measured":
            checks += compare_latency(pair, gate)
        checks += compare_footprint(pair, gate)
    for new in candidate.candidates:
        if baseline.candidate(new.name) is None:
            checks.append(Check(new.name, "status", "shown", "missing", new.status, "it is new"))
    return conclude(tuple(checks), _notes(before, after))


def _notes(before: Stored, after: Stored) -> tuple[str, ...]:
    notes = []
    one, other = before.report, after.report
    if one.recipe.name != other.recipe.name:
        notes.append(f"The reports are of two recipes, {one.recipe.name} and {other.recipe.name}.")
    packages, others = one.environment.packages, other.environment.packages
    changed = [f"{n} {v} to {others[n]}" for n, v in packages.items() if n in others and others[n] != v]
    if changed:
        notes.append(f"Other versions: {', '.join(changed)}.")
    return tuple(notes)
