"""A CUDA driver and a TensorRT that compute in host memory; for machines without a GPU.

The driver's functions are C callbacks made from the session's own table of argument types, so that every argument goes
through ctypes as on a real one. What this cannot show (that the table is cuda.h's, that TensorRT behaves so) is left
to tests/gpu and to the test that holds the names used here against the real bindings.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from optimizer.runtime.cuda import SIGNATURES

NO_DEVICE, OUT_OF_MEMORY, INVALID, INVALID_CONTEXT, ILLEGAL_ADDRESS = 100, 2, 1, 201, 700
CONTEXT, TORCHS_CONTEXT = 0xC0, 0xD0
# cuda.h: these work on the calling thread's current context.
NEED_CONTEXT = ("cuMem", "cuStream", "cuGraph")
CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED = 900, 901
NAMES = {NO_DEVICE: b"CUDA_ERROR_NO_DEVICE", OUT_OF_MEMORY: b"CUDA_ERROR_OUT_OF_MEMORY", INVALID: b"CUDA_ERROR_INVALID"}
NAMES[ILLEGAL_ADDRESS] = b"CUDA_ERROR_ILLEGAL_ADDRESS"
NAMES[CAPTURE_UNSUPPORTED] = b"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
NAMES[CAPTURE_INVALIDATED] = b"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
TEXTS = {NO_DEVICE: b"no CUDA-capable device is detected", OUT_OF_MEMORY: b"out of memory", INVALID: b"invalid value"}


class Driver:
    """libcuda: memory is host memory, streams run at once; `calls` lists what was called."""

    def __init__(self, *, gpus: int = 1, capacity: int = 1 << 20) -> None:
        self.gpus, self.capacity = gpus, capacity
        self.memory: dict[int, Any] = {}
        self.handles: set[int] = set()
        self.retained = 0
        self.calls: list[str] = []
        self.stack = [TORCHS_CONTEXT]  # what another library left current
        self.lost = False  # every call fails, as after an illegal address
        self.capturing: dict[int, list[Callable[[], None]] | None] = {}  # stream -> work; None: invalidated
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.executables: dict[int, list[Callable[[], None]]] = {}
        self.pinned: dict[int, Any] = {}
        self._keep: list[Any] = []
        for name, arguments in SIGNATURES.items():
            callback = ctypes.CFUNCTYPE(ctypes.c_int, *arguments)(self._recorded(name))
            callback.argtypes, callback.restype = arguments, ctypes.c_int
            setattr(self, name, callback)

    def _recorded(self, name: str) -> Any:
        body = getattr(self, f"_{name}")

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if self.lost and not name.startswith("cuGet"):
                return ILLEGAL_ADDRESS
            if name.startswith(NEED_CONTEXT) and self.stack[-1] != CONTEXT:
                return INVALID_CONTEXT
            return int(body(*arguments) or 0)

        return call

    def _cuInit(self, flags: int) -> int:  # noqa: N802
        return 0 if self.gpus else NO_DEVICE

    def _text(self, texts: dict[int, bytes], code: int, out: Any) -> int:
        if code not in texts:
            return INVALID
        self._keep.append(ctypes.create_string_buffer(texts[code]))
        out[0] = ctypes.cast(self._keep[-1], ctypes.c_char_p)
        return 0

    def _cuGetErrorName(self, code: int, out: Any) -> int:  # noqa: N802
        return self._text(NAMES, code, out)

    def _cuGetErrorString(self, code: int, out: Any) -> int:  # noqa: N802
        return self._text(TEXTS, code, out)

    def _cuDriverGetVersion(self, out: Any) -> None:  # noqa: N802
        out[0] = 13020

    def _cuDeviceGetCount(self, out: Any) -> None:  # noqa: N802
        out[0] = self.gpus

    def _cuDeviceGet(self, out: Any, index: int) -> None:  # noqa: N802
        out[0] = index

    def _cuDeviceGetName(self, text: Any, size: int, device: int) -> None:  # noqa: N802
        # ctypes hands a char* to a callback as a copy, so the name cannot be written from here.
        assert size == 256

    def _cuDeviceGetAttribute(self, out: Any, attribute: int, device: int) -> None:  # noqa: N802
        out[0] = {75: 8, 76: 9}[attribute]

    def _cuDevicePrimaryCtxRetain(self, out: Any, device: int) -> None:  # noqa: N802
        out[0] = CONTEXT
        self.retained += 1

    def _cuDevicePrimaryCtxRelease_v2(self, device: int) -> None:  # noqa: N802
        self.retained -= 1

    def _cuCtxPushCurrent_v2(self, context: int) -> int:  # noqa: N802
        self.stack.append(context)
        return 0 if context == CONTEXT and self.retained else INVALID

    def _cuCtxPopCurrent_v2(self, out: Any) -> None:  # noqa: N802
        out[0] = self.stack.pop()

    def _cuMemAlloc_v2(self, out: Any, size: int) -> int:  # noqa: N802
        if size == 0:
            return INVALID
        if size + sum(len(block) for block in self.memory.values()) > self.capacity:
            return OUT_OF_MEMORY
        block = ctypes.create_string_buffer(size)
        out[0] = ctypes.addressof(block)
        self.memory[ctypes.addressof(block)] = block
        return 0

    def _cuMemFree_v2(self, pointer: int) -> int:  # noqa: N802
        return 0 if self.memory.pop(pointer, None) else INVALID

    def _cuMemcpyHtoDAsync_v2(self, to: int, source: int, size: int, stream: int) -> int:  # noqa: N802
        return self._copy(to, to, source, size, stream)

    def _cuMemcpyDtoHAsync_v2(self, to: int, source: int, size: int, stream: int) -> int:  # noqa: N802
        return self._copy(source, to, source, size, stream)

    def _copy(self, device: int, to: int, source: int, size: int, stream: int) -> int:
        if stream not in self.handles or device not in self.memory or size > len(self.memory[device]):
            return INVALID
        ctypes.memmove(to, source, size)
        return 0

    def _create(self, out: Any, flags: int) -> None:
        handle = 0x1000 + len(self.calls)
        self.handles.add(handle)
        out[0] = handle

    def _drop(self, handle: int) -> int:
        if handle not in self.handles:
            return INVALID
        self.handles.remove(handle)
        return 0

    def _known(self, *handles: int) -> int:
        return 0 if set(handles) <= self.handles else INVALID

    def _cuStreamSynchronize(self, stream: int) -> int:  # noqa: N802
        if stream in self.capturing:
            self.capturing[stream] = None
            return CAPTURE_UNSUPPORTED
        return self._known(stream)

    def _cuMemGetInfo_v2(self, free: Any, total: Any) -> None:  # noqa: N802
        free[0] = self.capacity - sum(len(block) for block in self.memory.values())
        total[0] = self.capacity

    def _cuMemHostAlloc(self, out: Any, size: int, flags: int) -> int:  # noqa: N802
        if size == 0 or flags:
            return INVALID
        block = ctypes.create_string_buffer(size)
        self.pinned[ctypes.addressof(block)] = block
        out[0] = ctypes.addressof(block)
        return 0

    def _cuMemFreeHost(self, pointer: int) -> int:  # noqa: N802
        return 0 if self.pinned.pop(pointer, None) else INVALID

    def _cuMemsetD8Async(self, pointer: int, byte: int, size: int, stream: int) -> int:  # noqa: N802
        if stream not in self.handles or pointer not in self.memory or size > len(self.memory[pointer]):
            return INVALID
        ctypes.memset(pointer, byte, size)
        return 0

    def _cuStreamBeginCapture_v2(self, stream: int, mode: int) -> int:  # noqa: N802
        if stream not in self.handles or stream in self.capturing or mode != 1:
            return INVALID
        self.capturing[stream] = []
        return 0

    def _cuStreamEndCapture(self, stream: int, graph: Any) -> int:  # noqa: N802
        work = self.capturing.pop(stream)
        graph[0] = None
        if work is None:
            return CAPTURE_INVALIDATED
        graph[0] = handle = 0x5000 + len(self.calls)
        self.graphs[handle] = work
        return 0

    def _cuGraphGetNodes(self, graph: int, nodes: Any, count: Any) -> None:  # noqa: N802
        assert not nodes
        count[0] = len(self.graphs[graph])

    def _cuGraphInstantiateWithFlags(self, out: Any, graph: int, flags: int) -> int:  # noqa: N802
        if flags:
            return INVALID
        out[0] = handle = 0x9000 + len(self.calls)
        self.executables[handle] = list(self.graphs[graph])
        return 0

    def _cuGraphLaunch(self, executable: int, stream: int) -> int:  # noqa: N802
        if executable not in self.executables or stream not in self.handles:
            return INVALID
        for work in self.executables[executable]:
            work()
        return 0

    def _cuGraphExecDestroy(self, executable: int) -> int:  # noqa: N802
        return INVALID if self.executables.pop(executable, None) is None else 0

    def _cuGraphDestroy(self, graph: int) -> int:  # noqa: N802
        return INVALID if self.graphs.pop(graph, None) is None else 0

    _cuStreamCreate = _create  # noqa: N815
    _cuStreamDestroy_v2 = _drop  # noqa: N815


class Mode(Enum):
    NONE, INPUT, OUTPUT = range(3)


class Location(Enum):
    DEVICE, HOST = range(2)


DataType = Enum("DataType", ["FLOAT", "HALF", "BF16", "INT8", "INT32", "INT64", "BOOL", "UINT8", "FP8"])
_NUMPY = {"FLOAT": np.float32, "INT64": np.int64}


class Context:
    """Computes `double` = 2 * `x` and, where the engine has it, `sizes` = the shape of `x`, in host memory."""

    def __init__(self, engine: Engine, config: RuntimeConfig | None = None) -> None:
        self.engine = engine
        # A context without a cache has one of its own.
        self.kernels = (config.get_runtime_cache() if config else None) or RuntimeCache()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profile = 0
        self.profiler: Any = None

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert self.engine.driver is None or stream_handle in self.engine.driver.handles
        self.profile = profile_index
        self.shapes.clear()  # as the real one forgets the shapes of before
        self.engine.profiles_set.append(profile_index)
        return profile_index < self.engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        self.shapes[name] = shape
        return low[0] <= shape[0] <= high[0]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if self.engine.tensors[name]["place"] is Location.HOST and memory % 256:
            return False
        self.addresses[name] = memory
        return bool(memory)

    def infer_shapes(self) -> list[str]:
        if self.engine.inconsistent:
            raise RuntimeError("shape inference failed")
        return [name for name in ("x",) if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name == "sizes":
            return (len(self.shapes["x"]),)
        return (-1,) if self.engine.data_dependent else self.shapes["x"]

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self.engine.driver is not None:
            if self.engine.driver.lost:
                self.engine.logger.log(LoggerBase.ERROR, "CUDA_ERROR_ILLEGAL_ADDRESS")
                return False
            assert self.engine.driver.stack[-1] == CONTEXT
        if self.engine.fails:
            self.engine.logger.log(LoggerBase.ERROR, "Cask convolution\n execution failed")
            return False
        driver = self.engine.driver
        if driver is not None and stream_handle in driver.capturing:
            return self._record(driver, stream_handle)
        self._compute()
        if self.profiler is not None:
            for layer, ms in (("conv", 0.25), ("relu", 0.5)):
                self.profiler.report_layer_time(layer, ms)
        return True

    def _record(self, driver: Driver, stream: int) -> bool:
        """Queue nothing but what the graph will do; `capture` says how that goes wrong."""
        wrong = self.engine.capture
        work = driver.capturing[stream]
        if wrong == "refused":
            self.engine.logger.log(LoggerBase.ERROR, "a loop condition is read on the host")
            return False
        if wrong == "synchronizes":
            driver.capturing[stream] = None
            return True
        if wrong != "empty":
            assert work is not None
            work.append(self._compute if wrong != "stale" else lambda: None)
        return True

    def _compute(self) -> None:
        if self.shapes["x"] not in self.kernels.kernels:
            self.kernels.kernels.add(self.shapes["x"])
            self.engine.compiled.append(self.shapes["x"])
        view = {name: self._view(name) for name in self.addresses}
        view["double"][...] = view["x"] * 2
        if "sizes" in view:
            view["sizes"][...] = self.shapes["x"]

    def _view(self, name: str) -> np.ndarray:
        dtype = np.dtype(_NUMPY[self.engine.tensors[name]["dtype"]])
        shape = self.shapes[name] if name in self.shapes else self.get_tensor_shape(name)
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(self.addresses[name]), dtype=dtype).reshape(shape)


class RuntimeCache:
    """Kernels that were compiled, by the shape they are for."""

    def __init__(self) -> None:
        self.kernels: set[tuple[int, ...]] = set()

    def serialize(self) -> bytes:
        return repr(sorted(self.kernels)).encode()


class RuntimeConfig:
    """`caches`: "works", "none" comes back, or "refused"."""

    def __init__(self, caches: str = "works") -> None:
        self.caches = caches
        self.dynamic_shapes_kernel_specialization_strategy: Any = None
        self.cuda_graph_strategy: Any = None
        self.cache: RuntimeCache | None = None

    def create_runtime_cache(self) -> RuntimeCache | None:
        return None if self.caches == "none" else RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache | None = None) -> bool:
        self.cache = cache
        return self.caches != "refused"

    def get_runtime_cache(self) -> RuntimeCache | None:
        return self.cache


class Engine:
    """An engine for 1 to 4 rows of 3; a keyword changes one of its traits."""

    def __init__(self, logger: Any, *, sizes: bool = False, dtype: str = "FLOAT", **traits: Any) -> None:
        self.logger = logger
        self.rows: list[tuple[int, int, int]] = traits.get("rows", [(1, 2, 4)])  # of each profile
        self.capture: str = traits.get("capture", "works")
        self.streamable_weights_size: int = traits.get("streamable", 0)
        self.weight_streaming_budget_v2: int = self.streamable_weights_size
        self.device_memory_size_v2 = 4096
        self.stripped: bool = traits.get("stripped", False)
        self.refitted = False
        self.profiles_set: list[int] = []
        self.fails = traits.get("fails", False)
        self.data_dependent = traits.get("data_dependent", False)
        self.linear = traits.get("linear", True)
        self.inconsistent = traits.get("inconsistent", False)
        self.driver: Driver | None = None
        self.configs: list[Any] = []
        self.caches: str = traits.get("caches", "works")
        self.compiled: list[tuple[int, ...]] = []
        self.tensors: dict[str, dict[str, Any]] = {
            "double": {"mode": Mode.OUTPUT, "dtype": dtype, "shape": (-1, 3), "place": Location.DEVICE},
            "x": {"mode": Mode.INPUT, "dtype": "FLOAT", "shape": (-1, 3), "place": Location.DEVICE},
        }
        if sizes:
            self.tensors["sizes"] = {"mode": Mode.OUTPUT, "dtype": "INT64", "shape": (2,), "place": Location.HOST}

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return self.tensors[name]["mode"]

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType[self.tensors[name]["dtype"]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name]["shape"]

    def get_tensor_location(self, name: str) -> Location:
        return self.tensors[name]["place"]

    def get_tensor_format(self, name: str) -> str:
        return "LINEAR" if self.linear else "CHW32"

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.rows)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [(rows, 3) for rows in self.rows[profile_index]]

    def get_weight_streaming_automatic_budget(self) -> int:
        assert not self.configs, "before any context"
        return self.streamable_weights_size // 4

    def get_engine_stat(self, stat: str) -> int:
        return 64 if self.stripped else -1

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self.caches)

    def create_execution_context(self, runtime_config: RuntimeConfig | None = None) -> Context:
        assert not self.stripped or self.refitted, "an engine without its weights"
        self.configs.append(runtime_config)
        return Context(self, runtime_config)


class ProfilerBase:
    def __init__(self) -> None:
        self.initialised = True


class Refitter:
    def __init__(self, engine: Engine, logger: Any) -> None:
        self.engine, self.known = engine, False

    def get_missing_weights(self) -> list[str]:
        return [] if self.known else ["w", "b"]

    def refit_cuda_engine(self) -> bool:
        self.engine.refitted = True
        return True


class OnnxParserRefitter:
    """Takes any file but one that begins with `other`; one that begins with `part` lacks weights."""

    def __init__(self, refitter: Refitter, logger: Any) -> None:
        self.refitter, self.num_errors = refitter, 0

    def refit_from_file(self, model: str) -> bool:
        text = Path(model).read_text()
        self.num_errors = int(text.startswith("other"))
        self.refitter.known = not text.startswith("part")
        return not self.num_errors

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(desc=lambda: "shape mismatch of 'w'")


class LoggerBase:
    INTERNAL_ERROR, ERROR, WARNING = "INTERNAL_ERROR", "ERROR", "WARNING"

    def __init__(self) -> None:
        self.initialised = True


def tensorrt(**traits: Any) -> Any:
    """Return a module like `tensorrt_rtx`; `refuse="text"` makes it refuse every plan, the rest goes to Engine."""
    refuse, old_driver = traits.pop("refuse", None), traits.pop("old_driver", False)
    module = SimpleNamespace(
        __version__="99.1",
        ILogger=LoggerBase,
        TensorIOMode=Mode,
        TensorLocation=Location,
        DataType=DataType,
        TensorFormat=SimpleNamespace(LINEAR="LINEAR"),
        engines=[],
        driver=None,
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
        CudaGraphStrategy=SimpleNamespace(DISABLED="disabled", WHOLE_GRAPH_CAPTURE="whole"),
        IProfiler=ProfilerBase,
        Refitter=Refitter,
        OnnxParserRefitter=OnnxParserRefitter,
        EngineStat=SimpleNamespace(STRIPPED_WEIGHTS_SIZE="stripped"),
    )

    class Runtime:
        def __init__(self, logger: Any) -> None:
            assert logger.initialised
            if old_driver:
                logger.log(LoggerBase.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self.logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
            self.logger.log(LoggerBase.WARNING, "of no interest")
            if refuse:
                self.logger.log(LoggerBase.ERROR, refuse)
                return None
            module.engines.append(Engine(self.logger, **traits))
            module.engines[-1].driver = module.driver
            return module.engines[-1]  # type: ignore[no-any-return]

    module.Runtime = Runtime
    return module


def plan(folder: Path, **receipt: Any) -> Path:
    """Write an engine's two files; the fake reads nothing from them but the receipt."""
    import json

    (folder / "engine.plan").write_bytes(b"plan")
    if receipt:
        (folder / "engine.json").write_text(json.dumps(receipt))
    return folder / "engine.plan"
