"""Estimators: from a tensor's histogram to the range that its integers shall cover. All are deterministic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from optimizer.calibration.divergence import best_pair as least_divergent_pair
from optimizer.calibration.divergence import best_threshold as least_divergent
from optimizer.calibration.histogram import BINS, RunningHistogram
from optimizer.calibration.rounding_error import best_pair as least_error_pair
from optimizer.calibration.rounding_error import best_threshold as least_error

Method = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What an estimator chose: `low` and `high` for asymmetric integers, `magnitude` for symmetric ones."""

    low: float
    high: float
    magnitude: float


def estimates(histogram: RunningHistogram, percent: float) -> Mapping[Method, Estimate]:
    """Return what every estimator chooses; `percent` is percentile's."""
    return {method: estimate(histogram, method, percent) for method in METHODS}


def estimate(histogram: RunningHistogram, method: Method, percent: float) -> Estimate:
    """Return what one estimator chooses; `percent` is percentile's."""
    if method == "minmax":
        return minmax(histogram)
    if method == "percentile":
        return percentile(histogram, percent)
    return entropy(histogram) if method == "entropy" else mse(histogram)


def magnitude(histogram: RunningHistogram, method: Method, percent: float) -> float:
    """Return the magnitude alone of what one estimator chooses: asymmetric ranges take most of the time."""
    if method in ("minmax", "percentile") or not _bins_apart(histogram):
        return estimate(histogram, method, percent).magnitude
    counts = _counts_without_zeros(histogram)
    search = least_divergent if method == "entropy" else least_error
    threshold = search(counts[BINS:] + counts[:BINS][::-1]) * histogram.bin_width
    return min(threshold, minmax(histogram).magnitude)


def minmax(histogram: RunningHistogram) -> Estimate:
    """Cover every value seen; nothing is clipped."""
    low, high = histogram.minimum, histogram.maximum
    return Estimate(low, high, max(-low, high))


def percentile(histogram: RunningHistogram, percent: float) -> Estimate:
    """Clip the rarest values: `percent` of all magnitudes lie within `magnitude`, and of all values in [low, high].

    Numeric: a clipped bound is the outer edge of the bin where the count is reached, so it is at most one bin wider
    than the exact percentile and never beyond the extreme value. [low, high] leaves half of the rest on each side.
    Source: Wu et al. 2020, arXiv:2004.09602, section 4 (percentile calibration).
    """
    total = histogram.total
    tail = 1.0 - percent / 100.0
    edges = histogram.edges

    upward = np.cumsum(histogram.counts)
    # Fewest bins from below that hold all but the upper tail, and from above all but the lower one.
    high = edges[_first_reaching(upward, total * (1.0 - tail / 2)) + 1]
    downward = np.cumsum(histogram.counts[::-1])
    low = edges[len(edges) - 2 - _first_reaching(downward, total * (1.0 - tail / 2))]
    magnitudes = histogram.counts[BINS:] + histogram.counts[:BINS][::-1]
    magnitude = edges[BINS + _first_reaching(np.cumsum(magnitudes), total * (1.0 - tail)) + 1]
    return _within_extremes(float(low), float(high), float(magnitude), histogram)


def entropy(histogram: RunningHistogram) -> Estimate:
    """Lose the least information: the range whose quantized distribution diverges least from the one seen.

    Numeric: the threshold is one of all bin edges from 128 bins on (`divergence`); at least 2,048 bins lie below the
    largest magnitude. Exact zeros count no more than a bin beside them; at most 1 % of the rest is clipped.
    Source: Migacz 2017, 8-bit Inference with TensorRT; Wu et al. 2020, arXiv:2004.09602, section 4.
    """
    if not _bins_apart(histogram):
        return minmax(histogram)
    counts = _counts_without_zeros(histogram)
    width = histogram.bin_width
    below, above = least_divergent_pair(counts, BINS)
    threshold = least_divergent(counts[BINS:] + counts[:BINS][::-1])
    return _within_extremes(-below * width, above * width, threshold * width, histogram)


def mse(histogram: RunningHistogram) -> Estimate:
    """Err the least: the range with the smallest expected squared error of rounding and clipping together.

    Numeric: int8 in 127 steps of magnitude for `magnitude`; uint8 in 255 steps and a whole zero point for [low, high].
    Values lie evenly in their bin, which is narrower than a sixteenth of a step, except exact zeros, which err nothing.
    Source: Sung et al. 2015, arXiv:1511.06488 (the L2 criterion); Nagel et al. 2021, arXiv:2106.08295, section 3.1.
    """
    if not _bins_apart(histogram):
        return minmax(histogram)
    counts, width = _counts_without_zeros(histogram), histogram.bin_width
    below, above = least_error_pair(counts, BINS)
    threshold = least_error(counts[BINS:] + counts[:BINS][::-1])
    return _within_extremes(-below * width, above * width, threshold * width, histogram)


def _bins_apart(histogram: RunningHistogram) -> bool:
    """Return whether there is anything to choose: a tensor that is zero throughout has one range only."""
    return histogram.maximum > histogram.minimum or bool(histogram.maximum)


def _counts_without_zeros(histogram: RunningHistogram) -> npt.NDArray[np.float64]:
    counts = histogram.counts.astype(np.float64)
    counts[BINS] -= histogram.zeros
    return counts


def _within_extremes(low: float, high: float, magnitude: float, histogram: RunningHistogram) -> Estimate:
    """Return the range, never wider than what was seen: a bin's outer edge lies beyond its largest value."""
    extremes = minmax(histogram)
    # Adding zero turns -0.0, which a table would show, into 0.0.
    return Estimate(
        max(low, extremes.low) + 0.0, min(high, extremes.high) + 0.0, min(magnitude, extremes.magnitude) + 0.0
    )


def _first_reaching(cumulative: npt.NDArray[np.int64], count: float) -> int:
    """Return the first bin at which the cumulative count is at least `count`."""
    # A count is whole: without rounding up, 99.9999999 of 100 values could be taken for 99.
    return int(np.searchsorted(cumulative, min(np.ceil(count - 1e-6), cumulative[-1])))
