"""Tell quantized graphs apart by what each does to the same samples: differences in dB with intervals.

A sample that is hard in int8 is hard for every graph, so errors are compared sample by sample. Several graphs are held
against one at a time, and the intervals hold for all of them together: the best of ten that differ by chance alone is
not better.
Source: the largest of several statistics under random exchange, Westfall and Young 1993, Resampling-Based Multiple
Testing, chapter 2.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from optimizer.data.samples import Array

Key = TypeVar("Key", bound=Hashable)

LEVEL = 0.05
# With fewer samples two graphs are not told apart: of five, all better by chance is 3 % for one graph alone.
FEWEST = 6
# So many must there be to choose by some and to judge by others; the recipe is refused below this, too.
FEWEST_SAMPLES = 2 * FEWEST
_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Gain:
    """By how many dB a graph is better than another on the same samples, and between which bounds that is known."""

    db: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.db:+.1f} dB ({self.low:+.1f} to {self.high:+.1f})"


UNKNOWN = Gain(-np.inf, -np.inf, np.inf)


def gains(base: Array, others: Mapping[Key, Array], beyond_samples: float = 0.0) -> dict[Key, Gain]:
    """Return by how much each of `others` is better than `base`; each array is the share of error by sample.

    `beyond_samples` is a standard deviation in dB that more samples would not lessen; it widens every interval.
    Numeric: the intervals are those of the exchange test at no difference, wider where the difference is large;
    95 % for all of them together; deterministic.
    """
    found = dict.fromkeys(others, UNKNOWN)
    usable = {
        key: shares
        for key, shares in others.items()
        if np.isfinite(shares).all() and shares.sum() > 0 and np.isfinite(base).all() and base.sum() > 0
    }
    if not usable:
        return found
    rows = np.array(list(usable.values()))
    decibels = 10 * np.log10(base.sum() / rows.sum(1))
    if len(base) < FEWEST:
        return found | {key: Gain(float(db), -np.inf, np.inf) for key, db in zip(usable, decibels, strict=True)}
    by_samples, critical = _by_chance(base, rows)
    widths = critical * np.hypot(by_samples, beyond_samples)
    for key, db, width in zip(usable, decibels, widths, strict=True):
        found[key] = Gain(float(db), float(db - width), float(db + width))
    return found


def _by_chance(base: Any, rows: Any) -> tuple[Any, float]:
    """Return the deviation in dB of each difference by chance alone, and how many of them the largest reaches in 5 %.

    By chance alone either of two graphs could have been the one with a sample's larger error: so they change places
    sample by sample, at random, in all the pairs alike.
    """
    swaps = np.random.default_rng(0).integers(0, 2, size=(_DRAWS, len(base))).astype(np.float64)
    moved = swaps @ (rows - base).T
    # Where the two err on different samples one of them may be left with no error at all, or with less by rounding.
    least = 1e-30 * np.minimum(base.sum(), rows.sum(1))
    drawn = 10 * np.log10(np.maximum(base.sum() + moved, least) / np.maximum(rows.sum(1) - moved, least))
    deviation = np.sqrt((drawn**2).mean(0))
    varying = deviation > 0
    if not varying.any():
        return deviation, 0.0
    return deviation, float(np.quantile(np.abs(drawn[:, varying] / deviation[varying]).max(1), 1 - LEVEL))
