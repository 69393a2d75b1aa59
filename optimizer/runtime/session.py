"""The contract of an open model: what a deployment calls and what a runner times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from optimizer.types import TensorSpec

Array = npt.NDArray[np.generic]
Feed = Mapping[str, Array]


class Session(ABC):
    """A model loaded on one device by one backend. Not thread-safe; close it, or use it as a context manager."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @abstractmethod
    def infer(self, feed: Feed) -> dict[str, Array]:
        """Run once. `feed` holds every input by name with its declared dtype; the outputs come back by name."""

    @abstractmethod
    def bind(self, feed: Feed) -> Callable[[], None]:
        """Place inputs and outputs in the backend's own memory; the call returned runs once and waits for the end."""

    def close(self) -> None:  # noqa: B027  (a backend that holds nothing needs none)
        """Free what the backend holds. Safe to call twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
