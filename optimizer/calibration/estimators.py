"""Estimators: from a tensor's histogram to the range that its integers shall cover."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optimizer.calibration.histogram import BINS, RunningHistogram


@dataclass(frozen=True, slots=True)
class Estimate:
    """What an estimator chose: `low` and `high` for asymmetric integers, `magnitude` for symmetric ones."""

    low: float
    high: float
    magnitude: float


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
    extremes = minmax(histogram)

    upward = np.cumsum(histogram.counts)
    # Fewest bins from below that hold all but the upper tail, and from above all but the lower one.
    high = edges[_first_reaching(upward, total * (1.0 - tail / 2)) + 1]
    downward = np.cumsum(histogram.counts[::-1])
    low = edges[len(edges) - 2 - _first_reaching(downward, total * (1.0 - tail / 2))]
    magnitudes = histogram.counts[BINS:] + histogram.counts[:BINS][::-1]
    magnitude = edges[BINS + _first_reaching(np.cumsum(magnitudes), total * (1.0 - tail)) + 1]
    return Estimate(
        max(float(low), extremes.low), min(float(high), extremes.high), min(float(magnitude), extremes.magnitude)
    )


def _first_reaching(cumulative: npt.NDArray[np.int64], count: float) -> int:
    """Return the first bin at which the cumulative count is at least `count`."""
    # A count is whole: without rounding up, 99.9999999 of 100 values could be taken for 99.
    return int(np.searchsorted(cumulative, min(np.ceil(count - 1e-6), cumulative[-1])))
