"""onnxruntime: the CPU provider, or on a GPU the CUDA provider or the TensorRT provider."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import ClassVar

from optimizer.runner import Runner
from optimizer.runners.refusal import refusal_fails_the_measurement
from optimizer.runtime.session import Session
from optimizer.types import Artifact

_MOST_KINDS = 3
# The attribute of a Cast to bfloat16 as protobuf writes it: name "to", integer 16.
_CAST_TO_BFLOAT16 = b"\n\x02to\x18\x10"


class OnnxRuntimeRunner(Runner):
    """An ONNX graph with onnxruntime's own optimisations, one after another operator, `threads` threads inside each."""

    runtime: ClassVar[str] = "onnxruntime"
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    cuda_graph: ClassVar[bool] = False  # by default onnxruntime's users have none

    @classmethod
    def missing(cls, device: str) -> str | None:
        """Say whether onnxruntime or its CUDA provider is absent."""
        from optimizer.runtime.onnx import missing

        return missing(device)

    @classmethod
    def refuses(cls, artifact: Artifact, device: str) -> str | None:
        """Refuse bfloat16 on the CPU: its provider has no such Conv, MatMul or Gemm."""
        # A look at the bytes first: a build that reuses everything need not load onnx.
        if device != "cpu" or not _holds(artifact.file, _CAST_TO_BFLOAT16):
            return None
        import onnx

        outline = onnx.load(artifact.file, load_external_data=False).graph
        kind = int(onnx.TensorProto.BFLOAT16)
        narrow = {value.name for value in outline.value_info if value.type.tensor_type.elem_type == kind}
        narrow.update(tensor.name for tensor in outline.initializer if tensor.data_type == kind)
        computing = [
            node.op_type
            for node in outline.node
            if node.op_type != "Cast" and not narrow.isdisjoint((*node.input, *node.output))
        ]
        if not computing:
            return None
        kinds = ", ".join(sorted(set(computing))[:_MOST_KINDS]) + (", ..." if len(set(computing)) > _MOST_KINDS else "")
        return (
            f"onnxruntime has no bfloat16 kernels on the CPU, and {len(computing)} nodes compute in it ({kinds}); "
            "a GPU can: onnxruntime on CUDA, or a TensorRT engine for compute capability 8.0 or later"
        )

    def open(self) -> Session:
        """Load the graph on exactly the provider of `device`."""
        from optimizer.runtime.onnx import OnnxSession
        from optimizer.runtime.onnx_gpu import open_with_cuda_graphs

        with refusal_fails_the_measurement():
            if self.cuda_graph and self.device != "cpu":
                return open_with_cuda_graphs(self.artifact.file, device=self.device, threads=self.threads)
            return OnnxSession(self.artifact.file, device=self.device, threads=self.threads)


class OnnxRuntimeCudaGraphRunner(OnnxRuntimeRunner):
    """The same graph on the CUDA provider, each bound call a CUDA graph where onnxruntime captures it."""

    cuda_graph: ClassVar[bool] = True


class OnnxRuntimeTensorRTRunner(OnnxRuntimeRunner):
    """An ONNX graph in onnxruntime's TensorRT provider; nodes that it leaves run on CUDA or the CPU, and are named."""

    runtime: ClassVar[str] = "onnxruntime_tensorrt"

    @classmethod
    def missing(cls, device: str) -> str | None:
        """Say whether onnxruntime, its TensorRT provider or that GPU is absent."""
        from optimizer.runtime.onnx_providers import TENSORRT, missing

        return missing(device, TENSORRT)

    def open(self) -> Session:
        """Load the graph, and build engines of the parts that TensorRT takes.

        Raises: MissingToolError when the provider does not start, MeasurementError when it refuses the graph.
        """
        from optimizer.runtime.onnx_gpu import TensorrtProviderSession

        with refusal_fails_the_measurement():
            return TensorrtProviderSession(self.artifact.file, device=self.device, threads=self.threads)


def _holds(file: Path, pattern: bytes) -> bool:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(pattern) >= 0
