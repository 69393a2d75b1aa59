"""One execution context of an engine with its own stream and its own memory, which grows and never shrinks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np

from optimizer.errors import StageError
from optimizer.runtime.cuda import Cuda
from optimizer.runtime.cuda_graph import Capture, CudaGraph, alike, capture
from optimizer.runtime.profiles import Profile, Shape
from optimizer.runtime.session import Array
from optimizer.types import TensorSpec

_POISON = 0xFF  # as float a NaN, as integer -1: what a replay does not write is found
_ALIGNMENT = 256  # bytes, of every address: IExecutionContext::setTensorAddress, NvInferRuntime.h


class Reason(Protocol):
    """Returns what TensorRT logged as errors since the last question; `silence` where it logged none."""

    def __call__(self, silence: str = ...) -> str:
        """Return it in one line, and forget it."""


@dataclass(frozen=True, slots=True)
class Tensors:
    """What goes in and out of an engine; `host` names shape tensors, which live in host memory."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    host: frozenset[str]
    profiles: tuple[Profile, ...]


class Execution:
    """Inputs placed, outputs allocated, ready to run again and again. `reason` returns what TensorRT complained of."""

    def __init__(self, context: Any, cuda: Cuda, tensors: Tensors, reason: Reason) -> None:
        self._context = context
        self._cuda = cuda
        self._tensors = tensors
        self._reason = reason
        self._stream = cuda.create_stream()
        self._memory: dict[str, tuple[int, int]] = {}  # tensor -> address, capacity in bytes
        self._held: dict[str, Array] = {}  # arrays in host memory that the context points to
        self._shapes: dict[str, Shape] = {}
        self._profile = 0  # a new context is in the first one
        self._graph: CudaGraph | None = None

    def place(self, feed: Mapping[str, Array], profile: int = 0) -> None:
        """Copy the inputs and give every output its memory. Raises: StageError for a data-dependent output shape."""
        self._drop_graph()  # it names the memory and the shapes of before
        if profile != self._profile:  # before the shapes, which it forgets
            accepted = self._context.set_optimization_profile_async(profile, self._stream)
            self._must(accepted, f"optimization profile {profile}")
            self._profile = profile
        for spec in self._tensors.inputs:
            array = feed[spec.name]
            self._must(
                self._context.set_input_shape(spec.name, tuple(array.shape)), f"the shape of input '{spec.name}'"
            )
            if spec.name in self._tensors.host:
                # TensorRT reads it while it enqueues: the caller's array may change, ours does not.
                self._held[spec.name] = _aligned(array.shape, spec.dtype)
                self._held[spec.name][...] = array
                self._point(spec.name, self._held[spec.name].ctypes.data)
            else:
                address = self._room(spec.name, array.nbytes)
                self._cuda.to_device(address, array, self._stream)
                self._point(spec.name, address)
        self._infer_shapes()
        for spec in self._tensors.outputs:
            self._place_output(spec)
        self._cuda.synchronize(self._stream)

    def run(self) -> None:
        """Enqueue and wait for the stream: what is timed. It may be called in any thread, whatever GPU is current."""
        with self._cuda.current:
            if self._graph is not None:
                self._graph.launch()
            elif not self._context.execute_async_v3(self._stream):
                raise StageError(f"execution failed: {self._reason()}", where="engine")
            self._cuda.synchronize(self._stream)

    def capture(self) -> Capture:
        """Let `run` launch a CUDA graph of what is placed, if its replay computes the same; else say why it does not.

        Raises: StageError when the engine fails, or executes no more after a refused capture.
        """
        if self._tensors.host:
            names = ", ".join(f"'{name}'" for name in sorted(self._tensors.host))
            return Capture(False, f"tensors in host memory ({names}) are read when a call is queued, not when it runs")
        self.run()  # a context may allocate and compile at its first call after new shapes, which a capture forbids
        expected = self.fetch()
        found = capture(self._cuda, self._stream, lambda: bool(self._context.execute_async_v3(self._stream)))
        if isinstance(found, CudaGraph):
            self._graph = found
            if self._replays(expected):
                return Capture(True, "one CUDA graph for the whole call")
            self._drop_graph()
            found = "the replay of the captured graph gives other outputs"
        said = self._reason(silence="")
        self.run()  # whatever was refused, the plain call must work
        return Capture(False, f"{found} ({said})" if said else found)

    def profile_layers(self, profiler: Any) -> None:
        """Run what is placed twice, and report the second time to the profiler, an IProfiler whose list is cleared."""
        self.run()
        self._context.profiler = profiler
        self.run()

    def fetch(self) -> dict[str, Array]:
        """Copy the outputs into new arrays."""
        outputs = {}
        for spec in self._tensors.outputs:
            if spec.name in self._tensors.host:
                outputs[spec.name] = self._held[spec.name].copy()
            else:
                outputs[spec.name] = np.empty(self._shapes[spec.name], dtype=spec.dtype)
                self._cuda.to_host(outputs[spec.name], self._memory[spec.name][0], self._stream)
        self._cuda.synchronize(self._stream)
        return outputs

    def close(self) -> None:
        """Free the context, then what it pointed to. Called with the GPU current, as everything but `run` is."""
        if self._context is None:
            return
        self._drop_graph()
        self._context = None
        for address, _ in self._memory.values():
            self._cuda.free(address)
        self._memory.clear()
        self._cuda.destroy_stream(self._stream)

    def _replays(self, expected: Mapping[str, Array]) -> bool:
        """Launch the graph into outputs that were overwritten before, and compare."""
        for name in expected:
            address, size = self._memory[name]
            self._cuda.fill(address, _POISON, size, self._stream)
        self.run()
        return all(alike(array, expected[name]) for name, array in self.fetch().items())

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def _infer_shapes(self) -> None:
        """Let the shapes of the inputs decide those of the outputs; TensorRT returns what it lacks, or raises."""
        try:
            unknown = self._context.infer_shapes()
        except RuntimeError as error:
            raise StageError(f"TensorRT cannot infer shapes: {self._reason()} ({error})", where="engine") from error
        self._must(not unknown, f"the shapes of {', '.join(unknown)}")

    def _place_output(self, spec: TensorSpec) -> None:
        shape = tuple(self._context.get_tensor_shape(spec.name))
        if any(size < 0 for size in shape):
            raise StageError(
                f"the shape of output '{spec.name}' depends on the data ({list(shape)}), which is not supported",
                where="engine",
                hint="return it padded to a fixed size, or serve the ONNX with onnxruntime",
            )
        self._shapes[spec.name] = shape
        if spec.name in self._tensors.host:
            self._held[spec.name] = _aligned(shape, spec.dtype)
            self._point(spec.name, self._held[spec.name].ctypes.data)
        else:
            self._point(spec.name, self._room(spec.name, prod(shape) * np.dtype(spec.dtype).itemsize))

    def _room(self, name: str, size: int) -> int:
        """Return an address with at least `size` bytes for a tensor, the same as before where that suffices."""
        address, capacity = self._memory.get(name, (0, -1))
        if size > capacity:
            if capacity >= 0:
                # Forget it first: should the allocation fail, nothing points to memory that is gone.
                del self._memory[name]
                self._cuda.free(address)
            address = self._cuda.allocate(size)
            self._memory[name] = (address, size)
        return address

    def _point(self, name: str, address: int) -> None:
        self._must(self._context.set_tensor_address(name, address), f"the address of '{name}'")

    def _must(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise StageError(f"TensorRT refuses {what}: {self._reason()}", where="engine")


def _aligned(shape: Shape, dtype: str) -> Array:
    """Return an uninitialised array in host memory at an address that TensorRT takes; cuMemAlloc's all are."""
    size = prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    array: Array = memory[start : start + size].view(dtype).reshape(shape)
    return array
