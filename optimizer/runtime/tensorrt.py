"""A session of TensorRT or TensorRT-RTX: an engine on one GPU, its memory held through the CUDA driver alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from optimizer.errors import MissingToolError, StageError, UsageError
from optimizer.runtime import cuda
from optimizer.runtime.device import cuda_index
from optimizer.runtime.execution import Execution, Tensors
from optimizer.runtime.feed import check_feed
from optimizer.runtime.session import Array, Feed, Session
from optimizer.types import TensorSpec

Package = Literal["tensorrt", "tensorrt_rtx"]

# TensorRT's names of data types and numpy's; the others (BF16, FP8, INT4, FP4) have no numpy type.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}
RECEIPT = "engine.json"  # beside the plan: names the axes, which a plan knows only as -1


class TensorRTSession(Session):
    """An engine in an execution context of its own, on a stream of its own.

    Raises: MissingToolError without the package, a driver or that GPU; StageError when the engine does not fit here.
    """

    def __init__(self, plan: Path, *, package: Package, device: str = "cuda:0") -> None:
        self._plan = Path(plan)
        self._package = package
        if not self._plan.is_file():
            raise StageError("there is no such file", where=str(self._plan))
        self._trt: Any = _import(package)
        self._cuda = cuda.Cuda(_gpu(package, device))
        self._executions: list[Execution] = []
        self._engine: Any = None
        self._runtime: Any = None
        try:
            self._errors: list[str] = []
            self._logger = _logger(self._trt, self._errors)
            with self._cuda.current:
                self._engine = self._deserialize()
                self._tensors = self._describe()
                self.inputs = self._tensors.inputs
                self.outputs = self._tensors.outputs
                self._own = self._execution()
        except BaseException:
            self.close()
            raise

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Copy the inputs to the GPU, run, copy the outputs back.

        Raises: UsageError for a wrong feed or a shape outside the engine's profile, StageError when it fails.
        """
        checked = self._check(feed)
        with self._cuda.current:
            self._own.place(checked)
            self._own.run()
            return self._own.fetch()

    def bind(self, feed: Feed) -> Callable[[], None]:
        """Place the inputs in GPU memory of an execution context of its own; the call runs and waits for the stream."""
        checked = self._check(feed)
        with self._cuda.current:
            execution = self._execution()
            execution.place(checked)
        return execution.run

    def close(self) -> None:
        """Free contexts with their memory, engine, runtime and the GPU, in this order. Safe to call twice."""
        if self._runtime is not None:
            with self._cuda.current:
                for execution in self._executions:
                    execution.close()
                self._executions.clear()
                self._engine = None
                self._runtime = None
        self._cuda.close()

    def _deserialize(self) -> Any:
        try:
            self._runtime = self._trt.Runtime(self._logger)
        except TypeError as error:  # how pybind11 says that the factory returned null: a driver that is too old
            raise MissingToolError(
                f"{self._package} {self._trt.__version__} cannot start its runtime: {self._reason()}",
                where=f"device cuda:{self._cuda.index}",
                hint=f"it needs a newer driver; this one serves CUDA {self._cuda.driver_version}",
            ) from error
        engine = self._runtime.deserialize_cuda_engine(self._plan.read_bytes())
        if engine is None:
            refused = f"{self._package} {self._trt.__version__} refuses the engine: {self._reason()}"
            capability, built = self._cuda.compute_capability, _read_receipt(self._plan).get("compute_capabilities")
            this = f"this GPU ({self._cuda.name}) has compute capability {capability}"
            if built and capability not in built:
                what = f"was built for {', '.join(built)}; {this}. {refused}"
                raise MissingToolError(what, where=str(self._plan), hint="build it for this one too")
            raise StageError(refused, where=str(self._plan), hint=f"{this}; build the engine again on this version")
        return engine

    def _describe(self) -> Tensors:
        """Read the tensors from the engine; names of axes come from its receipt, which must agree with it."""
        receipt = self._receipt()
        inputs, outputs, ranges = [], [], {}
        for position in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(position)
            spec = self._spec(name, receipt.get(name))
            if self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT:
                inputs.append(spec)
                if -1 in tuple(self._engine.get_tensor_shape(name)):
                    low, _, high = (tuple(dims) for dims in self._engine.get_tensor_profile_shape(name, 0))
                    ranges[name] = (low, high)
            else:
                outputs.append(spec)
        host = {
            spec.name
            for spec in (*inputs, *outputs)
            if self._engine.get_tensor_location(spec.name) == self._trt.TensorLocation.HOST
        }
        return Tensors(_in_order(inputs, receipt), _in_order(outputs, receipt), frozenset(host), ranges)

    def _spec(self, name: str, named: TensorSpec | None) -> TensorSpec:
        kind = self._engine.get_tensor_dtype(name).name
        shape = tuple(self._engine.get_tensor_shape(name))
        if kind not in _DTYPES:
            raise StageError(f"tensor '{name}' is {kind}, which numpy cannot hold", where=str(self._plan))
        if self._engine.get_tensor_format(name) != self._trt.TensorFormat.LINEAR:
            raise StageError(f"tensor '{name}' is not in linear format", where=str(self._plan))
        axes: tuple[int | str, ...] = tuple(f"{name}_axis{i}" if size == -1 else size for i, size in enumerate(shape))
        if named is None:
            return TensorSpec(name, _DTYPES[kind], axes)
        same_rank = len(named.shape) == len(shape)
        if not same_rank or named.dtype != _DTYPES[kind] or not all(map(_fits, named.shape, shape)):
            raise StageError(
                f"tensor '{name}' is {_DTYPES[kind]}{list(shape)} in the engine and {named.dtype}{list(named.shape)} "
                f"in {RECEIPT}: they do not belong together",
                where=str(self._plan),
            )
        # A name for the axes that the engine leaves open; where it knows the size, the size.
        return TensorSpec(name, named.dtype, tuple(map(_axis, named.shape, shape)))

    def _receipt(self) -> dict[str, TensorSpec]:
        document = _read_receipt(self._plan)
        return {
            spec["name"]: TensorSpec.from_json(spec)
            for kind in ("inputs", "outputs")
            for spec in document.get(kind, ())
        }

    def _check(self, feed: Feed) -> dict[str, Array]:
        if self._engine is None:
            raise RuntimeError(f"{self._plan}: the session is closed")
        checked = check_feed(self.inputs, feed, self._plan.name)
        for name, (low, high) in self._tensors.ranges.items():
            shape = checked[name].shape
            if not all(least <= size <= most for least, size, most in zip(low, shape, high, strict=True)):
                raise UsageError(
                    f"input '{name}' has shape {list(shape)}; the engine's profile allows {list(low)} to {list(high)}",
                    where=self._plan.name,
                )
        return checked

    def _execution(self) -> Execution:
        context = self._context()
        if context is None:
            raise StageError(f"no execution context could be created: {self._reason()}", where=str(self._plan))
        execution = Execution(context, self._cuda, self._tensors, self._reason)
        self._executions.append(execution)
        return execution

    def _context(self) -> Any:
        if self._package == "tensorrt":
            return self._engine.create_execution_context()
        config = self._engine.create_runtime_config()
        # By default RTX compiles kernels for a new shape in the background while it already answers with slower ones:
        # the same call would take another time a second later. Eager compiles within the first call of each shape.
        strategies = self._trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        return self._engine.create_execution_context(config)

    def _reason(self) -> str:
        """Return what TensorRT logged as errors since the last question, in one line."""
        text = " | ".join(" ".join(message.split()) for message in self._errors)
        self._errors.clear()
        return text[:600] or "it logged no reason"


def missing(package: Package, device: str) -> str | None:
    """Return the sentence that says why engines of `package` cannot execute on `device`, or None when they can."""
    no_gpu = cuda.missing(cuda_index(device)) if device != "cpu" else cuda.missing()
    if no_gpu:  # asked first, because loading the package is slow
        return no_gpu if device != "cpu" else f"{no_gpu}; where there is one, pass --device cuda:0"
    try:
        _import(package)
    except MissingToolError as error:
        return error.what
    return None if device != "cpu" else "needs the GPU: pass --device cuda:0"


def _import(package: Package) -> ModuleType:
    try:
        if package == "tensorrt":
            import tensorrt as trt
        else:
            import tensorrt_rtx as trt
    except (ImportError, OSError) as error:
        raise MissingToolError(
            f"needs {package}, which cannot be imported ({error})", hint=f"pip install {package.replace('_', '-')}"
        ) from error
    return trt  # type: ignore[no-any-return]


def _gpu(package: Package, device: str) -> int:
    if device == "cpu":
        raise MissingToolError(
            f"{package} executes on an NVIDIA GPU, not on the CPU", where="device cpu", hint="pass --device cuda:0"
        )
    return cuda_index(device)


def _logger(trt: Any, errors: list[str]) -> Any:
    """Return a logger that keeps errors for the exception's text instead of printing them."""

    class Errors(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 refuses super()

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                errors.append(message)

    return Errors()


def _read_receipt(plan: Path) -> dict[str, Any]:
    path = plan.with_name(RECEIPT)
    if not path.is_file():
        return {}
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise StageError(f"is no JSON: {error}", where=str(path)) from error
    return document


def _fits(named: int | str, size: int) -> bool:
    return isinstance(named, str) or size in (-1, named)


def _axis(named: int | str, size: int) -> int | str:
    return named if size == -1 else size


def _in_order(specs: list[TensorSpec], receipt: dict[str, TensorSpec]) -> tuple[TensorSpec, ...]:
    """TensorRT lists tensors in its own order; the receipt has the model's."""
    order = {name: position for position, name in enumerate(receipt)}
    return tuple(sorted(specs, key=lambda spec: order.get(spec.name, len(order))))
