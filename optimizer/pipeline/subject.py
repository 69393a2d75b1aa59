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
    """Return where a runtime executes, whatever was asked for: OpenVINO on the CPU, TensorRT on a GPU or nowhere."""
    if runtime == "openvino":
        return "cpu"
    return device if device != "cpu" or "tensorrt" not in runtime else "cuda:0"


def why_not(runtime: str, artifact: Artifact, device: str) -> str | None:
    """Return why this machine cannot execute the artifact when `device` is asked for, as a sentence, or None."""
    kind, place = runner_of(runtime), device_of(runtime, device)
    return kind.missing("cpu" if place == "cpu" else device) or kind.refuses(artifact, place)
