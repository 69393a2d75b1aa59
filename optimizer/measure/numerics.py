"""An output against the baseline's, accumulated in float64 over batches: nothing of a batch is kept."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from optimizer.metrics.metric import Array

if TYPE_CHECKING:
    from optimizer.results import Numerics  # pydantic: where bundles are served there may be none


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
        """The three numbers as a report has them."""
        from optimizer.results import Numerics

        max_abs, cosine, sqnr_db = self.figures()
        return Numerics(max_abs=max_abs, cosine=cosine, sqnr_db=sqnr_db)

    def figures(self) -> tuple[float | None, float | None, float | None]:
        """Largest absolute difference, cosine and SQNR; None where one is not defined: an exact match has no SQNR, a
        zero vector no cosine.
        """
        if self.not_finite:
            return None, None, None
        norm = math.sqrt(self._reference) * math.sqrt(self._found)
        sqnr = 10 * math.log10(self._reference / self._error) if self._error and self._reference else None
        return self._max_abs, max(-1.0, min(1.0, self._product / norm)) if norm else None, sqnr
