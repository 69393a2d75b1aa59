"""The alpha of smooth_quant: auto, by errors of each sample: not the luckiest, the middle of what is surely better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from optimizer.calibration.probe import decibels
from optimizer.calibration.smoothing import GRID, pick

ALPHAS = (0.35, 0.4, 0.45, *GRID[1:])


def trials(
    rng: np.random.Generator, samples: int, gain_db: Mapping[float, float], rounding_db: float = 0.0, values: int = 2
) -> dict[float | None, Any]:
    """Shares of error by sample, of a plain graph at 40 dB and of alphas with this gain; each rounds anew.

    A sample has so many independent `values` in its outputs.
    """
    hard = rng.lognormal(0, 0.5, samples)
    found: dict[float | None, Any] = {}
    for alpha in (None, *ALPHAS):
        gain = (gain_db.get(alpha, 0.0) if alpha else 0.0) + rng.normal() * rounding_db
        found[alpha] = hard * rng.chisquare(values, samples) / values * 1e-4 / samples * 10 ** (-gain / 10)
    return found


@pytest.mark.parametrize(
    ("samples", "rounding_db", "values"),
    [(15, 0.0, 2), (32, 0.0, 2), (128, 0.0, 2), (128, 1.0, 2), (128, 1.0, 8), (128, 1.0, 64)],
)
def test_noise_alone_takes_an_alpha_in_at_most_5_of_100_cases(samples: int, rounding_db: float, values: int) -> None:
    rng = np.random.default_rng(3)
    cases = [trials(rng, samples, {}, rounding_db, values) for _ in range(100)]
    assert sum(pick(case).alpha is not None for case in cases) <= 5
    highest = [max(decibels(case[a]) for a in ALPHAS) > decibels(case[None]) + 0.1 for case in cases]
    assert sum(highest) > 80  # the twin: what has the best number


@pytest.mark.parametrize(
    ("samples", "values", "at_least"), [(32, 8, 0.8), (128, 2, 0.8), (128, 8, 0.98), (32, 64, 0.98)]
)
def test_a_true_gain_of_3_db_is_taken(samples: int, values: int, at_least: float) -> None:
    rng = np.random.default_rng(4)
    found = [pick(trials(rng, samples, dict.fromkeys(ALPHAS, 3.0), 0.2, values)) for _ in range(50)]
    assert sum(f.alpha is not None for f in found) >= 50 * at_least


def test_a_lone_peak_does_not_win_and_a_plateau_does() -> None:
    lone = trials(np.random.default_rng(5), 128, {0.4: 3.0})
    assert pick(lone).alpha is None
    assert decibels(lone[0.4]) > decibels(lone[None]) + 2
    broad = trials(np.random.default_rng(5), 128, {0.5: 1.5, 0.6: 2.5, 0.7: 3.0, 0.8: 2.5, 0.9: 1.5}, values=8)
    assert pick(broad).alpha in (0.6, 0.7, 0.8)


def test_the_newcomers_curve_leaves_the_graph_as_it_is() -> None:
    curve = {0.35: 41.5, 0.4: 43.3, 0.45: 41.3, 0.5: 39.5, 0.6: 41.8, 0.7: 40.9, 0.8: 41.0, 0.9: 39.0, 1.0: 38.5}
    found = trials(np.random.default_rng(6), 32, {alpha: db - 41.2 for alpha, db in curve.items()})
    assert pick(found).alpha is None


def test_of_those_not_told_apart_from_the_best_the_middle_is_taken() -> None:
    plain = np.random.default_rng(7).lognormal(0, 0.5, 64) * 1e-3
    gain = {0.4: 2.0, 0.5: 4.0, 0.6: 8.0, 0.7: 8.0, 0.8: 8.0, 0.9: 8.0, 1.0: 5.0}
    found = pick({None: plain, **{alpha: plain * 10 ** (-db / 10) for alpha, db in gain.items()}})
    assert found.alpha == 0.7  # of 0.7 and 0.8, as near to the middle, the smaller change
    assert found.near == (0.6, 0.8, 0.9)
    assert found.gain.low > 0


def test_a_gain_at_the_end_of_the_grid_counts_with_its_only_neighbour() -> None:
    plain = np.random.default_rng(8).lognormal(0, 0.5, 64) * 1e-3
    gain = {0.4: 1.0, 0.5: 2.5, 0.6: 4.0, 0.7: 5.5, 0.8: 7.0, 0.9: 8.3, 0.95: 8.4, 1.0: 8.5}
    found = pick({None: plain, **{alpha: plain * 10 ** (-db / 10) for alpha, db in gain.items()}})
    assert found.alpha is not None
    assert found.alpha >= 0.9
