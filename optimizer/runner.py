"""The runner contract: an artifact opened on one runtime, under the conditions of a measurement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, Self

from optimizer.runtime.session import Array, Feed, Session
from optimizer.types import Artifact, TensorSpec


class Runner(ABC):
    """Entering loads, leaving frees. `device` is `cpu` or `cuda:N`; `threads` counts CPU threads of an operator."""

    runtime: ClassVar[str]
    formats: ClassVar[tuple[str, ...]]

    def __init__(self, artifact: Artifact, *, device: str = "cpu", threads: int = 1) -> None:
        self.artifact = artifact
        self.device = device
        self.threads = threads
        self._session: Session | None = None

    @classmethod
    @abstractmethod
    def missing(cls, device: str) -> str | None:
        """Return the sentence that says what this machine lacks to execute on `device`, or None when it can."""

    @classmethod
    def refuses(cls, artifact: Artifact, device: str) -> str | None:
        """Return the sentence that says why this runtime has no kernels for the artifact on `device`, or None.

        What is not refused may still fail to open: this is what can be told without loading it.
        """
        del artifact, device
        return None

    @abstractmethod
    def open(self) -> Session:
        """Load the artifact.

        Raises: MissingToolError when the runtime or device is absent, MeasurementError when it refuses the artifact.
        """

    def __enter__(self) -> Self:
        self._session = self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    @property
    def session(self) -> Session:
        """The open session; a runner that was not entered has none."""
        if self._session is None:
            raise RuntimeError(f"{type(self).__name__} is used outside its 'with' block")
        return self._session

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `infer` takes."""
        return self.session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `infer` returns."""
        return self.session.outputs

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Run once from numpy to numpy. `feed` is never changed."""
        return self.session.infer(feed)

    def bind(self, feed: Feed) -> Callable[[], None]:
        """Return the call that is timed: inputs and outputs already lie in the backend's own memory."""
        return self.session.bind(feed)

    def trace(self, feed: Feed) -> list[dict[str, Any]]:
        """Return one observed inference as Trace Event Format events; see `Session.trace`."""
        return self.session.trace(feed)
