"""Metrics of regression: the error of a sample is the mean over its elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from optimizer.errors import StageError
from optimizer.metrics.metric import Array, Metric, Outcomes


class _ElementError(Metric):
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    binary: ClassVar[bool] = False

    def outcomes(self, output: Array, targets: Sequence[Any], identities: Sequence[str]) -> Outcomes:
        """Return each sample's mean error, in float64. NaN or infinity in an output has none and is refused."""
        found = np.asarray(output, np.float64)
        return np.array([self._one(*item) for item in zip(found, targets, identities, strict=True)])

    def _one(self, found: Array, target: Any, identity: str) -> float:
        where = f"metric {self.name}, sample {identity}"
        wanted = _numbers(target, where)
        # [batch, 1] against plain numbers is the usual head; any other difference in shape is a mistake.
        if wanted.shape != found.shape and not wanted.size == found.size == 1:
            what = f"the target has the shape {list(wanted.shape)}, the output {list(found.shape)} per sample"
            raise StageError(what, where=where)
        value = float(self._reduce(np.asarray(found, np.float64).ravel() - wanted.ravel()))
        if not np.isfinite(value):
            raise StageError("the output is not finite, so it has no error", where=where)
        return value

    def _reduce(self, difference: Outcomes) -> float:
        raise AssertionError("defined by every metric below")


def _numbers(target: Any, where: str) -> Outcomes:
    if target is None:
        raise StageError("the target is missing", where=where)
    try:
        wanted = np.asarray(target, np.float64)
    except (TypeError, ValueError):
        what = f"the target is {str(target)[:40]!r} ({type(target).__name__}), not numbers"
        raise StageError(what, where=where) from None
    if not np.isfinite(wanted).all():
        raise StageError(f"the target holds {wanted[~np.isfinite(wanted)].flat[0]}", where=where)
    return wanted


class MeanAbsoluteError(_ElementError):
    """Mean of |output - target|."""

    name = "mean_absolute_error"

    def _reduce(self, difference: Outcomes) -> float:
        return float(np.abs(difference).mean())


class MeanSquaredError(_ElementError):
    """Mean of (output - target)^2."""

    name = "mean_squared_error"

    def _reduce(self, difference: Outcomes) -> float:
        return float(np.square(difference).mean())
