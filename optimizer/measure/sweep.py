"""Latency and throughput over the batch, and the best batch under a latency budget."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from optimizer.errors import MeasurementError, UsageError
from optimizer.measure.bootstrap import Ratio, block_length, interleaved_ratio, widened
from optimizer.measure.latency import LatencySession, Timed, blamed, measure_latency
from optimizer.measure.series import Series
from optimizer.measure.statistics import RESAMPLES, SEED, Floats, Interval
from optimizer.results import Latency
from optimizer.runner import Runner
from optimizer.runtime.session import Feed

Held = Literal["holds", "broken", "undecided"]

LEVEL = 0.95
TOLERANCE = 0.01  # a throughput within 1 % is as good
PERCENTILES = (50, 90, 99)
_AT_ONCE = 64  # resamples


@dataclass(frozen=True)
class Point:
    """One batch. `budget_ms` and `budget_ci95` are of the curve's percentile; an upper bound of null: too few calls.

    Shapes: `rounds_ms` is [rounds, calls], the samples that count.
    """

    batch: int
    latency: Latency
    items_per_second: float
    budget_ms: float
    budget_ci95: tuple[float, float | None]
    held: Held | None  # null without a budget
    rounds_ms: Floats

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types, without the samples."""
        return {
            "latency_ms": self.latency.model_dump(mode="json"),
            "items_per_second": self.items_per_second,
            "budget_percentile_ms": {"value": self.budget_ms, "ci95": list(self.budget_ci95)},
            "held": self.held,
        }


@dataclass(frozen=True)
class Curve:
    """All batches of one candidate, measured in turns. `best` is null where no batch is known to hold the budget."""

    percentile: int
    budget_ms: float | None
    points: Mapping[int, Point]
    best: int | None
    reasons: tuple[str, ...]
    failed: Mapping[int, str] = field(default_factory=dict)
    surroundings: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types, without the samples."""
        return {
            "percentile": self.percentile,
            "budget_ms": self.budget_ms,
            "best_batch": self.best,
            "reasons": list(self.reasons),
            "failed": {str(batch): said for batch, said in self.failed.items()},
            "points": {str(batch): point.to_json() for batch, point in self.points.items()},
            "surroundings": dict(self.surroundings),
        }


@dataclass(frozen=True, slots=True)
class _Bound:
    """A runner with the feed of its batch: the protocol gives every candidate one feed, here each has its own."""

    runner: Runner
    feed: Feed

    def bind(self, feed: Feed) -> Callable[[], None]:
        del feed
        return self.runner.bind(self.feed)


def doubled_batches(most: int, least: int = 1) -> tuple[int, ...]:
    """Return `least`, twice that, and so on, and `most` itself."""
    found = []
    batch = least
    while batch < most:
        found.append(batch)
        batch *= 2
    return (*found, most)


def sweep(
    open_runner: Callable[[], Runner],
    feed_of: Callable[[int], Feed],
    batches: Sequence[int],
    *,
    seconds: float,
    budget_ms: float | None = None,
    percentile: int = 99,
) -> Curve:
    """Time one candidate at every batch, `seconds` of calls each, batches in turns as candidates otherwise are.

    Each batch has a runner of its own: what one set up for its shapes is not undone by its neighbour. That takes memory
    for as many copies as there are batches. A batch that cannot run is left out and named; the others are timed.
    Best is the batch of most items per second among those that hold the budget, with the whole 95 % interval of the
    percentile at or below it; of several within 1 %, or that the samples cannot tell apart, the smallest.
    Raises: UsageError for a percentile or batches that do not exist, MeasurementError when no batch can run.
    """
    if percentile not in PERCENTILES:
        raise UsageError(
            f"percentile {percentile} is not measured; it may be 50, 90 or 99", where="measure.sweep.percentile"
        )
    if not batches or min(batches) < 1:
        raise UsageError(f"batches {list(batches)} hold none, or one below 1", where="measure.sweep.batches")
    failed: dict[int, str] = {}
    bound: dict[str, Timed] = {}
    with contextlib.ExitStack() as stack:
        for batch in sorted(set(batches)):
            try:
                with blamed("sweep", batch):
                    runner = stack.enter_context(open_runner())
                    bound[str(batch)] = _Bound(runner, feed_of(batch))
                    bound[str(batch)].bind({})()
            except MeasurementError as error:
                bound.pop(str(batch), None)
                failed[batch] = error.what
        if not bound:
            raise MeasurementError(f"no batch can run: {'; '.join(failed.values())}", where="measure.sweep")
        session = _in_turns(bound, seconds)
    points = {
        int(name): _point(int(name), _detailed(per[0]), per[0].counted_ms, budget_ms, percentile)
        for name, per in session.series.items()
    }
    best, reasons = choose_best(points, budget_ms, percentile)
    return Curve(
        percentile, budget_ms, points, best, (*reasons, *failed.values()), failed, session.surroundings.get(0, {})
    )


def _in_turns(bound: Mapping[str, Timed], seconds: float) -> LatencySession:
    """Time all batches as candidates of one session; an error names the batch."""
    try:
        return measure_latency(
            bound, {0: {}}, baseline=next(iter(bound)), seconds=seconds, progress=lambda done, total: None
        )
    except MeasurementError as error:
        said = error.what.replace("at batch 0", f"at batch {error.where}", 1)
        raise MeasurementError(said, where="measure.sweep", hint=error.hint) from error


def _detailed(series: Series) -> Latency:
    """Return the latency with what scattered and what was disturbed."""
    return Latency.model_validate(series.latency().model_dump() | series.detail())


def _point(batch: int, latency: Latency, rounds_ms: Floats, budget_ms: float | None, percentile: int) -> Point:
    value, interval = percentile_interval(rounds_ms, percentile)
    held: Held | None = None
    if budget_ms is not None:
        held = "holds" if interval.high <= budget_ms else "broken" if interval.low > budget_ms else "undecided"
    high = interval.high if math.isfinite(interval.high) else None
    return Point(batch, latency, 1000 * batch / latency.mean, value, (interval.low, high), held, rounds_ms)


def calls_needed(percentile: int, level: float = LEVEL) -> int:
    """Return how many calls a percentile needs before its interval has an upper bound.

    With fewer, all of them may lie below the true percentile by chance: share ** calls > (1 - level) / 2.
    Source: order statistics, Conover 1999, Practical Nonparametric Statistics, section 3.2.
    """
    return math.ceil(math.log((1 - level) / 2) / math.log(percentile / 100))


def percentile_interval(rounds_ms: Floats, percentile: int) -> tuple[float, Interval]:
    """Return a percentile over all calls, and its 95 % interval over rounds; without an upper bound for too few calls.

    Whole rounds are drawn, runs of them where each resembles the one before, and few rounds widen the interval, as for
    the ratio of medians.
    Shapes: [rounds, calls].
    """
    value = float(np.percentile(rounds_ms, percentile))
    rounds, calls = rounds_ms.shape
    length = block_length(np.log(np.median(rounds_ms, axis=1)))
    order = np.argsort(rounds_ms, axis=None)
    ordered, owner = rounds_ms.ravel()[order], order // calls
    rank = max(1, math.ceil(percentile / 100 * rounds * calls))
    starts = np.random.default_rng(SEED).integers(0, rounds, (RESAMPLES, -(-rounds // length)))
    chosen = ((starts[:, :, None] + np.arange(length)) % rounds).reshape(RESAMPLES, -1)[:, :rounds]
    draws = []
    for some in np.array_split(chosen, -(-RESAMPLES // _AT_ONCE)):
        weight = np.stack([np.bincount(one, minlength=rounds) for one in some])
        reached = np.cumsum(weight[:, owner], axis=1) >= rank
        draws.append(ordered[np.argmax(reached, axis=1)])
    found = widened(Ratio(value, np.concatenate(draws), max(1, rounds // length - 1)), LEVEL)
    if rounds_ms.size < calls_needed(percentile):
        found = Interval(found.low, math.inf)
    return value, found


def choose_best(
    points: Mapping[int, Point], budget_ms: float | None, percentile: int
) -> tuple[int | None, tuple[str, ...]]:
    """Return the best batch, and sentences that say why it is, or why there is none."""
    holding = [p for p in points.values() if p.held in ("holds", None)]
    open_ = [p for p in points.values() if p.held == "undecided"]
    reasons = [_undecided(p, budget_ms, percentile) for p in open_]
    if not holding:
        said = f"no batch is known to hold p{percentile} <= {budget_ms:g} ms"
        return None, (said, *reasons)
    fastest = max(holding, key=lambda p: p.items_per_second)
    best = next(p for p in sorted(holding, key=lambda p: p.batch) if not _certainly_slower(p, fastest))
    under = "" if budget_ms is None else f" with p{percentile} {best.budget_ms:.4g} ms <= {budget_ms:g} ms"
    said = f"batch {best.batch}: {best.items_per_second:.4g} items per second{under}"
    if best is not fastest:
        said += f"; batch {fastest.batch} is not certainly faster by more than {TOLERANCE:.0%}"
    return best.batch, (said, *(r for p, r in zip(open_, reasons, strict=True) if _may_be_faster(p, best)))


def _undecided(point: Point, budget_ms: float | None, percentile: int) -> str:
    low, high = point.budget_ci95
    if high is None:
        return (
            f"batch {point.batch} is undecided: p{percentile} {point.budget_ms:.4g} ms from "
            f"{point.rounds_ms.size} calls, which have no upper bound; {calls_needed(percentile)} are needed"
        )
    return (
        f"batch {point.batch} is undecided: p{percentile} {point.budget_ms:.4g} ms ({low:.4g} to {high:.4g}) "
        f"against {budget_ms:g} ms"
    )


def _may_be_faster(point: Point, best: Point) -> bool:
    return not _certainly_slower(point, best)


def _certainly_slower(point: Point, fastest: Point) -> bool:
    """Whether its time per item is longer by more than the tolerance, with the whole interval."""
    if point is fastest:
        return False
    ratio = interleaved_ratio(point.rounds_ms / point.batch, fastest.rounds_ms / fastest.batch)
    return ratio.interval(LEVEL).low > 1 + TOLERANCE
