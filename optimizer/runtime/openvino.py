"""A session of OpenVINO on the CPU. It reads ONNX and computes in the types that the graph states."""

from __future__ import annotations

import importlib.util
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.environment import check_threads
from optimizer.errors import MissingToolError, StageError
from optimizer.runtime.feed import check_feed
from optimizer.runtime.onnx_interface import read_interface
from optimizer.runtime.session import Array, ClosedError, Feed, Session
from optimizer.types import TensorSpec

_TELEMETRY = "openvino_telemetry"
_OBSERVED = 10  # runs of a trace
_INT32 = np.iinfo(np.int32)
_CUT = frozenset({"int64", "uint64", "uint32"})
# Where in its sources OpenVINO noticed it: of no use to a reader.
_SOURCES = re.compile(r"(Exception from|Check '[^']*' failed at) \S+?:\d+:\s*")


class OpenVinoSession(Session):
    """An ONNX file in OpenVINO on the CPU: one request at a time, `threads` threads for it.

    Numeric: arithmetic as the graph states it. By itself OpenVINO computes float32 in bfloat16 where the CPU has
    matrix tiles, and rounds what meets 4-bit weights to 8 bits: both are off. int64 is computed in 32 bits, float64 in
    float32.
    Raises: MissingToolError without openvino or for a device other than the CPU, StageError when it refuses the model.
    """

    def __init__(self, path: Path, *, device: str = "cpu", threads: int = 1) -> None:
        sentence = missing(device)
        if sentence:
            raise MissingToolError(sentence, where=f"device {device}")
        self._path = Path(path)
        self._threads = threads
        self._ov: Any = load_openvino()
        self._compiled: Any = compile_model(self._path, threads)
        # OpenVINO 2026.4 goes on using the tensors of a request that is gone: freed ones corrupt the heap in the next
        # inference. So all of them live as long as the session or one of its bound calls.
        self._held: list[Any] = []
        declared_inputs, declared_outputs = read_interface(self._path)
        self._ports = {name: port for port in self._compiled.inputs + self._compiled.outputs for name in port.names}
        self.inputs = tuple(self._known(spec) for spec in declared_inputs)
        self.outputs = tuple(self._known(spec) for spec in declared_outputs)

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Run once from numpy to numpy.

        Raises: UsageError for a wrong feed, StageError when OpenVINO fails on it.
        """
        checked = self._checked(feed)
        self._alive()
        with self._explained():
            values = self._request.infer(checked)
            return {spec.name: values[self._ports[spec.name]] for spec in self.outputs}

    def bind(self, feed: Feed) -> Callable[[], None]:
        """Copy the inputs into tensors of OpenVINO, and give it the outputs' where their size follows from the inputs'.

        Raises: UsageError for a wrong feed, StageError when OpenVINO fails on it.
        """
        checked = self._checked(feed)
        compiled = self._alive()
        with self._explained():
            request = compiled.create_infer_request()
            for name, array in checked.items():
                self._place(request, name, array.shape).data[...] = array
            request.infer()
            axes = {axis for spec in self.inputs for axis in spec.shape if isinstance(axis, str)}
            for spec in self.outputs:
                if all(isinstance(axis, int) or axis in axes for axis in spec.shape):
                    self._place(request, spec.name, tuple(request.get_tensor(self._ports[spec.name]).shape))
            # The call beneath InferRequest.infer, which would look for inputs and wrap the outputs each time.
            run = partial(self._ov.InferRequest.__base__.infer, request, {}, True, False)
            run.__dict__["held"] = self._held
            run()

        refused = refusals()

        def call() -> None:
            try:
                run()
            except refused as error:
                raise StageError(f"OpenVINO failed while running: {_one_line(error)}", where=str(self._path)) from error

        return call

    def trace(self, feed: Feed) -> list[dict[str, Any]]:
        """Run a copy of the model, compiled to count, 10 times. The inference is the last one; the operators' times are
        means, put one after another in the order of execution.

        Raises: UsageError for a wrong feed, StageError when OpenVINO fails on it.
        """
        checked = self._checked(feed)
        self._alive()
        with self._explained():
            request = compile_model(self._path, self._threads, counts=True).create_infer_request()
            for _ in range(_OBSERVED):  # the times are means over all runs, and the first one prepares
                begun = time.perf_counter_ns()
                request.infer(checked)
                took = (time.perf_counter_ns() - begun) / 1e3
            return list(_events(request.get_profiling_info(), took))

    def close(self) -> None:
        """Free the compiled model."""
        self._compiled = None
        self.__dict__.pop("_request", None)
        self._held = []

    @cached_property
    def _request(self) -> Any:
        return self._alive().create_infer_request()

    def _checked(self, feed: Feed) -> dict[str, Array]:
        checked = check_feed(self.inputs, feed, self._path.name)
        for name, array in checked.items():
            if array.dtype.name in _CUT and array.size and not _INT32.min <= array.min() <= array.max() <= _INT32.max:
                raise StageError(
                    f"input '{name}' reaches {_farthest(array)}, and OpenVINO computes {array.dtype.name} in 32 bits",
                    where=str(self._path),
                    hint="Run this model with onnxruntime.",
                )
        return checked

    def _place(self, request: Any, name: str, shape: tuple[int, ...]) -> Any:
        port = self._ports[name]
        tensor = self._ov.Tensor(port.get_element_type(), self._ov.Shape(list(shape)))
        self._held.append(tensor)
        request.set_tensor(port, tensor)
        return tensor

    def _known(self, spec: TensorSpec) -> TensorSpec:
        """Return what the file declares; where it declares no axes, those that OpenVINO inferred."""
        port = self._ports.get(spec.name)
        if port is None:
            raise StageError(f"OpenVINO's model has no '{spec.name}'", where=str(self._path))
        inferred = port.get_partial_shape()
        if spec.shape or inferred.rank.is_dynamic:
            return spec
        sizes = enumerate(inferred)
        axes = (f"{spec.name}_axis{i}" if size.is_dynamic else size.get_length() for i, size in sizes)
        return TensorSpec(spec.name, spec.dtype, tuple(axes))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except refusals() as error:
            raise StageError(f"OpenVINO failed while running: {_one_line(error)}", where=str(self._path)) from error

    def _alive(self) -> Any:
        if self._compiled is None:
            raise ClosedError.of(self._path)
        return self._compiled


def compile_model(path: Path, threads: int, counts: bool = False) -> Any:
    """Return OpenVINO's compiled model: the shortest time for one request, in the types of the graph.

    Raises: MissingToolError without openvino or so many processors, StageError when it refuses the model.
    """
    ov = load_openvino()
    if not path.is_file():
        raise StageError("there is no such file", where=str(path))
    properties = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        # As many as asked for, also where they are siblings of one core; who pins threads is the caller.
        "ENABLE_HYPER_THREADING": True,
        "ENABLE_CPU_PINNING": False,
        # As the graph says; the default is bfloat16 on a CPU that multiplies it in tiles.
        "INFERENCE_PRECISION_HINT": "dynamic",
        # What meets weights of 4 or 8 bits stays float; the default rounds it to 8 bits in groups of 32.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "PERF_COUNT": counts,
    }
    try:
        core = ov.Core()
        compiled = core.compile_model(core.read_model(str(path)), "CPU", properties)
    except refusals() as error:
        raise StageError(f"OpenVINO refuses the model: {_one_line(error)}", where=str(path)) from error
    taken = compiled.get_property("INFERENCE_NUM_THREADS")
    if taken != threads:
        check_threads(threads, where=str(path))
        raise StageError(
            f"OpenVINO takes {taken} of {threads} threads: it uses no more than there were processors for this process "
            "when it was first used in it",
            where=str(path),
            hint=f"threads: {taken}, or load the session with more threads first",
        )
    return compiled


def missing(device: str) -> str | None:
    """Return the sentence that says what OpenVINO lacks to execute on `device`, or None when it can."""
    if device != "cpu":
        return f"OpenVINO is used on the CPU alone, not on {device}"
    if importlib.util.find_spec("openvino") is None:
        return "needs openvino, which is not installed: pip install openvino"
    return None


def load_openvino() -> Any:
    """Import openvino without its telemetry, which would send that it was imported and write into the user's home.

    Raises: MissingToolError without openvino.
    """
    absent = _TELEMETRY not in sys.modules
    if absent:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # to Python: not installed; openvino has a stub
    try:
        import openvino
    except ImportError as error:
        raise MissingToolError(
            f"needs openvino, which is not installed ({error})", hint="pip install openvino"
        ) from error
    finally:
        if absent:
            del sys.modules[_TELEMETRY]
    return openvino


def refusals() -> tuple[type[Exception], ...]:
    """What OpenVINO raises: its frontends' own kinds have no common base."""
    frontend = load_openvino().frontend
    own = [kind for kind in vars(frontend).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError)


def _events(profile: Any, took: float) -> Iterator[dict[str, Any]]:
    """Yield the inference, and inside it the operators that ran. Units: microseconds."""
    yield {"name": "inference", "ph": "X", "ts": 0.0, "dur": took}
    at = 0.0
    for layer in profile:
        microseconds = layer.real_time.total_seconds() * 1e6
        if layer.status == layer.EXECUTED and microseconds > 0:
            about = {"operator": layer.node_type, "kernel": layer.exec_type}
            yield {"name": layer.node_name, "ph": "X", "ts": at, "dur": microseconds, "args": about}
            at += microseconds


def _farthest(array: Array) -> int:
    return max(int(array.min()), int(array.max()), key=abs)


def _one_line(error: Exception) -> str:
    """Return OpenVINO's reason without its source paths and line breaks."""
    return _SOURCES.sub("", " ".join(str(error).split()))[:400].strip()
