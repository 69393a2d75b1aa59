"""Latency of all candidates in one session: warmed up, interleaved in a shuffled order, every timed call kept."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from optimizer.data.samples import Array
from optimizer.errors import MeasurementError, OptimizerError
from optimizer.measure.affinity import pinned
from optimizer.measure.collector import frozen, no_collection
from optimizer.measure.series import FEWEST_ROUNDS, ROUNDS, LatencySession, Series, merged
from optimizer.measure.statistics import SEED
from optimizer.measure.surroundings import Watch

__all__ = [
    "Effort",
    "LatencySession",
    "Series",
    "Timed",
    "Watching",
    "blamed",
    "measure_latency",
    "measure_openings",
    "measure_rounds",
    "pinned",
]

# docs/measurement.md explains each of these.
WARMUP_CALLS = 5
WARMUP_WINDOW_S = 0.05
WARMUP_AGAIN_S = 0.02
WARMUP_AGAIN_CALLS = 2
WARMUP_MOST_S = 2.0
WARMUP_AGAIN_MOST_S = 0.25
WARMUP_SHARE = 2.0  # a warm-up takes at most so many times the timed seconds, the first one those of all openings
WARMUP_AGREEMENT = 0.05
TURN_S = 0.005
REWARM_S = 0.0025
TURN_MOST_CALLS = 50
REPLACED = 2.0
OVERTIME = 3.0
OPENINGS = 6
IMPORTS_S = 20.0  # no runtime takes longer to import


class Timed(Protocol):
    """A runner or session: `bind` returns the call that is timed."""

    def bind(self, feed: Mapping[str, Array]) -> Callable[[], None]:
        """Place inputs and outputs, and return a call of no arguments that waits for the end."""


class Watching(Protocol):
    """What is told of each round; `surroundings.Watch` is one."""

    def begin(self) -> None:
        """Start anew."""

    def round(self) -> tuple[str, ...]:
        """End a round; return what disturbed it."""

    def facts(self) -> dict[str, Any]:
        """Return what was seen since `begin`, as JSON."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured, and by what rules; `like` is an earlier opening, whose turns had the calls of these."""

    seconds: float
    rounds: int = ROUNDS
    fewest: int = FEWEST_ROUNDS  # where `rounds` take far more than the budget
    like: LatencySession | None = None
    opening: int = 0  # each has turns in another order
    openings: int = 1  # that have `seconds` each

    @property
    def window(self) -> tuple[int, float, float]:
        """Least calls and seconds of a warm-up window, and the seconds of all; fewer once all has been warm before."""
        if self.like is None:
            return WARMUP_CALLS, WARMUP_WINDOW_S, min(WARMUP_MOST_S, WARMUP_SHARE * self.openings * self.seconds)
        return WARMUP_AGAIN_CALLS, WARMUP_AGAIN_S, min(WARMUP_AGAIN_MOST_S, WARMUP_SHARE * self.seconds)

    def calls_per_turn(self, name: str, batch: int, pace: float) -> int:
        """Timed calls of one turn: about 5 ms of work, or as many as in the earlier opening."""
        if self.like is not None:
            return int(self.like.series[name][batch].rounds_ms.shape[1])
        return max(1, min(TURN_MOST_CALLS, math.ceil(TURN_S / pace)))


def measure_openings(
    opened: Callable[[], AbstractContextManager[Mapping[str, Timed]]],
    feeds: Mapping[int, Mapping[str, Array]],
    *,
    baseline: str,
    seconds: float,
    progress: Callable[[int, int], None],
    watch: Watching | None = None,
) -> LatencySession:
    """Measure as `measure_latency` does, `seconds` of calls each in all, opening the candidates 6 times.

    Where a candidate's memory happens to lie changes its speed, for as long as it is open: one opening cannot know by
    how much. Candidates that take longer to open five more times than to measure are opened once; opening is all up to
    the first call, in which some compile, without importing the runtimes.
    Source: Mytkowicz et al. 2009, ASPLOS (layout); Kalibera and Jones 2013, ISMM (repeat the level that varies).
    Raises: MeasurementError as `measure_latency` does, and what `opened` raises.
    """
    sessions: list[LatencySession] = []
    wanted, tried = OPENINGS, 0
    with contextlib.ExitStack() as stack:
        watch = watch if watch is not None else stack.enter_context(Watch())
        stack.enter_context(frozen())
        while len(sessions) < wanted:
            begun, tried = time.perf_counter(), tried + 1
            with opened() as runners:
                took = _opening_s(runners, feeds, begun) if not sessions else 0.0
                if (OPENINGS - 1) * took > seconds * len(runners) * len(feeds):
                    if tried == 1 and took < IMPORTS_S:
                        continue  # it may have imported the runtimes, which is done once
                    wanted = 1
                like = sessions[0] if sessions else None
                rounds, fewest = math.ceil(ROUNDS / wanted), math.ceil(FEWEST_ROUNDS / wanted)
                effort = Effort(seconds / wanted, rounds, fewest, like, len(sessions), wanted)

                def tell(done: int, total: int, before: int = len(sessions), parts: int = wanted) -> None:
                    progress(before * total + done, parts * total)

                sessions.append(_measure(runners, feeds, baseline, effort, tell, watch))
    return merged(sessions)


def _opening_s(runners: Mapping[str, Timed], feeds: Mapping[int, Mapping[str, Array]], begun: float) -> float:
    """Return what opening took since `begun`, with the first call of each, in which some runtimes compile."""
    for batch, feed in feeds.items():
        for name, runner in runners.items():
            with blamed(name, batch):
                runner.bind(feed)()
    return time.perf_counter() - begun


def measure_latency(
    runners: Mapping[str, Timed],
    feeds: Mapping[int, Mapping[str, Array]],
    *,
    baseline: str,
    seconds: float,
    progress: Callable[[int, int], None],
    watch: Watching | None = None,
) -> LatencySession:
    """Time every runner at every batch, `seconds` of calls each.

    A round gives every runner one turn of a few calls, in an order that is shuffled anew: drift of the machine falls on
    all of them alike, and nobody always follows the same neighbour. Each turn begins with 2.5 ms of calls that are
    not timed, at least one, because the caches still hold the neighbour's data.
    At least 20 rounds are taken; where those need more than three times the budget as many as it holds, at least 5.
    A round that `watch` (this process, if none is given) finds disturbed is marked and another one taken, until twice
    the budget is spent. What its calls took plays no part in that.
    Raises: MeasurementError, `where` naming the runner that could not be bound or failed while warming up.
    """
    with contextlib.ExitStack() as stack:
        watch = watch if watch is not None else stack.enter_context(Watch())
        return measure_rounds(runners, feeds, baseline=baseline, effort=Effort(seconds), progress=progress, watch=watch)


def measure_rounds(
    runners: Mapping[str, Timed],
    feeds: Mapping[int, Mapping[str, Array]],
    *,
    baseline: str,
    effort: Effort,
    progress: Callable[[int, int], None],
    watch: Watching,
) -> LatencySession:
    """Measure as `measure_latency` does, with this much effort; raises what it raises."""
    with frozen():
        return _measure(runners, feeds, baseline, effort, progress, watch)


def _measure(
    runners: Mapping[str, Timed],
    feeds: Mapping[int, Mapping[str, Array]],
    baseline: str,
    effort: Effort,
    progress: Callable[[int, int], None],
    watch: Watching,
) -> LatencySession:
    series: dict[str, dict[int, Series]] = {name: {} for name in runners}
    surroundings = {}
    for index, (batch, feed) in enumerate(feeds.items()):
        calls = {}
        for name, runner in runners.items():
            with blamed(name, batch):
                calls[name] = runner.bind(feed)
        warmups = {name: _warm_up(call, name, batch, effort.window) for name, call in calls.items()}
        turns = {name: effort.calls_per_turn(name, batch, pace) for name, (_, pace) in warmups.items()}

        def tell(share: float, before: int = index) -> None:
            progress(round(100 * (before + share)), 100 * len(feeds))

        gathered = _Rounds(calls, turns, watch, effort)
        gathered.take(effort.seconds * len(calls), batch, tell)
        surroundings[batch] = watch.facts()
        for name, blocks in gathered.nanoseconds.items():
            series[name][batch] = Series(np.array(blocks) / 1e6, warmups[name][0], tuple(gathered.disturbed))
    return LatencySession(baseline, series, surroundings)


@contextlib.contextmanager
def blamed(name: str, batch: int | None = None) -> Iterator[None]:
    """Turn what a backend raises into a MeasurementError at this candidate; another one may be measured without it."""
    try:
        yield
    except (OptimizerError, RuntimeError, ValueError) as error:
        at = "" if batch is None else f" at batch {batch}"
        said, hint = (error.what, error.hint) if isinstance(error, OptimizerError) else (str(error), None)
        raise MeasurementError(f"failed{at}: {said}", where=name, hint=hint) from error


def _warm_up(call: Callable[[], None], name: str, batch: int, window_of: tuple[int, float, float]) -> tuple[int, float]:
    """Call until two windows in a row have medians within 5 %; return the calls made and the seconds of one."""
    fewest, least_s, most_s = window_of
    made, started, before = 0, time.perf_counter(), math.inf
    while True:
        window: list[float] = []
        opened = time.perf_counter()
        with blamed(name, batch):
            while len(window) < fewest or time.perf_counter() - opened < least_s:
                begun = time.perf_counter()
                call()
                window.append(time.perf_counter() - begun)
        made += len(window)
        median = float(np.median(window))
        if abs(median / before - 1) <= WARMUP_AGREEMENT or time.perf_counter() - started > most_s:
            return made, median
        before = median


class _Rounds:
    """Takes rounds: nanoseconds of every call, one list a turn, and whether each round was disturbed."""

    def __init__(
        self, calls: Mapping[str, Callable[[], None]], turns: Mapping[str, int], watch: Watching, effort: Effort
    ) -> None:
        self._calls, self._turns, self._watch, self._effort = calls, turns, watch, effort
        self._rng = np.random.default_rng((SEED, effort.opening))
        self.nanoseconds: dict[str, list[list[int]]] = {name: [] for name in calls}
        self.disturbed: list[bool] = []

    def take(self, budget: float, batch: int, tell: Callable[[float], None]) -> None:
        """Take rounds until `budget` seconds of undisturbed ones are there, or there is no hope of them."""
        names = list(self._calls)
        order = self._rng.permutation(len(names))
        started, quiet, spent = time.perf_counter(), 0.0, 0.0
        with no_collection():
            self._watch.begin()
            while self._owes(quiet, spent, budget):
                # Every second round goes the other way round: nobody is early more often than late.
                order = order[::-1] if len(self.disturbed) % 2 else self._rng.permutation(len(names))
                for position in order:
                    name = names[position]
                    with blamed(name, batch):
                        self.nanoseconds[name].append(_turn(self._calls[name], self._turns[name]))
                self.disturbed.append(bool(self._watch.round()))
                before, spent = spent, time.perf_counter() - started
                if not self.disturbed[-1]:
                    quiet += spent - before
                tell(min(1.0, quiet / budget))

    def _owes(self, quiet_s: float, spent_s: float, budget: float) -> bool:
        rounds = len(self.disturbed)
        quiet = rounds - sum(self.disturbed)
        replacing = (quiet_s < budget or quiet < self._effort.rounds) and spent_s < REPLACED * budget
        return replacing or rounds < (self._effort.rounds if spent_s < OVERTIME * budget else self._effort.fewest)


def _turn(call: Callable[[], None], count: int) -> list[int]:
    """Call untimed until the caches are this candidate's again, then time `count` calls in a row."""
    clock = time.perf_counter_ns
    times = []
    started = clock()
    while True:
        call()
        if clock() - started >= REWARM_S * 1e9:
            break
    for _ in range(count):
        begun = clock()
        call()
        times.append(clock() - begun)
    return times
