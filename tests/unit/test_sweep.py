"""The curve over batches and over runners at once: decided with intervals, and no failure hides the others."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from child_runners import ScriptedRunner, onnx_runner

from optimizer.errors import MeasurementError, StageError, UsageError
from optimizer.measure.bootstrap import widened
from optimizer.measure.concurrency import measure_concurrency
from optimizer.measure.percentile import Percentile
from optimizer.measure.series import Series
from optimizer.measure.statistics import Interval
from optimizer.measure.sweep import (
    Point,
    choose_best,
    doubled_batches,
    sweep,
)
from optimizer.runner import Runner
from optimizer.runtime.session import Array, Feed, Session


def feed_of(batch: int) -> Feed:
    return {"x": np.ones((batch, 16), np.float32)}


class Costly(Session):
    """A call takes 3 ms and 0.5 ms an item, asleep; above batch 8 there is no memory."""

    def infer(self, feed: Feed) -> dict[str, Array]:
        return {}

    def bind(self, feed: Feed) -> Callable[[], None]:
        batch = len(feed["x"])
        if batch > 8:
            raise StageError("out of memory", hint="use a smaller batch")

        return lambda: time.sleep(0.003 + 0.0005 * batch)


class CostlyRunner(ScriptedRunner):
    def open(self) -> Session:
        return Costly()


def test_the_best_batch_is_the_fastest_that_holds_the_budget() -> None:
    curve = sweep(CostlyRunner, feed_of, (1, 4, 8, 16), seconds=0.15, budget_ms=100.0, percentile=50)
    assert curve.best in (4, 8)  # 4 where the machine was so busy that 8 is not certainly faster
    assert [point.held for point in curve.points.values()] == ["holds"] * 3
    assert curve.failed == {16: "failed at batch 16: out of memory"}
    assert curve.reasons[-1] == "failed at batch 16: out of memory"
    document = curve.to_json()
    assert document["best_batch"] == curve.best
    assert list(document["points"]) == ["1", "4", "8"]
    json.dumps(document, allow_nan=False)


def test_a_batch_beyond_the_budget_is_not_best() -> None:
    """The twin: the same runner, a budget below what batch 8 takes."""
    curve = sweep(CostlyRunner, feed_of, (1, 8), seconds=0.15, budget_ms=5.5, percentile=50)
    assert curve.points[8].held in ("broken", "undecided")  # the latter where the machine was too busy to tell
    assert curve.best in (1, None)  # None only where the machine was so busy that batch 1 took twice its time


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


def test_runners_at_once_share_the_threads(tmp_path: Path) -> None:
    asked: list[int] = []

    def open_runner(threads: int) -> Runner:
        asked.append(threads)
        return onnx_runner(tmp_path)

    onnx_runner(tmp_path)
    one, two = measure_concurrency(open_runner, feed_of(2), (1, 2), threads=2, seconds=0.2)
    assert (one.workers, one.threads, two.workers, two.threads) == (1, 2, 2, 1)
    assert asked[1:4] == [2, 1, 1]  # after the probe, a runner of two threads, then two of one
    assert one.batch == 2
    assert one.calls > 10
    low, high = two.passes_items_per_second
    assert low <= two.items_per_second <= high
    assert one.p50_ms <= one.p90_ms <= one.p99_ms


def test_two_that_sleep_do_twice_as_much() -> None:
    """5 ms of sleep a call: throughput doubles with two at once and latency stays; the numbers are those of sums.

    The best of four passes, because neighbours may take the processor from the others.
    """
    one, two = measure_concurrency(
        lambda threads: ScriptedRunner(seconds=0.005), feed_of(1), (1, 2), threads=2, seconds=0.4
    )
    best, twice = one.passes_items_per_second[1], two.passes_items_per_second[1]
    assert twice == pytest.approx(2 * best, rel=0.35)
    assert 100 < best <= 200
    assert two.p50_ms < 1.5 * one.p50_ms  # one after the other it would be 2


class Placed(ScriptedRunner):
    """Notes the thread that calls it."""

    def __init__(self, threads: list[int]) -> None:
        super().__init__(seconds=0.001)
        self._called = threads

    def open(self) -> Session:
        session, called = super().open(), self._called

        class Noting(Session):
            def infer(self, feed: Feed) -> dict[str, Array]:
                called.append(threading.get_ident())
                return session.infer(feed)

            def bind(self, feed: Feed) -> Callable[[], None]:
                return lambda: self.infer(feed) and None

        return Noting()


def test_one_runner_by_itself_is_called_where_latency_is_timed() -> None:
    """OpenMP keeps threads for each thread that calls: in a new one PyTorch would run in another mode."""
    alone: list[int] = []
    measure_concurrency(lambda threads: Placed(alone), feed_of(1), (1,), threads=2, seconds=0.05)
    assert set(alone) == {threading.get_ident()}
    both: list[int] = []
    measure_concurrency(lambda threads: Placed(both), feed_of(1), (2,), threads=2, seconds=0.05)
    assert threading.get_ident() in both
    assert len(set(both)) > 1


def test_passes_that_were_disturbed_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(reason: tuple[str, ...]) -> tuple[str, ...]:
        monkeypatch.setattr("optimizer.measure.concurrency.disturbances", lambda *_: reason)
        (load,) = measure_concurrency(
            lambda threads: ScriptedRunner(seconds=0.001), feed_of(1), (1,), threads=1, seconds=0.05
        )
        return tuple(load.to_json()["disturbed"])

    assert found(("waited for a processor",)) == ("waited for a processor in 4 of 4 passes",)
    assert found(()) == ()


def test_a_worker_that_fails_leaves_nobody_waiting() -> None:
    begun = time.monotonic()
    with pytest.raises(MeasurementError) as caught:
        measure_concurrency(
            lambda threads: ScriptedRunner(seconds=0.001, fails_at=3), feed_of(1), (2,), threads=2, seconds=0.2
        )
    assert caught.value.render() == "scripted on cpu, 2 at once: failed: no kernel for this sample"
    assert time.monotonic() - begun < 10


def test_more_workers_than_threads_are_refused() -> None:
    with pytest.raises(UsageError) as caught:
        measure_concurrency(lambda threads: ScriptedRunner(), feed_of(1), (1, 4), threads=2, seconds=0.1)
    assert caught.value.render() == (
        "measure.concurrency: 4 workers on 2 threads would wait for each other\n  threads: 4   or at most 2 workers"
    )
