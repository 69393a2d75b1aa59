"""Runtimes under the measuring contract; RUNNERS lists them."""

from __future__ import annotations

from optimizer.runner import Runner
from optimizer.runners.onnxruntime import OnnxRuntimeRunner, OnnxRuntimeTensorRTRunner
from optimizer.runners.openvino import OpenVinoRunner
from optimizer.runners.tensorrt import TensorRTRtxRunner, TensorRTRunner
from optimizer.runners.torch import TorchRunner
from optimizer.runners.torch_compile import TorchCompileRunner

RUNNERS: tuple[type[Runner], ...] = (
    TorchRunner,
    TorchCompileRunner,
    OnnxRuntimeRunner,
    OnnxRuntimeTensorRTRunner,
    OpenVinoRunner,
    TensorRTRunner,
    TensorRTRtxRunner,
)
