from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.calibration.divergence import divergences
from optimizer.calibration.doctor import expected_sqnr_db
from optimizer.calibration.estimators import entropy, estimates, minmax, mse, percentile
from optimizer.calibration.histogram import BINS, RunningHistogram


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


def int8_error(values: np.ndarray, magnitude: float) -> float:
    """Mean squared error of symmetric int8, value by value in float64."""
    scale = magnitude / 127
    return float(((values - np.clip(np.rint(values / scale), -127, 127) * scale) ** 2).mean())


def uint8_error(values: np.ndarray, low: float, high: float) -> float:
    """Mean squared error of uint8 with a whole zero point, value by value in float64."""
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    return float(((values - (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale) ** 2).mean())


def gelu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-1.7 * x))


SHAPES = {
    "relu": lambda rng: np.maximum(rng.normal(size=30_000), 0),
    "normal": lambda rng: rng.normal(size=30_000),
    "shifted": lambda rng: rng.normal(size=30_000) * 0.3 - 1.0,
    "heavy tails": lambda rng: rng.standard_t(3, size=30_000),
    "gelu": lambda rng: gelu(rng.normal(size=30_000) * 2),
}


def drawn(shape: str, seed: int = 0) -> np.ndarray:
    return SHAPES[shape](np.random.default_rng(seed)).astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_mse_errs_no_more_than_the_best_of_all_thresholds_tried_value_by_value(shape: str) -> None:
    values = drawn(shape)
    found = mse(histogram_of(values))
    largest = np.abs(values).max()
    best = min(int8_error(values, t) for t in np.linspace(largest / 100, largest, 100))
    assert int8_error(values, found.magnitude) <= best * 1.01
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    pairs = [
        (a * min(values.min(), 0.0), b * max(values.max(), 0.0))
        for a in np.linspace(0.1, 1, 19)
        for b in np.linspace(0.1, 1, 19)
    ]
    assert uint8_error(values, low, high) <= min(uint8_error(values, a, b) for a, b in pairs if b > a) * 1.02


def test_one_percent_is_a_tolerance_that_a_neighbouring_threshold_does_not_meet() -> None:
    values = drawn("heavy tails")
    found = mse(histogram_of(values)).magnitude
    for wrong in (found * 1.2, found * 0.8, minmax(histogram_of(values)).magnitude):
        assert int8_error(values, wrong) > int8_error(values, found) * 1.01


@pytest.mark.parametrize("shape", SHAPES)
def test_the_expected_error_is_that_of_the_values_themselves(shape: str) -> None:
    values = drawn(shape)
    histogram = histogram_of(values)
    for part in (0.2, 0.5, 1.0):
        magnitude = minmax(histogram).magnitude * part
        exact_db = 10 * np.log10((values**2).mean() / int8_error(values, magnitude))
        assert expected_sqnr_db(histogram, magnitude) == pytest.approx(exact_db, abs=0.1)


def test_a_tenth_of_a_decibel_tells_thresholds_two_percent_apart() -> None:
    values = drawn("normal")
    histogram = histogram_of(values)
    magnitude = minmax(histogram).magnitude
    exact_db = 10 * np.log10((values**2).mean() / int8_error(values, magnitude))
    found = expected_sqnr_db(histogram, magnitude * 1.02)
    assert found is not None
    assert abs(found - exact_db) > 0.1


def divergence(values: np.ndarray, bins: int, width: float, levels: int) -> float:
    """KL divergence of keeping `bins` bins of non-negative values, bin by bin in float64 as the slides have it."""
    kept = np.histogram(values, bins=np.arange(bins + 1) * width)[0].astype(np.float64)
    beyond = float((values >= bins * width).sum())
    kept[0] = min(kept[0], kept[1])  # exact zeros weigh no more than their neighbours
    reference = kept.copy()
    reference[-1] += beyond
    quantized = np.zeros(bins)
    groups: list[list[int]] = [[] for _ in range(levels)]
    for j in range(bins):
        groups[j * levels // bins].append(j)
    for members in groups:
        used = [j for j in members if reference[j] > 0]
        for j in used:
            quantized[j] = sum(kept[k] for k in members) / len(used)
    p, q = reference / reference.sum(), quantized / quantized.sum()
    if (q[p > 0] == 0).any():
        return np.inf
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())


@pytest.mark.parametrize("shape", ["relu", "heavy tails"])
def test_entropy_takes_the_threshold_of_least_divergence_of_all(shape: str) -> None:
    values = drawn("relu") if shape == "relu" else np.abs(drawn("heavy tails"))
    histogram = histogram_of(values)
    width = histogram.bin_width
    found = entropy(histogram)
    for threshold, levels in ((found.magnitude, 128), (found.high, 256)):
        bins = int(np.ceil(threshold / width))
        mine = divergence(values, bins, width, levels)
        last = int(values.max() / width) + 1
        tried = [divergence(values, b, width, levels) for b in (*range(levels, last, 97), bins - 1, bins + 1)]
        assert mine <= min(tried) + 1e-12
        assert max(tried) > mine * 1.05  # another threshold would show


def test_all_divergences_agree_with_the_bin_by_bin_ones() -> None:
    values = drawn("relu")
    histogram = histogram_of(values)
    counts = histogram.counts[BINS:].astype(np.float64)
    counts[0] -= histogram.zeros
    found = divergences(counts, range(128, 4001), 128)
    some = [128, 129, 200, 255, 256, 1000, 2047, 2500, 4000]
    looked_at = [found[bins - 128] for bins in some]
    expected = [divergence(values, bins, histogram.bin_width, 128) for bins in some]
    np.testing.assert_allclose(looked_at, expected, rtol=1e-9, atol=1e-12)
    wrong = [divergence(values, bins, histogram.bin_width, 127) for bins in some]
    assert not np.allclose(looked_at, wrong, rtol=1e-3)


def test_entropy_is_not_minmax_in_disguise() -> None:
    histogram = histogram_of(drawn("heavy tails"))
    found, widest = entropy(histogram), minmax(histogram)
    assert found.magnitude < widest.magnitude / 2
    assert found.high < widest.high / 2
    assert found.low > widest.low * 0.75


def test_entropy_covers_both_signs_where_both_matter() -> None:
    found = entropy(histogram_of(drawn("normal")))
    assert found.low < -3.0
    assert found.high > 3.0


@pytest.mark.parametrize("values", [np.zeros(100), np.full(100, 2.5), np.full(100, -2.5), np.array([0.0, 1.0] * 50)])
def test_degenerate_tensors_keep_their_range_within_one_bin(values: np.ndarray) -> None:
    histogram = histogram_of(values)
    for found in estimates(histogram, 99.999).values():
        for name in ("low", "high", "magnitude"):
            expected = getattr(minmax(histogram), name)
            assert getattr(found, name) == pytest.approx(expected, abs=histogram.bin_width)


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 10_000), st.sampled_from(sorted(SHAPES)), st.data())
def test_any_split_into_batches_gives_the_same_estimates_within_one_bin(
    seed: int, shape: str, data: st.DataObject
) -> None:
    values = drawn(shape, seed)[:3000].astype(np.float32)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=5)))
    whole, parts = RunningHistogram(), RunningHistogram()
    whole.fold(values)
    for part in np.split(values[::-1], cuts):
        parts.fold(part)
    assert parts.bin_width == whole.bin_width
    for method, found in estimates(whole, 99.9).items():
        other = estimates(parts, 99.9)[method]
        for name in ("low", "high", "magnitude"):
            assert getattr(other, name) == pytest.approx(getattr(found, name), abs=whole.bin_width)


def test_a_forgotten_batch_would_show_in_the_estimates() -> None:
    values = drawn("heavy tails")
    most = histogram_of(np.delete(values, np.argmax(np.abs(values))))
    assert abs(minmax(most).magnitude - minmax(histogram_of(values)).magnitude) > most.bin_width


def test_all_four_methods_stay_within_what_was_seen() -> None:
    for shape in SHAPES:
        histogram = histogram_of(drawn(shape))
        for found in estimates(histogram, 99.999).values():
            assert histogram.minimum <= found.low <= found.high <= histogram.maximum
            assert 0 < found.magnitude <= max(-histogram.minimum, histogram.maximum)


@pytest.mark.parametrize("levels", [17, 9])
def test_entropy_keeps_the_range_of_discrete_values(levels: int) -> None:
    """Pixels k/16: the bins between are empty, and clipping all but the first level would diverge by nothing."""
    histogram = RunningHistogram()
    weights = np.r_[0.5, np.full(levels - 1, 0.5 / (levels - 1))]
    values = np.random.default_rng(0).choice(np.linspace(0, 1, levels), size=65536, p=weights).astype(np.float32)
    histogram.fold(values)
    found = entropy(histogram)
    clipped = float((values > found.magnitude).mean())
    assert clipped <= 0.01
    assert found.high >= 1.0 - 1.0 / (levels - 1)


@pytest.mark.parametrize("block", [1, 7, 10_000])
def test_how_many_candidates_go_together_changes_no_estimate(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    values = np.random.default_rng(4).standard_t(4, size=20_000).astype(np.float32)
    histogram = histogram_of(values)
    expected = estimates(histogram, 99.99)
    monkeypatch.setattr("optimizer.calibration.divergence._BLOCK", 256 * block)
    monkeypatch.setattr("optimizer.calibration.rounding_error._BLOCK", block)
    assert estimates(histogram, 99.99) == expected
