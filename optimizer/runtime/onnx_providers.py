"""onnxruntime's execution providers: what this build offers, what it needs, which nodes each one took."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from typing import Any

from optimizer.errors import MissingToolError
from optimizer.runtime import cuda
from optimizer.runtime.device import cuda_index

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"  # since onnxruntime 1.24
_SHOWN = 4


def import_onnxruntime() -> Any:
    """Return the module. Raises: MissingToolError when it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingToolError(
            f"needs onnxruntime, which is not installed ({error})",
            hint="pip install onnxruntime   (with an NVIDIA GPU: onnxruntime-gpu)",
        ) from error
    return onnxruntime


def missing(device: str, provider: str = CUDA) -> str | None:
    """Return the sentence that says what onnxruntime lacks to execute on `device`, or None when it can.

    Whether the libraries of a GPU provider load is found out when it starts.
    """
    if provider == TENSORRT and device == "cpu":
        return f"{TENSORRT} executes on an NVIDIA GPU: pass --device cuda:0"
    if device == "cpu" and importlib.util.find_spec("onnxruntime") is not None:
        return None  # nothing is loaded for the answer: an unchanged build asks it too
    try:
        ort = import_onnxruntime()
        if device != "cpu":
            require(ort, provider, cuda_index(device))
            return cuda.missing(cuda_index(device))
    except MissingToolError as error:
        return f"{error.what}: {error.hint}"
    return None


def require(ort: Any, provider: str, index: int) -> None:
    """Raise MissingToolError unless this build of onnxruntime has the provider."""
    offered = ort.get_available_providers()
    if provider not in offered:
        raise MissingToolError(
            f"this onnxruntime {ort.__version__} has no {provider} (it has {', '.join(offered)})",
            where=f"device cuda:{index}",
            hint="install onnxruntime-gpu instead of onnxruntime, or use --device cpu",
        )


def require_started(ort: Any, started: Sequence[str], wanted: str, where: str) -> None:
    """Raise MissingToolError unless the session runs on the provider: one that cannot load is left out in silence."""
    if started[0] == wanted:
        return
    libraries = "TensorRT 10, CUDA and cuDNN" if wanted == TENSORRT else "CUDA and cuDNN"
    raise MissingToolError(
        f"onnxruntime {ort.__version__} could not start {wanted} (it started {', '.join(started)})",
        where=where,
        hint=f"install onnxruntime-gpu and the {libraries} libraries that it names, or use --device cpu",
    )


def preload(ort: Any, provider: str) -> None:
    """Load the CUDA, cuDNN and TensorRT libraries that pip installed, as importing torch and tensorrt would.

    What it prints is dropped: a library that is really missing is named when the provider fails to start.
    """
    if hasattr(ort, "preload_dlls"):  # since 1.21
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
    if provider == TENSORRT and importlib.util.find_spec("tensorrt") is not None:
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module("tensorrt")


def profile_options(shapes: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, str]:
    """Return the TensorRT provider's options for inputs with open axes: of each its min, opt and max shape.

    They hold for the graph's inputs alone: where a subgraph that CUDA feeds has open axes too, the provider refuses.
    """
    names = ("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes")
    return {
        option: ",".join(f"{name}:{'x'.join(str(size) for size in ranges[which])}" for name, ranges in shapes.items())
        for which, option in enumerate(names)
        if shapes
    }


def placement(session: Any) -> dict[str, list[str]] | None:
    """Return the operators of the nodes that each provider took; None where this release does not tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    taken: dict[str, list[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        taken.setdefault(part.ep_name, []).extend(node.op_type for node in part.get_nodes())
    return taken


def left_over(taken: Mapping[str, Sequence[str]] | None, wanted: str) -> str | None:
    """Return the sentence that says which nodes another provider runs; None when there are none."""
    if taken is None:
        return f"this onnxruntime does not tell which nodes run on {wanted}"
    total = sum(len(nodes) for nodes in taken.values())
    parts = [
        f"{len(nodes)} of {total} nodes run on {provider} ({_kinds(nodes)})"
        for provider, nodes in taken.items()
        if provider != wanted and nodes
    ]
    return "; ".join(parts) or None


def _kinds(nodes: Sequence[str]) -> str:
    kinds = sorted(set(nodes))
    return ", ".join(kinds[:_SHOWN]) + (", ..." if len(kinds) > _SHOWN else "")
