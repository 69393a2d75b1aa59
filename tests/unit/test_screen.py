"""The last screen of a build: a line on each thing that was measured besides, and why something was only built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from optimizer.report.screen import load_lines, render_screen
from optimizer.report.summary import render_summary
from optimizer.results import Report

DEMO = Path(__file__).parent.parent / "fixtures" / "report" / "demo.json"
FIRST, SECOND = "fp32@onnxruntime", "int8@onnxruntime"


def report(first: dict[str, Any], second: dict[str, Any]) -> Report:
    document = json.loads(DEMO.read_text())
    document["candidates"] = [
        c | {FIRST: first, SECOND: second}.get(c["name"], {}) for c in document["candidates"] if c["status"] != "built"
    ]
    return Report.model_validate_json(json.dumps(document))


def sweep(best: int | None, held: str, disturbed: bool = False) -> dict[str, Any]:
    point = {"items_per_second": 2500.0, "held": held, "latency_ms": {"disturbed": disturbed}}
    return {"sweep": {"percentile": 99, "budget_ms": 5.0, "best_batch": best, "reasons": [], "points": {"8": point}}}


def scenario(valid: bool, **more: Any) -> dict[str, Any]:
    metrics = {"p99_latency_ms": 3690.4}
    settings = {"scenario": "server"}
    return {"scenario": {"settings": settings, "valid": valid, "reasons": [], "metrics": metrics, **more}}


def test_the_best_batch_of_the_sweep_is_on_the_screen() -> None:
    (line,) = load_lines(report(sweep(8, "holds", True), sweep(None, "undecided")))
    assert line == (
        f"sweep, best batch with p99 <= 5 ms: {FIRST} 8 (2,500 items/s, disturbed), {SECOND} none (undecided)"
    )


def test_loadgens_verdict_is_on_the_screen() -> None:
    (line,) = load_lines(report(scenario(True), scenario(False, disturbed=["others used 60%"])))
    assert line == f"LoadGen, server: {FIRST} VALID (p99 3,690 ms), {SECOND} INVALID (p99 3,690 ms, disturbed)"


def test_concurrency_and_memory_have_a_line_each() -> None:
    load = {"workers": 1, "threads": 1, "batch": 4, "items_per_second": 10.0}
    memory = {"batch": 1, "own_bytes": 1e6}
    parts = {"concurrency": [load, load | {"workers": 2, "items_per_second": 30.0}], "memory": memory}
    assert load_lines(report(parts, {})) == [
        f"concurrency, most items/s: {FIRST} 30.0 (2 at once, batch 4)",
        f"memory of its own, batch 1: {FIRST} 1.00 MB",
    ]


def test_what_was_only_built_says_why_once() -> None:
    built = {"status": "built", "reason": "no bfloat16 kernels\n  on the CPU", "verdict": None}
    text = render_screen(report(built, built))
    assert text.count("no bfloat16 kernels") == 1
    assert f"built, not measured: {FIRST}, {SECOND}: no bfloat16 kernels on the CPU" in text


def test_a_screen_without_any_of_it_is_the_summary() -> None:
    plain = report({}, {})
    assert render_screen(plain) == render_summary(plain)
