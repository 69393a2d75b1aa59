"""A budget that the first rounds leave open is looked at again, up to a bound; what is decided is rarely wrong."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from child_runners import ScriptedRunner
from latency_clock import Clock, Quiet

from optimizer.errors import MissingToolError, StageError
from optimizer.measure import latency, surroundings
from optimizer.measure import sweep as sweep_module
from optimizer.measure.percentile import Percentile
from optimizer.measure.series import Series
from optimizer.measure.sweep import DECIDING, LOOKS, Curve, sweep
from optimizer.runtime.session import Array, Feed, Session

BUDGET_MS = 10.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(latency, "time", fake)
    return fake


def surround(monkeypatch: pytest.MonkeyPatch, disturbs: Callable[[int], bool] = lambda _: False) -> None:
    monkeypatch.setattr(sweep_module, "Watch", lambda device: contextlib.nullcontext(Quiet(disturbs)))


class Paced(Session):
    """Batch b takes b ms, 3 below 3, with 5 % of noise."""

    def __init__(self, clock: Clock, frozen: list[int] | None) -> None:
        self._clock, self._rng, self._frozen = clock, np.random.default_rng(0), frozen

    def infer(self, feed: Feed) -> dict[str, Array]:
        return {}

    def bind(self, feed: Feed) -> Callable[[], None]:
        batch = len(feed["x"])
        if batch > 64:
            raise StageError("out of memory")

        def call() -> None:
            if self._frozen is not None:
                self._frozen.append(gc.get_freeze_count())
            self._clock.now += round(1e6 * max(3, batch) * self._rng.lognormal(0, 0.05))

        return call


def swept(
    clock: Clock,
    batches: tuple[int, ...],
    budget_ms: float | None = BUDGET_MS,
    seconds: float = 2.0,
    frozen: list[int] | None = None,
    device: str = "cpu",
) -> Curve:
    """Sweep; `frozen` takes, of each call, how many objects the garbage collector passes over."""

    class Timed(ScriptedRunner):
        def __init__(self) -> None:
            super().__init__()
            self.device = device

        def open(self) -> Session:
            return Paced(clock, frozen)

    return sweep(
        Timed,
        lambda b: {"x": np.ones((b, 1), np.float32)},
        batches,
        budget_ms=budget_ms,
        seconds=seconds,
        percentile=50,
    )


def test_a_budget_far_from_every_batch_takes_one_look(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    surround(monkeypatch)
    curve = swept(clock, (1, 4, 32))
    assert [p.held for p in curve.points.values()] == ["holds", "holds", "broken"]
    assert (curve.looks, curve.to_json()["looks"]) == (1, 1)
    assert swept(clock, (1, 4), budget_ms=None).looks == 1


def test_an_open_budget_takes_more_rounds_up_to_the_bound_and_stays_undecided(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    surround(monkeypatch)
    once, more = swept(clock, (4, 10), budget_ms=None), swept(clock, (4, 10), budget_ms=10.0)
    assert more.looks == len(LOOKS) == 3
    assert more.points[10].held == "undecided"
    assert more.best == 4
    assert more.reasons[1].startswith("batch 10 is undecided: p50 ")
    assert more.reasons[1].endswith(" against 10 ms")
    for batch in (4, 10):  # four times the rounds, all of them paired
        assert len(more.points[batch].rounds_ms) == pytest.approx(4 * len(once.points[batch].rounds_ms), rel=0.1)


def test_more_rounds_decide_what_the_first_could_not(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch 10 does more items a second than batch 2: it is the best as soon as it is known to hold the budget."""
    surround(monkeypatch)
    budget = 10.07  # within the interval of the first look, outside that of all
    curve = swept(clock, (2, 10), budget_ms=budget)
    assert curve.points[10].held == "holds"
    assert curve.looks > 1
    assert curve.best == 10
    monkeypatch.setattr(sweep_module, "LOOKS", LOOKS[:1])
    once = swept(clock, (2, 10), budget_ms=budget)
    assert (once.points[10].held, once.best) == ("undecided", 2)


def test_batches_are_timed_without_collections_over_what_was_there_before(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    surround(monkeypatch)
    frozen: list[int] = []
    swept(clock, (1, 4), None, 0.02, frozen)
    first, second, *timed = frozen  # each batch is called once before
    assert min(timed) > 1000
    assert max(first, second) < 1000
    assert gc.get_freeze_count() == 0


def test_the_gpu_that_runs_the_batches_is_watched(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(device: str) -> Any:
        raise MissingToolError("this machine has no NVIDIA GPU", where=f"device {device}")

    monkeypatch.setattr(surroundings, "opened", absent)
    said = "the GPU was not watched: device cuda:1: this machine has no NVIDIA GPU"
    assert said in swept(clock, (1,), None, 0.02, device="cuda:1").surroundings["complaints"]
    assert said not in swept(clock, (1,), None, 0.02).surroundings["complaints"]


def test_a_batch_that_broke_the_budget_takes_no_more_time(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    surround(monkeypatch)
    curve = swept(clock, (4, 10, 32), budget_ms=10.0)
    assert curve.points[32].held == "broken"
    assert len(curve.points[32].rounds_ms) < len(curve.points[10].rounds_ms) / 3


def test_a_disturbed_batch_cannot_break_the_budget_and_a_quiet_one_can(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    surround(monkeypatch, lambda _: True)
    curve = swept(clock, (4, 32))
    assert [p.held for p in curve.points.values()] == ["holds", "undecided"]
    assert curve.looks == 3
    assert curve.reasons[1].endswith("is beyond 10 ms, but its rounds were disturbed")
    surround(monkeypatch)
    assert swept(clock, (4, 32)).points[32].held == "broken"


def test_three_looks_together_err_as_seldom_as_one() -> None:
    """A budget at the truth: whatever is decided is wrong. 95 % at each look would err more often than 5 in 100."""
    rng = np.random.default_rng(7)
    trials = 60
    wrong = {DECIDING: 0, 0.95: 0}
    for _ in range(trials):
        calls = np.exp(rng.normal(0, 0.05, (80, 5)))
        for level in wrong:
            looks = (Percentile(calls[:n], 50).interval(level) for n in (20, 40, 80))
            wrong[level] += any(low > 1.0 or high < 1.0 for low, high in looks)
    assert wrong[DECIDING] / trials <= 0.1  # 5 % and two standard errors
    assert wrong[DECIDING] < wrong[0.95]


def test_rounds_of_two_looks_are_kept_in_order() -> None:
    one, two = (Series(np.full((3, 2), ms), 5, (False, True, False)) for ms in (1.0, 2.0))
    both = sweep_module._extended(one, two)
    assert both.rounds_ms[:, 0].tolist() == [1, 1, 1, 2, 2, 2]
    assert (both.warmup, both.disturbed) == (10, (False, True, False) * 2)
