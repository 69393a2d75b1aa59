"""The title of an undecided report names what is open: samples, or the latency."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optimizer.report.title import shaky, title
from optimizer.results import Report

FIXTURE = Path(__file__).parent.parent / "fixtures" / "report" / "inconclusive.json"
TOP1 = {"value": -0.01, "test": "exact McNemar", "p_value": 0.5}
DECIDED = TOP1 | {"value": 0.0, "ci95": [-0.001, 0.001]}
SPEEDUP = {"value": 1.12, "ci95": [1.05, 1.2]}
FAST = {"value": 3.0, "ci95": [2.9, 3.1]}


def report(delta: dict[str, Any], speedup: dict[str, Any] | None, **timed: Any) -> Report:
    """One candidate that no limit decides: a drop of at most 0.02, a speedup of at least 1.1 at batch 1."""
    document = json.loads(FIXTURE.read_text())
    base = next(c for c in document["candidates"] if c["name"] == document["baseline"])
    other = next(c for c in document["candidates"] if c["name"] != document["baseline"])
    latency = {"p50": 1.0, "p90": 1.0, "p99": 1.0, "mean": 1.0, "samples": 100, "warmup": 9, "stable": True}
    base["latency_ms"] = {"1": latency}
    other |= {"latency_ms": {"1": latency | timed}, "accuracy_delta": {"top1": delta}}
    other |= {"speedup": {"1": speedup} if speedup else None, "verdict": {"status": "inconclusive", "reasons": ["?"]}}
    document |= {"candidates": [base, other], "recommended": {}, "pareto": []}
    document["gate"] = {"batch": 1, "metrics": {"top1": {"max_drop": 0.02}}, "speedup": {"min": 1.1}}
    return Report.model_validate_json(json.dumps(document))


def wide(drop: float) -> dict[str, Any]:
    return TOP1 | {"ci95": [-drop, drop]}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (report(wide(0.05), FAST), "Too few samples to decide top1"),
        (report(DECIDED, SPEEDUP), "The speedup is too near its limit to decide"),
        (report(DECIDED, SPEEDUP, disturbed=True), "Latency was disturbed: measure again"),
        (report(DECIDED, SPEEDUP, stable=False), "Latency was unstable: measure again"),
        (report(DECIDED, FAST, stable=False), "Latency was unstable: measure again"),
        (report(DECIDED, None), "The speedup was not measured"),
        (report(wide(0.05), SPEEDUP), "Cannot decide top1 and the speedup"),
        (report(wide(0.05), SPEEDUP, stable=False), "Cannot decide top1 and the speedup: latency was unstable"),
        (report(wide(0.05), FAST, stable=False), "Too few samples to decide top1"),
    ],
)
def test_the_title_names_what_is_undecided(given: Report, said: str) -> None:
    assert title(given, "inconclusive") == said


def test_a_report_in_which_nothing_was_judged_says_so() -> None:
    document = json.loads(FIXTURE.read_text())
    for candidate in document["candidates"]:
        candidate["verdict"] = None
    assert title(Report.model_validate_json(json.dumps(document)), "inconclusive") == "Nothing could be judged here"


def test_a_latency_that_is_unstable_and_disturbed_is_said_to_be_both() -> None:
    shaken = report(DECIDED, SPEEDUP, stable=False, disturbed=True).candidates[1].latency_ms
    assert shaken is not None
    assert shaky([None, shaken["1"]]) == "unstable and disturbed"
    assert shaky([None]) == ""
