"""What is as fast as the recommended candidate, as far as was measured, is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optimizer.report.ties import ties
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
