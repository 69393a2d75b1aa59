"""What a disturbed latency adds to every reason is said once; an interval that tells nothing says that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optimizer.gate import judge, overall
from optimizer.recipe.model import Gate, SpeedupLimit
from optimizer.report import format as fmt
from optimizer.report import view
from optimizer.report.html import render_html
from optimizer.report.load import scenario_table
from optimizer.report.markdown import render_markdown
from optimizer.report.plot import _latency_interval
from optimizer.report.summary import render_summary
from optimizer.results import Report, Verdict

DEMO = Path(__file__).parent.parent / "fixtures" / "report" / "demo.json"
GATE = Gate(speedup=SpeedupLimit(min=1.1))
NAMES = ("fp32@onnxruntime", "int8@onnxruntime")


CAUSE = "waited for a processor in 7 of 7 rounds"


def report(disturbed: tuple[str, ...] = ("fp32@torch", *NAMES), **of_candidates: Any) -> Report:
    """The demo as the gate judges it where the latencies of `disturbed` are."""
    document = json.loads(DEMO.read_text())
    for c in document["candidates"]:
        if c["name"] in NAMES:
            c.update(of_candidates)
        if c["name"] in disturbed:
            c["latency_ms"]["1"] |= {"disturbed": True, "disturbed_rounds": 7, "rounds": 7}
    found = Report.model_validate_json(json.dumps(document))
    base = found.candidate("fp32@torch")
    candidates = tuple(
        c.model_copy(update={"verdict": judge(c, GATE, "1", {}, base, (CAUSE,)) if c.name in NAMES else None})
        for c in found.candidates
    )
    known = {"candidates": candidates, "verdict": overall(candidates, GATE), "recommended": {}}
    return Report.model_validate_json(found.model_copy(update=known).model_dump_json())


def test_what_a_disturbed_latency_adds_is_said_once() -> None:
    found = report()
    for text in (render_html(found), render_markdown(found), render_summary(found)):
        assert text.count("7 of the 7 rounds") == 1
        assert text.count("Quieten the machine") == 1
    head = view.headline(found).reasons
    for name, reason in zip(NAMES, head, strict=False):
        assert reason.startswith(f"{name}: speedup at batch 1 is ")
        assert reason.endswith("; at least 1.1 is needed")
    assert head[2].startswith(
        f"The speedup decides nothing: 7 of the 7 rounds behind the latency of fp32@torch, {NAMES[0]} and {NAMES[1]} "
        f"were disturbed ({CAUSE}). Quieten"
    )


def test_the_screen_says_it_below_what_it_leaves_out() -> None:
    found = report()
    many = tuple(f"c{n}: open" for n in range(9))
    verdict = found.verdict.model_copy(update={"reasons": (*many, *found.verdict.reasons[2:])})
    lines = render_summary(found.model_copy(update={"verdict": verdict})).splitlines()
    assert lines[-5:-1] == [*(f"  {reason}" for reason in many[:3]), "  and 6 more, in report.md"]
    assert lines[-1].startswith("  The speedup decides nothing: 7 of the 7 rounds")


def test_nothing_of_it_is_said_of_quiet_latencies() -> None:
    """The twin."""
    found = report(disturbed=())
    for text in (render_html(found), render_markdown(found), render_summary(found)):
        assert "The speedup decides nothing" not in text
    assert found.verdict.disturbed == ()


@pytest.mark.parametrize("disturbed", [("fp32@torch",), NAMES, NAMES[:1]])
def test_rows_say_it_where_the_verdict_does_not(disturbed: tuple[str, ...]) -> None:
    found = report(disturbed).model_copy(update={"verdict": Verdict(status="pass")})
    assert render_markdown(found).count("7 of the 7 rounds") == 1


def test_reports_that_were_stored_before_are_shown_as_they_stand() -> None:
    said = "speedup at batch 1 is 5.31; that decides nothing: 7 of the 7 rounds were disturbed"
    document = json.loads(DEMO.read_text())
    document |= {"verdict": {"status": "inconclusive", "reasons": [said]}}
    assert view.headline(Report.model_validate_json(json.dumps(document))).reasons[0] == said


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
