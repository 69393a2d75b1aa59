"""The curve over batches: decided with intervals, and no failure hides the others."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from child_runners import ScriptedRunner
from latency_clock import Clock, Quiet

from optimizer.errors import MeasurementError, StageError, UsageError
from optimizer.measure import latency
from optimizer.measure import sweep as sweep_module
from optimizer.measure.bootstrap import widened
from optimizer.measure.percentile import Percentile
from optimizer.measure.series import Series
from optimizer.measure.statistics import Interval
from optimizer.measure.sweep import (
    Point,
    choose_best,
    doubled_batches,
    sweep,
)
from optimizer.runtime.session import Array, Feed, Session


def feed_of(batch: int) -> Feed:
    return {"x": np.ones((batch, 16), np.float32)}


class Costly(Session):
    """A call takes 3 ms and 0.5 ms an item of the clock that it moves; above batch 8 there is no memory."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def infer(self, feed: Feed) -> dict[str, Array]:
        return {}

    def bind(self, feed: Feed) -> Callable[[], None]:
        batch = len(feed["x"])
        if batch > 8:
            raise StageError("out of memory", hint="use a smaller batch")

        def call() -> None:
            self._clock.now += 3_000_000 + 500_000 * batch

        return call


class CostlyRunner(ScriptedRunner):
    clock = Clock()

    def open(self) -> Session:
        return Costly(self.clock)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is what the calls of `Costly` take, and nothing else runs."""
    monkeypatch.setattr(latency, "time", CostlyRunner.clock)
    monkeypatch.setattr(sweep_module, "Watch", lambda device: contextlib.nullcontext(Quiet()))


def test_the_best_batch_is_the_fastest_that_holds_the_budget(quiet: None) -> None:
    curve = sweep(CostlyRunner, feed_of, (1, 4, 8, 16), seconds=0.15, budget_ms=100.0, percentile=50)
    assert curve.best == 8
    assert [point.held for point in curve.points.values()] == ["holds"] * 3
    assert curve.failed == {16: "failed at batch 16: out of memory"}
    assert curve.reasons[-1] == "failed at batch 16: out of memory"
    document = curve.to_json()
    assert document["best_batch"] == curve.best
    assert list(document["points"]) == ["1", "4", "8"]
    json.dumps(document, allow_nan=False)


def test_a_batch_beyond_the_budget_is_not_best(quiet: None) -> None:
    """The twin: the same runner, a budget below what batch 8 takes."""
    curve = sweep(CostlyRunner, feed_of, (1, 8), seconds=0.15, budget_ms=5.5, percentile=50)
    assert [point.held for point in curve.points.values()] == ["holds", "broken"]
    assert curve.best == 1


def test_no_batch_that_runs_is_an_error() -> None:
    with pytest.raises(MeasurementError) as caught:
        sweep(CostlyRunner, feed_of, (16, 32), seconds=0.1)
    assert caught.value.render() == (
        "measure.sweep: no batch can run: failed at batch 16: out of memory; failed at batch 32: out of memory"
    )


def test_a_failure_while_timing_names_the_batch() -> None:
    with pytest.raises(MeasurementError) as caught:
        sweep(lambda: ScriptedRunner(fails_at=4), feed_of, (4,), seconds=0.1)
    assert caught.value.render() == "measure.sweep: failed at batch 4: no kernel for this sample"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"percentile": 95}, "measure.sweep.percentile: percentile 95 is not measured; it may be 50, 90 or 99"),
        ({"batches": (0, 1)}, "measure.sweep.batches: batches [0, 1] hold none, or one below 1"),
    ],
)
def test_what_cannot_be_swept_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        sweep(CostlyRunner, feed_of, **({"batches": (1,), "seconds": 0.1} | arguments))
    assert caught.value.render() == said


@pytest.mark.parametrize(
    ("most", "least", "expected"), [(1, 1, (1,)), (6, 1, (1, 2, 4, 6)), (8, 1, (1, 2, 4, 8)), (16, 4, (4, 8, 16))]
)
def test_batches_double_up_to_the_profiles_largest(most: int, least: int, expected: tuple[int, ...]) -> None:
    assert doubled_batches(most, least) == expected


def point(
    batch: int, ms: float, held: Any, ci95: tuple[float, float | None] = (0.0, 0.0), noise: float = 0.01
) -> Point:
    rounds = ms * np.exp(np.random.default_rng(batch).normal(0, noise, (40, 10)))
    series = Series(rounds, 1)
    low, high = ci95
    deciding = Interval(low, math.inf if high is None else high)
    return Point(batch, series.latency(), 1000 * batch / ms, ms, ci95, held, rounds, deciding)


def test_an_undecided_batch_is_named_and_never_best() -> None:
    points = {8: point(8, 5.0, "holds"), 16: point(16, 9.9, "undecided", (9.5, 10.4)), 32: point(32, 20.0, "broken")}
    best, reasons = choose_best(points, 10.0, 99)
    assert best == 8
    assert reasons == (
        "batch 8: 1600 items per second with p99 5 ms <= 10 ms",
        "batch 16 is undecided: p99 9.9 ms (9.5 to 10.4) against 10 ms",
    )


def test_an_undecided_batch_that_is_slower_anyway_is_not_mentioned() -> None:
    points = {8: point(8, 5.0, "holds"), 16: point(16, 14.0, "undecided", (9.5, 15.0))}
    assert choose_best(points, 10.0, 99) == (8, ("batch 8: 1600 items per second with p99 5 ms <= 10 ms",))


def test_of_batches_that_samples_cannot_tell_apart_the_smaller_is_best() -> None:
    points = {8: point(8, 5.0, "holds"), 16: point(16, 9.97, "holds"), 1: point(1, 2.0, "holds")}
    best, reasons = choose_best(points, 10.0, 99)
    assert best == 8
    assert reasons == (
        "batch 8: 1600 items per second with p99 5 ms <= 10 ms; batch 16 is not certainly faster by more than 1%",
    )


def test_a_batch_that_is_clearly_faster_is_best_though_larger() -> None:
    """The twin of the two above."""
    assert choose_best({8: point(8, 5.0, "holds"), 16: point(16, 9.0, "holds")}, 10.0, 99)[0] == 16


def test_no_batch_that_holds_leaves_none_best() -> None:
    undecided = {4: point(4, 1.0, "undecided", (0.9, None))}
    assert choose_best(undecided, 1.5, 99) == (
        None,
        (
            "no batch is known to hold p99 <= 1.5 ms",
            "batch 4 is undecided: p99 1 ms from 400 calls, which have no upper bound; 477 unlike ones are needed",
        ),
    )


@pytest.mark.parametrize(("shape", "percentile", "z"), [((40, 25), 99, 2.3263), ((40, 5), 90, 1.2816)])
def test_the_interval_of_a_percentile_covers_it(shape: tuple[int, int], percentile: int, z: float) -> None:
    rng, truth = np.random.default_rng(5), math.exp(0.3 * z)
    hits = 0
    for _ in range(40):
        found = Percentile(np.exp(rng.normal(0, 0.3, shape)), percentile).interval(0.95)
        hits += found.low <= truth <= found.high
    assert hits >= 33  # 38 of 40 are expected; fewer than 33 come once in 200 times at 95 %


def test_too_few_calls_have_no_upper_bound() -> None:
    calls = np.exp(np.random.default_rng(1).normal(0, 0.3, (36, 10)))
    assert Percentile(calls, 99).interval(0.95).high == math.inf
    assert Percentile(calls, 90).interval(0.95).high < math.inf


def test_calls_of_a_round_that_are_alike_count_as_fewer() -> None:
    """1,000 calls, 25 a round: apart they bound p99, all of a round alike they are 40."""
    rng = np.random.default_rng(2)
    apart, alike = np.exp(rng.normal(0, 0.3, (40, 25))), np.exp(np.repeat(rng.normal(0, 0.3, (40, 1)), 25, axis=1))
    assert Percentile(apart, 99).interval(0.95).high < math.inf
    assert Percentile(alike, 99).interval(0.95).high == math.inf


def test_p99_of_rounds_that_differ_is_covered_more_often_than_by_draws_alone() -> None:
    rng, truth = np.random.default_rng(5), math.exp(2.3263 * math.hypot(0.3, 0.3))
    covered = drawn = 0
    for _ in range(40):
        found = Percentile(np.exp(rng.normal(0, 0.3, (40, 1)) + rng.normal(0, 0.3, (40, 10))), 99)
        covered += truth <= found.interval(0.95).high
        drawn += truth <= widened(found._drawn, 0.95).high
    assert covered >= 34  # simulated with 150: 0.93, and 0.85 by draws alone
    assert drawn < covered
