"""An output against the baseline's, accumulated in float64 over batches: nothing of a batch is kept."""

from __future__ import annotations

import math

import numpy as np

from optimizer.metrics.metric import Array
from optimizer.results import Numerics


class NumericsAccumulator:
    """Largest absolute difference, cosine and SQNR of one output.

    Numeric: SQNR = 10 log10(sum ref^2 / sum err^2) in dB. Values that are not finite on either side leave the sums
    and are counted, because one infinity would make all three meaningless.
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
        self.not_finite += int(finite.size - finite.sum())
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
        """The three numbers; null where one is not defined."""
        norm = math.sqrt(self._reference * self._found)
        sqnr = 10 * math.log10(self._reference / self._error) if self._error and self._reference else None
        return Numerics(max_abs=self._max_abs, cosine=self._product / norm if norm else None, sqnr_db=sqnr)
