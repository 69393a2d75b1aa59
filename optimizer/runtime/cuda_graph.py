"""CUDA graphs through the driver: what a stream was given once, launched again with one call."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import c_size_t, c_void_p
from dataclasses import dataclass

import numpy as np

from optimizer.runtime.cuda import Cuda
from optimizer.runtime.session import Array

# CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what this thread must not do while it captures stays allowed to the others.
_THREAD_LOCAL = 1
_REPLAY_RTOL = 1e-2  # kernels that add in any order differ by rounding alone; wrong memory differs by far more


@dataclass(frozen=True, slots=True)
class Capture:
    """Does a bound call launch a CUDA graph? `None`: the runtime decides by itself and does not tell."""

    captured: bool | None
    reason: str


class CudaGraph:
    """An executable graph on the stream it was captured from; closed before the memory that it names is freed."""

    def __init__(self, cuda: Cuda, stream: int, executable: int) -> None:
        self._cuda = cuda
        self._stream = stream
        self._executable = executable

    def launch(self) -> None:
        """Queue the whole graph on its stream."""
        self._cuda.call("cuGraphLaunch", self._executable, self._stream)

    def close(self) -> None:
        """Free the graph. Safe to call twice."""
        if self._executable:
            self._cuda.tolerate("cuGraphExecDestroy", self._executable)
            self._executable = 0


def capture(cuda: Cuda, stream: int, enqueue: Callable[[], bool]) -> CudaGraph | str:
    """Record what `enqueue` queues on the stream, which executes nothing of it; or return why that is not possible.

    The stream can be used again either way. Called with the GPU current, in one thread.
    Raises: StageError when the process has lost the GPU.
    """
    refused = cuda.attempt("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)
    if refused:
        return refused
    graph = c_void_p()
    try:
        try:
            queued = enqueue()
        finally:
            # Always: a stream whose capture was invalidated stays unusable until the capture is ended.
            ended = cuda.attempt("cuStreamEndCapture", stream, ctypes.byref(graph))
        if ended or not queued or not graph.value:
            return ended or "the runtime queues nothing while it is captured"
        return _executable(cuda, stream, graph)
    finally:
        if graph.value:  # what can be launched holds a copy
            cuda.tolerate("cuGraphDestroy", graph)


def _executable(cuda: Cuda, stream: int, graph: c_void_p) -> CudaGraph | str:
    nodes = c_size_t()
    refused = cuda.attempt("cuGraphGetNodes", graph, None, ctypes.byref(nodes))
    if refused or not nodes.value:
        # Launching an empty graph succeeds, in no time at all.
        return refused or "nothing was queued on the stream while it was captured"
    executable = c_void_p()
    refused = cuda.attempt("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, 0)
    if refused or not executable.value:
        return refused or "cuGraphInstantiateWithFlags: no graph came back"
    return CudaGraph(cuda, stream, executable.value)


def alike(found: Array, expected: Array) -> bool:
    """Tell whether a replay gave what the plain call gives; integers exactly, floats but for the order of sums."""
    if found.dtype.kind != "f":
        return bool(np.array_equal(found, expected))
    finite = np.isfinite(expected)
    if not np.array_equal(found[~finite], expected[~finite], equal_nan=True):
        return False
    close, wanted = found[finite].astype(np.float64), expected[finite].astype(np.float64)
    return bool(np.all(np.abs(close - wanted) <= _REPLAY_RTOL * np.abs(wanted).max(initial=0.0)))
