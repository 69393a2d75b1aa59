"""The title of an undecided report names what is open: samples, or the latency."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from optimizer.report.junit import render_junit
from optimizer.report.summary import render_summary
from optimizer.report.title import shaky, title
from optimizer.report.view import headline
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


def ungated(**changed: Any) -> Report:
    """A recipe without a gate: a baseline and one candidate, of which `changed` is said."""
    document = json.loads(report(DECIDED, FAST).model_dump_json())
    document["candidates"][1] |= {"verdict": {"status": "pass", "reasons": ["no gate"]}} | changed
    document |= {"gate": None, "verdict": {"status": "pass", "reasons": ["The recipe has no gate."]}}
    # An older version recommended the baseline where nothing else came out.
    winner = document["baseline"] if changed.get("status") == "failed" else document["candidates"][1]["name"]
    document["recommended"] = {"cpu": winner}
    return Report.model_validate_json(json.dumps(document))


def verdict_line(given: Report) -> str:
    return next(line for line in render_summary(given).splitlines() if line.startswith("verdict: "))


FAILED: dict[str, Any] = {"status": "failed", "reason": "why", "verdict": None, "latency_ms": None, "speedup": None}


def test_a_recipe_without_a_gate_of_which_nothing_came_is_no_success_anywhere() -> None:
    given = ungated(**FAILED, artifact=None)
    said = "Nothing that was asked for could be built"
    assert headline(given).title == said
    assert verdict_line(given) == f"verdict: none ({said}); 1 of 2 candidates failed; recommended: nothing"
    error = ET.fromstring(render_junit(given).split("\n", 1)[1]).find(".//testcase[@name='verdict']/error")
    assert error is not None
    assert error.get("message") == said


def test_what_was_built_and_could_not_be_measured_is_said_to_be() -> None:
    artifact = {"path": "m", "sha256": "0" * 64, "bytes": 1, "format": "onnx"}
    assert headline(ungated(**FAILED, artifact=artifact)).title == "Nothing that was asked for could be measured"


def test_one_that_came_out_is_the_twin() -> None:
    given = ungated()
    name = given.candidates[1].name
    assert headline(given).title == f"Fastest: {name}"
    assert verdict_line(given) == f"verdict: pass; recommended: {name} (cpu)"
    assert "<error" not in render_junit(given)


def test_a_recommendation_by_disturbed_latencies_says_so_where_it_stands() -> None:
    timed = json.loads(ungated().model_dump_json())["candidates"][1]["latency_ms"]["1"]
    given = ungated(latency_ms={"1": timed | {"disturbed": True, "disturbed_rounds": 20, "rounds": 20}})
    said = "(cpu), but latency was disturbed in 20 of 20 rounds: measure again, with --remeasure"
    assert verdict_line(given).endswith(f" {said}")
    assert headline(given).title.endswith(", but latency was disturbed: measure again")


def test_failed_candidates_are_counted_as_in_the_report() -> None:
    """The baseline is a candidate, on the screen as in report.md and report.html."""
    given = ungated(**FAILED, artifact=None)
    assert headline(given).count.startswith("2 candidates: ")
    assert "1 of 2 candidates failed" in verdict_line(given)


def test_reasons_that_are_left_out_are_counted() -> None:
    document = json.loads(ungated().model_dump_json())
    document["verdict"] = {"status": "fail", "reasons": [f"reason {n}" for n in range(5)]}
    lines = render_summary(Report.model_validate_json(json.dumps(document))).splitlines()
    assert lines[-2:] == ["  reason 2", "  and 2 more, in report.md"]
    document["verdict"]["reasons"] = document["verdict"]["reasons"][:3]
    assert "more, in report.md" not in render_summary(Report.model_validate_json(json.dumps(document)))


def test_a_variant_of_which_nothing_came_is_named_and_without_a_gate_that_is_no_pass() -> None:
    given = ungated()
    ours = given.candidates[1]
    lost = [
        ours.model_copy(update={**FAILED, "name": f"{variant}@openvino", "variant": variant, "artifact": None})
        for variant in ("gone", ours.variant)  # the other's first candidate stands
    ]
    told = given.model_copy(update={"candidates": (*given.candidates, *lost)})
    assert verdict_line(told) == (
        f"verdict: none (no gate); 2 of 4 candidates failed, among them all of gone; recommended: {ours.name} (cpu)"
    )
    one = given.model_copy(update={"candidates": (*given.candidates, lost[1])})
    assert verdict_line(one) == f"verdict: pass; 1 of 3 candidates failed; recommended: {ours.name} (cpu)"
