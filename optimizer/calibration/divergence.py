"""Kullback-Leibler divergence between a histogram and its quantized self, for all candidate thresholds at once.

For a threshold of `i` bins the reference P is those bins, with everything clipped added to the outermost; Q is the same
bins without what was clipped, merged into levels and each level spread evenly over its bins that are not empty in P.
Written over levels instead of bins, with S the sum of Q and n the number of bins in use in a level, it is

    KL(P || Q) = (sum_j P_j log P_j - sum_g P_g log(S_g / n_g)) / sum(P) - log sum(P) + log sum(S)

so that prefix sums answer a candidate with one lookup per level. A level that Q leaves empty and P does not makes the
divergence infinite. Level g of i bins over L levels is the bins j with floor(j * L / i) = g: no remainder is piled up.
Source: Migacz 2017, 8-bit Inference with TensorRT, slides 34 to 40; the levels are those of fractional width there.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Magnitudes of symmetric int8, and values of uint8: powers of two.
MAGNITUDES, VALUES = 128, 256
# Levels of all candidates examined at a time: they fit the processor's cache.
_BLOCK = 1 << 15
_ROUNDS = 2
# Of discrete values (pixels, counts) the bins between are empty and any threshold represents what it keeps exactly: the
# divergence, in which all that is clipped counts as one bin, is zero for it. So no more than this share is clipped.
MOST_CLIPPED = 0.01
FEWEST_BINS = 2048


def best_threshold(counts: Floats) -> int:
    """Return how many bins of a histogram of magnitudes to keep, out of MAGNITUDES and more."""
    used = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    if used <= MAGNITUDES:
        return used
    candidates = range(max(MAGNITUDES, _fewest(counts)), used + 1)
    return candidates[int(np.argmin(divergences(counts, candidates, MAGNITUDES)))]


def best_pair(counts: Floats, zero: int) -> tuple[int, int]:
    """Return how many bins to keep below and above bin edge `zero`, for unsigned integers with a zero point.

    Numeric: one bound after the other over all of its thresholds, twice, from the full range on; a side without values
    stays at zero, which the range must hold.
    """
    filled = np.flatnonzero(counts)
    if not filled.size:
        return 0, 0
    below, above = max(zero - int(filled[0]), 0), max(int(filled[-1]) + 1 - zero, 0)
    if below + above >= 2 * FEWEST_BINS:  # enough are left when pairs are merged, in a quarter of the time
        padded = np.concatenate([np.zeros(zero % 2), counts, np.zeros((zero + len(counts)) % 2)])
        merged = best_pair(padded.reshape(-1, 2).sum(axis=1), (zero + 1) // 2)
        return 2 * merged[0], 2 * merged[1]
    for again in range(_ROUNDS):
        before = below, above
        if above:
            above = _best_side(counts[zero - below :], below)
        if again and above == before[1]:
            break  # `below` was found for it
        if below:
            below = _best_side(counts[: zero + above][::-1], above)
        if below == before[0] or not (below and above):
            break  # what it says of `above` is known, or one-sided: there is nothing to settle with
    return below, above


def _best_side(counts: Floats, fixed: int) -> int:
    """Return how many bins beyond the first `fixed` ones to keep."""
    used = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    if used <= max(VALUES, fixed):
        return max(used - fixed, 0)
    candidates = range(max(VALUES, fixed + 1, _fewest(counts)), used + 1)
    return candidates[int(np.argmin(divergences(counts, candidates, VALUES)))] - fixed


def _fewest(counts: Floats) -> int:
    """Return how many bins hold all but MOST_CLIPPED of the values."""
    return int(np.searchsorted(np.cumsum(counts), counts.sum() * (1.0 - MOST_CLIPPED))) + 1


def divergences(counts: Floats, candidates: range, levels: int) -> Floats:
    """Return the divergence of keeping the first `i` bins in `levels` levels, for each candidate `i` in a row."""
    total = float(counts.sum())
    sums = np.concatenate([[0.0], np.cumsum(counts)])
    in_use = np.concatenate([[0], np.cumsum(counts > 0)]).astype(np.float64)
    logs = np.concatenate([[0.0], np.cumsum(_x_log_x(counts))])
    found = np.empty(len(candidates))
    step = _BLOCK // levels
    room = _Room(levels, min(step, len(candidates)))
    for start in range(0, len(candidates), step):
        bins = np.array(candidates[start : start + step])
        kept, spread = room.levels(bins, sums, in_use)
        clipped = total - sums[bins]
        outermost = counts[bins - 1]
        # What is clipped fills the outermost bin of P, which is then in use whether it was or not.
        spread[-1] += (outermost == 0) & (clipped > 0)
        with np.errstate(divide="ignore", invalid="ignore"):  # log 0: infinite, as it should be
            logarithms = np.log(np.divide(kept, spread, out=spread), out=spread)
            reference = kept
            reference[-1] += clipped
            cross = np.multiply(reference, logarithms, out=logarithms)
            cross[reference <= 0] = 0.0
            own = logs[bins - 1] + _x_log_x(outermost + clipped)
            found[start : start + step] = (own - cross.sum(axis=0)) / total - np.log(total) + np.log(sums[bins])
    # Where nothing is kept at all, there is no distribution to speak of.
    return np.where(np.isfinite(found), found, np.inf)


class _Room:
    """Memory for a block of candidates: fresh memory for every array would take longer than the arithmetic."""

    def __init__(self, levels: int, candidates: int) -> None:
        self._steps = np.arange(levels + 1)[:, None]
        self._further = self._steps * np.arange(candidates) + levels - 1
        self._edges = np.empty((levels + 1, candidates), dtype=np.intp)
        self._sums = np.empty((levels + 1, candidates))
        self._kept, self._spread = np.empty((2, levels, candidates))

    def levels(self, bins: Ints, sums: Floats, in_use: Floats) -> tuple[Floats, Floats]:
        """Return what each level holds and how many of its bins are in use, [levels, candidates], until the next block.

        Levels lie along the first axis, so that what is next to each other in memory is worked on together.
        """
        edges, further = self._edges[:, : len(bins)], self._further[:, : len(bins)]
        at_edges, kept, spread = (array[:, : len(bins)] for array in (self._sums, self._kept, self._spread))
        # The first bin j with floor(j * levels / i) >= g: g * i / levels, rounded up. Products of whole numbers take
        # several times as long as sums, and so do quotients beside shifts.
        np.add(self._steps * bins[0], further, out=edges)
        edges >>= len(kept).bit_length() - 1
        for running, each in ((sums, kept), (in_use, spread)):
            running.take(edges, out=at_edges, mode="clip")  # every edge is one of them; "raise" would copy
            np.subtract(at_edges[1:], at_edges[:-1], out=each)
        return kept, spread


def _x_log_x(values: Floats) -> Floats:
    return np.asarray(values * np.log(np.maximum(values, 1e-300)))
