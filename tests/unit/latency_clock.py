"""A clock that only calls move, runners of known length and surroundings of known noise; for the tests of latency."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from optimizer.measure.latency import measure_latency


class Clock:
    """A clock that only calls move: what is measured is exact, and takes no time."""

    def __init__(self) -> None:
        self.now = 0

    def perf_counter_ns(self) -> int:
        return self.now

    def perf_counter(self) -> float:
        return self.now / 1e9


class Runner:
    """Each call lasts `ms(n)` for its n-th call; the log holds who was called."""

    def __init__(self, name: str, clock: Clock, log: list[str], ms: Callable[[int], float]) -> None:
        self.name, self.clock, self.log, self.ms = name, clock, log, ms
        self.calls = 0

    def bind(self, feed: Any) -> Callable[[], None]:
        def call() -> None:
            self.clock.now += round(self.ms(self.calls) * 1e6)
            self.calls += 1
            self.log.append(self.name)

        return call


class Quiet:
    """Surroundings in which rounds are disturbed as `disturbs(n)` says of the n-th."""

    def __init__(self, disturbs: Callable[[int], bool] = lambda _: False) -> None:
        self.disturbs, self.rounds = disturbs, -1

    def begin(self) -> None:
        self.rounds = -1

    def round(self) -> tuple[str, ...]:
        self.rounds += 1
        return ("waited for a processor",) if self.disturbs(self.rounds) else ()

    def facts(self) -> dict[str, Any]:
        unknown = ("throttled_ms", "cpu_seconds_per_second", "waited_share", "others_share", "stolen_share", "mhz")
        known = {"seconds": 1.0, "rounds": self.rounds + 1, "disturbed_rounds": {}, "gpu": None, "gpu_unwatched": None}
        return dict.fromkeys(unknown) | known


FEED = {"x": np.zeros((1, 1), np.float32)}


def session(
    clock: Clock,
    seconds: float = 1.0,
    log: list[str] | None = None,
    watch: Quiet | None = None,
    **ms: float | Callable[[int], float],
) -> Any:
    log = [] if log is None else log
    paces = {n: v if callable(v) else (lambda _, v=v: v) for n, v in ms.items()}
    runners = {n: Runner(n, clock, log, pace) for n, pace in paces.items()}
    return measure_latency(
        runners,
        {4: FEED},
        baseline=next(iter(ms)),
        seconds=seconds,
        progress=lambda done, total: None,
        watch=watch or Quiet(),
    )
