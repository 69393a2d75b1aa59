"""The contract of an open model: what a deployment calls and what a runner times."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from optimizer.errors import OptimizerError
from optimizer.types import TensorSpec

Array = npt.NDArray[np.generic]
Feed = Mapping[str, Array]


class ClosedError(OptimizerError, RuntimeError):
    """A session was used after it was closed: a mistake of the program that holds it."""

    @classmethod
    def of(cls, path: Path) -> Self:
        """Return the error for the session of this file."""
        return cls("the session is closed", where=str(path), hint="Load it again, or close it after its last call.")


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

    def trace(self, feed: Feed) -> list[dict[str, Any]]:
        """Run once more, observed; return Trace Event Format events ("X", microseconds), operator by operator where the
        backend tells. This one knows the bound call alone. Observing costs time: no latency is taken from it.
        """
        call = self.bind(feed)
        call()
        begun = time.perf_counter_ns()
        call()
        return [{"name": "inference", "ph": "X", "ts": 0.0, "dur": (time.perf_counter_ns() - begun) / 1e3}]

    def close(self) -> None:  # noqa: B027  (a backend that holds nothing needs none)
        """Free what the backend holds. Safe to call twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
