"""What is measured: a candidate's artifact, how it executes on this machine, and what stands for it where it cannot."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.runner import Runner
from optimizer.runners import RUNNERS
from optimizer.types import Artifact


@dataclass(frozen=True, slots=True)
class Subject:
    """A candidate with its artifact. `graph` is the ONNX it was made from; `missing` says why it cannot run here."""

    name: str
    variant: str
    precision: str
    runtime: str
    device: str
    artifact: Artifact
    graph: Artifact | None
    missing: str | None

    @property
    def executes(self) -> bool:
        """Whether this machine can run the artifact itself."""
        return self.missing is None

    def runner(self, threads: int) -> Runner:
        """The runner of the artifact; enter it to load."""
        return runner_of(self.runtime)(self.artifact, device=self.device, threads=threads)


def runner_of(runtime: str) -> type[Runner]:
    """Return the runner of a runtime's name."""
    return next(kind for kind in RUNNERS if kind.runtime == runtime)


def device_of(runtime: str, device: str) -> str:
    """Return where a runtime executes: engines need a GPU whatever was asked for, so without one they stay `built`."""
    return device if device != "cpu" or "tensorrt" not in runtime else "cuda:0"
