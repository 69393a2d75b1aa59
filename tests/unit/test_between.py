"""The ratio of two candidates of one session, from the samples that `latency.npz` keeps."""

from __future__ import annotations

import numpy as np

from optimizer.measure.between import speedup_over
from optimizer.measure.bootstrap import separate_ratio
from optimizer.measure.series import LatencySession, Series


def session(disturbed: tuple[bool, ...] = (), openings: tuple[int, ...] = ()) -> LatencySession:
    """A machine that drifts by a third from round to round, under three candidates that are 3 : 1.05 : 1."""
    rng = np.random.default_rng(3)
    drift = rng.uniform(1.0, 1.35, 60)
    series = {
        name: {1: Series(ms * drift[:, None] * rng.normal(1, 0.005, (60, calls)), 5, disturbed, openings)}
        for name, ms, calls in (("fp32@torch", 3.0, 4), ("fp32@onnxruntime", 1.05, 9), ("int8@onnxruntime", 1.0, 10))
    }
    return LatencySession("fp32@torch", series)


def test_against_the_baseline_it_is_the_speedup_of_the_session() -> None:
    for measured in (
        session(),
        session((True, False) * 30),
        session((), (10,) * 6),
        session((True, False) * 30, (10,) * 6),
    ):
        found = speedup_over(measured.arrays(), "int8@onnxruntime", "fp32@torch", "1")
        expected, difference = measured.speedup("int8@onnxruntime", 1), measured.difference("int8@onnxruntime", 1)
        assert expected is not None
        assert difference is not None
        assert found.difference is not None
        assert (found.value, found.ci95) == (expected.value, expected.ci95)
        assert (found.difference.kind, found.difference.interval) == (difference.kind, difference.interval)


def test_what_both_saw_in_a_round_cancels() -> None:
    arrays = session().arrays()
    found = speedup_over(arrays, "int8@onnxruntime", "fp32@onnxruntime", "1")
    assert found.difference is not None
    assert found.difference.kind == "faster"
    assert found.ci95[0] < 1.05 < found.ci95[1]
    assert found.ci95[1] - found.ci95[0] < 0.02


def test_rounds_that_are_not_paired_would_not_tell() -> None:
    """The twin: the same samples, each side drawn on its own."""
    arrays = session().arrays()
    apart = separate_ratio(arrays["fp32@onnxruntime/1"], arrays["int8@onnxruntime/1"]).interval()
    assert apart.low < 1.0 < apart.high


def test_exchanging_the_two_turns_the_answer_round() -> None:
    arrays = session().arrays()
    found = speedup_over(arrays, "fp32@onnxruntime", "int8@onnxruntime", "1")
    assert found.difference is not None
    assert found.difference.kind == "slower"
