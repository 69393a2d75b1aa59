"""Graphs compared on the same samples: chance is taken for a difference in 5 % of cases, a difference is seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optimizer.calibration.paired import FEWEST, gains

GRAPHS = 9


def errors(rng: np.random.Generator, samples: int, *, wild: bool = False) -> Any:
    """Shares of error of ten graphs that differ by chance alone; some samples are harder than others for all."""
    hard = rng.lognormal(0, 0.7, samples)
    size = (GRAPHS + 1, samples)
    return hard * (rng.lognormal(0, 1.2, size) if wild else (rng.normal(size=(*size, 2)) ** 2).mean(2))


@pytest.mark.parametrize("samples", [8, 32, 128])
@pytest.mark.parametrize("wild", [False, True])
def test_of_nine_graphs_that_differ_by_chance_none_is_better_in_95_of_100_cases(samples: int, wild: bool) -> None:
    rng = np.random.default_rng(2)
    better = best = 0
    for _ in range(300):
        plain, *others = errors(rng, samples, wild=wild)
        found = gains(plain, dict(enumerate(others)))
        better += any(gain.low > 0 for gain in found.values())
        best += any(gain.db > 0.1 for gain in found.values())
    assert better <= 0.05 * 300
    assert best > 0.8 * 300  # the twin: by the number alone one of nine nearly always wins


def test_a_difference_that_all_samples_share_is_seen_where_the_samples_themselves_differ_more() -> None:
    hard = np.random.default_rng(0).lognormal(0, 2, 64)
    found = gains(hard, {"better": hard / 1.1, "shuffled": np.random.default_rng(1).permutation(hard) / 1.1})
    assert found["better"].low > 0
    assert found["better"].db == pytest.approx(0.414, abs=1e-3)
    assert found["shuffled"].low < 0  # the twin: not paired, the same numbers say nothing


def test_few_samples_and_what_is_no_number_are_no_gain() -> None:
    plain = np.ones(FEWEST)
    assert gains(plain[1:], {"a": plain[1:] / 9})["a"].low == -np.inf
    assert gains(plain, {"a": plain / 9})["a"].low > 0
    assert gains(plain, {"a": plain * np.nan})["a"].low == -np.inf


def test_what_more_samples_would_not_lessen_widens_the_interval() -> None:
    plain = np.random.default_rng(0).lognormal(0, 1, 64)
    assert gains(plain, {"a": plain / 1.3})["a"].low > 0
    assert gains(plain, {"a": plain / 1.3}, beyond_samples=2.0)["a"].low < 0


def test_graphs_that_err_on_different_samples_are_not_told_apart_and_have_bounds() -> None:
    """In some draws one of the two is left with no error at all, or with less than none by rounding."""
    first, second = np.zeros(8), np.zeros(8)
    first[0], second[1] = 1e-3, 5e-4
    one = np.full(20, 1e-9)
    one[0] = 1e-2
    for base, other in ((first, second), (one, np.roll(one, 1) / 2)):
        (gain,) = gains(base, {"other": other}).values()
        assert gain.db == pytest.approx(3.01, abs=0.01)
        assert np.isfinite([gain.low, gain.high]).all()
        assert gain.low < 0 < gain.high
