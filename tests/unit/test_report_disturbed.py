"""What a disturbed latency adds to every reason is said once; an interval that tells nothing says that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optimizer.report import format as fmt
from optimizer.report import view
from optimizer.report.html import render_html
from optimizer.report.load import scenario_table
from optimizer.report.markdown import render_markdown
from optimizer.report.plot import _latency_interval
from optimizer.results import Report

DEMO = Path(__file__).parent.parent / "fixtures" / "report" / "demo.json"
NAMES = ("fp32@onnxruntime", "int8@onnxruntime")


def tail(name: str) -> str:
    return (
        f"7 of the 7 rounds behind the latency of fp32@torch and {name} were disturbed (waited for a processor in 7 of "
        "7 rounds). Quieten the machine or raise measure.seconds, and measure again"
    )


def report(**of_candidates: Any) -> Report:
    document = json.loads(DEMO.read_text())
    reasons = []
    for c in document["candidates"]:
        if c["name"] in NAMES:
            said = f"speedup at batch 1 is 5.31; at least 1.1 is needed; that decides nothing: {tail(c['name'])}"
            c |= {"verdict": {"status": "inconclusive", "reasons": [said]}, **of_candidates}
            reasons.append(f"{c['name']}: {said}")
    document |= {"verdict": {"status": "inconclusive", "reasons": reasons}, "recommended": {}}
    return Report.model_validate_json(json.dumps(document))


def test_what_a_disturbed_latency_adds_is_said_once() -> None:
    found = report()
    for text in (render_html(found), render_markdown(found)):
        assert text.count("7 of the 7 rounds") == 1
        assert text.count("Quieten the machine") == 1
    head = view.headline(found).reasons
    assert head[:2] == tuple(f"{name}: speedup at batch 1 is 5.31; at least 1.1 is needed" for name in NAMES)
    assert head[2].startswith("That decides nothing: 7 of the 7 rounds behind the latency were disturbed (waited")


def test_rows_say_it_where_the_verdict_does_not() -> None:
    found = report().model_copy(update={"verdict": {"status": "pass", "reasons": ()}})
    found = Report.model_validate_json(found.model_dump_json(warnings=False))
    assert render_markdown(found).count("7 of the 7 rounds") == 1


@pytest.mark.parametrize("bounds", [(4.2e-07, 165.0), (0.0, 2.0), (-1.0, 2.0)])
def test_an_interval_that_tells_nothing_says_so(bounds: tuple[float, float]) -> None:
    assert fmt.interval(bounds, fmt.ratio) == "cannot be told"


def test_an_interval_that_tells_something_stands() -> None:
    assert fmt.interval((2.17, 88.6), fmt.ratio) == f"2.17{fmt.TIMES} to 88.6{fmt.TIMES}"
    assert fmt.interval((0.0, 0.5), fmt.percent) == "0.00 to 50.00 %"


def test_the_latency_axis_is_not_stretched_by_it() -> None:
    wide = {"1": {"value": 5.0, "ci95": [4.2e-07, 165.0]}}
    told = {"1": {"value": 5.0, "ci95": [4.0, 6.0]}}
    for speedup, drawn in ((wide, None), (told, (10 / 6.0, 2.5))):
        candidate = report(speedup=speedup).candidate(NAMES[0])
        assert candidate is not None
        assert _latency_interval(candidate, "1", 10.0) == drawn


def test_a_failed_candidate_without_a_device_has_no_dangling_dot() -> None:
    document = json.loads(DEMO.read_text())
    failed = {"variant": "int4", "runtime": "openvino", "device": "", "status": "failed", "reason": "too few"}
    document["candidates"].append({"name": "int4@openvino", "precision": {"requested": "int4"}, **failed})
    page = render_html(Report.model_validate_json(json.dumps(document)))
    assert "<small>failed</small>" in page
    assert "· </small>" not in page
    assert "measured · cpu" in page
    assert "stands in the table" not in page


def test_a_wide_table_shows_that_it_scrolls() -> None:
    page = render_html(report())
    assert "local" in page.partition(".scroll {")[2].partition("}")[0]


def test_a_disturbed_loadgen_run_is_marked_with_what_disturbed_it() -> None:
    run = {"valid": True, "reasons": [], "metrics": {}, "deviations": [], "settings": {"scenario": "offline"}}
    noisy = scenario_table(report(scenario=run | {"disturbed": ["others used 60% of the processors measured on"]}))
    assert noisy.groups[0][1][0][1] == "VALID; disturbed"
    assert noisy.below == ("Disturbed: others used 60% of the processors measured on.",)
    quiet = scenario_table(report(scenario=run | {"disturbed": []}))
    assert quiet.groups[0][1][0][1] == "VALID"
    assert quiet.below == ()
