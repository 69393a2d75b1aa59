"""OpenVINO: an ONNX graph on the CPU."""

from __future__ import annotations

from typing import ClassVar

from optimizer.runner import Runner
from optimizer.runners.refusal import refusal_fails_the_measurement
from optimizer.runtime.openvino import OpenVinoSession, missing
from optimizer.runtime.session import Session


class OpenVinoRunner(Runner):
    """An ONNX graph as OpenVINO compiles it for this CPU, in one stream of `threads` threads."""

    runtime: ClassVar[str] = "openvino"
    formats: ClassVar[tuple[str, ...]] = ("onnx",)

    @classmethod
    def missing(cls, device: str) -> str | None:
        """Say that openvino is absent, or that the device is not the CPU."""
        return missing(device)

    def open(self) -> Session:
        """Read and compile the graph."""
        with refusal_fails_the_measurement():
            return OpenVinoSession(self.artifact.file, device=self.device, threads=self.threads)
