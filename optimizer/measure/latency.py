"""Latency of all candidates in one session: warmed up, interleaved in a shuffled order, every sample kept."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from optimizer.data.samples import Array
from optimizer.errors import MeasurementError
from optimizer.measure.statistics import SEED, Floats, ratio_of_medians
from optimizer.results import Latency, Speedup

# docs/measurement.md explains each of these.
WARMUP_CALLS = 5
WARMUP_WINDOW_S = 0.05
WARMUP_MOST_S = 2.0
WARMUP_AGREEMENT = 0.05
TURN_S = 0.005
TURN_MOST_CALLS = 50
FEWEST_ROUNDS = 5
STABLE_DRIFT = 0.05
STABLE_SPREAD = 0.10


class Timed(Protocol):
    """A runner or session: `bind` returns the call that is timed."""

    def bind(self, feed: Mapping[str, Array]) -> Callable[[], None]:
        """Place inputs and outputs, and return a call of no arguments that waits for the end."""


@dataclass(frozen=True, slots=True)
class Series:
    """One candidate at one batch. `rounds_ms` is [rounds, calls]: the samples of each turn, in milliseconds."""

    rounds_ms: Floats
    warmup: int

    def latency(self) -> Latency:
        """Percentiles over all samples (linear interpolation), and whether they held still.

        Stable: the medians of the first and second half of the rounds agree within 5 %, and the median absolute
        deviation of the rounds' medians, scaled to a standard deviation, is within 10 % of their median.
        """
        p50, p90, p99 = (float(v) for v in np.percentile(self.rounds_ms, [50, 90, 99]))
        medians = np.median(self.rounds_ms, axis=1)
        half = len(medians) // 2
        drift = abs(np.median(medians[:half]) / np.median(medians[half:]) - 1) if half else math.inf
        spread = 1.4826 * np.median(np.abs(medians - np.median(medians))) / np.median(medians)
        return Latency(
            p50=p50,
            p90=p90,
            p99=p99,
            mean=float(self.rounds_ms.mean()),
            samples=self.rounds_ms.size,
            warmup=self.warmup,
            stable=bool(drift <= STABLE_DRIFT and spread <= STABLE_SPREAD),
        )


@dataclass(frozen=True, slots=True)
class LatencySession:
    """All series of one session, by candidate and batch."""

    baseline: str
    series: Mapping[str, Mapping[int, Series]]

    def speedup(self, name: str, batch: int) -> Speedup | None:
        """Baseline p50 over the candidate's, with a 95 % interval over rounds; the baseline itself has none."""
        if name == self.baseline:
            return None
        base, own = self.series[self.baseline][batch].rounds_ms, self.series[name][batch].rounds_ms
        low, high = ratio_of_medians(base, own)
        return Speedup(value=float(np.median(base) / np.median(own)), ci95=(low, high))

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Per candidate and batch: latency, throughput in items per second of mean latency, speedup."""
        document: dict[str, dict[str, Any]] = {}
        for name, per_batch in self.series.items():
            document[name] = {}
            for batch, series in per_batch.items():
                latency, ratio = series.latency(), self.speedup(name, batch)
                document[name][str(batch)] = {
                    "latency": latency.model_dump(mode="json"),
                    "throughput": 1000 * batch / latency.mean,
                    "speedup": ratio.model_dump(mode="json") if ratio else None,
                }
        return document

    def samples_ms(self) -> dict[str, dict[int, Floats]]:
        """Every sample, by candidate and batch, as [rounds, calls]."""
        return {n: {b: s.rounds_ms for b, s in per.items()} for n, per in self.series.items()}


def measure_latency(
    runners: Mapping[str, Timed],
    feeds: Mapping[int, Mapping[str, Array]],
    *,
    baseline: str,
    seconds: float,
    progress: Callable[[int, int], None],
) -> LatencySession:
    """Time every runner at every batch, `seconds` of calls each.

    A round gives every runner one turn of a few calls, in an order that is shuffled anew: drift of the machine falls on
    all of them alike, and nobody always follows the same neighbour.
    """
    series: dict[str, dict[int, Series]] = {name: {} for name in runners}
    for index, (batch, feed) in enumerate(feeds.items()):
        calls = {name: runner.bind(feed) for name, runner in runners.items()}
        warmups = {name: _warm_up(call, name, batch) for name, call in calls.items()}
        turns = {name: _calls_per_turn(pace) for name, (_, pace) in warmups.items()}

        def tell(share: float, before: int = index) -> None:
            progress(round(100 * (before + share)), 100 * len(feeds))

        rounds = _rounds(calls, turns, seconds, tell)
        for name, blocks in rounds.items():
            series[name][batch] = Series(np.array(blocks) / 1e6, warmups[name][0])
    return LatencySession(baseline, series)


def _warm_up(call: Callable[[], None], name: str, batch: int) -> tuple[int, float]:
    """Call until two windows in a row have medians within 5 %; return the calls made and the seconds of one."""
    made, started, before = 0, time.perf_counter(), math.inf
    while True:
        window: list[float] = []
        opened = time.perf_counter()
        while len(window) < WARMUP_CALLS or time.perf_counter() - opened < WARMUP_WINDOW_S:
            begun = time.perf_counter()
            try:
                call()
            except (RuntimeError, ValueError) as error:
                raise MeasurementError(f"failed at batch {batch}: {error}", where=name) from error
            window.append(time.perf_counter() - begun)
        made += len(window)
        median = float(np.median(window))
        if abs(median / before - 1) <= WARMUP_AGREEMENT or time.perf_counter() - started > WARMUP_MOST_S:
            return made, median
        before = median


def _calls_per_turn(pace: float) -> int:
    """Calls of one turn: about 5 ms of work, one more where there are several, because the first is dropped."""
    count = min(TURN_MOST_CALLS, math.ceil(TURN_S / pace))
    return count if count == 1 else count + 1


def _rounds(
    calls: Mapping[str, Callable[[], None]],
    turns: Mapping[str, int],
    seconds: float,
    tell: Callable[[float], None],
) -> dict[str, list[list[int]]]:
    """Take rounds until the time is up; nanoseconds of every call, one list a turn."""
    rng = np.random.default_rng(SEED)
    names = list(calls)
    found: dict[str, list[list[int]]] = {name: [] for name in names}
    budget = seconds * len(names)
    started = time.perf_counter()
    with _no_collection():
        while (spent := time.perf_counter() - started) < budget or len(found[names[0]]) < FEWEST_ROUNDS:
            for position in rng.permutation(len(names)):
                name = names[position]
                found[name].append(_turn(calls[name], turns[name]))
            tell(min(1.0, spent / budget))
    return found


def _turn(call: Callable[[], None], count: int) -> list[int]:
    """Time `count` calls in a row; of several the first is dropped: its caches are still the neighbour's."""
    clock = time.perf_counter_ns
    times = []
    for _ in range(count):
        begun = clock()
        call()
        times.append(clock() - begun)
    return times if count == 1 else times[1:]


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[tuple[int, ...]]:
    """Keep every thread of this process on `threads` processors while measuring; give back which.

    The last ones allowed are taken: the first processors serve most interrupts. Threads started meanwhile inherit it.
    Raises: MeasurementError when fewer processors are allowed than threads asked for.
    """
    before = sorted(os.sched_getaffinity(0))
    if threads > len(before):
        raise MeasurementError(
            f"{threads} threads are asked for and this process may use {len(before)} processors",
            where="measure.threads",
            hint=f"threads: {len(before)}",
        )
    chosen = before[-threads:]
    _set_affinity(chosen)
    try:
        yield tuple(chosen)
    finally:
        _set_affinity(before)


def _set_affinity(processors: list[int]) -> None:
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # a thread may end meanwhile
            os.sched_setaffinity(int(task.name), processors)
