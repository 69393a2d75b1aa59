"""An output against the baseline's, accumulated in float64 over batches: nothing of a batch is kept."""

from __future__ import annotations

import math

import numpy as np

from optimizer.metrics.metric import Array
from optimizer.results import Numerics


class NumericsAccumulator:
    """Largest absolute difference, cosine and SQNR of one output.

    Numeric: SQNR = 10 log10(sum ref^2 / sum err^2) in dB. Infinities that both sides share (a mask) are left out of the
    sums. A value that is not finite and not the same on both sides is counted, and nothing is defined any more: numbers
    over the rest would hide the worst error of all.
    """

    def __init__(self) -> None:
        self._max_abs = 0.0
        self._reference = self._found = self._product = self._error = 0.0
        self.not_finite = 0

    def add(self, reference: Array, found: Array) -> None:
        """Fold in one batch."""
        ref = np.asarray(reference, np.float64).ravel()
        own = np.asarray(found, np.float64).ravel()
        finite = np.isfinite(ref) & np.isfinite(own)
        self.not_finite += int((~finite & (ref != own)).sum())  # NaN is unlike itself
        ref, own = ref[finite], own[finite]
        if not ref.size:
            return
        error = own - ref
        self._max_abs = max(self._max_abs, float(np.abs(error).max()))
        self._reference += float(ref @ ref)
        self._found += float(own @ own)
        self._product += float(ref @ own)
        self._error += float(error @ error)

    def result(self) -> Numerics:
        """The three numbers; null where one is not defined: an exact match has no SQNR, a zero vector no cosine."""
        if self.not_finite:
            return Numerics(max_abs=None, cosine=None, sqnr_db=None)
        norm = math.sqrt(self._reference) * math.sqrt(self._found)
        sqnr = 10 * math.log10(self._reference / self._error) if self._error and self._reference else None
        return Numerics(
            max_abs=self._max_abs, cosine=max(-1.0, min(1.0, self._product / norm)) if norm else None, sqnr_db=sqnr
        )
