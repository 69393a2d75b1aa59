"""A percentile of calls that were taken in rounds, and how sure of it one can be."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from optimizer.measure.bootstrap import Ratio, block_length, widened
from optimizer.measure.statistics import RESAMPLES, SEED, Floats, Interval, calls_needed, student_quantile

_AT_ONCE = 64  # resamples


@dataclass(frozen=True)
class Percentile:
    """A percentile over all calls, linear between the two nearest. Shapes: `rounds_ms` is [rounds, calls]."""

    rounds_ms: Floats
    percentile: int

    @functools.cached_property
    def value(self) -> float:
        """The estimate, in milliseconds."""
        return float(np.percentile(self.rounds_ms, self.percentile))

    def interval(self, level: float) -> Interval:
        """Its interval over rounds: on each side the wider of two; no upper bound (infinite) for too few calls.

        One draws whole rounds, runs of them where each resembles the one before, and widens for few of them. The other
        asks which percentiles of the calls the true one may be, from how the share of calls beyond it differs between
        rounds: draws cannot reach beyond what was seen, and of p99 little was.
        Numeric: simulated coverage stands in docs/measurement.md.
        Source: Woodruff 1952, JASA 47:635 (shares of clustered samples, turned into positions); Wilson 1927.
        """
        drawn = widened(self._drawn, level)
        share, calls = self.percentile / 100, self._effective_calls
        t2 = student_quantile(level, max(1, len(self.rounds_ms) - 1)) ** 2 / calls
        half = math.sqrt(t2 * share * (1 - share) + t2**2 / 4)
        low, high = ((share + t2 / 2 + side * half) / (1 + t2) for side in (-1, 1))
        least = float(np.quantile(self.rounds_ms, low, method="lower"))
        most = float(np.quantile(self.rounds_ms, high, method="higher"))
        bounded = calls >= calls_needed(self.percentile, level)
        return Interval(min(drawn.low, least), max(drawn.high, most) if bounded else math.inf)

    @functools.cached_property
    def _effective_calls(self) -> float:
        """As many independent calls know as much: fewer than there are, where calls of a round resemble each other.

        Source: Kish 1965, Survey Sampling, section 8.2 (design effect).
        """
        rounds, calls = self.rounds_ms.shape
        beyond = (self.rounds_ms >= self.value).mean(axis=1)
        share = float(beyond.mean())
        expected = share * (1 - share) / calls
        effect = float(beyond.var(ddof=1)) / expected if rounds > 1 and expected > 0 else 1.0
        found: float = rounds * calls / max(1.0, effect)
        return found

    @functools.cached_property
    def _drawn(self) -> Ratio:
        rounds, calls = self.rounds_ms.shape
        length = block_length(np.log(np.median(self.rounds_ms, axis=1)))
        order = np.argsort(self.rounds_ms, axis=None)
        ordered, owner = self.rounds_ms.ravel()[order], order // calls
        rank = max(1, math.ceil(self.percentile / 100 * rounds * calls))
        starts = np.random.default_rng(SEED).integers(0, rounds, (RESAMPLES, -(-rounds // length)))
        chosen = ((starts[:, :, None] + np.arange(length)) % rounds).reshape(RESAMPLES, -1)[:, :rounds]
        draws = []
        for some in np.array_split(chosen, -(-RESAMPLES // _AT_ONCE)):
            weight = np.stack([np.bincount(one, minlength=rounds) for one in some])
            reached = np.cumsum(weight[:, owner], axis=1) >= rank
            draws.append(ordered[np.argmax(reached, axis=1)])
        return Ratio(self.value, np.concatenate(draws), max(1, rounds // length - 1))
