"""onnxruntime: the CPU provider, or CUDA where onnxruntime-gpu is installed."""

from __future__ import annotations

from typing import ClassVar

from optimizer.runner import Runner
from optimizer.runners.refusal import refusal_fails_the_measurement
from optimizer.runtime.session import Session


class OnnxRuntimeRunner(Runner):
    """An ONNX graph with onnxruntime's own optimisations, one after another operator, `threads` threads inside each."""

    runtime: ClassVar[str] = "onnxruntime"
    formats: ClassVar[tuple[str, ...]] = ("onnx",)

    @classmethod
    def missing(cls, device: str) -> str | None:
        """Say whether onnxruntime or its CUDA provider is absent."""
        from optimizer.runtime.onnx import missing

        return missing(device)

    def open(self) -> Session:
        """Load the graph on exactly the provider of `device`."""
        from optimizer.runtime.onnx import OnnxSession

        with refusal_fails_the_measurement():
            return OnnxSession(self.artifact.file, device=self.device, threads=self.threads)
