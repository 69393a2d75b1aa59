"""Bootstrap of medians by whole rounds: a median, the ratio of two, and how sure of it one can be."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from optimizer.measure.statistics import RESAMPLES, SEED, Floats, Interval, student_quantile

Counts = npt.NDArray[np.int64]
Openings = tuple[Sequence[int], Sequence[int]]  # of two sessions
_CELLS = 4096
FEWEST_BLOCKS = 5
DRIFT = 0.05  # beyond it, the halves of a session differ


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of medians; `draws` holds it in every resample, so that ratios of ratios can be formed.

    `degrees` is one less than the blocks of rounds that were drawn from; 0 stands for so many that it does not matter.
    `halves` is the lower and the higher of what the first and the second half of the rounds give by themselves, where
    these differ by more than 5 %; None where they agree.
    """

    value: float
    draws: Floats
    degrees: int = 0
    halves: Interval | None = None

    def interval(self, level: float = 0.95) -> Interval:
        """Interval from the draws, widened for few blocks (see `widened`), that holds what each half gave."""
        low, high = widened(self, level)
        return Interval(min(low, self._extremes.low), max(high, self._extremes.high))

    def over(self, other: Ratio) -> Ratio:
        """This ratio over another one that was drawn independently."""
        (low, high), (least, most) = self._extremes, other._extremes
        halves = Interval(low / most, high / least) if self.halves or other.halves else None
        return Ratio(self.value / other.value, self.draws / other.draws, _fewer(self.degrees, other.degrees), halves)

    def inverse(self) -> Ratio:
        """The other way round."""
        halves = Interval(1 / self.halves.high, 1 / self.halves.low) if self.halves else None
        return Ratio(1 / self.value, 1 / self.draws, self.degrees, halves)

    @property
    def _extremes(self) -> Interval:
        return self.halves or Interval(self.value, self.value)


def widened(ratio: Ratio, level: float) -> Interval:
    """Interval of a positive quantity from its bootstrap draws, honest about few blocks.

    On each side the wider of two: the percentile of the draws, taken further out as Student's t is wider than the
    normal distribution; and Student's interval around the logarithm with the draws' standard deviation, because
    percentiles cannot reach beyond what was drawn.
    Numeric: simulated coverage stands in docs/measurement.md.
    Source: Hesterberg 2015, American Statistician 69:371, section 5 (expanded percentiles);
    Efron and Tibshirani 1993, chapters 12 and 13.
    """
    tail, half = (1 - level) / 2, 0.0
    if ratio.degrees:
        # n/(n-1): resamples of n vary less than samples do.
        bound = _student(level, ratio.degrees) * math.sqrt((ratio.degrees + 1) / ratio.degrees)
        tail = math.erfc(bound / math.sqrt(2)) / 2
        half = bound * float(np.log(ratio.draws).std())
    low, high = np.quantile(ratio.draws, [tail, 1 - tail])
    return Interval(min(float(low), ratio.value * math.exp(-half)), max(float(high), ratio.value * math.exp(half)))


_student = functools.cache(student_quantile)


def _fewer(one: int, other: int) -> int:
    return min(one, other) if one and other else one or other


def interleaved_ratio(above: Floats, below: Floats, seed: int = SEED, openings: Sequence[int] = ()) -> Ratio:
    """Ratio median(above) / median(below) of two candidates that took turns in the same rounds.

    Whole rounds are drawn, the same ones on both sides: calls of one turn resemble each other and what both saw in a
    round cancels. Where one round's ratio resembles the one before, runs of several rounds are drawn at once. Where the
    candidates were opened several times, `openings` counts the rounds of each: openings are drawn first, then rounds of
    each, because where a candidate's memory happened to lie is the same for all rounds of an opening.
    Shapes: [rounds, calls] each; the counts of calls may differ.
    Source: Kuensch 1989, Annals of Statistics 17:1217 (blocks); Kalibera and Jones 2013, ISMM (levels of variation,
    ratios with intervals).
    """
    drawn, degrees = _plan(np.log(np.median(above, axis=1) / np.median(below, axis=1)), seed, openings)
    value = float(np.median(above) / np.median(below))
    halves = _halves([np.median(one) / np.median(other) for one, other in zip(_cut(above), _cut(below), strict=True)])
    return Ratio(value, medians(above, drawn) / medians(below, drawn), degrees, halves)


def separate_ratio(above: Floats, below: Floats, seed: int = SEED, openings: Openings = ((), ())) -> Ratio:
    """Ratio median(above) / median(below) of two sessions: the rounds of each side are drawn on their own.

    `openings` are those above and those below.
    """
    return median(above, seed, openings[0]).over(median(below, seed + 1, openings[1]))


def median(samples: Floats, seed: int = SEED, openings: Sequence[int] = ()) -> Ratio:
    """Median over all samples; one side of a ratio. Shapes: [rounds, calls]."""
    drawn, degrees = _plan(np.log(np.median(samples, axis=1)), seed, openings)
    halves = _halves([np.median(half) for half in _cut(samples)])
    return Ratio(float(np.median(samples)), medians(samples, drawn), degrees, halves)


def _cut(samples: Floats) -> tuple[Floats, ...]:
    """The first and the second half of the rounds; a single round is both."""
    half = len(samples) // 2
    return (samples[:half], samples[half:]) if half else (samples, samples)


def _halves(found: Sequence[np.floating[Any]]) -> Interval | None:
    """What the halves gave, where they differ.

    Openings, and runs of rounds, are drawn as if their order meant nothing: of a step in the middle of one opening they
    may know so little that the interval holds neither level. What both candidates saw alike is no drift of their ratio.
    """
    low, high = float(min(found)), float(max(found))
    return Interval(low, high) if high / low - 1 > DRIFT else None


def _plan(series: Floats, seed: int, openings: Sequence[int]) -> tuple[Counts, int]:
    """What is drawn, and the degrees of freedom that this leaves."""
    if len(openings) > 1:
        return _draw_openings(openings, seed), len(openings) - 1
    length = block_length(series)
    return _draw(len(series), seed, length), max(1, len(series) // length - 1)


def block_length(series: Floats) -> int:
    """How many neighbouring rounds are drawn at once: 1 unless each resembles the one before.

    Numeric: the length that is best for a mean of an autoregressive series of order 1 with this correlation, which is
    corrected for its bias in short series and must differ from 0 at 5 %; at least 5 blocks remain.
    Source: Politis and White 2004, Econometric Reviews 23:53, corrected by Patton, Politis and White 2009, 28:372
    (circular blocks); Marriott and Pope 1954, Biometrika 41:390 (bias).
    """
    n = len(series)
    if n < 2 * FEWEST_BLOCKS:
        return 1
    low, high = np.quantile(series, [0.05, 0.95])  # a stray outlier must not hide the correlation
    centred = np.clip(series, low, high)
    centred = centred - centred.mean()
    power = float((centred**2).sum())
    found = float((centred[1:] * centred[:-1]).sum()) / power if power > 0 else 0.0
    if found <= 1.645 / math.sqrt(n):
        return 1
    correlation = min(0.99, found + (1 + 3 * found) / n)
    best: float = (1.5 * n) ** (1 / 3) * (2 * correlation / (1 - correlation**2)) ** (2 / 3)
    return max(1, min(math.ceil(best), n // FEWEST_BLOCKS))


def _draw(rounds: int, seed: int, length: int = 1) -> Counts:
    """How often each round stands in each resample of blocks; the last block wraps around to the first rounds.

    Shapes: [resamples, rounds].
    """
    rng = np.random.default_rng(seed)
    if length == 1:
        return rng.multinomial(rounds, np.full(rounds, 1 / rounds), RESAMPLES).astype(np.int64)
    blocks = -(-rounds // length)
    starts = rng.integers(0, rounds, (RESAMPLES, blocks))
    chosen = ((starts[:, :, None] + np.arange(length)) % rounds).reshape(RESAMPLES, -1)[:, :rounds]
    flat = chosen + rounds * np.arange(RESAMPLES)[:, None]
    return np.bincount(flat.ravel(), minlength=RESAMPLES * rounds).reshape(RESAMPLES, rounds)


def _draw_openings(openings: Sequence[int], seed: int) -> Counts:
    """How often each round stands in each resample, if openings are drawn and then rounds of each."""
    rng = np.random.default_rng(seed)
    chosen = rng.multinomial(len(openings), np.full(len(openings), 1 / len(openings)), RESAMPLES)
    drawn = [rng.multinomial(n * chosen[:, k], np.full(n, 1 / n)) for k, n in enumerate(openings)]
    return np.concatenate(drawn, axis=1).astype(np.int64)


def medians(samples: Floats, drawn: Counts) -> Floats:
    """Median of each resample of whole rounds, found by bisection in the samples sorted once.

    Shapes: samples [rounds, calls], drawn [resamples, rounds] -> [resamples].
    Numeric: exact up to 4096 samples; above that, to one of 4096 cells of neighbouring samples.
    """
    ordered = np.sort(samples, axis=None)
    step = -(-ordered.size // _CELLS)
    ends = np.minimum(np.arange(step, ordered.size + step, step), ordered.size) - 1
    middles: Floats = ordered[np.maximum(ends - step // 2, 0)]
    # below[r, c]: samples of round r that are not above the last one of cell c.
    below: Counts = np.stack([np.searchsorted(np.sort(row), ordered[ends], side="right") for row in samples])
    total: Counts = drawn.sum(axis=1) * samples.shape[1]
    low = middles[_first_reaching(below, drawn, (total + 1) // 2)]
    if (total % 2).all():
        return low
    return (low + middles[_first_reaching(below, drawn, total // 2 + 1)]) / 2


def _first_reaching(below: Counts, drawn: Counts, rank: Counts) -> Counts:
    """For each resample, the first cell up to whose end `rank` samples of it lie."""
    left = np.zeros(len(drawn), dtype=np.int64)
    right = np.full(len(drawn), below.shape[1] - 1, dtype=np.int64)
    while (left < right).any():
        middle = (left + right) // 2
        enough = np.einsum("rn,nr->r", drawn, below[:, middle]) >= rank
        right = np.where(enough, middle, right)
        left = np.where(enough, left, middle + 1)
    return left
