"""Rounds that something else on the machine disturbed: marked, replaced, kept, and never chosen by what they took."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from latency_clock import Clock, Quiet, session

from optimizer.measure import latency
from optimizer.measure.series import LatencySession, Series, counted


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(latency, "time", fake)
    return fake


def noisy(clock: Clock, disturbs: Any, seconds: float = 1.0) -> LatencySession:
    found: LatencySession = session(clock, seconds, watch=Quiet(disturbs), base=2.0, fast=1.0)
    return found


def test_a_disturbed_round_is_replaced_and_kept(clock: Clock) -> None:
    quiet, some = noisy(clock, lambda _: False), noisy(clock, lambda n: n % 4 == 0)
    series = some.series["fast"][4]
    assert series.detail()["disturbed_rounds"] == sum(series.disturbed) >= 20
    assert len(series.counted_ms) == pytest.approx(len(quiet.series["fast"][4].rounds_ms), rel=0.1)
    assert len(series.rounds_ms) == len(series.counted_ms) + sum(series.disturbed)
    assert series.detail()["disturbed"] is False
    assert some.surroundings[4]["rounds"] == len(series.rounds_ms)


def test_replacing_ends_at_twice_the_budget_and_the_series_says_that_it_is_disturbed(clock: Clock) -> None:
    started = clock.now
    series = noisy(clock, lambda _: True).series["fast"][4]
    assert 3.9e9 < clock.now - started < 4.8e9
    assert series.mask.all()
    assert series.detail()["disturbed"] is True
    assert series.detail()["disturbed_rounds"] == len(series.rounds_ms)


def test_slow_models_on_a_noisy_machine_come_to_an_end(clock: Clock) -> None:
    found = session(clock, 0.2, watch=Quiet(lambda _: True), base=900.0)
    assert len(found.series["base"][4].rounds_ms) == 5


def test_rounds_are_chosen_by_the_mask_for_all_candidates_alike_and_not_by_their_values(clock: Clock) -> None:
    found = session(clock, watch=Quiet(lambda n: n % 3 == 0), base=lambda n: 90.0 if n % 50 == 0 else 2.0, fast=1.0)
    base, fast = found.series["base"][4], found.series["fast"][4]
    assert base.disturbed == fast.disturbed
    # Slow calls in undisturbed rounds count.
    assert base.counted_ms.max() == 90.0
    np.testing.assert_array_equal(base.mask, [n % 3 != 0 for n in range(len(base.mask))])


@pytest.mark.parametrize(
    ("quiet", "rounds", "alone"),
    [(20, 400, True), (19, 400, False), (10, 20, True), (9, 20, False), (5, 8, True), (4, 8, False), (3, 5, False)],
)
def test_undisturbed_rounds_count_alone_if_there_are_enough(quiet: int, rounds: int, alone: bool) -> None:
    mask = counted((False,) * quiet + (True,) * (rounds - quiet), rounds)
    assert mask.sum() == (quiet if alone else rounds)


def test_what_is_reported_comes_from_the_rounds_that_count() -> None:
    rounds = np.ones((60, 4))
    rounds[:10] = 5.0
    disturbed = (True,) * 10 + (False,) * 50
    clean, all_of_it = Series(rounds, 0, disturbed), Series(rounds, 0)
    assert (clean.latency().mean, clean.latency().samples) == (1.0, 200)
    assert clean.unstable is None
    assert all_of_it.latency().mean > 1.5  # the twin: nothing left out
    assert all_of_it.detail()["cv"] > clean.detail()["cv"] == 0.0


def test_every_sample_is_stored_with_its_place() -> None:
    rounds = np.arange(120.0).reshape(60, 2) + 1
    disturbed = tuple(n % 3 == 0 for n in range(60))
    found = LatencySession("base", {"base": {1: Series(rounds, 0, disturbed)}}).arrays()
    again = np.empty_like(rounds)
    again[found["rounds/1"]], again[~found["rounds/1"]] = found["base/1"], found["base/1/left_out"]
    np.testing.assert_array_equal(again, rounds)
    assert set(LatencySession("base", {"base": {1: Series(rounds, 0)}}).arrays()) == {"base/1"}


def test_scatter_and_the_medians_interval_are_told() -> None:
    samples = np.random.default_rng(0).lognormal(0, 0.1, (200, 5))
    detail = Series(samples, 0).detail()
    assert detail["cv"] == pytest.approx(0.1, rel=0.1)
    low, high = detail["p50_ci95"]
    assert low < 1.0 < high
    assert high - low == pytest.approx(2 * 1.96 * 0.1 * math.sqrt(math.pi / 2 / 1000), rel=0.35)


def test_what_did_not_hold_still_is_said_in_a_sentence() -> None:
    still = np.random.default_rng(0).normal(1.0, 0.01, (60, 5))
    assert Series(still, 0).unstable is None
    assert Series(still * np.linspace(1.0, 1.3, 60)[:, None], 0).unstable == (
        "the medians of the first and second half differ by 12%"
    )
    spread = Series(still * np.random.default_rng(0).choice([1.0, 1.6], 60)[:, None], 0)
    assert spread.unstable
    assert Series(still[:1], 0).unstable == "there is one round"


def test_the_session_judges_by_the_one_rule(clock: Clock) -> None:
    found = session(clock, base=2.0, slower=2.1, same=2.01)
    kinds = {name: found.difference(name, 4).kind for name in ("slower", "same")}
    assert kinds == {"slower": "slower", "same": "same within tolerance"}
    assert found.difference("base", 4) is None
    assert found.to_json()["slower"]["4"]["difference"]["ratio"] == pytest.approx(1.05)
