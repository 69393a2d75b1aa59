"""report.md and JUnit XML: the same content for a pull request and for CI."""

# ruff: noqa: RUF001 (reports are typeset: minus sign, multiplication sign, en dash)

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from optimizer.report import format as fmt
from optimizer.report.html import render_html
from optimizer.report.junit import render_junit
from optimizer.report.limits import gate_batch, held, limits
from optimizer.report.markdown import bullet, escape, grid, render_markdown
from optimizer.report.read import read_report
from optimizer.results import Report

FIXTURES = Path(__file__).parent.parent / "fixtures" / "report"
SAMPLES = sorted(p.stem for p in FIXTURES.glob("*.json"))


def sample(name: str) -> Report:
    return read_report(FIXTURES / f"{name}.json")


def changed(name: str, **top: object) -> Report:
    return Report.model_validate_json(json.dumps({**json.loads((FIXTURES / f"{name}.json").read_text()), **top}))


def uneven(markdown: str) -> list[str]:
    """Rows of a table with another number of cells than the row above them."""
    found, above = [], None
    for line in markdown.splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else None
        if cells is not None and above is not None and cells != above:
            found.append(line)
        above = cells
    return found


@pytest.mark.parametrize("name", SAMPLES)
def test_tables_are_even(name: str) -> None:
    assert uneven(render_markdown(sample(name))) == []


def test_an_uneven_table_is_noticed() -> None:
    assert uneven("| a | b |\n| - | - |\n| 1 |") == ["| 1 |"]


@pytest.mark.parametrize("name", SAMPLES)
def test_markdown_says_all_of_it_verdict_first(name: str) -> None:
    report = sample(name)
    text = render_markdown(report)
    assert text.startswith("# ")
    for candidate in report.candidates:
        assert escape(candidate.name) in text
        assert candidate.reason is None or escape(candidate.reason) in text
    for stage in report.stages:
        assert stage.key is None or stage.key[:8] in text
    assert report.command in text
    assert report.recipe.sha256 in text
    assert text.endswith("\n")
    assert "\n\n\n" not in text


def test_the_demo_begins_with_what_to_ship() -> None:
    lines = render_markdown(sample("demo")).splitlines()
    assert lines[0] == "# Ship int8@onnxruntime"
    assert "| Speedup          | 3.11×" in "\n".join(lines[:12])


def test_markup_in_names_is_shown_not_obeyed() -> None:
    assert escape("a|b*c`<script>\n# x") == "a\\|b\\*c\\`&lt;script&gt; \\# x"
    text = render_markdown(changed("demo", command="echo '```'"))
    assert "````\necho '```'\n````" in text


def test_numbers_align_right() -> None:
    assert grid(["a", "n"], [["x", "10"]], {1}) == ["| a   |   n |", "| --- | --: |", "| x   |  10 |"]


@pytest.mark.parametrize("name", SAMPLES)
def test_junit_counts_what_it_holds(name: str) -> None:
    suite = ET.fromstring(render_junit(sample(name)).split("\n", 1)[1]).find("testsuite")
    assert suite is not None
    assert int(suite.get("tests", "")) == len(suite.findall("testcase"))
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.get(attribute, "")) == len(suite.findall(f"testcase/{tag}"))
    named = [(case.get("classname"), case.get("name")) for case in suite.findall("testcase")]
    assert len(named) == len(set(named))


def test_junit_skips_what_was_built_and_errs_on_what_failed() -> None:
    root = ET.fromstring(render_junit(sample("demo")).split("\n", 1)[1])
    assert [e.get("message", "")[:60] for e in root.iter("skipped")] == [
        "The engine was built for compute capabilities 8.6, 8.9 and 12"[:60]
    ] * 3
    assert ["int32 bias is not supported" in (e.text or "") for e in root.iter("error")] == [True]
    assert list(root.iter("failure")) == []


def test_junit_tells_broken_from_undecided() -> None:
    kinds = [
        e.get("type") for e in ET.fromstring(render_junit(sample("inconclusive")).split("\n", 1)[1]).iter("failure")
    ]
    assert set(kinds) == {"inconclusive"}
    kinds = [e.get("type") for e in ET.fromstring(render_junit(sample("long")).split("\n", 1)[1]).iter("failure")]
    assert {"limit", "gate"} <= set(kinds)


def test_junit_is_xml_whatever_the_reasons_hold() -> None:
    reasons = ["\x00\x1b[31m<bad> & \ud7ff]]>"]
    text = render_junit(changed("inconclusive", verdict={"status": "fail", "reasons": reasons}))
    assert "<bad> &" in (ET.fromstring(text.split("\n", 1)[1]).find(".//failure").text or "")  # type: ignore[union-attr]
    with pytest.raises(ET.ParseError):
        ET.fromstring(f"<a>{reasons[0]}</a>")


def test_both_spellings_of_a_gate_are_read() -> None:
    flat = limits(changed("demo", gate={"batch": 16, "top1": {"max_drop": 0.02}, "speedup": {"min": 1.1}}))
    nested = limits(
        changed("demo", gate={"batch": 16, "metrics": {"top1": {"max_drop": 0.02}}, "speedup": {"min": 1.1}})
    )
    assert flat == nested
    assert [(limit.subject, limit.bound, limit.batch) for limit in flat] == [
        ("top1", 0.02, "16"),
        ("speedup", 1.1, "16"),
    ]
    assert gate_batch(changed("demo", gate={"batch": None})) == "1"


def test_a_limit_is_decided_by_the_whole_interval() -> None:
    def outcome(limit: float) -> str:
        report = changed("demo", gate={"speedup": {"min": limit}})
        candidate = report.candidate("int8@onnxruntime")
        assert candidate is not None
        return held(report, candidate)[0].outcome

    assert [outcome(v) for v in (3.0, 3.10, 3.2)] == ["held", "undecided", "broken"]


def test_a_rise_counts_against_a_metric_that_should_be_low() -> None:
    report = sample("long")
    outcomes = {h.limit.subject: h.outcome for h in held(report, report.candidates[5])}
    assert outcomes == {"word_error_rate": "broken", "mean_iou": "broken", "speedup": "held"}
    better = json.loads((FIXTURES / "long.json").read_text())
    better["candidates"][5]["accuracy_delta"]["word_error_rate"].update(value=-0.02, ci95=[-0.03, -0.01])
    report = Report.model_validate_json(json.dumps(better))
    assert held(report, report.candidates[5])[0].outcome == "held"


def test_a_reason_that_several_candidates_share_is_said_once_with_their_names() -> None:
    report = sample("demo")
    built = [c for c in report.candidates if c.status == "built"]
    assert len({c.reason for c in built}) == 1, "the sample lost what this test is about"
    text = render_markdown(report)
    assert text.count(escape(str(built[0].reason))) == 1
    assert f"- {', '.join(c.name for c in built)}: {escape(str(built[0].reason))}" in text


def test_the_screen_ends_with_the_verdict_and_what_failed() -> None:
    from optimizer.report.summary import render_summary

    assert "candidates failed" not in render_summary(sample("gpu"))
    *_, last = (line for line in render_summary(sample("demo")).splitlines() if line.startswith("verdict: "))
    assert "1 of 9 candidates failed; recommended: " in last


def test_an_error_of_several_lines_keeps_them() -> None:
    error = "stage 'engine' failed: no kernel\n  Free memory.\n\n  log: logs/engine.log"
    document = json.loads((FIXTURES / "demo.json").read_text())
    document["candidates"][1] |= {"status": "failed", "reason": error}
    document["stages"][0]["notes"] = ["one\ntwo"]
    text = render_markdown(Report.model_validate_json(json.dumps(document)))
    name = document["candidates"][1]["name"]
    lines = [f"- {name}: stage 'engine' failed: no kernel\\", "  Free memory.\\", "  log: logs/engine.log"]
    assert "\n".join(lines) in text
    assert bullet("of one line") == "- of one line"
    assert uneven(text) == []


def test_a_cell_of_several_lines_stays_one_row() -> None:
    document = json.loads((FIXTURES / "demo.json").read_text())
    document["candidates"][1]["proof"] = ["first\nsecond"]
    text = render_markdown(Report.model_validate_json(json.dumps(document)))
    assert "first<br>second" in text
    assert uneven(text) == []


def test_a_time_reads_as_one() -> None:
    assert fmt.moment("2026-11-21T19:55:22+00:00") == "2026-11-21 19:55 UTC" == fmt.moment("2026-11-21T20:55:22+01:00")
    assert fmt.moment("2026-11-21T19:55:22Z") == "2026-11-21 19:55 UTC"
    assert fmt.moment("") == ""


def test_what_several_steps_note_is_said_once_with_their_names() -> None:
    document = json.loads((FIXTURES / "demo.json").read_text())
    for stage in document["stages"][:2]:
        stage["notes"] = [f"of {stage['id']}", "unverified: no GPU"]
    report = Report.model_validate_json(json.dumps(document))
    first, second = (stage.id for stage in report.stages[:2])
    for text in (render_markdown(report), render_html(report)):
        assert text.count("unverified: no GPU") == 1
        assert f"{first}, {second}: unverified: no GPU" in text
        assert f"of {first}" in text


def test_the_screen_shows_the_batch_that_the_gate_speaks_of() -> None:
    from optimizer.report.summary import render_summary

    assert f"p50 ms @{gate_batch(sample('demo'))}" in render_summary(sample("demo"))
    batches = list(sample("demo").candidates[0].latency_ms or {})
    assert len(batches) > 1
    other = changed("demo", gate={"batch": int(batches[-1]), "speedup": {"min": 1.1}})
    assert f"p50 ms @{batches[-1]}" in render_summary(other)


def test_a_disturbed_latency_decides_no_limit_on_the_speedup() -> None:
    document = json.loads((FIXTURES / "demo.json").read_text())
    candidate = next(c for c in document["candidates"] if c["name"] == "int8@onnxruntime")
    before = {h.limit.subject: h.outcome for h in held(sample("demo"), sample("demo").candidate(candidate["name"]))}  # type: ignore[arg-type]
    candidate["latency_ms"][str(gate_batch(sample("demo")))]["disturbed"] = True
    report = Report.model_validate_json(json.dumps(document))
    after = {h.limit.subject: h for h in held(report, report.candidate(candidate["name"]))}  # type: ignore[arg-type]
    assert "; all stable, 1 of " in render_markdown(report)
    assert before["speedup"] == "held"
    assert after["speedup"].outcome == "undecided"
    assert after["speedup"].text.endswith("; latency was disturbed")
    assert {name: h.outcome for name, h in after.items() if name != "speedup"} == {
        name: outcome for name, outcome in before.items() if name != "speedup"
    }
