"""What is as fast as the recommended candidate, as far as was measured, is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimizer.report.markdown import render_markdown
from optimizer.report.summary import render_summary
from optimizer.report.ties import same_files, ties
from optimizer.results import Report

DEMO = Path(__file__).parent.parent / "fixtures" / "report" / "demo.json"
CHOSEN, OTHER = "int8@onnxruntime", "int8-minmax@onnxruntime"


def report(ci95: tuple[float, float] | None = None, **changes: Any) -> Report:
    """The demo, the other candidate with this interval of its speedup and with these changes."""
    found = Report.model_validate_json(DEMO.read_text())
    other = found.candidate(OTHER)
    assert other is not None
    speedup = {batch: s.model_copy(update={"ci95": ci95 or s.ci95}) for batch, s in (other.speedup or {}).items()}
    changed = other.model_copy(update={"speedup": speedup, **changes})
    candidates = tuple(changed if c.name == OTHER else c for c in found.candidates)
    return found.model_copy(update={"candidates": candidates})


def artifact_of(name: str) -> Any:
    found = report().candidate(name)
    assert found is not None
    return found.artifact


def test_candidates_whose_intervals_overlap_are_named_with_their_sqnr() -> None:
    assert ties(report()) == (f"in latency {CHOSEN} (SQNR 27.6 dB) is not told apart from {OTHER} (SQNR 25.1 dB)",)


def test_what_is_surely_slower_is_no_tie() -> None:
    assert ties(report((1.0, 1.01))) == ()


def test_the_same_file_under_another_name_is_said_to_be_that() -> None:
    (said,) = ties(report(artifact=artifact_of(CHOSEN)))
    assert said.endswith(f"{OTHER} (the same file)")


def test_another_device_is_not_compared() -> None:
    assert ties(report(device="cuda:0")) == ()


def test_several_candidates_of_one_file_are_told_below_their_row_and_on_the_screen() -> None:
    found = report(artifact=artifact_of(CHOSEN))
    assert same_files(found) == {OTHER: CHOSEN}
    said = f"{OTHER} is the same file as {CHOSEN}: the rest is chance"
    assert f"note: {said}" in render_summary(found).splitlines()
    assert "The same file as int8@onnxruntime: what differs is chance." in render_markdown(found)


@pytest.mark.parametrize("changes", [{}, {"runtime": "openvino"}, {"device": "cuda:0"}, {"artifact": None}])
def test_other_files_and_other_runtimes_are_others(changes: dict[str, Any]) -> None:
    changes = {"artifact": artifact_of(CHOSEN), **changes} if changes else {}
    assert same_files(report(**changes)) == {}
