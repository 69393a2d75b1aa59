"""Latency of all candidates in one session: warmed up, interleaved in a shuffled order, every timed call kept."""

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
from optimizer.errors import MeasurementError, OptimizerError
from optimizer.measure.bootstrap import interleaved_ratio
from optimizer.measure.statistics import SEED, Floats
from optimizer.results import Latency, Speedup

# docs/measurement.md explains each of these.
WARMUP_CALLS = 5
WARMUP_WINDOW_S = 0.05
WARMUP_MOST_S = 2.0
WARMUP_AGREEMENT = 0.05
TURN_S = 0.005
TURN_MOST_CALLS = 50
ROUNDS = 20
OVERTIME = 3.0
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
        ratio = interleaved_ratio(base, own)
        return Speedup(value=ratio.value, ci95=ratio.interval())

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
    all of them alike, and nobody always follows the same neighbour. Each turn begins with a call that is not timed,
    because the caches still hold the neighbour's data; for slow models too, or they alone would be timed cold.
    At least 20 rounds are taken; where those need more than three times the budget as many as it holds, at least 5.
    Raises: MeasurementError, `where` naming the runner that could not be bound or failed while warming up.
    """
    series: dict[str, dict[int, Series]] = {name: {} for name in runners}
    for index, (batch, feed) in enumerate(feeds.items()):
        calls = {}
        for name, runner in runners.items():
            with blamed(name, batch):
                calls[name] = runner.bind(feed)
        warmups = {name: _warm_up(call, name, batch) for name, call in calls.items()}
        turns = {name: _calls_per_turn(pace) for name, (_, pace) in warmups.items()}

        def tell(share: float, before: int = index) -> None:
            progress(round(100 * (before + share)), 100 * len(feeds))

        rounds = _rounds(calls, turns, seconds, tell)
        for name, blocks in rounds.items():
            series[name][batch] = Series(np.array(blocks) / 1e6, warmups[name][0])
    return LatencySession(baseline, series)


@contextlib.contextmanager
def blamed(name: str, batch: int | None = None) -> Iterator[None]:
    """Turn what a backend raises into a MeasurementError at this candidate; another one may be measured without it."""
    try:
        yield
    except (OptimizerError, RuntimeError, ValueError) as error:
        at = "" if batch is None else f" at batch {batch}"
        said, hint = (error.what, error.hint) if isinstance(error, OptimizerError) else (str(error), None)
        raise MeasurementError(f"failed{at}: {said}", where=name, hint=hint) from error


def _warm_up(call: Callable[[], None], name: str, batch: int) -> tuple[int, float]:
    """Call until two windows in a row have medians within 5 %; return the calls made and the seconds of one."""
    made, started, before = 0, time.perf_counter(), math.inf
    while True:
        window: list[float] = []
        opened = time.perf_counter()
        with blamed(name, batch):
            while len(window) < WARMUP_CALLS or time.perf_counter() - opened < WARMUP_WINDOW_S:
                begun = time.perf_counter()
                call()
                window.append(time.perf_counter() - begun)
        made += len(window)
        median = float(np.median(window))
        if abs(median / before - 1) <= WARMUP_AGREEMENT or time.perf_counter() - started > WARMUP_MOST_S:
            return made, median
        before = median


def _calls_per_turn(pace: float) -> int:
    """Timed calls of one turn: about 5 ms of work."""
    return max(1, min(TURN_MOST_CALLS, math.ceil(TURN_S / pace)))


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
        while (spent := time.perf_counter() - started) < budget or _too_few(len(found[names[0]]), spent / budget):
            for position in rng.permutation(len(names)):
                name = names[position]
                found[name].append(_turn(calls[name], turns[name]))
            tell(min(1.0, spent / budget))
    return found


def _too_few(rounds: int, budgets: float) -> bool:
    return rounds < (ROUNDS if budgets < OVERTIME else FEWEST_ROUNDS)


def _turn(call: Callable[[], None], count: int) -> list[int]:
    """Call once untimed, then time `count` calls in a row."""
    clock = time.perf_counter_ns
    times = []
    call()
    for _ in range(count):
        begun = clock()
        call()
        times.append(clock() - begun)
    return times


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
    """Keep every thread of this process on `threads` processors while measuring; give back which, () where the system
    cannot pin. Threads started meanwhile inherit it, and afterwards every thread has what it had before.

    Raises: MeasurementError when fewer processors are allowed than threads asked for.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield ()
        return
    allowed = os.sched_getaffinity(0)
    if threads > len(allowed):
        raise MeasurementError(
            f"{threads} threads are asked for and this process may use {len(allowed)} processors",
            where="measure.threads",
            hint=f"threads: {len(allowed)}",
        )
    chosen = _choose(allowed, threads)
    before = {thread: _affinity(thread, set(chosen)) for thread in _threads()}
    try:
        yield chosen
    finally:
        for thread in _threads():
            _affinity(thread, before.get(thread) or allowed)


def _choose(allowed: set[int], threads: int) -> tuple[int, ...]:
    """The fastest processors, one a core as long as there are cores, and of equal ones the last: the first processors
    serve most interrupts.
    """
    ordered = sorted(allowed, key=lambda n: (-_number(n, "cpufreq/cpuinfo_max_freq"), -n))
    seen: dict[str, int] = {}
    sibling = {}
    for processor in ordered:
        core = _read(processor, "topology/thread_siblings_list") or str(processor)
        sibling[processor] = seen[core] = seen.get(core, -1) + 1
    return tuple(sorted(sorted(ordered, key=lambda n: sibling[n])[:threads]))


def _read(processor: int, name: str) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/sys/devices/system/cpu/cpu{processor}/{name}").read_text().strip()
    return ""


def _number(processor: int, name: str) -> int:
    text = _read(processor, name)
    return int(text) if text.isdigit() else 0


def _threads() -> list[int]:
    return [int(task.name) for task in Path("/proc/self/task").iterdir()]


def _affinity(thread: int, processors: set[int]) -> set[int]:
    """Pin a thread; return where it was allowed before, nothing when it has ended."""
    with contextlib.suppress(ProcessLookupError):
        before = os.sched_getaffinity(thread)
        os.sched_setaffinity(thread, processors)
        return before
    return set()
