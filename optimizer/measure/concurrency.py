"""Latency and throughput of several runners at once, each in its own thread with its own buffers."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from optimizer.errors import MeasurementError, UsageError
from optimizer.measure.latency import blamed
from optimizer.runner import Runner
from optimizer.runtime.session import Feed

WARMUP_CALLS = 5
PASSES = 4
_START_S = 120.0  # to bind and warm up


@dataclass(frozen=True, slots=True)
class Load:
    """What `workers` runners did together. `threads` are those of one runner; latencies are over all their calls.

    `passes_items_per_second`: each pass by itself, lowest and highest, so that one can see what differs by chance.
    """

    workers: int
    threads: int
    batch: int
    items_per_second: float
    passes_items_per_second: tuple[float, float]
    p50_ms: float
    p90_ms: float
    p99_ms: float
    calls: int

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Pass:
    """One pass of one level. Units: nanoseconds; per worker when it began and its calls' ends, and every latency."""

    calls_per_second: float
    latencies_ns: list[int]
    threads: int


def measure_concurrency(
    open_runner: Callable[[int], Runner],
    feed: Feed,
    levels: Sequence[int],
    *,
    threads: int,
    seconds: float,
) -> tuple[Load, ...]:
    """Run 1, 2, ... runners at once for `seconds` each, `threads` CPU threads split among them.

    `open_runner` is given the threads of one runner. Levels take turns in four passes, every other one backwards, so
    that drift of the machine falls on all; runners are opened anew in each, because some runtimes have one count of
    threads for the whole process. Throughput is the sum over workers of calls by the time they took.
    Raises: UsageError for more workers than threads on the CPU; MeasurementError naming the level that failed.
    """
    batch = len(next(iter(feed.values())))
    most = max(levels)
    with open_runner(1) as probe:
        if probe.device == "cpu" and most > threads:
            raise UsageError(
                f"{most} workers on {threads} threads would wait for each other",
                where="measure.concurrency",
                hint=f"threads: {most}   or at most {threads} workers",
            )
        name, split = f"{probe.runtime} on {probe.device}", probe.device == "cpu"
    found: dict[int, list[_Pass]] = {level: [] for level in levels}
    for number in range(PASSES):
        for level in levels if number % 2 == 0 else reversed(levels):
            each = threads // level if split else threads
            found[level].append(_run(open_runner, feed, (level, each), seconds / PASSES, name))
    return tuple(_load(level, batch, passes) for level, passes in found.items())


def _load(level: int, batch: int, passes: Sequence[_Pass]) -> Load:
    rates = [batch * one.calls_per_second for one in passes]
    latencies = np.concatenate([one.latencies_ns for one in passes]) / 1e6
    p50, p90, p99 = (float(v) for v in np.percentile(latencies, [50, 90, 99]))
    return Load(
        workers=level,
        threads=passes[0].threads,
        batch=batch,
        items_per_second=float(np.mean(rates)),
        passes_items_per_second=(min(rates), max(rates)),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        calls=len(latencies),
    )


def _run(open_runner: Callable[[int], Runner], feed: Feed, level: tuple[int, int], seconds: float, name: str) -> _Pass:
    """Open the runners, let all of them start together and call for `seconds`."""
    workers, threads = level
    begin = threading.Barrier(workers)
    with contextlib.ExitStack() as stack, blamed(f"{name}, {workers} at once"):
        runners = [stack.enter_context(open_runner(threads)) for _ in range(workers)]
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(_work, runner, feed, begin, seconds) for runner in runners]
            errors = [error for future in futures if (error := future.exception()) is not None]
        culprit = next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), None)
        if culprit is not None:
            raise culprit
        if errors:
            raise MeasurementError(f"a worker was not ready within {_START_S:g} s")
        done = [future.result() for future in futures]
    return _Pass(
        calls_per_second=sum(1e9 * len(taken) / span for taken, span in done),
        latencies_ns=[latency for taken, _ in done for latency in taken],
        threads=threads,
    )


def _work(runner: Runner, feed: Feed, begin: threading.Barrier, seconds: float) -> tuple[list[int], int]:
    """Return the nanoseconds of every call, and of all together; nobody is left waiting by one that fails."""
    clock = time.perf_counter_ns
    ready = False
    try:
        call = runner.bind(feed)
        for _ in range(WARMUP_CALLS):
            call()
        ready = True
    finally:
        if not ready:
            begin.abort()
    begin.wait(_START_S)
    taken = []
    started = before = clock()
    end = started + round(1e9 * seconds)
    while before < end:
        call()
        now = clock()
        taken.append(now - before)
        before = now
    return taken, before - started
