"""What `optimize doctor` asks of each runtime, in a child process of its own."""

from __future__ import annotations

import importlib
import importlib.metadata
from types import ModuleType

from optimizer.errors import MissingToolError


def probe_torch() -> dict[str, str]:
    """Return torch's version and the GPUs it sees."""
    torch = _import("torch")
    if not torch.cuda.is_available():
        return {"found": f"{torch.__version__}, no CUDA"}
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return {"found": f"{torch.__version__}, CUDA {torch.version.cuda}: {names}"}


def probe_onnxruntime() -> dict[str, str]:
    """Return onnxruntime's version and its execution providers."""
    onnxruntime = _import("onnxruntime")
    return {"found": f"{onnxruntime.__version__}, {', '.join(onnxruntime.get_available_providers())}"}


def probe_tensorrt() -> dict[str, str]:
    """Return TensorRT's version."""
    return {"found": str(_import("tensorrt").__version__)}


def probe_tensorrt_rtx() -> dict[str, str]:
    """Return TensorRT-RTX's version and the compute capabilities it builds for."""
    trt = _import("tensorrt_rtx")
    from optimizer.graph.build_engine import capabilities

    return {"found": f"{trt.__version__}, builds for compute capabilities {', '.join(capabilities(trt))}"}


def probe_openvino() -> dict[str, str]:
    """Return OpenVINO's version."""
    from optimizer.runtime.openvino import load_openvino

    try:
        return {"found": str(load_openvino().__version__)}
    except MissingToolError as error:
        raise MissingToolError("not installed", hint=error.hint) from error


def probe_loadgen() -> dict[str, str]:
    """Return the version of MLPerf LoadGen."""
    _import("mlperf_loadgen")
    return {"found": f"mlcommons-loadgen {importlib.metadata.version('mlcommons-loadgen')}"}


def probe_gpu() -> dict[str, str]:
    """Return the first GPU as the driver names it.

    Raises: MissingToolError without a driver or a GPU.
    """
    from optimizer.runtime.cuda import Cuda

    gpu = Cuda(0)
    about = {"name": gpu.name, "capability": gpu.compute_capability, "driver": f"driver for CUDA {gpu.driver_version}"}
    gpu.close()
    return about


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        raise MissingToolError("not installed" if missing else f"is broken: {error}") from error
