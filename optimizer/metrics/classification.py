"""Metrics of classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from optimizer.errors import StageError
from optimizer.metrics.metric import Array, Metric, Outcomes


class TopK(Metric):
    """1 where the label is among the k largest scores. Shapes: output [batch, classes], targets class indices.

    Numeric: equal scores rank by index, as argmax does; a row with NaN is a wrong answer.
    """

    better: ClassVar[Literal["higher", "lower"]] = "higher"
    binary: ClassVar[bool] = True

    def __init__(self, name: str, k: int) -> None:
        self.name = name
        self.k = k

    def chance(self, shape: Sequence[int | str]) -> float | None:
        """k of the classes."""
        return self.k / shape[-1] if len(shape) == 2 and isinstance(shape[-1], int) else None

    def outcomes(self, output: Array, targets: Sequence[Any], identities: Sequence[str]) -> Outcomes:
        """Return 1.0 for a right answer, 0.0 for a wrong one."""
        scores = np.asarray(output, np.float64)
        if scores.ndim != 2:
            raise StageError(
                f"needs an output of [batch, classes], got {list(scores.shape)}",
                where=f"metric {self.name}",
                hint="Name another output:  metrics: {" + self.name + ": {output: NAME}}",
            )
        if scores.shape[1] < self.k:
            what = f"needs at least {self.k} classes, the output has {scores.shape[1]}"
            raise StageError(what, where=f"metric {self.name}")
        labels = np.array([self._label(t, scores.shape[1], i) for t, i in zip(targets, identities, strict=True)])
        own = scores[np.arange(len(scores)), labels][:, None]
        earlier = np.arange(scores.shape[1]) < labels[:, None]
        rank = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
        right: Outcomes = ((rank < self.k) & ~np.isnan(scores).any(axis=1)).astype(np.float64)
        return right

    def _label(self, target: Any, classes: int, identity: str) -> int:
        where = f"metric {self.name}, sample {identity}"
        label = target[()] if isinstance(target, np.ndarray) and target.ndim == 0 else target
        if isinstance(label, bool | np.bool_) or not isinstance(label, int | np.integer):
            given = "missing" if label is None else f"{str(label)[:40]!r} ({type(label).__name__})"
            allowed = f"a class index, an integer from 0 to {classes - 1}"
            raise StageError(f"the label is {given}; needed is {allowed}", where=where)
        if not 0 <= label < classes:
            raise StageError(
                f"the label is {label} and the output has {classes} classes (allowed: 0 to {classes - 1})",
                where=where,
                hint="Do the labels of data and the model's classes belong together, in the same order?",
            )
        return int(label)
