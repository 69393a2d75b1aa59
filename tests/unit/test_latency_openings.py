"""Candidates opened several times: where their memory happens to lie is part of what is measured."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from latency_clock import FEED, Clock, Quiet, Runner

from optimizer.measure import latency
from optimizer.measure.bootstrap import Ratio, interleaved_ratio, median
from optimizer.measure.latency import LatencySession, measure_openings
from optimizer.measure.series import Series
from optimizer.measure.verdict import difference


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(latency, "time", fake)
    return fake


class Openings:
    """Opens a base of 1 ms and another that is as fast as `paces` says of each opening; opening takes `seconds`."""

    def __init__(self, clock: Clock, paces: list[float], seconds: float = 0.0) -> None:
        self.clock, self.paces, self.seconds = clock, paces, seconds
        self.opened = self.closed = 0
        self.later: float | None = None  # what each opening but the first takes

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Mapping[str, Any]]:
        self.clock.now += round((self.later if self.opened and self.later is not None else self.seconds) * 1e9)
        pace = self.paces[self.opened]
        self.opened += 1
        yield {
            "base": Runner("base", self.clock, [], lambda _: 1.0),
            "own": Runner("own", self.clock, [], lambda _: pace),
        }
        self.closed += 1


def measured(
    openings: Openings, seconds: float = 1.0, progress: Callable[[int, int], None] = lambda done, total: None
) -> LatencySession:
    return measure_openings(openings, {4: FEED}, baseline="base", seconds=seconds, progress=progress, watch=Quiet())


def test_six_openings_share_the_budget_and_the_shape_of_turns(clock: Clock) -> None:
    openings = Openings(clock, [1.0, 1.9, 1.0, 1.0, 1.0, 1.0])
    found = measured(openings)
    assert (openings.opened, openings.closed) == (6, 6)
    assert len(found.series["own"][4].openings) == 6
    assert sum(found.series["own"][4].openings) == len(found.series["own"][4].rounds_ms)
    assert 2.0 < clock.now / 1e9 < 3.6
    assert found.series["own"][4].detail()["openings"] == 6
    assert len(found.surroundings[4]["stretches"]) == 6
    assert found.surroundings[4]["rounds"] == sum(found.series["own"][4].openings)
    assert found.series["own"][4].warmup >= 6 * 10


def test_no_two_openings_have_the_same_order_of_turns(clock: Clock) -> None:
    log: list[str] = []

    class Logged(Openings):
        @contextlib.contextmanager
        def __call__(self) -> Iterator[Mapping[str, Any]]:
            self.opened += 1
            log.append("|")
            yield {name: Runner(name, self.clock, log, lambda _: 9.0) for name in ("base", "own", "c", "d")}

    measured(Logged(clock, []), seconds=0.3)
    parts = "".join(name[0] for name in log).split("|")[1:]
    ends = [part[-32:] for part in parts]
    assert len(set(ends)) == 6


def test_what_takes_long_to_open_is_opened_once(clock: Clock) -> None:
    openings = Openings(clock, [1.0], seconds=30)
    found = measured(openings)
    assert openings.opened == 1
    assert found.series["own"][4].detail()["openings"] == 1
    assert len(found.series["own"][4].rounds_ms) >= 20


def test_importing_the_runtimes_is_no_reason_to_open_once(clock: Clock) -> None:
    """The first opening of a process imports them: seconds, where the next ones take a tenth."""
    openings = Openings(clock, [1.0] * 7, seconds=4.0)
    openings.later = 0.01
    assert measured(openings).series["own"][4].detail()["openings"] == 6
    assert (openings.opened, openings.closed) == (7, 7)
    slow = Openings(clock, [1.0] * 2, seconds=4.0)
    assert measured(slow).series["own"][4].detail()["openings"] == 1
    assert slow.opened == 2


def test_what_compiles_in_its_first_call_takes_long_to_open(clock: Clock) -> None:
    class Compiled(Openings):
        @contextlib.contextmanager
        def __call__(self) -> Iterator[Mapping[str, Any]]:
            self.opened += 1
            yield {
                name: Runner(name, self.clock, [], lambda n: 30_000.0 if n == 0 else 1.0) for name in ("base", "own")
            }

    openings = Compiled(clock, [])
    assert measured(openings).series["own"][4].detail()["openings"] == 1
    assert openings.opened == 1


def test_slow_models_are_measured_in_few_rounds_of_many_openings(clock: Clock) -> None:
    """Four rounds each would take four times the budget."""

    class Slow(Openings):
        @contextlib.contextmanager
        def __call__(self) -> Iterator[Mapping[str, Any]]:
            self.opened += 1
            yield {name: Runner(name, self.clock, [], lambda _: 190.0) for name in ("base", "own")}

    found = measured(Slow(clock, []), seconds=1.0).series["own"][4]
    assert found.openings == (2,) * 6
    assert found.mask.all()


def test_an_opening_that_happens_to_be_slow_is_no_difference(clock: Clock) -> None:
    """One opening alone would have called it."""
    paces = [1.03, 0.98, 1.0, 1.01, 0.985, 1.0]
    found = measured(Openings(clock, paces)).difference("own", 4)
    assert found is not None
    assert found.kind == "undecided"
    alone = measured(Openings(clock, paces[:1], seconds=30)).difference("own", 4)
    assert alone is not None
    assert alone.kind == "slower"


def test_a_slowdown_of_every_opening_is_found(clock: Clock) -> None:
    found = measured(Openings(clock, [1.05, 1.06, 1.045, 1.05, 1.055, 1.05])).difference("own", 4)
    assert found is not None
    assert found.kind == "slower"


def test_progress_grows_over_the_openings(clock: Clock) -> None:
    told: list[tuple[int, int]] = []
    measured(Openings(clock, [1.0] * 6), progress=lambda *now: told.append(now))
    assert told == sorted(told)
    assert {total for _, total in told} == {600}
    assert told[-1][0] >= 590


def test_drawing_openings_covers_the_truth_where_rounds_alone_do_not() -> None:
    rng = np.random.default_rng(6)
    trials, by_openings, by_rounds, found = 25, 0, 0, 0
    for _ in range(trials):
        drift = rng.lognormal(0, 0.01, 60)[:, None]
        base, own = (
            drift * np.repeat(rng.lognormal(0, 0.008, 6), 10)[:, None] * rng.lognormal(0, 0.01, (60, 4))
            for _ in range(2)
        )
        ratio = interleaved_ratio(own, base, openings=(10,) * 6)
        low, high = ratio.interval(0.99)
        by_openings += low <= 1 <= high
        low, high = interleaved_ratio(own[:10], base[:10]).interval(0.99)
        by_rounds += low <= 1 <= high
        found += difference(Ratio(1.05 * ratio.value, 1.05 * ratio.draws, ratio.degrees)).kind == "slower"
    assert by_openings / trials >= 0.97
    assert by_rounds / trials < 0.85
    assert found / trials >= 0.9


def test_openings_of_unequal_length_are_drawn_and_an_empty_one_is_left_out() -> None:
    samples = np.random.default_rng(0).lognormal(0, 0.05, (12, 5))
    found = median(samples, openings=(2, 7, 3))
    assert found.degrees == 2
    assert found.interval()[0] < np.median(samples) < found.interval()[1]
    disturbed = (True, True, *(False,) * 10)
    series = Series(samples, 0, disturbed, (2, 7, 3))
    assert series.counted_openings == (7, 3)
    assert Series(samples, 0).counted_openings == ()


def test_openings_are_stored_beside_the_rounds_that_count() -> None:
    samples = np.random.default_rng(0).lognormal(0, 0.05, (12, 5))
    disturbed = (True, True, *(False,) * 10)
    stored = LatencySession("base", {"base": {1: Series(samples, 0, disturbed, (2, 7, 3))}}).arrays()
    assert stored["openings/1"].tolist() == [7, 3]
    assert stored["openings/1"].sum() == len(stored["base/1"])
    assert "openings/1" not in LatencySession("base", {"base": {1: Series(samples, 0, (), (12,))}}).arrays()


def test_a_warm_up_takes_twice_the_timed_seconds_however_often_it_is_opened() -> None:
    """0.6 s are timed: six times 0.1 s, or once."""
    many = latency.Effort(0.1, openings=latency.OPENINGS)
    assert many.window[2] == pytest.approx(latency.Effort(0.6).window[2]) == pytest.approx(1.2)
    assert latency.Effort(60.0).window[2] == 2.0


class Restless:
    """A runner whose calls last 1 ms and 2 ms, in turn for 50 ms each: no two windows of a warm-up agree."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.since, self.ms = clock, clock.now, 1

    def bind(self, feed: Any) -> Callable[[], None]:
        def call() -> None:
            if self.clock.now - self.since >= 50_000_000:
                self.since, self.ms = self.clock.now, 3 - self.ms
            self.clock.now += self.ms * 1_000_000

        return call


@pytest.mark.parametrize(("seconds_to_open", "times", "most"), [(30.0, 1, 1000), (0.0, 6, 1000 + 5 * 250)])
def test_what_never_holds_still_is_warmed_up_for_twice_the_timed_seconds(
    clock: Clock, seconds_to_open: float, times: int, most: int
) -> None:
    """1.2 s of 100 ms with 75 calls each are 900; opened again, at most 0.2 s each."""
    own, opened = Restless(clock), []

    @contextlib.contextmanager
    def opening() -> Iterator[Mapping[str, Any]]:
        clock.now += round(seconds_to_open * 1e9)
        opened.append(clock.now)
        yield {"own": own}

    found = measure_openings(
        opening, {4: FEED}, baseline="own", seconds=0.6, progress=lambda done, total: None, watch=Quiet()
    )
    assert len(opened) == times
    assert 850 <= found.series["own"][4].warmup <= most
