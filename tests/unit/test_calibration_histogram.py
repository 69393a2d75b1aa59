from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.calibration.histogram import BINS, CountingRoom, RunningHistogram

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def folded(*parts: np.ndarray) -> RunningHistogram:
    histogram = RunningHistogram()
    for part in parts:
        assert histogram.fold(part)
    return histogram


@settings(deadline=None, max_examples=150)
@given(st.lists(floats, min_size=1, max_size=60), st.randoms(use_true_random=False), st.data())
def test_any_split_and_order_gives_the_same_histogram(values: list[float], random: object, data: st.DataObject) -> None:
    array = np.array(values, dtype=np.float32)
    whole = folded(array)
    shuffled = array[np.array(data.draw(st.permutations(range(len(values)))))]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=5)))
    parts = folded(*np.split(shuffled, cuts))
    assert parts.exponent == whole.exponent
    assert (parts.minimum, parts.maximum) == (whole.minimum, whole.maximum)
    np.testing.assert_array_equal(parts.counts, whole.counts)


@settings(deadline=None, max_examples=100)
@given(st.lists(floats, min_size=1, max_size=60))
def test_every_value_lies_in_the_bin_that_counts_it(values: list[float]) -> None:
    histogram = folded(np.array(values, dtype=np.float32))
    bins = np.searchsorted(histogram.edges, np.array(values, dtype=np.float64), side="right") - 1
    np.testing.assert_array_equal(histogram.counts, np.bincount(bins, minlength=2 * BINS))
    assert histogram.total == len(values)


def test_counts_agree_with_numpy_over_a_range_that_grew() -> None:
    rng = np.random.default_rng(0)
    parts = [(rng.normal(size=200_000) * scale).astype(np.float32) for scale in (1e-3, 1.0, 30.0)]
    histogram = folded(*parts)
    expected, _ = np.histogram(np.concatenate(parts).astype(np.float64), bins=histogram.edges)
    np.testing.assert_array_equal(histogram.counts, expected)


def test_at_least_2048_bins_cover_the_longer_side() -> None:
    for largest in (1.0, 1.9999, 2.0, 3e-30, 1e30):
        histogram = folded(np.array([largest], dtype=np.float32))
        assert largest / histogram.bin_width >= 2047


def test_zeros_leave_the_range_open_for_tiny_values() -> None:
    tiny = np.full(3, 1e-20, dtype=np.float32)
    after = folded(np.zeros(5, dtype=np.float32), tiny)
    assert after.exponent == folded(tiny).exponent
    assert after.counts[BINS] == 5


def test_a_value_that_is_not_finite_is_told_and_not_counted() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        histogram = RunningHistogram()
        assert not histogram.fold(np.array([1.0, bad], dtype=np.float32))
        assert histogram.total == 0


def test_memory_does_not_grow_with_the_data() -> None:
    histogram = RunningHistogram()
    before = histogram.counts.nbytes
    for seed in range(20):
        histogram.fold(np.random.default_rng(seed).normal(size=10_000).astype(np.float32) * seed)
    assert histogram.counts.nbytes == before
    assert histogram.total == 200_000


def test_a_room_that_held_other_values_before_changes_no_count() -> None:
    rng = np.random.default_rng(1)
    room = CountingRoom()
    parts = [(rng.normal(size=size) * 10.0**power).astype(np.float32) for size, power in ((150_000, 2), (70_000, 9))]
    parts += [np.abs(parts[0]), np.zeros(65_537, np.float32), parts[0][:3], parts[0][:0]]
    kept = RunningHistogram()
    for part in parts:
        assert kept.fold(part, room)
    fresh = folded(*parts)
    np.testing.assert_array_equal(kept.counts, fresh.counts)
    assert kept.total == sum(part.size for part in parts)
    expected, _ = np.histogram(np.concatenate(parts).astype(np.float64), bins=kept.edges)
    np.testing.assert_array_equal(kept.counts, expected)


def test_a_value_that_is_not_finite_leaves_the_counts_of_earlier_blocks_out() -> None:
    values = np.ones(200_000, np.float32)
    values[-1] = np.inf
    histogram = folded(np.full(5, 0.5, np.float32))
    assert not histogram.fold(values)
    assert (histogram.total, histogram.maximum) == (5, 0.5)


@pytest.mark.parametrize("least", [0.1, -0.1])
@pytest.mark.parametrize("exponent", [-3, 0, 5, 11, 40])
def test_float64_is_counted_as_the_float32_that_it_rounds_to(least: float, exponent: int) -> None:
    """Just below a power of two that is the power itself, which a range up to it does not hold."""
    values = np.array([least, np.nextafter(1.0, 0.0)]) * 2.0**exponent
    rounded = values.astype(np.float32)
    assert rounded[1] == 2.0**exponent
    found, expected = folded(values), folded(rounded)
    assert (found.total, found.exponent) == (2, expected.exponent)
    np.testing.assert_array_equal(found.counts, expected.counts)
