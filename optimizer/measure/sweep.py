"""Latency and throughput over the batch, and the best batch under a latency budget."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from optimizer.errors import MeasurementError, UsageError
from optimizer.measure.bootstrap import interleaved_ratio
from optimizer.measure.latency import Effort, LatencySession, Timed, Watching, blamed, measure_rounds
from optimizer.measure.observed import together
from optimizer.measure.percentile import Percentile
from optimizer.measure.series import Series
from optimizer.measure.statistics import Floats, Interval, calls_needed
from optimizer.measure.surroundings import Watch
from optimizer.results import Latency
from optimizer.runner import Runner
from optimizer.runtime.session import Feed

Held = Literal["holds", "broken", "undecided"]

LEVEL = 0.95
LOOKS = (1.0, 1.0, 2.0)  # times the seconds: while a budget stays open, as much again, at most 4 times in all
DECIDING = 1 - (1 - LEVEL) / len(LOOKS)  # of each look, so that all of them together err as seldom as one (Bonferroni)
TOLERANCE = 0.01  # a throughput within 1 % is as good
PERCENTILES = (50, 90, 99)


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
    held: Held | None  # null without a budget; by the stricter interval `deciding`
    rounds_ms: Floats
    deciding: Interval

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
    looks: int = 1  # how often rounds were taken until the budget was decided, or the bound reached

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types, without the samples."""
        return {
            "percentile": self.percentile,
            "budget_ms": self.budget_ms,
            "best_batch": self.best,
            "reasons": list(self.reasons),
            "looks": self.looks,
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

    While a batch that might be the best neither holds nor breaks the budget, more rounds are taken of all that do not
    break it, up to four times `seconds`; what is open then is said to be.

    Each batch has a runner of its own: what one set up for its shapes is not undone by its neighbour. That takes memory
    for as many copies as there are batches. A batch that cannot run is left out and named; the others are timed.
    Best is the batch of most items per second among those that hold the budget, with the whole interval of the
    percentile at or below it (98.3 % at each of three looks, so 95 % in all); of several within 1 %, or that the
    samples cannot tell apart, the smallest.
    Raises: UsageError for a percentile or batches that do not exist, MeasurementError when no batch can run.
    """
    if percentile not in PERCENTILES:
        raise UsageError(
            f"percentile {percentile} is not measured; it may be 50, 90 or 99", where="measure.sweep.percentile"
        )
    if not batches or min(batches) < 1:
        raise UsageError(f"batches {list(batches)} hold none, or one below 1", where="measure.sweep.batches")
    failed: dict[int, str] = {}
    bound: dict[str, _Bound] = {}
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
        points, facts = _looked_at(bound, seconds, budget_ms, percentile)
    best, reasons = choose_best(points, budget_ms, percentile)
    reasons = (*reasons, *failed.values())
    return Curve(percentile, budget_ms, points, best, reasons, failed, together(facts), len(facts))


def _looked_at(
    bound: Mapping[str, _Bound], seconds: float, budget_ms: float | None, percentile: int
) -> tuple[dict[int, Point], list[Mapping[str, Any]]]:
    """Take rounds until the budget is decided or the looks are used up; return the points, and each look's facts."""
    names, first = list(bound), None
    series: dict[str, Series] = {}
    points: dict[int, Point] = {}
    facts: list[Mapping[str, Any]] = []
    with Watch(device=bound[names[0]].runner.device) as watch:
        for share in LOOKS:
            effort = Effort(seconds * share, like=first, opening=len(facts))
            session = _in_turns({name: bound[name] for name in names}, effort, watch)
            first = first or session
            facts.append(session.surroundings[0])
            for name in names:
                own = session.series[name][0]
                series[name] = _extended(series[name], own) if name in series else own
                points[int(name)] = _point(int(name), series[name], budget_ms, percentile)
            if not still_open(points):
                break
            names = [name for name in names if points[int(name)].held != "broken"]
    return points, facts


def _in_turns(bound: Mapping[str, Timed], effort: Effort, watch: Watching) -> LatencySession:
    """Time all batches as candidates of one session; an error names the batch."""
    try:
        return measure_rounds(
            bound,
            {0: {}},
            baseline=next(iter(bound)),
            effort=effort,
            progress=lambda done, total: None,
            watch=watch,
        )
    except MeasurementError as error:
        said = error.what.replace("at batch 0", f"at batch {error.where}", 1)
        raise MeasurementError(said, where="measure.sweep", hint=error.hint) from error


def _extended(before: Series, more: Series) -> Series:
    """The rounds of two looks at the same open runner as one; its turns have as many calls in both."""
    rounds = np.concatenate([before.rounds_ms, more.rounds_ms])
    return Series(rounds, before.warmup + more.warmup, before.disturbed + more.disturbed)


def _detailed(series: Series) -> Latency:
    """Return the latency with what scattered and what was disturbed."""
    return Latency.model_validate(series.latency().model_dump() | series.detail())


def _point(batch: int, series: Series, budget_ms: float | None, percentile: int) -> Point:
    latency, rounds_ms = _detailed(series), series.counted_ms
    known = Percentile(rounds_ms, percentile)
    shown, deciding = known.interval(LEVEL), known.interval(DECIDING)
    held: Held | None = None
    if budget_ms is not None:
        held = "holds" if deciding.high <= budget_ms else "broken" if deciding.low > budget_ms else "undecided"
        if held == "broken" and latency.disturbed:
            held = "undecided"  # on a quiet machine it may hold; what holds beside neighbours does so without
    high = shown.high if math.isfinite(shown.high) else None
    per_second = 1000 * batch / latency.mean
    return Point(batch, latency, per_second, known.value, (shown.low, high), held, rounds_ms, deciding)


def still_open(points: Mapping[int, Point]) -> bool:
    """Whether a batch that neither holds nor breaks the budget might be the best."""
    fastest = max((p for p in points.values() if p.held == "holds"), key=lambda p: p.items_per_second, default=None)
    undecided = (p for p in points.values() if p.held == "undecided")
    return any(fastest is None or not _certainly_slower(p, fastest) for p in undecided)


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
    low, high = point.deciding
    said = f"batch {point.batch} is undecided: p{percentile} {point.budget_ms:.4g} ms"
    if not math.isfinite(high):
        needed = calls_needed(percentile, DECIDING)
        return f"{said} from {point.rounds_ms.size} calls, which have no upper bound; {needed} unlike ones are needed"
    if point.latency.disturbed and low > (budget_ms or 0):
        return f"{said} ({low:.4g} to {high:.4g}) is beyond {budget_ms:g} ms, but its rounds were disturbed"
    return f"{said} ({low:.4g} to {high:.4g}) against {budget_ms:g} ms"


def _may_be_faster(point: Point, best: Point) -> bool:
    return not _certainly_slower(point, best)


def _certainly_slower(point: Point, fastest: Point) -> bool:
    """Whether its time per item is longer by more than the tolerance, with the whole interval."""
    if point is fastest:
        return False
    ratio = interleaved_ratio(point.rounds_ms / point.batch, fastest.rounds_ms / fastest.batch)
    return ratio.interval(LEVEL).low > 1 + TOLERANCE
