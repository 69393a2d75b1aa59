"""The few calls of the CUDA driver that an engine needs, through ctypes: a bundle serves without torch."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_ulonglong, c_void_p
from typing import Any

from optimizer.errors import MissingToolError, StageError
from optimizer.runtime.session import Array

LIBRARY = "libcuda.so.1"

# Argument types of each function; all return a CUresult. The suffix _v2 names the ABI behind the macros of cuda.h.
# Source: cuda.h of CUDA 13.0.
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemsetD8Async": (c_uint64, c_ubyte, c_size_t, c_void_p),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphGetNodes": (c_void_p, POINTER(c_void_p), POINTER(c_size_t)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
}
_OUT_OF_MEMORY = 2
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: never waits for the legacy default stream
# After one of these every further call of the process returns it again: illegal address, launch timeout, assert,
# hardware stack, illegal instruction, misaligned address, address space, program counter, launch failure.
# Source: CUDA Driver API, CUresult: "To continue using CUDA, the process must be terminated and relaunched."
_LOST = frozenset({700, 702, 710, 714, 715, 716, 717, 718, 719})


class _Current:
    """The block in which a GPU's context is the calling thread's current one; after it, the one before is again.

    Torch and the CUDA runtime take the current context for the current device, so it must not stay changed.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._pushed: list[bool] = []

    def __enter__(self) -> None:
        self._pushed.append(self._cuda.push())

    def __exit__(self, *_: object) -> None:
        if self._pushed.pop():
            self._cuda.pop()


class Cuda:
    """One GPU through its primary context, the one that TensorRT's own runtime calls use.

    Whatever touches memory, streams or events is called inside `with cuda.current`.

    Raises: MissingToolError without a driver or that GPU, StageError when a call fails; both with the driver's words.
    """

    def __init__(self, index: int = 0, *, library: Any = None) -> None:
        self.index = index
        self._driver = library if library is not None else _load(index)
        self._device = self._find()
        self._context = c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self._memory: dict[int, int] = {}
        self.current = _Current(self)

    @property
    def name(self) -> str:
        """The GPU's name."""
        text = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", text, len(text), self._device)
        return text.value.decode(errors="replace")

    @property
    def compute_capability(self) -> str:
        """The compute capability, e.g. `8.9`."""
        return f"{self._attribute(_CAPABILITY_MAJOR)}.{self._attribute(_CAPABILITY_MINOR)}"

    @property
    def driver_version(self) -> str:
        """The newest CUDA version that this driver serves, e.g. `13.0`."""
        version = c_int()
        self.call("cuDriverGetVersion", ctypes.byref(version))
        return f"{version.value // 1000}.{version.value % 1000 // 10}"

    def push(self) -> bool:
        """Make this GPU's context the current one of the calling thread; False when the process has lost the GPU."""
        return self.tolerate("cuCtxPushCurrent_v2", self._context)

    def pop(self) -> None:
        """Make the context current again that was before `push`."""
        self.tolerate("cuCtxPopCurrent_v2", ctypes.byref(c_void_p()))

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes on the GPU."""
        pointer = c_uint64()
        # A tensor may be empty; an address it must have all the same.
        self.call("cuMemAlloc_v2", ctypes.byref(pointer), max(size, 1), what=f"allocating {size:,} bytes")
        self._memory[pointer.value] = size
        return pointer.value

    def free(self, pointer: int) -> None:
        """Give back what `allocate` returned."""
        self.tolerate("cuMemFree_v2", pointer)
        del self._memory[pointer]

    def to_device(self, pointer: int, array: Array, stream: int) -> None:
        """Queue the copy of a C-contiguous array; it must live until the stream is synchronised."""
        if array.nbytes:
            self.call("cuMemcpyHtoDAsync_v2", pointer, _address(array), array.nbytes, stream)

    def to_host(self, array: Array, pointer: int, stream: int) -> None:
        """Queue the copy into a C-contiguous array; its content is there once the stream is synchronised."""
        if array.nbytes:
            self.call("cuMemcpyDtoHAsync_v2", _address(array), pointer, array.nbytes, stream)

    def fill(self, pointer: int, byte: int, size: int, stream: int) -> None:
        """Queue the setting of `size` bytes."""
        if size:
            self.call("cuMemsetD8Async", pointer, byte, size, stream)

    def free_memory(self) -> int:
        """Return the bytes of the GPU's memory that nobody uses: other processes count too."""
        free, total = c_size_t(), c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def allocate_pinned(self, size: int) -> int:
        """Return the address of `size` bytes of page-locked host memory, which a copy engine reads directly."""
        pointer = c_void_p()
        self.call("cuMemHostAlloc", ctypes.byref(pointer), max(size, 1), 0, what=f"pinning {size:,} bytes")
        return int(pointer.value or 0)

    def free_pinned(self, pointer: int) -> None:
        """Give back what `allocate_pinned` returned."""
        self.tolerate("cuMemFreeHost", pointer)

    def create_stream(self) -> int:
        """Return a new stream's handle, which is also a cudaStream_t."""
        return self._handle("cuStreamCreate", _NON_BLOCKING)

    def synchronize(self, stream: int) -> None:
        """Wait until everything queued on the stream is done."""
        self.call("cuStreamSynchronize", stream)

    def destroy_stream(self, stream: int) -> None:
        """Free a stream."""
        self.tolerate("cuStreamDestroy_v2", stream)

    def close(self) -> None:
        """Free all memory still allocated and release the context. Safe to call twice."""
        if self._context:
            with self.current:
                for pointer in list(self._memory):
                    self.free(pointer)
            self.tolerate("cuDevicePrimaryCtxRelease_v2", self._device)
            self._context = c_void_p()

    def call(self, function: str, *arguments: Any, what: str | None = None) -> None:
        """Call a function of SIGNATURES. Raises: StageError in the driver's words when it does not succeed."""
        code = getattr(self._driver, function)(*arguments)
        if code:
            raise self._failure(code, what or function)

    def tolerate(self, function: str, *arguments: Any) -> bool:
        """Call what leaves or frees; False in a lost context: the call that lost it has raised, and this hides it not.

        Raises: StageError when it fails for another reason.
        """
        code = getattr(self._driver, function)(*arguments)
        if code and code not in _LOST:
            raise self._failure(code, function)
        return not code

    def attempt(self, function: str, *arguments: Any) -> str | None:
        """Call a function that may refuse; return its refusal in the driver's words, or None.

        Raises: StageError when the process has lost the GPU.
        """
        code = getattr(self._driver, function)(*arguments)
        if code in _LOST:
            raise self._failure(code, function)
        return f"{function}: {self._error(code)}" if code else None

    def _find(self) -> int:
        code = self._driver.cuInit(0)
        if code:
            raise MissingToolError(
                f"needs an NVIDIA GPU with a driver; this machine has none (cuInit: {self._error(code)})",
                where=f"device cuda:{self.index}",
            )
        count, device = c_int(), c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        if self.index >= count.value:
            has = f"{count.value} GPU{'s' * (count.value != 1)}"
            raise MissingToolError(f"needs GPU {self.index}; this machine has {has}", where=f"device cuda:{self.index}")
        self.call("cuDeviceGet", ctypes.byref(device), self.index)
        return device.value

    def _attribute(self, attribute: int) -> int:
        value = c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), attribute, self._device)
        return value.value

    def _handle(self, function: str, flags: int) -> int:
        handle = c_void_p()
        self.call(function, ctypes.byref(handle), flags)
        return int(handle.value or 0)

    def _failure(self, code: int, what: str) -> StageError:
        hint = None
        if code == _OUT_OF_MEMORY:
            hint = "use a smaller batch, or free the GPU of other work"
        elif code in _LOST:
            hint = "this process can compute nothing more on the GPU; leave this candidate out and start again"
        return StageError(f"{what} failed: {self._error(code)}", where=f"cuda:{self.index}", hint=hint)

    def _error(self, code: int) -> str:
        """Return the driver's name and sentence for a return code, e.g. `CUDA_ERROR_NO_DEVICE, no CUDA-capable ...`."""
        texts = []
        for function in ("cuGetErrorName", "cuGetErrorString"):
            text = c_char_p()
            if getattr(self._driver, function)(code, ctypes.byref(text)) == 0 and text.value:
                texts.append(text.value.decode(errors="replace"))
        return ", ".join(texts) or f"error {code}"


def missing(index: int = 0) -> str | None:
    """Return the sentence that says why GPU `index` cannot be used here, or None when it can."""
    try:
        Cuda(index).close()
    except (MissingToolError, StageError) as error:
        return error.what
    return None


def _load(index: int) -> Any:
    try:
        library = ctypes.CDLL(LIBRARY)
        for name, arguments in SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, c_int
    except (OSError, AttributeError) as error:
        raise MissingToolError(
            f"needs an NVIDIA GPU with a driver; this machine has none ({error})", where=f"device cuda:{index}"
        ) from error
    return library


def _address(array: Array) -> int:
    if not array.flags.c_contiguous:
        raise ValueError("only C-contiguous arrays are copied")
    return int(array.ctypes.data)
