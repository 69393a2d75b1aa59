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
        """Return each sample's mean error. NaN in an output makes an error no number can express: refused."""
        found = np.asarray(output, np.float64)
        return np.array([self._one(*item) for item in zip(found, targets, identities, strict=True)])

    def _one(self, found: Array, target: Any, identity: str) -> float:
        where = f"metric {self.name}, sample {identity}"
        wanted = np.asarray(target if target is not None else [], np.float64)
        if wanted.size != np.size(found) or wanted.size == 0:
            raise StageError(
                f"the target has the shape {list(wanted.shape)}, the output {list(np.shape(found))}", where=where
            )
        value = float(self._reduce(np.asarray(found, np.float64).ravel() - wanted.ravel()))
        if not np.isfinite(value):
            raise StageError("the output is not finite", where=where)
        return value

    def _reduce(self, difference: Outcomes) -> float:
        raise AssertionError("defined by every metric below")


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
