"""Sessions of onnxruntime that only a GPU has: the TensorRT provider, and CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.errors import MissingToolError, StageError, UsageError
from optimizer.runtime.cuda_graph import Capture, alike
from optimizer.runtime.onnx import OnnxSession
from optimizer.runtime.onnx_providers import CPU, CUDA, TENSORRT, profile_options, require
from optimizer.runtime.session import Array

_GRAPH_ID = "gpu_graph_id"
_NO_GRAPH = -1
_CAPTURE = "graph capture"  # of onnxruntime's refusal: "This session cannot use the graph capture feature ..."
_OFF = ("trt_engine_cache_enable", "trt_timing_cache_enable", "trt_fp16_enable", "trt_int8_enable")
_Bound = tuple[Any, Callable[[], None]]  # an IOBinding and the call with it
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

    onnxruntime does not tell whether it captured: each call is made to show it (`_proof`). One that it did not capture,
    or does not replay right, runs without a graph, and `captures` says so. Graphs belong to the thread that binds: in
    another one onnxruntime captures again, in the first calls.
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
        found = Capture(False, "the size of an output is known only after it was computed")
        if binding.fixed:
            self._graphs += 1  # a graph holds the addresses of one binding
            numbered = self._numbered(self._graphs)
            call = super()._call(session, binding, numbered)
            for _ in range(_RUNS):
                call()
            other = self._binding(binding.held)
            found = self._proof((binding, call), (other, super()._call(session, other, numbered)))
        self.captures.append(found)
        return call if found.captured else super()._call(session, binding, self._unbound)

    def _proof(self, captured: _Bound, later: _Bound) -> Capture:
        """Tell a replay by what it must do: write to the outputs it was captured with, whatever is bound since.

        `later`: the same graph's call with other outputs. All outputs are set beforehand to what no call computes.
        """
        (binding, call), (other, elsewhere) = captured, later
        expected = self.infer(binding.held)
        wrong = [_inverted(expected[spec.name]) for spec in self.outputs]
        for target in (binding, other):
            for value, content in zip(target.get_outputs(), wrong, strict=True):
                value.update_inplace(content)
        elsewhere()
        untouched = zip(other.copy_outputs_to_cpu(), wrong, strict=True)
        if not all(found.tobytes() == content.tobytes() for found, content in untouched):
            return Capture(False, "onnxruntime computed anew where it would have replayed a graph")
        call()
        replayed = zip(binding.copy_outputs_to_cpu(), self.outputs, strict=True)
        if not all(alike(found, expected[spec.name]) for found, spec in replayed):
            return Capture(False, "the replay of onnxruntime's graph gives other outputs")
        return Capture(True, "onnxruntime's own CUDA graph, seen to be replayed")

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


def _inverted(array: Array) -> Array:
    """Return the array with every bit turned over."""
    turned: Array = np.invert(np.ascontiguousarray(array).reshape(-1).view(np.uint8)).view(array.dtype)
    return turned.reshape(array.shape)
