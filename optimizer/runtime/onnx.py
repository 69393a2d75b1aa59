"""A session of onnxruntime, on the CPU or on CUDA; never on another provider than the one asked for."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from optimizer.errors import StageError
from optimizer.runtime.cuda import Cuda
from optimizer.runtime.cuda_graph import Capture
from optimizer.runtime.device import cuda_index
from optimizer.runtime.feed import check_feed
from optimizer.runtime.onnx_optimizers import keep_arithmetic
from optimizer.runtime.onnx_providers import (
    CPU,
    CUDA,
    RECORD_PLACEMENT,
    import_onnxruntime,
    left_over,
    missing,
    placement,
    preload,
    require,
    require_started,
)
from optimizer.runtime.onnx_trace import last_run
from optimizer.runtime.session import Array, ClosedError, Feed, Session
from optimizer.runtime.transfers import Transfers, measure_transfers
from optimizer.types import TensorSpec

__all__ = ["OnnxSession", "keep_arithmetic", "missing"]

# onnxruntime's names of tensor types and numpy's; bfloat16 and the 8-bit floats have no numpy type of their own.
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}
_ERRORS_ONLY = 3


class OnnxSession(Session):
    """An ONNX file in onnxruntime. `threads` counts threads inside an operator; operators run one after another.

    `captures`, on a GPU: of each bound call, whether it launches a CUDA graph; `uncaptured` is the reason why not.
    `weights` are those that the file names as external data and does not hold.
    Numeric: `optimize=False` runs the graph node by node as written (no fusion, no constant folding).
    Raises: MissingToolError when onnxruntime or the CUDA provider is absent, StageError when it refuses the model.
    """

    memory_pattern: ClassVar[bool] = True  # a place for every tensor of a run, planned once

    def __init__(
        self,
        path: Path,
        *,
        device: str = "cpu",
        threads: int = 1,
        optimize: bool = True,
        uncaptured: str = "not asked for",
        weights: Mapping[str, Array] | None = None,
    ) -> None:
        self._path = Path(path)
        self._weights = dict(weights or {})
        self._threads = threads
        self._optimize = optimize
        self._uncaptured = uncaptured
        self.captures: list[Capture] = []
        self._unbound: Any = None  # the options of a call that is not bound
        self._device = "cpu" if device == "cpu" else "cuda"
        self._device_id = 0 if device == "cpu" else cuda_index(device)
        self._ort: Any = import_onnxruntime()
        self._session: Any = self._open()
        self.inputs = tuple(self._spec(node, "input") for node in self._session.get_inputs())
        self.outputs = tuple(self._spec(node, "output") for node in self._session.get_outputs())
        self._names = [spec.name for spec in self.outputs]

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Run once from numpy to numpy.

        Raises: UsageError for a wrong feed, StageError when onnxruntime fails on it.
        """
        checked = check_feed(self.inputs, feed, self._path.name)
        session = self._alive()
        try:
            values = session.run(self._names, checked, self._unbound)
        except self._refusals() as error:
            raise self._failure(error) from error
        return dict(zip(self._names, values, strict=True))

    def bind(self, feed: Feed) -> Callable[[], None]:
        """Place inputs and outputs on the device, once; the call returned runs and waits for the end."""
        checked = check_feed(self.inputs, feed, self._path.name)
        session = self._alive()
        try:
            return self._call(session, self._binding(checked))
        except self._refusals() as error:  # the device may have no memory left
            raise self._failure(error) from error

    def trace(self, feed: Feed) -> list[dict[str, Any]]:
        """Run once more in a session of its own under onnxruntime's profiler: one event an operator, with its provider.

        On a GPU an operator's time is that of queueing it, unless this build of onnxruntime records kernels.
        """
        checked = check_feed(self.inputs, feed, self._path.name)
        self._alive()
        with tempfile.TemporaryDirectory() as folder:
            try:
                session = self._open(str(Path(folder) / "run"))
                for _ in range(2):  # the first one allocates
                    session.run(self._names, checked, self._unbound)
                written = Path(session.end_profiling())
            except self._refusals() as error:
                raise self._failure(error) from error
            return last_run(json.loads(written.read_text()))

    def transfers(self, feed: Feed) -> Transfers | None:
        """Time the copies of the feed to the GPU and of its answer back, by themselves; None on the CPU."""
        if self._device == "cpu":
            return None
        given = check_feed(self.inputs, feed, self._path.name)
        answer = self.infer(given)
        driver = Cuda(self._device_id)
        try:
            return measure_transfers(driver, list(given.values()), list(answer.values()))
        finally:
            driver.close()

    def close(self) -> None:
        """Free the session's memory."""
        self._session = None
        self._weights = {}

    def _binding(self, checked: dict[str, Array]) -> Any:
        """Bind inputs and outputs; the binding carries the input arrays, which an OrtValue on the CPU points into."""
        binding = self._alive().io_binding()
        held: dict[str, Array] = {}
        fixed = True
        for name, array in checked.items():
            # A copy: the caller may change its arrays between two calls without changing what is timed.
            held[name] = array.copy()
            value = self._ort.OrtValue.ortvalue_from_numpy(held[name], self._device, self._device_id)
            binding.bind_ortvalue_input(name, value)
        first = self.infer(checked)
        for spec in self.outputs:
            array = first[spec.name]
            if array.size and self._sizes_follow_inputs(spec, checked):
                place = self._ort.OrtValue.ortvalue_from_shape_and_type(
                    list(array.shape), array.dtype, self._device, self._device_id
                )
                binding.bind_ortvalue_output(spec.name, place)
            else:
                fixed = False
                binding.bind_output(spec.name, self._device, self._device_id)
        binding.held, binding.fixed = held, fixed
        return binding

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers in order of preference; the first is the one that was asked for."""
        return tuple(self._alive().get_providers())

    @property
    def leftovers(self) -> str | None:
        """The sentence that says which nodes do not run on the provider that was asked for; None when all do."""
        if self._device == "cpu":
            return None
        return left_over(placement(self._alive()), self.providers[0])

    def _open(self, profile: str | None = None) -> Any:
        """Return a session; with the prefix of a file it records a profile."""
        ort = self._ort
        if not self._path.is_file():
            raise StageError("there is no such file", where=str(self._path))
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.enable_mem_pattern = self.memory_pattern
        options.log_severity_level = _ERRORS_ONLY
        # Workers spin between the operators of a call, and sleep between calls: what runs next, be it the candidate
        # that is measured in turn or the caller's own code, has the processors to itself.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        without = keep_arithmetic(options, self._path)
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if self._optimize else levels.ORT_DISABLE_ALL
        if self._weights:
            values = [self._ort.OrtValue.ortvalue_from_numpy(array) for array in self._weights.values()]
            options.add_external_initializers(list(self._weights), values)
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, profile
        wanted, providers = self._providers()
        if self._device != "cpu":
            options.add_session_config_entry(RECORD_PLACEMENT, "1")
            preload(ort, wanted)
        try:
            session = ort.InferenceSession(
                str(self._path),
                sess_options=options,
                providers=providers,
                disabled_optimizers=without,
                # A provider that fails would be replaced by the CPU, with a word on stdout, here and while running.
                enable_fallback=0,
            )
        except self._refusals() as error:
            raise StageError(f"onnxruntime refuses the model: {_one_line(error)}", where=str(self._path)) from error
        require_started(ort, session.get_providers(), wanted, f"device {self._device}:{self._device_id}")
        return session

    def _providers(self) -> tuple[str, list[Any]]:
        """Return the provider that was asked for and onnxruntime's argument for it."""
        if self._device == "cpu":
            return CPU, [CPU]
        require(self._ort, CUDA, self._device_id)
        return CUDA, [(CUDA, {"device_id": self._device_id}), CPU]

    def _spec(self, node: Any, kind: str) -> TensorSpec:
        dtype = _DTYPES.get(node.type)
        if dtype is None:
            raise StageError(
                f"{kind} '{node.name}' is {node.type}, which numpy cannot hold",
                where=str(self._path),
                hint=f"allowed: {', '.join(_DTYPES.values())}; cast it in the model",
            )
        axes = (axis if axis is not None else f"{node.name}_axis{i}" for i, axis in enumerate(node.shape))
        return TensorSpec(node.name, dtype, tuple(axes))

    def _sizes_follow_inputs(self, spec: TensorSpec, feed: Feed) -> bool:
        """Is the output's shape fixed by the shapes of the inputs? Only then may its memory be allocated beforehand."""
        named = {axis for given in self.inputs for axis in given.shape if isinstance(axis, str)}
        return all(isinstance(axis, int) or axis in named for axis in spec.shape) and bool(feed)

    def _call(self, session: Any, binding: Any, options: Any = None) -> Callable[[], None]:
        refusals = self._refusals()
        if self._device == "cpu":
            # The C call beneath run_with_iobinding: the wrapper only adds its checks to every timed call.
            run, bound = session._sess.run_with_iobinding, binding._iobinding

            def on_cpu(held: Any = binding) -> None:  # and with it the input arrays
                try:
                    run(bound, None)
                except refusals as error:
                    raise self._failure(error) from error

            return on_cpu

        if options is None:
            self.captures.append(Capture(False, self._uncaptured))

        def on_device() -> None:
            try:
                session.run_with_iobinding(binding, options)
                binding.synchronize_outputs()
            except refusals as error:
                raise self._failure(error) from error

        return on_device

    def _failure(self, error: Exception) -> StageError:
        lacks_memory = "allocate memory" in str(error) or "out of memory" in str(error).lower()
        hint = "Take a smaller batch or a smaller max in the profile, or a machine with more memory."
        return StageError(
            f"onnxruntime failed while running: {_one_line(error)}",
            where=str(self._path),
            hint=hint if lacks_memory else None,
        )

    def _alive(self) -> Any:
        if self._session is None:
            raise ClosedError.of(self._path)
        return self._session

    def _refusals(self) -> tuple[type[Exception], ...]:
        """What onnxruntime raises: its own kinds have no common base, and older releases raise RuntimeError."""
        state = self._ort.capi.onnxruntime_pybind11_state
        own = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
        return (*own, RuntimeError, ValueError)


def _one_line(error: Exception) -> str:
    """Return onnxruntime's reason without its source paths and line breaks."""
    return " ".join(str(error).split())[:400]
