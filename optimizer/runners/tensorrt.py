"""TensorRT and TensorRT-RTX: engines on an NVIDIA GPU."""

from __future__ import annotations

from typing import ClassVar

from optimizer.runner import Runner
from optimizer.runners.refusal import refusal_fails_the_measurement
from optimizer.runtime.session import Session
from optimizer.runtime.tensorrt import Package, TensorRTSession, missing


class TensorRTRunner(Runner):
    """An engine built by the `tensorrt` package. `threads` has no part in it: the work is on the GPU."""

    package: ClassVar[Package] = "tensorrt"
    runtime: ClassVar[str] = "tensorrt"
    formats: ClassVar[tuple[str, ...]] = ("engine",)
    cuda_graph: ClassVar[bool] = True  # of a bound call, unless capturing it is refused, which `captures` says

    @classmethod
    def missing(cls, device: str) -> str | None:
        """Say whether the package, a driver or that GPU is absent."""
        return missing(cls.package, device)

    def open(self) -> Session:
        """Deserialize the engine on the GPU of `device`."""
        with refusal_fails_the_measurement():
            return TensorRTSession(
                self.artifact.file, package=self.package, device=self.device, cuda_graph=self.cuda_graph
            )


class TensorRTRtxRunner(TensorRTRunner):
    """An engine built by the `tensorrt_rtx` package."""

    package: ClassVar[Package] = "tensorrt_rtx"
    runtime: ClassVar[str] = "tensorrt_rtx"


class TensorRTPlainRunner(TensorRTRunner):
    """An engine of `tensorrt` whose bound calls queue their kernels one by one, without a CUDA graph."""

    cuda_graph: ClassVar[bool] = False


class TensorRTRtxPlainRunner(TensorRTRtxRunner):
    """An engine of `tensorrt_rtx` without its CUDA graphs."""

    cuda_graph: ClassVar[bool] = False
