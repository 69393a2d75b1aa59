"""Bootstrap of medians by whole rounds: the ratio of two latencies, and how sure of it one can be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optimizer.measure.statistics import RESAMPLES, SEED, Floats, Interval, percentiles

Counts = npt.NDArray[np.int64]
_CELLS = 4096


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of medians; `draws` holds it in every resample, so that ratios of ratios can be formed."""

    value: float
    draws: Floats

    def interval(self, level: float = 0.95) -> Interval:
        """Percentile interval of the draws."""
        return percentiles(self.draws, level)

    def over(self, other: Ratio) -> Ratio:
        """This ratio over another one that was drawn independently."""
        return Ratio(self.value / other.value, self.draws / other.draws)


def interleaved_ratio(above: Floats, below: Floats, seed: int = SEED) -> Ratio:
    """Ratio median(above) / median(below) of two candidates that took turns in the same rounds.

    Whole rounds are drawn, the same ones on both sides: calls of one turn resemble each other and neighbours in time
    share the state of the machine, so what both saw cancels.
    Shapes: [rounds, calls] each; the counts of calls may differ.
    Source: Kuensch 1989, Annals of Statistics 17:1217 (blocks); Kalibera and Jones 2013, ISMM (ratios with intervals).
    """
    drawn = _draw(len(above), seed)
    return Ratio(float(np.median(above) / np.median(below)), medians(above, drawn) / medians(below, drawn))


def separate_ratio(above: Floats, below: Floats, seed: int = SEED) -> Ratio:
    """Ratio median(above) / median(below) of two sessions: the rounds of each side are drawn on their own."""
    over, under = medians(above, _draw(len(above), seed)), medians(below, _draw(len(below), seed + 1))
    return Ratio(float(np.median(above) / np.median(below)), over / under)


def _draw(rounds: int, seed: int) -> Counts:
    """How often each round stands in each resample. Shapes: [resamples, rounds]."""
    return np.random.default_rng(seed).multinomial(rounds, np.full(rounds, 1 / rounds), RESAMPLES).astype(np.int64)


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
    low = middles[_first_reaching(below, drawn, (ordered.size + 1) // 2)]
    if ordered.size % 2:
        return low
    return (low + middles[_first_reaching(below, drawn, ordered.size // 2 + 1)]) / 2


def _first_reaching(below: Counts, drawn: Counts, rank: int) -> Counts:
    """For each resample, the first cell up to whose end `rank` samples lie."""
    left = np.zeros(len(drawn), dtype=np.int64)
    right = np.full(len(drawn), below.shape[1] - 1, dtype=np.int64)
    while (left < right).any():
        middle = (left + right) // 2
        enough = (drawn * below[:, middle].T).sum(axis=1) >= rank
        right = np.where(enough, middle, right)
        left = np.where(enough, left, middle + 1)
    return left
