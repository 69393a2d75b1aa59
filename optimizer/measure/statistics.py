"""The statistics behind every interval and verdict. numpy and exact integers only; tests hold them against scipy."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

SEED = 0
RESAMPLES = 2_000
RATIO_RESAMPLES = 1_000
# Two-sided standard normal quantiles.
Z = {0.95: 1.959963984540054, 0.99: 2.5758293035489004}


class Interval(NamedTuple):
    """Bounds of a confidence interval."""

    low: float
    high: float


def wilson(successes: int, samples: int, level: float = 0.95) -> Interval:
    """Interval of a share. Source: Wilson 1927, the score interval; good for small samples and shares near 0 and 1."""
    z2 = Z[level] ** 2
    share = successes / samples
    centre = (share + z2 / (2 * samples)) / (1 + z2 / samples)
    half = Z[level] / (1 + z2 / samples) * math.sqrt(share * (1 - share) / samples + z2 / (4 * samples**2))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value of paired right/wrong outcomes, from the samples on which just one side is right.

    Source: McNemar 1947; the exact form is a sign test, binomial with share 1/2 over the discordant pairs.
    """
    discordant = only_first + only_second
    if discordant == 0:
        return 1.0
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def paired_share_difference(first: Floats, second: Floats, level: float = 0.95) -> Interval:
    """Interval of mean(second) - mean(first) for paired outcomes of 0 and 1.

    Source: Newcombe 1998, Statistics in Medicine 17:2635, method 10: Wilson intervals of both shares, combined with
    the correlation of the pairs. Identical outcomes have a difference of exactly zero, and so has their interval.
    """
    if np.array_equal(first, second):
        return Interval(0.0, 0.0)
    n = len(first)
    both = int(((first == 1) & (second == 1)).sum())
    neither = int(((first == 0) & (second == 0)).sum())
    only_first, only_second = int(first.sum()) - both, int(second.sum()) - both
    p1, p2 = (both + only_first) / n, (both + only_second) / n
    low1, high1 = wilson(both + only_first, n, level)
    low2, high2 = wilson(both + only_second, n, level)
    phi = _newcombe_phi(both, only_first, only_second, neither)
    difference = p2 - p1
    below = math.sqrt(max(0.0, (p2 - low2) ** 2 - 2 * phi * (p2 - low2) * (high1 - p1) + (high1 - p1) ** 2))
    above = math.sqrt(max(0.0, (high2 - p2) ** 2 - 2 * phi * (high2 - p2) * (p1 - low1) + (p1 - low1) ** 2))
    return Interval(difference - below, difference + above)


def _newcombe_phi(a: int, b: int, c: int, d: int) -> float:
    """Correlation of the pairs, with Newcombe's continuity correction of the numerator."""
    product = (a + b) * (c + d) * (a + c) * (b + d)
    if product == 0:
        return 0.0
    n = a + b + c + d
    numerator = a * d - b * c
    if numerator > 0:
        numerator = max(numerator - n / 2, 0)  # type: ignore[assignment]
    return numerator / math.sqrt(product)


def bootstrap_mean(values: Floats, level: float = 0.95) -> Interval:
    """Percentile bootstrap interval of a mean, seeded. Source: Efron and Tibshirani 1993, chapter 13."""
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(float(values.mean()), float(values.mean()))
    return _percentiles(_resampled_means(values), level)


def _resampled_means(values: Floats) -> Floats:
    rng = np.random.default_rng(SEED)
    n = len(values)
    block = max(1, 2_000_000 // n)
    parts = [
        values[rng.integers(0, n, (min(block, RESAMPLES - start), n))].mean(axis=1)
        for start in range(0, RESAMPLES, block)
    ]
    return np.concatenate(parts)


def _percentiles(values: Floats, level: float) -> Interval:
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(float(low), float(high))


def sign_flip(differences: Floats) -> float:
    """Two-sided p-value that paired differences have mean zero: random signs, seeded.

    Source: Fisher's randomisation test; (hits + 1) / (trials + 1) keeps it valid (Phipson and Smyth 2010).
    """
    if not differences.any():
        return 1.0
    rng = np.random.default_rng(SEED)
    observed = abs(differences.mean())
    block = max(1, 2_000_000 // len(differences))
    hits = 0
    for start in range(0, RESAMPLES, block):
        signs = rng.choice([-1.0, 1.0], (min(block, RESAMPLES - start), len(differences)))
        hits += int((abs((signs * differences).mean(axis=1)) >= observed - 1e-15).sum())
    return (hits + 1) / (RESAMPLES + 1)


def ratio_of_medians(first: Floats, second: Floats, level: float = 0.95) -> Interval:
    """Bootstrap interval of median(first) / median(second), resampling whole rounds.

    Shapes: [rounds, calls] each; row i of both was taken in the same round, so a resampled round keeps both.
    Neighbouring samples share the state of the machine; resampling rounds keeps together what they share.
    Source: block bootstrap, Kuensch 1989; percentile method, Efron and Tibshirani 1993.
    """
    rng = np.random.default_rng(SEED)
    rounds = len(first)
    ratios = np.empty(RATIO_RESAMPLES)
    for i in range(RATIO_RESAMPLES):
        chosen = rng.integers(0, rounds, rounds)
        ratios[i] = np.median(first[chosen]) / np.median(second[chosen])
    return _percentiles(ratios, level)
