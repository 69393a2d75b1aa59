"""Runtimes under the measuring contract; RUNNERS lists them."""

from __future__ import annotations

from optimizer.runner import Runner
from optimizer.runners.onnxruntime import OnnxRuntimeRunner
from optimizer.runners.tensorrt import TensorRTRtxRunner, TensorRTRunner
from optimizer.runners.torch import TorchRunner

RUNNERS: tuple[type[Runner], ...] = (TorchRunner, OnnxRuntimeRunner, TensorRTRunner, TensorRTRtxRunner)
