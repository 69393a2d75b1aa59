"""Tell random numbers from data: what has no structure at all, along any axis, at any position, in any sample."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from optimizer.data.samples import Array

Floats = npt.NDArray[np.float64]

_FEWEST_VALUES = 4096
_FEWEST_IDS = 2048
_LONG_AXIS = 16  # an axis that may be space or time
_LONG_VECTOR = 4096  # a single axis of features is not this long
_MOST_VALUES = 1 << 20  # values looked at; more would find nothing else
_MOST_IDS = 1 << 16
_GROUPS = 64
_LIMIT = 4.0  # standard deviations
# (kurtosis, variance of (x - mean)^4 in units of it) of the two laws that generators draw from.
_LAWS = {"normal": (3.0, 96.0), "uniform": (1.8, 81 / 9 - 1.8**2)}


@dataclass(slots=True)
class _Channel:
    """Running sums of one channel, or of the whole sample where there are none. `moments` are sums of x .. x^4."""

    moments: Floats = field(default_factory=lambda: np.zeros(4))
    values: int = 0
    position: Floats | None = None  # sum over samples, by position
    squares: Floats | None = None
    sample_means: list[float] = field(default_factory=list)
    sample_squares: list[float] = field(default_factory=list)
    products: dict[int, float] = field(default_factory=dict)  # sum of x[i] * x[i + 1], by axis
    ends: dict[int, float] = field(default_factory=dict)  # sum of x[i] + x[i + 1] over the same pairs
    pairs: dict[int, int] = field(default_factory=dict)

    def fold(self, rows: Floats) -> None:
        """Add samples; axis 0 counts them."""
        flat = rows.reshape(len(rows), -1)
        power = np.ones_like(flat)
        for order in range(4):
            power *= flat
            self.moments[order] += power.sum()
            if order == 1:
                self.squares = power.sum(axis=0) + (0.0 if self.squares is None else self.squares)
                self.sample_squares += list(power.mean(axis=1))
        self.values += flat.size
        self.position = flat.sum(axis=0) + (0.0 if self.position is None else self.position)
        self.sample_means += list(flat.mean(axis=1))
        for axis in range(1, rows.ndim):
            length = rows.shape[axis]
            if length < 2:
                continue
            first, second = np.take(rows, range(length - 1), axis), np.take(rows, range(1, length), axis)
            self.products[axis] = self.products.get(axis, 0.0) + float((first * second).sum())
            self.ends[axis] = self.ends.get(axis, 0.0) + float(first.sum() + second.sum())
            self.pairs[axis] = self.pairs.get(axis, 0) + first.size

    def law(self) -> str | None:
        """Return which law the values are independent draws from; None if they have any structure."""
        mean = self.moments[0] / self.values
        variance = self.moments[1] / self.values - mean**2
        if variance <= 1e-12 * max(mean**2, 1e-30) or self.position is None or self.squares is None:
            return None
        law = self._law_of_moments(mean, variance)
        if law is None or not self._uncorrelated(mean, variance):
            return None
        kurtosis = _LAWS[law][0]
        samples, positions = len(self.sample_means), len(self.position)
        groups = (
            (self.position / samples, self.squares / samples, samples),
            (np.array(self.sample_means), np.array(self.sample_squares), positions),
        )
        for means, squares, size in groups:
            # Of n draws the mean varies by variance / n, the mean square about the mean by (kurtosis - 1) / n of it.
            spread = squares - 2 * mean * means + mean**2
            alike = _alike(means, mean, variance / size) and _alike(
                spread, variance, (kurtosis - 1) * variance**2 / size, tail=60.0 / size
            )
            if not alike:
                return None
        return law

    def _law_of_moments(self, mean: float, variance: float) -> str | None:
        _, second, third, fourth = self.moments / self.values
        skew = (third - 3 * mean * second + 2 * mean**3) / variance**1.5
        kurtosis = (fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4) / variance**2
        if abs(skew) > _LIMIT * np.sqrt(6.0 / self.values):
            return None
        for law, (expected, spread) in _LAWS.items():
            if abs(kurtosis - expected) < _LIMIT * np.sqrt(spread / self.values):
                return law
        return None

    def _uncorrelated(self, mean: float, variance: float) -> bool:
        for axis, pairs in self.pairs.items():
            covariance = (self.products[axis] - mean * self.ends[axis]) / pairs + mean**2
            if abs(covariance / variance) >= _LIMIT / np.sqrt(pairs):
                return False
        return True


def _alike(values: Floats, expected: float, variance: float, tail: float = 0.0) -> bool:
    """Return whether values spread about what is expected as much as `variance` says; fewer than two always do.

    `tail` widens the spread of a square that is itself skewed, as means of few squares are.
    """
    freedom = len(values)
    if freedom < 2 or variance <= 0:
        return True
    statistic = float(((values - expected) ** 2).sum() / variance)
    return bool(abs(statistic - freedom) < (_LIMIT + 1) * np.sqrt((2.0 + tail) * freedom) + 2.0)


class NoiseTest:
    """Whether an input is random numbers, decided over all samples of the first one's shape, a batch at a time.

    Floats count as noise when there are 4,096 values or more, an axis may be space or time (16 long beside
    another axis, or 4,096 alone), and in each channel all of these hold within 4 standard deviations (5 for the last):
    neighbours along every axis are uncorrelated, |r| < 4 / sqrt(n); skewness and kurtosis are those of the normal or
    the uniform law; mean and variance are the same at every position and in every sample. A table's features, one-hot
    rows and pictures of 8 x 8 are never taken for noise: there is too little to tell by.
    Integers count as noise when there are 2,048 or more with 64 distinct values or more, none below zero, and their
    counts in 64 equal groups fit the uniform law (chi-square), no value repeats more than chance has it, and
    neighbours are uncorrelated.
    Numeric: data with a correlation of 8 / sqrt(n) between neighbours along one axis passes for noise with probability
    3.2e-5 by that condition alone (n = 50,000 values: r = 0.036; pictures and audio have 0.8 and more), and has to
    pass all others as well. Noise is missed in about 1 of 1,000 sets.
    """

    def __init__(self) -> None:
        self._shape: tuple[int, ...] | None = None
        self._channels: list[_Channel] = []
        self._axis: int | None = None
        self._ids: list[npt.NDArray[np.int64]] = []
        self._held = 0

    def fold(self, batch: Array) -> None:
        """Look at samples, stacked along the first axis."""
        shape = batch.shape[1:]
        self._shape = self._shape or shape
        if batch.dtype.kind in "iu" and self._held < _MOST_IDS:
            self._ids.append(batch.reshape(-1)[: _MOST_IDS - self._held].astype(np.int64))
            self._held += self._ids[-1].size
            return
        if batch.dtype.kind != "f" or shape != self._shape or not _long_enough(shape) or self._held >= _MOST_VALUES:
            return
        if not self._channels:
            self._axis = _channel_axis(shape)
            self._channels = [_Channel() for _ in range(1 if self._axis is None else shape[self._axis])]
        self._held += batch.size
        rows = batch.astype(np.float64)
        parts = [rows] if self._axis is None else list(np.moveaxis(rows, self._axis + 1, 0))
        for channel, part in zip(self._channels, parts, strict=True):
            channel.fold(part)

    def law(self) -> str | None:
        """Return "normal" or "uniform" for random numbers; None for data, and where nothing can be told."""
        if self._ids:
            return "uniform" if _uniform_ids(self._ids) else None
        if self._held < _FEWEST_VALUES or not self._channels:
            return None
        laws = {channel.law() for channel in self._channels}
        return laws.pop() if len(laws) == 1 else None


def _long_enough(shape: tuple[int, ...]) -> bool:
    return max(shape, default=0) >= (_LONG_AXIS if len(shape) > 1 else _LONG_VECTOR)


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    """Return the axis of colours: noise that was normalised has another mean in each."""
    if len(shape) < 3:
        return None
    return next((axis for axis in (0, len(shape) - 1) if shape[axis] <= 4), None)


def _uniform_ids(parts: list[npt.NDArray[np.int64]]) -> bool:
    ids = np.concatenate(parts)
    if ids.size < _FEWEST_IDS or ids.min() < 0:
        return False
    values = int(ids.max()) + 1
    distinct = len(np.unique(ids))
    if distinct < _GROUPS:
        return False
    chances = np.diff(-(-np.arange(_GROUPS + 1) * values // _GROUPS)) / values
    # By way of float64: ids that were hashed fill 64 bits.
    groups = np.minimum((ids.astype(np.float64) * (_GROUPS / values)).astype(np.int64), _GROUPS - 1)
    counts = np.bincount(groups, minlength=_GROUPS)
    expected = chances * ids.size
    statistic = float(((counts - expected) ** 2 / expected).sum())
    if abs(statistic - (_GROUPS - 1)) > (_LIMIT + 1) * np.sqrt(2.0 * (_GROUPS - 1)):
        return False
    # How many values come up at all: words, and ids that were hashed from words, repeat far more often than chance.
    empty = (1.0 - 1.0 / values) ** ids.size
    missed = values * empty
    variance = missed * (1 - empty) + values * (values - 1) * ((1 - 2 / values) ** ids.size - empty**2)
    if abs(values - distinct - missed) > (_LIMIT + 1) * np.sqrt(max(variance, 1.0)) + 1:
        return False
    centred = ids - ids.mean()
    correlation = float((centred[:-1] * centred[1:]).mean() / (centred**2).mean())
    return bool(abs(correlation) < _LIMIT / np.sqrt(ids.size))
