"""Sessions of onnxruntime that only a GPU has: the TensorRT provider, and CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optimizer.errors import MissingToolError, StageError, UsageError
from optimizer.runtime.cuda_graph import Capture
from optimizer.runtime.onnx import OnnxSession
from optimizer.runtime.onnx_providers import CPU, CUDA, TENSORRT, profile_options, require

_GRAPH_ID = "gpu_graph_id"
_NO_GRAPH = -1
_CAPTURE = "graph capture"  # of onnxruntime's refusal: "This session cannot use the graph capture feature ..."
_OFF = ("trt_engine_cache_enable", "trt_timing_cache_enable", "trt_fp16_enable", "trt_int8_enable")
_RUNS = 3  # one that allocates, one that captures, one that replays


class TensorrtProviderSession(OnnxSession):
    """An ONNX file in onnxruntime's TensorRT provider; CUDA and the CPU run what it leaves, and `leftovers` says what.

    Engines are built when it opens, or at the first call of each new shape where axes are open, and are kept nowhere.
    `profile`: the min, opt and max shape of every input with open axes, so that one engine serves them all.
    Numeric: FP16 and INT8 are not switched on, so onnxruntime builds strongly typed networks: the graph's precision.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: str = "cuda:0",
        threads: int = 1,
        profile: Mapping[str, Sequence[Sequence[int]]] | None = None,
    ) -> None:
        if device == "cpu":
            raise MissingToolError(
                f"{TENSORRT} executes on an NVIDIA GPU", where="device cpu", hint="pass --device cuda:0"
            )
        self._profile = profile or {}
        super().__init__(path, device=device, threads=threads)

    def _providers(self) -> tuple[str, list[Any]]:
        require(self._ort, TENSORRT, self._device_id)
        # The Python binding of this provider takes "True" and "False", and refuses "0"; that of CUDA takes both.
        off = dict.fromkeys(_OFF, "False")
        options = {"device_id": str(self._device_id), **off, **profile_options(self._profile)}
        return TENSORRT, [(TENSORRT, options), (CUDA, {"device_id": str(self._device_id)}), CPU]


class CudaGraphSession(OnnxSession):
    """An ONNX file in onnxruntime's CUDA provider, which captures every bound call as a CUDA graph of its own.

    Raises: StageError when onnxruntime refuses, because a node is not on CUDA or the graph has control flow.
    """

    def __init__(self, path: Path, *, device: str = "cuda:0", threads: int = 1) -> None:
        if device == "cpu":
            raise UsageError("the CPU has no CUDA graphs", where="device cpu", hint="pass --device cuda:0")
        self._graphs = 0
        super().__init__(path, device=device, threads=threads)
        self._unbound = self._numbered(_NO_GRAPH)

    def _providers(self) -> tuple[str, list[Any]]:
        require(self._ort, CUDA, self._device_id)
        return CUDA, [(CUDA, {"device_id": str(self._device_id), "enable_cuda_graph": "1"}), CPU]

    def _call(self, session: Any, binding: Any, options: Any = None) -> Callable[[], None]:
        if not binding.fixed:
            call = super()._call(session, binding, self._numbered(_NO_GRAPH))
            self.captures.append(Capture(False, "the size of an output is known only after it was computed"))
            return call
        self._graphs += 1  # a graph holds the addresses of one binding
        call = super()._call(session, binding, self._numbered(self._graphs))
        for _ in range(_RUNS):
            call()
        self.captures.append(Capture(True, "onnxruntime's own CUDA graph"))
        return call

    def _numbered(self, graph: int) -> Any:
        options = self._ort.RunOptions()
        options.add_run_config_entry(_GRAPH_ID, str(graph))
        return options


def open_with_cuda_graphs(path: Path, *, device: str, threads: int) -> OnnxSession:
    """Open with CUDA graphs; a model that onnxruntime will not capture runs without, and `captures` says why.

    Raises: what opening without CUDA graphs raises.
    """
    try:
        return CudaGraphSession(path, device=device, threads=threads)
    except StageError as error:
        if _CAPTURE not in error.what:
            raise
        return OnnxSession(path, device=device, threads=threads, uncaptured=error.what)
