"""What the report says of numbers that do not bear their weight: percentiles of few calls, protocols that disagree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optimizer.measure.statistics import calls_needed, unsupported
from optimizer.pipeline.numbers import doubts
from optimizer.results import CandidateReport, Latency, Precision


def candidate(
    samples: int = 1000, sweep_ms: float | None = None, alone_ms: float | None = None, calls: int = 500
) -> CandidateReport:
    timed = Latency(p50=2.0, p90=2.0, p99=2.0, mean=2.0, samples=samples, warmup=1, stable=True)
    more: dict[str, Any] = {}
    if sweep_ms is not None:
        more["sweep"] = {"points": {b: {"latency_ms": {"p50": sweep_ms}} for b in ("4", "8")}}
    if alone_ms is not None:
        more["concurrency"] = tuple({"workers": w, "batch": 4, "p50_ms": alone_ms * w, "calls": calls} for w in (1, 2))
    return CandidateReport(
        name="fp32@torch",
        variant="fp32",
        runtime="torch",
        device="cpu",
        status="measured",
        precision=Precision(requested="fp32"),
        latency_ms={"4": timed},
        **more,
    )


def test_a_percentile_that_its_calls_cannot_bear_is_said() -> None:
    assert unsupported(100) is None
    assert unsupported(99) == (
        "p99 rests on 99 calls and may lie far too low: p99 needs 100, and 368 before chance leaves it an upper bound; "
        "raise measure.seconds"
    )
    assert str(unsupported(9)).startswith("p90 and p99 rest on 9 calls")
    assert doubts([candidate(30)]) == [f"fp32@torch at batch 4: {unsupported(30)}"]
    assert doubts([candidate(100)]) == []
    assert doubts([candidate(alone_ms=2.0, calls=50)])[1] == f"fp32@torch, 2 at once: {unsupported(50)}"


def test_p99_of_few_calls_is_too_low_and_that_of_many_is_not() -> None:
    rng, truth = np.random.default_rng(0), np.exp(0.3 * 2.3263)
    below = {
        n: np.mean([np.percentile(np.exp(rng.normal(0, 0.3, n)), 99) < truth for _ in range(400)]) for n in (30, 5000)
    }
    assert below[30] > 0.7
    assert 0.4 < below[5000] < 0.6


@pytest.mark.parametrize(("percentile", "calls"), [(50, 6), (90, 36), (99, 368)])
def test_below_the_calls_needed_all_may_lie_below_the_percentile(percentile: int, calls: int) -> None:
    share = percentile / 100
    assert calls_needed(percentile) == calls
    assert share**calls <= 0.025 < share ** (calls - 1)


def test_protocols_that_disagree_about_a_batch_are_named() -> None:
    sentences = doubts([candidate(sweep_ms=2.6, alone_ms=1.0)])
    assert [s.split(":")[0] for s in sentences] == ["fp32@torch at batch 4"] * 2
    assert "2 ms in turn with the other candidates and 2.6 ms in the sweep, 30% apart" in sentences[0]
    assert "1 ms in one runner by itself, 100% apart" in sentences[1]


def test_protocols_that_agree_within_a_tenth_say_nothing() -> None:
    """The twin; two workers at once are expected to be slower."""
    assert doubts([candidate(sweep_ms=2.15, alone_ms=1.9)]) == []
