from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.calibration.estimators import minmax, percentile
from optimizer.calibration.histogram import RunningHistogram


def histogram_of(values: np.ndarray) -> RunningHistogram:
    histogram = RunningHistogram()
    for part in np.array_split(values.astype(np.float32), 3):
        assert histogram.fold(part)
    return histogram


def exact(values: np.ndarray, percent: float) -> float:
    """The smallest value that at least `percent` of all values do not exceed, in float64 by sorting."""
    ordered = np.sort(values.astype(np.float32).astype(np.float64))
    return float(ordered[max(int(np.ceil(len(ordered) * percent / 100 - 1e-6)), 1) - 1])


def test_minmax_covers_every_value() -> None:
    values = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    found = minmax(histogram_of(values))
    assert (found.low, found.high) == (float(values.min()), float(values.max()))
    assert found.magnitude == float(np.abs(values).max())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([90.0, 99.0, 99.9, 99.99, 100.0]), st.floats(-3, 3))
def test_percentile_agrees_with_sorting_within_one_bin(seed: int, percent: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, size=3000) + shift
    histogram = histogram_of(values)
    found = percentile(histogram, percent)
    width = histogram.bin_width
    side = 100 - (100 - percent) / 2
    assert found.magnitude == pytest.approx(exact(np.abs(values), percent), abs=width)
    assert found.high == pytest.approx(exact(values, side), abs=width)
    assert found.low == pytest.approx(-exact(-values, side), abs=width)
    assert found.magnitude >= exact(np.abs(values), percent)


def test_one_bin_is_a_tolerance_that_another_percentile_does_not_meet() -> None:
    values = np.random.default_rng(0).standard_t(3, size=3000)
    histogram = histogram_of(values)
    assert abs(percentile(histogram, 99.0).magnitude - exact(np.abs(values), 99.5)) > 10 * histogram.bin_width


def test_percentile_100_is_minmax() -> None:
    histogram = histogram_of(np.random.default_rng(0).normal(size=5000))
    assert percentile(histogram, 100.0) == minmax(histogram)


def test_percentile_and_minmax_differ_where_there_are_outliers() -> None:
    values = np.append(np.random.default_rng(0).normal(size=200_000), [80.0])
    histogram = histogram_of(values)
    assert minmax(histogram).magnitude == 80.0
    assert percentile(histogram, 99.99).magnitude < 6.0


def test_a_tensor_of_zeros_has_the_range_zero() -> None:
    found = percentile(histogram_of(np.zeros(100)), 99.9)
    assert (found.low, found.high, found.magnitude) == (0.0, 0.0, 0.0)


def test_values_of_one_sign_keep_the_other_bound_at_their_own_extreme() -> None:
    values = np.random.default_rng(0).uniform(1.0, 2.0, size=10_000)
    found = percentile(histogram_of(values), 99.0)
    assert 1.0 <= found.low < 1.02
    assert 1.97 < found.high < 2.0
