"""The latency protocol on calls whose length is known."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from latency_clock import FEED, Clock, Quiet, Runner, session

from optimizer.errors import MeasurementError, MissingToolError
from optimizer.measure import affinity, latency
from optimizer.measure.latency import LatencySession, Series, measure_latency, pinned

linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin threads")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    fake = Clock()
    monkeypatch.setattr(latency, "time", fake)
    return fake


def test_percentiles_speedup_and_throughput_are_those_of_the_calls(clock: Clock) -> None:
    found = session(clock, base=3.0, fast=1.0)
    document = found.to_json()
    fast = document["fast"]["4"]
    assert fast["latency"]["p50"] == fast["latency"]["p99"] == fast["latency"]["mean"] == pytest.approx(1.0)
    assert fast["throughput"] == pytest.approx(4 / 0.001)
    assert fast["speedup"]["value"] == pytest.approx(3.0)
    assert fast["speedup"]["ci95"] == pytest.approx((3.0, 3.0))
    assert document["base"]["4"]["speedup"] is None
    assert fast["latency"]["stable"]
    assert np.median(found.series["fast"][4].counted_ms) == pytest.approx(1.0)


def test_every_timed_call_is_kept_and_counted(clock: Clock) -> None:
    log: list[str] = []
    found = session(clock, base=3.0, fast=1.0, log=log)
    for name in ("base", "fast"):
        samples, said = found.series[name][4].counted_ms, found.to_json()[name]["4"]["latency"]
        assert samples.size == said["samples"]
        # Every turn begins with 2.5 ms of calls that are not timed, three or one; the rest was warm-up.
        untimed = {"base": 1, "fast": 3}[name] * len(samples)
        assert log.count(name) == samples.size + untimed + said["warmup"]


def test_candidates_take_turns_and_follow_no_fixed_neighbour(clock: Clock) -> None:
    log: list[str] = []
    found = session(clock, a=1.0, b=1.0, c=1.0, log=log)
    calls = found.series["a"][4].counted_ms.shape[1] + 3
    count = len(found.series["a"][4].counted_ms)
    timed = log[-3 * calls * count :]
    turns = [timed[i] for i in range(0, len(timed), calls)]
    assert all(sorted(turns[i : i + 3]) == ["a", "b", "c"] for i in range(0, len(turns), 3))
    firsts = [turns[i] for i in range(0, len(turns), 3)]
    assert min(firsts.count(n) for n in "abc") > 0.15 * len(firsts)


def test_drift_of_the_machine_falls_on_both_sides_alike(clock: Clock) -> None:
    def slower(pace: float) -> Callable[[int], float]:
        return lambda n: pace * (1 + clock.now / 4e9)

    found = session(clock, base=slower(2.0), fast=slower(1.0))
    assert found.speedup("fast", 4).value == pytest.approx(2.0, rel=0.01)
    # The twin: one after the other, the same drift would have been taken for a difference.
    rows = {name: per_batch[4].counted_ms for name, per_batch in found.series.items()}
    half = len(rows["base"]) // 2
    apart = np.median(rows["base"][half:]) / np.median(rows["fast"][:half])
    assert apart == pytest.approx(2.0, rel=0.5)
    assert abs(apart / 2.0 - 1) > 0.05


def cold_after_another(log: list[str], name: str, pace: float, cold: int) -> Callable[[int], float]:
    """The first `cold` calls after another candidate's take longer, twice as long and less each time."""

    def ms(_: int) -> float:
        own = next((i for i, other in enumerate(reversed(log)) if other != name), len(log))
        return pace * (1 + 0.5**own if own < cold and log else 1.0)

    return ms


def test_cold_calls_at_the_start_of_a_turn_are_not_timed_even_of_slow_models(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured() -> tuple[float, float]:
        log: list[str] = []
        slow, fast = cold_after_another(log, "slow", 20.0, 1), cold_after_another(log, "fast", 0.4, 4)
        found = session(clock, log=log, slow=slow, fast=fast).to_json()
        return found["slow"]["4"]["latency"]["p99"], found["fast"]["4"]["latency"]["p99"]

    assert measured() == (pytest.approx(20.0), pytest.approx(0.4))
    monkeypatch.setattr(latency, "REWARM_S", 0.0)  # the twin: a single call does not warm a fast model's caches
    assert measured()[1] > 0.45


def test_warm_up_goes_on_until_two_windows_agree(clock: Clock) -> None:
    found = session(clock, base=lambda n: max(1.0, 10.0 - 0.2 * n), seconds=0.2)
    said = found.to_json()["base"]["4"]["latency"]
    assert said["warmup"] >= 40
    assert said["p99"] == pytest.approx(1.0)
    steady = session(clock, base=1.0, seconds=0.2).to_json()["base"]["4"]["latency"]
    assert steady["warmup"] < 150


def test_slow_models_get_twenty_rounds_and_very_slow_ones_at_least_five(clock: Clock) -> None:
    assert len(session(clock, base=10.0, seconds=0.2).series["base"][4].counted_ms) == 20
    assert 5 <= len(session(clock, base=50.0, seconds=0.2).series["base"][4].counted_ms) < 20
    assert len(session(clock, base=900.0, seconds=0.2).series["base"][4].counted_ms) == 5


def test_time_is_boxed_per_candidate(clock: Clock) -> None:
    session(clock, a=1.0, b=1.0, c=1.0, seconds=0.5)
    assert 1.5 <= clock.now / 1e9 < 1.5 + 3 * 0.3


def test_what_does_not_hold_still_is_said() -> None:
    rng = np.random.default_rng(0)
    still = rng.normal(1.0, 0.01, (60, 5))
    assert Series(still, 10).latency().stable
    assert not Series(still * np.linspace(1.0, 1.3, 60)[:, None], 10).latency().stable
    assert not Series(still * rng.choice([1.0, 1.6], 60)[:, None], 10).latency().stable
    spikes = still.copy()
    spikes[::20, 0] = 50.0  # stray outliers stand in p99, not in the verdict
    assert Series(spikes, 10).latency().stable
    assert Series(spikes, 10).latency().p99 > Series(still, 10).latency().p99


def test_percentiles_are_linear_between_samples() -> None:
    said = Series(np.arange(1.0, 12.0).reshape(1, 11), 0).latency()
    assert (said.p50, said.p90, said.p99, said.samples) == (6.0, 10.0, pytest.approx(10.9), 11)


def test_progress_ends_at_its_total(clock: Clock) -> None:
    told: list[tuple[int, int]] = []
    runners = {"base": Runner("base", clock, [], lambda _: 1.0)}
    feeds = {1: FEED, 2: FEED}
    measure_latency(runners, feeds, baseline="base", seconds=0.3, progress=lambda *now: told.append(now), watch=Quiet())
    assert told == sorted(told)
    assert {total for _, total in told} == {200}
    assert told[-1][0] >= 195


def test_garbage_is_not_collected_while_timing(clock: Clock) -> None:
    seen: list[bool] = []

    def pace(_: int) -> float:
        seen.append(gc.isenabled())
        return 1.0

    session(clock, base=pace, seconds=0.1)
    assert not any(seen[-50:])
    assert gc.isenabled()


def test_a_failing_call_is_named(clock: Clock) -> None:
    def fail(_: int) -> float:
        raise RuntimeError("out of memory")

    with pytest.raises(MeasurementError, match="broken: failed at batch 4: out of memory"):
        session(clock, base=1.0, broken=fail)


def test_a_real_pause_is_measured_as_long_as_it_is() -> None:
    class Sleeper:
        def bind(self, feed: Any) -> Callable[[], None]:
            return lambda: time.sleep(0.002)

    found = measure_latency({"base": Sleeper()}, {1: FEED}, baseline="base", seconds=0.1, progress=lambda *_: None)
    assert isinstance(found, LatencySession)
    assert found.to_json()["base"]["1"]["latency"]["p50"] >= 2.0


@linux
def test_pinning_holds_for_every_thread_and_is_undone() -> None:
    stop, other = threading.Event(), {}
    worker = threading.Thread(target=lambda: (other.update(id=threading.get_native_id()), stop.wait()))
    worker.start()
    while not other:
        time.sleep(0.001)
    before = os.sched_getaffinity(0)
    narrow = {min(before)}
    os.sched_setaffinity(other["id"], narrow)
    try:
        with pinned(1) as processors:
            assert len(processors) == 1
            assert os.sched_getaffinity(0) == set(processors) == os.sched_getaffinity(other["id"])
        assert os.sched_getaffinity(0) == before
        assert os.sched_getaffinity(other["id"]) == narrow
    finally:
        stop.set()
        worker.join()


@linux
def test_more_threads_than_processors_are_refused() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(MissingToolError, match="10000 threads are asked for"), pinned(10_000):
        pass
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize(
    ("cores", "frequencies", "busy", "threads", "chosen"),
    [
        ([{0}, {1}, {2}, {3}], {}, {}, 2, (2, 3)),  # the last: the first ones serve interrupts
        ([{0, 1}, {2, 3}], {}, {}, 2, (1, 3)),  # one a core before two of a core
        ([{0, 1}, {2, 3}], {}, {}, 3, (1, 2, 3)),
        # fast cores first
        ([{0}, {1}, {2}, {3}], {0: 5_000_000, 1: 5_000_000, 2: 3_800_000, 3: 3_800_000}, {}, 2, (0, 1)),
        ([{0}, {1}, {2}, {3}], {}, {3}, 2, (1, 2)),  # another measurement has the last one
        ([{0}, {1}], {0: 5_000_000, 1: 3_800_000}, {0}, 1, (0,)),  # a slower kind of core is another machine
    ],
)
def test_processors_are_fast_ones_of_different_cores(
    monkeypatch: pytest.MonkeyPatch,
    cores: list[set[int]],
    frequencies: dict[int, int],
    busy: set[int],
    threads: int,
    chosen: tuple[int, ...],
) -> None:
    def read(processor: int, name: str) -> str:
        if name.startswith("cpufreq"):
            return str(frequencies.get(processor, ""))
        return ",".join(map(str, sorted(next(c for c in cores if processor in c))))

    monkeypatch.setattr(affinity, "_read", read)
    assert affinity._choose(set().union(*cores), threads, frozenset(busy)) == chosen
