"""The contract of a metric: one number per sample, and its mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Outcomes = npt.NDArray[np.float64]


class Metric(ABC):
    """A metric's value is the mean of its outcomes, so that two candidates can be paired sample by sample."""

    name: str
    better: ClassVar[Literal["higher", "lower"]]
    binary: ClassVar[bool]  # every outcome is 0 or 1: the value is a share

    def chance(self, shape: Sequence[int | str]) -> float | None:
        """Return what guessing reaches on an output of this shape, where that is known."""
        return None

    @abstractmethod
    def outcomes(self, output: Array, targets: Sequence[Any], identities: Sequence[str]) -> Outcomes:
        """Return one float64 per sample. Shapes: `output` [batch, ...].

        Raises: StageError when the targets do not fit the output; it names the sample.
        """
