"""The statistics behind every interval and verdict. numpy and exact integers only; tests hold them against scipy."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from optimizer.errors import MeasurementError

Floats = npt.NDArray[np.float64]

SEED = 0
RESAMPLES = 2_000
FEWEST_RESAMPLED = 30  # below, the bootstrap is too narrow
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

    Numeric: in whole numbers, divided once at the end.
    Source: McNemar 1947, Psychometrika 12:153; the exact form is binomial with share 1/2 over the discordant pairs.
    """
    discordant = only_first + only_second
    term = tail = 1
    for k in range(min(only_first, only_second)):
        term = term * (discordant - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << discordant))


def paired_share_difference(first: Floats, second: Floats, level: float = 0.95) -> Interval:
    """Interval of mean(second) - mean(first) for paired outcomes of 0 and 1.

    It holds every difference that McNemar's score test does not reject, and depends on the discordant pairs alone. With
    none of those it is z^2 / (n + z^2) wide on both sides: few samples with equal answers prove little.
    Source: Tango 1998, Statistics in Medicine 17:891.
    """
    n = len(first)
    gained, lost = int((second > first).sum()), int((second < first).sum())
    estimate = (gained - lost) / n
    # The score falls as the supposed difference grows: z at the lower bound, -z at the upper one.
    low = _falls_to(Z[level], gained, lost, n, (-1.0, estimate)) if lost < n else -1.0
    high = _falls_to(-Z[level], gained, lost, n, (estimate, 1.0)) if gained < n else 1.0
    return Interval(low, high)


def _falls_to(level: float, gained: int, lost: int, n: int, between: tuple[float, float]) -> float:
    """Bisect for the difference at which Tango's score has fallen to `level`."""
    left, right = between
    for _ in range(60):
        middle = (left + right) / 2
        left, right = (middle, right) if _tango_score(gained, lost, n, middle) > level else (left, middle)
    return (left + right) / 2


def _tango_score(gained: int, lost: int, n: int, difference: float) -> float:
    b = (2 * n - gained + lost) * difference - gained - lost
    c = -lost * difference * (1 - difference)
    # The likeliest share of lost pairs if `difference` were true: the root of 2n x^2 + b x + c.
    share = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
    deviation = gained - lost - n * difference
    variance = n * (2 * share + difference * (1 - difference))
    if variance <= 0:
        return math.copysign(math.inf, deviation) if deviation else 0.0
    return deviation / math.sqrt(variance)


def bootstrap_mean(values: Floats, level: float = 0.95) -> Interval:
    """Interval of a mean: the percentile bootstrap, seeded; below 30 values Student's. Equal values have no width.

    The bootstrap cannot reach beyond the values it has: of 2 values its 95 % interval covers the mean in 52 % of
    trials, of 10 in 85 %. Student's covers it in 95 % where values are normal, and stays honest about few of them.
    Source: Efron and Tibshirani 1993, chapter 13; Student 1908, Biometrika 6:1.
    Raises: MeasurementError for a single value, which has no interval.
    """
    n = len(values)
    if n < 2:
        raise MeasurementError(
            f"{n} sample has no interval", where="data.evaluation", hint="Evaluate on at least 2 samples, better 30."
        )
    mean = float(values.mean())
    if np.ptp(values) == 0:
        return Interval(mean, mean)
    if n < FEWEST_RESAMPLED:
        half = student_quantile(level, n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
        return Interval(mean - half, mean + half)
    return percentiles(_resampled_means(values), level)


def calls_needed(percentile: int, level: float = 0.95) -> int:
    """Return how many calls a percentile needs before its interval has an upper bound.

    With fewer, all of them may lie below the true percentile by chance: share ** calls > (1 - level) / 2.
    Source: order statistics, Conover 1999, Practical Nonparametric Statistics, section 3.2.
    """
    return math.ceil(math.log((1 - level) / 2) / math.log(percentile / 100))


def unsupported(calls: int) -> str | None:
    """Say that p90 or p99 means little of so few calls: fewer than one is expected beyond it. None where they do.

    Between the largest two calls a percentile is the maximum in another name: p99 of 30 calls lies below the true one
    in three of four sessions (0.99 ** 30).
    """
    thin = [p for p in (90, 99) if calls * (100 - p) < 100]
    if not thin:
        return None
    named = " and ".join(f"p{p}" for p in thin)
    least, bounded = 100 // (100 - thin[-1]), calls_needed(thin[-1])
    word = "rests" if len(thin) == 1 else "rest"
    return (
        f"{named} {word} on {calls} calls and may lie far too low: p{thin[-1]} needs {least}, and {bounded} before "
        "chance leaves it an upper bound; raise measure.seconds"
    )


def student_quantile(level: float, degrees: int) -> float:
    """Return the bound that Student's t stays within, on both sides, with probability `level`.

    Numeric: bisection of the closed form for whole degrees of freedom.
    Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
    """
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_within(middle, degrees) < level else (low, middle)
    return (low + high) / 2


def _student_within(t: float, degrees: int) -> float:
    """Probability that Student's t lies between -t and t."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine2 = math.sin(angle), math.cos(angle) ** 2
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 if odd else 1, degrees - 1, 2):
        term *= cosine2 * k / (k + 1)
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _resampled_means(values: Floats) -> Floats:
    rng = np.random.default_rng(SEED)
    n = len(values)
    block = max(1, 2_000_000 // n)
    parts = [
        values[rng.integers(0, n, (min(block, RESAMPLES - start), n))].mean(axis=1)
        for start in range(0, RESAMPLES, block)
    ]
    return np.concatenate(parts)


def percentiles(values: Floats, level: float) -> Interval:
    """Percentile interval of resampled values. Source: Efron and Tibshirani 1993, chapter 13."""
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
        hits += int((abs((signs * differences).mean(axis=1)) >= observed * (1 - 1e-12)).sum())
    return (hits + 1) / (RESAMPLES + 1)
