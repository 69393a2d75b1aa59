"""LoadGen's INVALID, and an order of candidates that contradicts the latency's, are notes of the report."""

from __future__ import annotations

from typing import Any

from optimizer.pipeline.numbers import AGREEMENT, doubts
from optimizer.results import CandidateReport, Latency, Precision


def candidate(name: str, p50: float, scenario: dict[str, Any] | None = None) -> CandidateReport:
    timed = Latency(p50=p50, p90=p50, p99=p50, mean=p50, samples=1000, warmup=1, stable=True)
    return CandidateReport(
        name=name,
        variant="fp32",
        runtime="torch",
        device="cpu",
        status="measured",
        precision=Precision(requested="fp32"),
        latency_ms={"1": timed},
        scenario=scenario,
    )


def single(p50: float, valid: bool = True, reasons: tuple[str, ...] = (), batch: int = 1) -> dict[str, Any]:
    settings = {"scenario": "single_stream", "batch": batch}
    return {"settings": settings, "valid": valid, "reasons": list(reasons), "metrics": {"p50_latency_ms": p50}}


def test_an_invalid_run_is_a_note_with_loadgens_reasons() -> None:
    (said,) = doubts([candidate("a", 1.0, single(1.0, False, ("p99 3690 ms is above the target of 0.001 ms.",)))])
    assert said.startswith("a: LoadGen (single_stream) says INVALID: p99 3690 ms is above the target of 0.001 ms; ")
    assert doubts([candidate("a", 1.0, single(1.0))]) == []


def test_an_order_that_contradicts_the_latency_is_named() -> None:
    (said,) = doubts([candidate("a", 1.0, single(3.0)), candidate("b", 2.0, single(1.5))])
    assert "another order" in said
    assert "a takes 0.50 x the time of b by latency and 2.00 x by LoadGen" in said


def test_the_same_order_and_near_ties_say_nothing() -> None:
    assert doubts([candidate("a", 1.0, single(1.5)), candidate("b", 2.0, single(3.0))]) == []
    near = 1 + AGREEMENT / 2
    assert doubts([candidate("a", 1.0, single(near)), candidate("b", near, single(1.0))]) == []


def test_throughput_counts_as_time_of_a_sample_at_its_own_batch() -> None:
    def offline(rate: float, batch: int = 1) -> dict[str, Any]:
        return single(0.0, batch=batch) | {"metrics": {"samples_per_second": rate}}

    assert len(doubts([candidate("a", 1.0, offline(100.0)), candidate("b", 2.0, offline(300.0))])) == 1
    assert doubts([candidate("a", 1.0, offline(100.0, 8)), candidate("b", 2.0, offline(300.0, 8))]) == []


def test_of_many_pairs_the_worst_are_shown_and_the_others_counted() -> None:
    many = [candidate(str(n), 1.0 + n, single(10.0 - n)) for n in range(4)]
    (said,) = doubts(many)
    assert said.count("by LoadGen") == 3
    assert "; and 3 pairs more" in said
