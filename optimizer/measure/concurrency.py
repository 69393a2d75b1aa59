"""Latency and throughput of several runners at once, each in its own thread with its own buffers."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from optimizer.errors import MeasurementError, UsageError
from optimizer.measure.latency import blamed
from optimizer.measure.surroundings import Watch
from optimizer.runner import Runner
from optimizer.runtime.session import Feed

WARMUP_CALLS = 5
PASSES = 4
_START_S = 120.0  # to bind and warm up


@dataclass(frozen=True, slots=True)
class Load:
    """What `workers` runners did together. `threads` are those of one runner; latencies are over all their calls.

    `passes_items_per_second`: each pass by itself, lowest and highest, so that one can see what differs by chance.
    `disturbed`: what disturbed the machine meanwhile, and in how many of the passes.
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
    disturbed: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Pass:
    """One pass of one level. Units: nanoseconds; per worker when it began and its calls' ends, and every latency."""

    calls_per_second: float
    latencies_ns: list[int]
    threads: int
    disturbed: tuple[str, ...]


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
        device = probe.device
        name, split = f"{probe.runtime} on {device}", device == "cpu"
    found: dict[int, list[_Pass]] = {level: [] for level in levels}
    with Watch(device=device) as watch:
        for number in range(PASSES):
            for level in levels if number % 2 == 0 else reversed(levels):
                each = threads // level if split else threads
                team = _Team(open_runner, level, each, f"{name}, {level} at once")
                found[level].append(_run(team, feed, seconds / PASSES, watch))
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
        disturbed=tuple(
            f"{reason} in {count} of {len(passes)} passes"
            for reason, count in Counter(reason for one in passes for reason in one.disturbed).items()
        ),
    )


@dataclass(frozen=True, slots=True)
class _Team:
    """How many runners of how many threads work together, and what to call them in an error."""

    open_runner: Callable[[int], Runner]
    workers: int
    threads: int
    name: str


def _run(team: _Team, feed: Feed, seconds: float, watch: Watch) -> _Pass:
    """Open the runners, let all of them start together and call for `seconds`; the first one in the calling thread.

    libgomp keeps threads for each thread that ever called. If it counts more of them than processors, as it would with
    all runners in new threads beside this one, which was timed before, it all but stops to spin between the parts of a
    call, and PyTorch has another latency than by itself: docs/measurement.md has numbers.
    Source: GNU libgomp manual, GOMP_SPINCOUNT.
    """
    begin = threading.Barrier(team.workers)
    with contextlib.ExitStack() as stack, blamed(team.name):
        runners = [stack.enter_context(team.open_runner(team.threads)) for _ in range(team.workers)]
        watch.begin()
        with ThreadPoolExecutor(max(1, team.workers - 1)) as pool:
            futures = [pool.submit(_work, runner, feed, begin, seconds) for runner in runners[1:]]
            done = []
            with contextlib.suppress(threading.BrokenBarrierError):  # another one failed, and says why
                done.append(_work(runners[0], feed, begin, seconds))
            errors = [error for future in futures if (error := future.exception()) is not None]
            # While the workers live: what a thread has waited is gone with it.
            disturbed = watch.round()
        culprit = next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), None)
        if culprit is not None:
            raise culprit
        if errors or not done:
            raise MeasurementError(f"a worker was not ready within {_START_S:g} s")
        done += [future.result() for future in futures]
    return _Pass(
        calls_per_second=sum(1e9 * len(taken) / span for taken, span in done),
        latencies_ns=[latency for taken, _ in done for latency in taken],
        threads=team.threads,
        disturbed=disturbed,
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
