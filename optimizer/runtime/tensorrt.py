"""A session of TensorRT or TensorRT-RTX: an engine on one GPU, its memory held through the CUDA driver alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from optimizer.errors import MissingToolError, StageError
from optimizer.runtime import cuda
from optimizer.runtime.cuda_graph import Capture
from optimizer.runtime.device import cuda_index
from optimizer.runtime.engine_interface import RECEIPT, describe, holds_host_code, read_receipt, register_plugins
from optimizer.runtime.engine_weights import limit_weights, refit_stripped
from optimizer.runtime.execution import Execution
from optimizer.runtime.feed import check_feed
from optimizer.runtime.layer_times import as_events, layer_profiler
from optimizer.runtime.profiles import choose_profile
from optimizer.runtime.session import Array, ClosedError, Feed, Session
from optimizer.runtime.transfers import Transfers, measure_transfers

__all__ = ["RECEIPT", "Package", "TensorRTSession", "missing"]

Package = Literal["tensorrt", "tensorrt_rtx"]


class TensorRTSession(Session):
    """An engine in execution contexts of its own, on streams of its own.

    `cuda_graph`: bound calls launch a CUDA graph where capturing it is not refused; `captures` has the answer of each.
    `weight_budget_bytes`: of an engine built for weight streaming, what stays on the GPU; by default what TensorRT
    finds room for.
    Raises: MissingToolError without the package, a driver or that GPU; StageError when the engine does not fit here;
    UsageError for a weight budget that the engine cannot have.
    """

    def __init__(
        self,
        plan: Path,
        *,
        package: Package,
        device: str = "cuda:0",
        cuda_graph: bool = True,
        weight_budget_bytes: int | None = None,
    ) -> None:
        self._plan = Path(plan)
        self._package = package
        self._cuda_graph = cuda_graph
        self.captures: list[Capture] = []  # one of each `bind`, in order
        if not self._plan.is_file():
            raise StageError("there is no such file", where=str(self._plan))
        self._trt: Any = _import(package)
        register_plugins(self._trt, package)
        self._cuda = cuda.Cuda(_gpu(package, device))
        self._executions: list[Execution] = []
        self._engine: Any = None
        self._runtime: Any = None
        self._kernels: Any = None  # of TensorRT-RTX: what its contexts compiled, by any of them for all
        try:
            self._errors: list[str] = []
            self._logger = _logger(self._trt, self._errors)
            with self._cuda.current:
                self._free_before = self._cuda.free_memory()
                self._open(read_receipt(self._plan), weight_budget_bytes)
        except BaseException:
            self.close()
            raise

    def _open(self, receipt: Mapping[str, Any], weight_budget_bytes: int | None) -> None:
        where = str(self._plan)
        self._engine = self._deserialize(receipt)
        # Before any context exists: contexts are sized for the weights that stay, and use those that are there.
        refit_stripped(self._trt, self._engine, self._logger, self._plan, receipt)
        self._errors.clear()
        self._resident_bytes = limit_weights(self._engine, weight_budget_bytes, where, self._reason)
        self._tensors = describe(self._trt, self._engine, receipt, where)
        self.inputs = self._tensors.inputs
        self.outputs = self._tensors.outputs
        self._own = self._execution()

    @property
    def device_memory_bytes(self) -> int:
        """What the GPU's free memory fell by since the session was opened: weights, contexts, buffers, kernels.

        What other sessions and processes take or give back meanwhile counts too.
        """
        self._alive()
        with self._cuda.current:
            return max(0, self._free_before - self._cuda.free_memory())

    @property
    def context_memory_bytes(self) -> int:
        """What one execution context reserves for activations, whatever the batch: every `bind` takes it once more."""
        self._alive()
        return int(self._engine.device_memory_size_v2)

    @property
    def resident_weight_bytes(self) -> int | None:
        """How many bytes of streamed weights stay on the GPU; None where all do."""
        return self._resident_bytes

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Copy the inputs to the GPU, run, copy the outputs back.

        Raises: UsageError for a wrong feed or a shape outside the engine's profiles, StageError when it fails.
        """
        checked, profile = self._check(feed)
        with self._cuda.current:
            self._own.place(checked, profile)
            self._own.run()
            return self._own.fetch()

    def bind(self, feed: Feed) -> Callable[[], None]:
        """Place the inputs in GPU memory of an execution context of its own; the call runs and waits for the stream."""
        checked, profile = self._check(feed)
        with self._cuda.current:
            execution = self._execution(graph=self._graph_by_runtime)
            try:
                execution.place(checked, profile)
                found = self._capture(execution)
            except BaseException:  # a batch that does not fit leaves its memory to the next one
                self._drop(execution)
                raise
        self.captures.append(found)
        return execution.run

    def trace(self, feed: Feed) -> list[dict[str, Any]]:
        """Run once more under TensorRT's profiler, without a CUDA graph: one event a layer, laid end to end.

        Raises: StageError when the engine reports no layers.
        """
        checked, profile = self._check(feed)
        times: list[tuple[str, float]] = []
        with self._cuda.current:
            execution = self._execution()
            try:
                execution.place(checked, profile)
                execution.profile_layers(layer_profiler(self._trt, times))
            finally:
                self._drop(execution)
        if not times:
            raise StageError("the engine reports no layer times", where=str(self._plan))
        return as_events(times)

    def transfers(self, feed: Feed) -> Transfers:
        """Time the copies of the feed to the GPU and of its answer back, by themselves."""
        checked, _ = self._check(feed)
        return measure_transfers(self._cuda, list(checked.values()), list(self.infer(feed).values()))

    def close(self) -> None:
        """Free contexts with their memory, engine, runtime and the GPU, in this order. Safe to call twice."""
        if self._runtime is not None:
            with self._cuda.current:
                for execution in self._executions:
                    execution.close()
                self._executions.clear()
                self._kernels = None  # contexts use it to their end
                self._engine = None
                self._runtime = None
        self._cuda.close()

    def _deserialize(self, receipt: Mapping[str, Any]) -> Any:
        try:
            self._runtime = self._trt.Runtime(self._logger)
        except TypeError as error:  # how pybind11 says that the factory returned null: a driver that is too old
            raise MissingToolError(
                f"{self._package} {self._trt.__version__} cannot start its runtime: {self._reason()}",
                where=f"device cuda:{self._cuda.index}",
                hint=f"it needs a newer driver; this one serves CUDA {self._cuda.driver_version}",
            ) from error
        if holds_host_code(receipt):  # of no other plan: one from elsewhere must not run what it brings
            self._runtime.engine_host_code_allowed = True
        engine = self._runtime.deserialize_cuda_engine(self._plan.read_bytes())
        if engine is None:
            refused = f"{self._package} {self._trt.__version__} refuses the engine: {self._reason()}"
            capability, built = self._cuda.compute_capability, receipt.get("compute_capabilities")
            this = f"this GPU ({self._cuda.name}) has compute capability {capability}"
            if built and capability not in built:
                what = f"was built for {', '.join(built)}; {this}. {refused}"
                raise MissingToolError(what, where=str(self._plan), hint="build it for this one too")
            raise StageError(refused, where=str(self._plan), hint=f"{this}; build the engine again on this version")
        return engine

    def _alive(self) -> None:
        if self._engine is None:
            raise ClosedError.of(self._plan)

    def _check(self, feed: Feed) -> tuple[dict[str, Array], int]:
        self._alive()
        checked = check_feed(self.inputs, feed, self._plan.name)
        shapes = {name: array.shape for name, array in checked.items()}
        return checked, choose_profile(self._tensors.profiles, shapes, self._plan.name)

    @property
    def _graph_by_runtime(self) -> bool:
        """TensorRT-RTX has its own capture, which waits for the kernels of a shape; ours would not know when."""
        return self._cuda_graph and self._package == "tensorrt_rtx" and self._resident_bytes is None

    def _capture(self, execution: Execution) -> Capture:
        if not self._cuda_graph:
            return Capture(False, "not asked for")
        if self._resident_bytes is not None:
            return Capture(False, "weights are streamed in while a call runs, which no graph can hold")
        if self._package == "tensorrt_rtx":
            return Capture(None, "TensorRT-RTX was asked to capture (WHOLE_GRAPH_CAPTURE) and does not say if it did")
        return execution.capture()

    def _execution(self, *, graph: bool = False) -> Execution:
        context = self._context(graph)
        if context is None:
            raise StageError(f"no execution context could be created: {self._reason()}", where=str(self._plan))
        execution = Execution(context, self._cuda, self._tensors, self._reason)
        self._executions.append(execution)
        return execution

    def _drop(self, execution: Execution) -> None:
        self._executions.remove(execution)
        execution.close()

    def _context(self, graph: bool) -> Any:
        if self._package == "tensorrt":
            return self._engine.create_execution_context()
        config = self._engine.create_runtime_config()
        # By default RTX compiles kernels for a new shape in the background while it already answers with slower ones:
        # the same call would take another time a second later. Eager compiles within the first call of each shape.
        strategies = self._trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        graphs = self._trt.CudaGraphStrategy
        config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE if graph else graphs.DISABLED
        self._share_kernels(config)
        return self._engine.create_execution_context(config)

    def _share_kernels(self, config: Any) -> None:
        """Let a context take the kernels that others of this session compiled; by itself each one compiles its own.

        The cache stays in memory: kept on disk it would make a measured opening depend on what ran before.
        """
        if self._kernels is None:
            self._kernels = config.create_runtime_cache()
        # Setting none at all succeeds: that the cache exists is asked first.
        if self._kernels is None or not config.set_runtime_cache(self._kernels):
            raise StageError(f"TensorRT-RTX refuses a cache of its kernels: {self._reason()}", where=str(self._plan))

    def _reason(self, silence: str = "it logged no reason") -> str:
        """Return what TensorRT logged as errors since the last question, in one line."""
        text = " | ".join(" ".join(message.split()) for message in self._errors)
        self._errors.clear()
        return text[:600] or silence


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
