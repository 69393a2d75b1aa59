"""What reduced precision gains over fp32 on its own target is said where it decides something, and only there."""

# ruff: noqa: RUF001 (reports are typeset: minus sign, multiplication sign, en dash)

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.measure.bootstrap import Ratio
from optimizer.measure.statistics import Interval
from optimizer.measure.verdict import difference
from optimizer.report.html import render_html
from optimizer.report.markdown import render_markdown
from optimizer.report.screen import render_screen
from optimizer.report.worth import gain_over_fp32, not_worth_it, screen_lines, worth_table
from optimizer.results import AgainstFp32, Difference, MetricDelta, Report, Speedup

DEMO = Path(__file__).parent.parent / "fixtures" / "report" / "demo.json"
FP32, FP16, CHOSEN, OTHER = (f"{name}@onnxruntime" for name in ("fp32", "fp16", "int8", "int8-minmax"))


def speedup(low: float, high: float) -> Speedup:
    """One whose 99 % interval this is, judged by the one rule."""
    middle, bounds = (low * high) ** 0.5, Interval(1 / high, 1 / low)
    # Every draw the middle: the interval is what the halves say.
    judged = difference(Ratio(1 / middle, np.full(3, 1 / middle), halves=bounds))
    return Speedup(value=middle, ci95=(low, high), difference=Difference.model_validate(judged.to_json()))


def report(gains: Mapping[str, Mapping[str, tuple[float, float]]], **changes: Any) -> Report:
    """The demo, with these intervals of the speedup over fp32 by candidate and batch."""
    found = Report.model_validate_json(DEMO.read_text())
    delta = MetricDelta(value=-0.004, ci95=(-0.01, 0.002), test="exact McNemar", p_value=0.3)

    def changed(name: str) -> dict[str, Any]:
        if name not in gains:
            return {}
        ratios = {batch: speedup(*bounds) for batch, bounds in gains[name].items()}
        return {"against_fp32": AgainstFp32(candidate=FP32, speedup=ratios, accuracy_delta={"top1": delta})}

    candidates = tuple(c.model_copy(update=changed(c.name)) for c in found.candidates)
    return found.model_copy(update={"candidates": candidates, **changes})


FASTER = {CHOSEN: {"1": (1.3, 1.36), "16": (1.5, 1.6)}}


def test_slower_equal_and_undecided_are_told_apart() -> None:
    said = {
        bounds: not_worth_it(report({CHOSEN: {"1": bounds}}))[CHOSEN].partition(":")[0]
        for bounds in ((0.7, 0.75), (0.993, 1.007), (0.98, 1.03))
    }
    assert list(said.values()) == [
        f"Slower than {FP32} at batch 1 (0.72×, 99 % interval 0.70× to 0.75×)",
        f"As fast as {FP32} at batch 1 (1.00×, 99 % interval 0.99× to 1.01×)",
        f"Not shown to be faster than {FP32} at batch 1 (1.00×, 99 % interval 0.98× to 1.03×)",
    ]


def test_what_is_faster_is_not_complained_of() -> None:
    """The twin."""
    assert not_worth_it(report(FASTER)) == {}


def test_what_comes_with_it_is_said_and_where_it_pays() -> None:
    said = not_worth_it(report({CHOSEN: {"1": (0.98, 1.03), "16": (1.2, 1.3)}}))[CHOSEN]
    assert said.endswith(
        "): top1 −0.40 pp (−1.00 to +0.20 pp), SQNR 27.6 dB instead of 131.7 dB, 26 % of its size. Faster at batch 16."
    )


def test_the_same_precision_under_another_name_is_said() -> None:
    said = not_worth_it(report({FP16: {"1": (0.6, 0.62)}, OTHER: {"1": (0.9, 0.95)}}))
    assert said[FP16].endswith("50 % of its size, executed in the same precision.")
    assert "same precision" not in said[OTHER]


def test_a_disturbed_latency_decides_nothing() -> None:
    found = report({CHOSEN: {"1": (0.7, 0.75)}})

    def disturbed(name: str) -> Report:
        candidates = []
        for c in found.candidates:
            timed = {b: t.model_copy(update={"disturbed": True}) for b, t in (c.latency_ms or {}).items()}
            candidates.append(c.model_copy(update={"latency_ms": timed}) if c.name == name else c)
        return found.model_copy(update={"candidates": tuple(candidates)})

    for name in (CHOSEN, FP32):
        assert not_worth_it(disturbed(name)) == {}
        assert screen_lines(disturbed(name)) == ()
        assert worth_table(disturbed(name)).groups[0][1][0][4] == "slower (disturbed)"
    assert not_worth_it(disturbed(OTHER))


def test_a_latency_that_did_not_hold_still_is_told_with_its_doubt() -> None:
    found = report({CHOSEN: {"1": (0.7, 0.75)}})
    candidates = []
    for c in found.candidates:
        timed = {b: t.model_copy(update={"stable": c.name != CHOSEN}) for b, t in (c.latency_ms or {}).items()}
        candidates.append(c.model_copy(update={"latency_ms": timed or None}))
    shaken = found.model_copy(update={"candidates": tuple(candidates)})
    assert not_worth_it(shaken)[CHOSEN].endswith("; unstable: measure again.")
    assert screen_lines(shaken)[0].endswith("0.70× to 0.75× (unstable)")
    assert "unstable" not in not_worth_it(found)[CHOSEN] + screen_lines(found)[0]


def test_the_screen_has_a_line_for_what_gains_nothing_one_for_what_is_not_known_and_one_for_the_recommended() -> None:
    found = report({**FASTER, FP16: {"1": (0.6, 0.62)}, OTHER: {"1": (0.98, 1.03)}})
    nothing, unknown, gained = screen_lines(found)
    where = "fp32 on the same target at batch 1 (99 % interval of the speedup)"
    assert nothing == f"no gain over {where}: {FP16} 0.60× to 0.62×"
    assert unknown == f"not shown to be faster than {where}: {OTHER} 0.98× to 1.03×"
    assert gained.startswith(f"{CHOSEN} over {FP32} at batch 1: 1.33×, 99 % interval 1.30× to 1.36×; top1 −0.40 pp")
    screen = render_screen(found).splitlines()
    assert [line for line in screen if "fp32 on the same" in line or " over " in line] == [
        f"note: {nothing}",
        f"note: {unknown}",
        f"note: {gained}",
    ]


def test_of_very_many_the_screen_names_a_few() -> None:
    found = report({OTHER: {"1": (0.98, 1.03)}})
    slow = found.candidate(OTHER)
    assert slow is not None
    many = [slow.model_copy(update={"name": f"int8-{i}@onnxruntime"}) for i in range(23)]
    (line,) = screen_lines(found.model_copy(update={"candidates": (*found.candidates, *many)}))
    assert line.count("×") == 12
    assert line.endswith("18 more in report.md")


def test_where_fp32_is_the_baseline_the_speedup_says_it() -> None:
    found = report(FASTER, baseline=FP32)
    chosen = found.candidate(CHOSEN)
    assert chosen is not None
    assert gain_over_fp32(found, chosen) is None
    assert screen_lines(found) == ()
    told = gain_over_fp32(report(FASTER), chosen)
    assert told is not None
    assert told[:2] == (f"Over {FP32}", "1.33×")


def test_the_table_has_a_row_a_batch() -> None:
    ((name, rows),) = worth_table(report(FASTER)).groups
    assert name == CHOSEN
    assert [row[:5] for row in rows] == [
        (FP32, "1", "1.33×", "1.30× to 1.36×", "faster"),
        ("", "16", "1.55×", "1.50× to 1.60×", "faster"),
    ]
    assert rows[0][5:] == ("−0.40 pp", "−1.00 to +0.20 pp", "27.6 dB", "26 %", "int8 99.7 %, fp32 0.3 %")


@pytest.mark.parametrize("render", [render_html, render_markdown])
def test_pages_show_table_figure_and_sentence(render: Any) -> None:
    page = render(report({**FASTER, OTHER: {"1": (0.98, 1.03)}}))
    assert page.count("Reduced precision against fp32") >= 1
    assert f"Over {FP32}" in page
    assert f"Not shown to be faster than {FP32} at batch 1" in page


@pytest.mark.parametrize("render", [render_html, render_markdown, render_screen])
def test_a_report_from_before_says_nothing(render: Any) -> None:
    """Reports that were written without these speedups load, and look as they did."""
    page = render(Report.model_validate_json(DEMO.read_text()))
    assert "against_fp32" not in DEMO.read_text()
    for words in ("Reduced precision against", f"Over {FP32}", "faster than fp32", "over fp32"):
        assert words not in page


def test_what_is_written_is_read_again() -> None:
    found = report(FASTER)
    assert Report.model_validate_json(found.model_dump_json()) == found
