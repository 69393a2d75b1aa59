"""Expected squared error of rounding and clipping, from a histogram, for many candidate scales at once.

A value between two levels goes to the nearer one, beyond the last to the last. With F(x) the count and G(x) the sum of
values up to x, levels r_0 .. r_L one step s apart and the edges e_k half way between r_(k-1) and r_k, summation by
parts leaves, of x F(x) - G(x), which is H(x), the integral of F up to x, one lookup an edge:

    error = sum x^2 - 2 r_L G(inf) + r_L^2 F(inf) - 2 s sum_k H(e_k)

H comes from prefix sums; values lie evenly in their bin, so it is quadratic there.

Units: bins. Thresholds are counted in bins, errors in bins squared times values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Steps of magnitude in symmetric int8, and of uint8.
MAGNITUDES, VALUES = 127, 255
# Candidates of the first look and of the second, which lies between the neighbours of the first one's best.
_COARSE, _FINE = 256, 32
# Candidates examined at a time: they fit the processor's cache, and threads seldom wait for the interpreter's lock.
_BLOCK = 128
_ROUNDS = 2


def best_threshold(counts: Floats) -> float:
    """Return the magnitude, in bins, with the least error in symmetric int8."""
    largest = float(np.flatnonzero(counts)[-1] + 1) if counts.any() else 0.0
    sums = _Sums.of(counts, 0)
    return _search(largest, lambda t: errors(sums, t / MAGNITUDES, np.zeros_like(t), MAGNITUDES))


def sqnr_db(counts: Floats, magnitude: float) -> float | None:
    """Return the expected SQNR in dB of symmetric int8 up to `magnitude` bins; None where there is no signal."""
    sums = _Sums.of(counts, 0)
    if sums.squares <= 0 or magnitude <= 0:
        return None
    error = float(errors(sums, np.array([magnitude / MAGNITUDES]), np.zeros(1), MAGNITUDES)[0])
    return 10.0 * math.log10(sums.squares / error) if error > 0 else None


def unsigned_sqnr_db(counts: Floats, zero: int, below: float, above: float) -> float | None:
    """Return the expected SQNR in dB of uint8 over [-below, above] bins about `zero`; None without signal or error."""
    sums = _Sums.of(counts, zero)
    if sums.squares <= 0 or below + above <= 0:
        return None
    error = float(unsigned_errors(sums, np.array([below]), np.array([above]))[0])
    return 10.0 * math.log10(sums.squares / error) if error > 0 else None


def best_pair(counts: Floats, zero: int) -> tuple[float, float]:
    """Return how many bins to cover below and above bin edge `zero`, with the least error in uint8."""
    filled = np.flatnonzero(counts)
    if not filled.size:
        return 0.0, 0.0
    sums = _Sums.of(counts, zero)
    below, above = max(zero - float(filled[0]), 0.0), max(float(filled[-1]) + 1 - zero, 0.0)
    lowest, highest = below, above
    for again in range(_ROUNDS):
        before = below, above
        above = _search(highest, partial(unsigned_errors, sums, below))
        if again and above == before[1]:
            break  # `below` was found for it
        below = _search(lowest, partial(unsigned_errors, sums, above=above))
        if below == before[0] or not (below and above):
            break  # what it says of `above` is known, or one-sided: there is nothing to settle with
    return below, above


class _Sums(NamedTuple):
    """Running sums over bins up to each edge, and one empty bin behind them, which stands for all that is beyond."""

    counts: Floats
    below: Floats  # count below each edge: F
    area: Floats  # integral of F up to each edge: H
    total: float
    values: float  # sum of all values
    squares: float  # and of their squares
    zero: int

    @classmethod
    def of(cls, counts: Floats, zero: int) -> _Sums:
        middles = np.arange(len(counts), dtype=np.float64) - zero + 0.5
        below = np.concatenate([[0.0], np.cumsum(counts)])
        area = np.concatenate([[0.0], np.cumsum(below[:-1] + counts / 2)])  # F grows evenly within a bin
        return cls(
            np.append(counts, 0.0),
            below,
            area,
            float(below[-1]),
            float((counts * middles).sum()),
            float((counts * (middles**2 + 1.0 / 12.0)).sum()),
            zero,
        )


def errors(sums: _Sums, steps: Floats, lowest: Floats, levels: int) -> Floats:
    """Return the error of each candidate: levels `lowest` .. `lowest + levels` times its step."""
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(steps), _BLOCK)]
    return np.concatenate([_errors(sums, steps[block], lowest[block], levels) for block in blocks])


def _errors(sums: _Sums, steps: Floats, lowest: Floats, levels: int) -> Floats:
    # Edges lie along the first axis, so that what is next to each other in memory is worked on together.
    places = np.arange(1, levels + 1)[:, None] - 0.5 + lowest
    places *= steps
    places += sums.zero
    np.maximum(places, 0.0, out=places)
    bins = places.astype(np.intp)
    np.minimum(bins, len(sums.counts) - 1, out=bins)
    inside = np.subtract(places, bins, out=places)
    area = sums.counts.take(bins)
    area *= inside
    area /= 2
    area += sums.below.take(bins)
    area *= inside
    area += sums.area.take(bins)
    top = (lowest + levels) * steps
    found = sums.squares - 2 * top * sums.values + top**2 * sums.total - 2 * steps * area.sum(axis=0)
    return np.asarray(np.maximum(found, 0.0))


def unsigned_errors(sums: _Sums, below: Floats | float, above: Floats | float) -> Floats:
    """Return the error in uint8 of each range [-below, above]."""
    steps = np.asarray((below + above) / VALUES)
    return errors(sums, steps, -np.rint(below / steps), VALUES)


def _search(largest: float, error: Callable[[Floats], Floats]) -> float:
    """Return the threshold up to `largest` of least error: first on an even grid, then around its best."""
    if largest <= 0:
        return 0.0
    grid = np.linspace(largest / _COARSE, largest, _COARSE)
    best = int(np.argmin(error(grid)))
    fine = np.linspace(grid[max(best - 1, 0)], grid[min(best + 1, _COARSE - 1)], _FINE)
    candidates = np.append(fine, grid[best])
    return float(candidates[np.argmin(error(candidates))])
