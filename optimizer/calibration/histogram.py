"""A histogram of one tensor whose range grows by re-binning: every batch is folded in once and then forgotten."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from optimizer.runtime.session import Array

# Bins on each side of zero. The range is a power of two, so at least half of them lie below the largest magnitude:
# never fewer than 2,048 bins for the values of the longer side.
BINS = 4096
# Values binned at a time: few enough for the processor's cache, and so many that the interpreter's lock is seldom asked
# for.
_BLOCK = 1 << 17
_APART = 4  # neighbours among values that have no sign
_SMALLEST_EXPONENT = -125  # 2**-126 is the smallest normal float32; what lies below counts as zero


class CountingRoom:
    """Memory for counting a block: fresh memory for each tensor would take longer than the arithmetic.

    Bins are counted as the product of a sparse matrix of one column, whose rows they are, by one: half the time of
    numpy's bincount, and without the interpreter's lock, so that others count and infer meanwhile.
    """

    def __init__(self, size: int = _BLOCK) -> None:
        from scipy.sparse import csc_array

        self.scaled = np.empty(size)
        self.apart = (np.arange(size) % _APART * BINS).astype(np.int32)
        rows, ends = np.zeros(size, np.int32), np.array([0, size], np.int32)
        self._column = csc_array((np.ones(size, np.int32), rows, ends), shape=(_APART * BINS, 1), copy=False)
        self._one = np.ones(1, np.int32)
        self.bins: npt.NDArray[np.int32] = self._column.indices

    def count(self, size: int) -> npt.NDArray[np.int32]:
        """Return how often each bin stands among the first `size` of `bins`; all must lie in [0, _APART * BINS)."""
        self._column.indptr[1] = size
        counts: npt.NDArray[np.int32] = self._column @ self._one
        return counts


class RunningHistogram:
    """Minimum, maximum and counts over [-2**e, 2**e) in `2 * BINS` equal bins, fed batch by batch.

    Numeric: bin edges are dyadic and growing merges pairs, quadruples, ... of bins, so any split of the same values
    into batches, in any order, ends in the same counts. Bin `BINS` starts at zero exactly.
    """

    def __init__(self) -> None:
        self.minimum = math.inf
        self.maximum = -math.inf
        self.exponent = _SMALLEST_EXPONENT
        self.counts: npt.NDArray[np.int64] = np.zeros(2 * BINS, dtype=np.int64)

    def fold(self, values: Array, room: CountingRoom | None = None) -> bool:
        """Count `values` (floating point, any shape); return False, and count nothing, if any is NaN or infinite.

        `room` is what the calling thread keeps from one call to the next. Numeric: as float32, which scales exactly.
        """
        with np.errstate(over="ignore"):  # beyond float32 is infinite: told below
            flat = values.reshape(-1).astype(np.float32, copy=False)
        room = room or CountingRoom(min(_BLOCK, flat.size))
        before = (self.minimum, self.maximum, self.exponent, self.counts.copy())
        step = -(-flat.size // max(1, -(-flat.size // _BLOCK))) or 1  # blocks of one size: each costs some, too
        for start in range(0, flat.size, step):
            block = flat[start : start + step]
            low, high = float(block.min()), float(block.max())
            if not (math.isfinite(low) and math.isfinite(high)):
                self.minimum, self.maximum, self.exponent, self.counts = before
                return False
            self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
            if largest := max(-low, high):  # zeros fall into the same bin whatever the range
                self._grow(math.frexp(largest)[1])
            self._count(block, low, room)
        return True

    def _count(self, block: Array, low: float, room: CountingRoom) -> None:
        # A power of two between 1 and 2**126 scales float32 exactly; magnitudes beyond 4,096 go by way of float64.
        kind = np.float32 if -114 <= self.exponent <= 12 else np.float64
        scaled = room.scaled.view(kind)[: block.size]
        bins = room.bins[: block.size]
        scale = kind(BINS * 2.0**-self.exponent)
        if low < 0:
            np.multiply(block, scale, out=scaled, dtype=kind)
            np.floor(scaled, out=scaled)
            np.add(scaled, kind(BINS), out=bins, casting="unsafe")
            self.counts += room.count(block.size)[: 2 * BINS]
            return
        np.multiply(block, scale, out=bins, dtype=kind, casting="unsafe")  # which rounds towards zero
        # Of a Relu's result half is zero: each increment of the one bin would wait for the one before it. Neighbours
        # are counted in bins of their own.
        np.add(bins, room.apart[: block.size], out=bins)
        self.counts[BINS:] += room.count(block.size).reshape(_APART, BINS).sum(axis=0)

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    @property
    def bin_width(self) -> float:
        """Width of every bin."""
        return 2.0**self.exponent / BINS

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """The `2 * BINS + 1` bin edges."""
        return np.arange(-BINS, BINS + 1, dtype=np.float64) * self.bin_width

    @property
    def zeros(self) -> int:
        """How many values are taken to be exactly zero: what bin `BINS` holds more than either of its neighbours.

        A Relu writes millions of them. Every scale represents them exactly, so they must not pull at a threshold.
        """
        before, at, after = (int(c) for c in self.counts[BINS - 1 : BINS + 2])
        return max(0, at - max(before, after))

    def copy(self) -> RunningHistogram:
        """Return a histogram that goes on by itself."""
        other = RunningHistogram()
        other.minimum, other.maximum, other.exponent = self.minimum, self.maximum, self.exponent
        other.counts = self.counts.copy()
        return other

    def _grow(self, exponent: int) -> None:
        """Widen the range to [-2**exponent, 2**exponent) by merging bins; never narrow it."""
        shift = exponent - self.exponent
        if shift <= 0:
            return
        kept = np.flatnonzero(self.counts)
        merged = ((kept - BINS) >> min(shift, 60)) + BINS
        counts = np.zeros_like(self.counts)
        np.add.at(counts, merged, self.counts[kept])
        self.counts, self.exponent = counts, exponent
