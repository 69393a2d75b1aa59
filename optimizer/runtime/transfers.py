"""What it costs to bring a feed to a GPU and its answer back: no part of a bound call's latency."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from optimizer.runtime.cuda import Cuda
from optimizer.runtime.session import Array

_WARM, _TIMED = 3, 21
_Copies = list[tuple[int, Array]]  # address on the GPU, array on the host


@dataclass(frozen=True, slots=True)
class Transfers:
    """Medians of the host's time, in milliseconds, of all copies of one direction and the wait for their end.

    Pageable memory is numpy's own, which the driver copies once more on its way; pinned memory is page-locked. `infer`
    copies from and to pageable memory.
    """

    in_bytes: int
    out_bytes: int
    in_pageable_ms: float
    in_pinned_ms: float
    out_pageable_ms: float
    out_pinned_ms: float


def measure_transfers(cuda: Cuda, inputs: Sequence[Array], outputs: Sequence[Array]) -> Transfers:
    """Time the copies of arrays like these, by themselves, on a stream and in memory of their own."""
    with cuda.current:
        stream = cuda.create_stream()
        try:
            with (
                _on_gpu(cuda, inputs) as to,
                _on_gpu(cuda, outputs) as back,
                _pinned(cuda, to) as pinned_to,
                _pinned(cuda, back) as pinned_back,
            ):
                return Transfers(
                    in_bytes=sum(array.nbytes for array in inputs),
                    out_bytes=sum(array.nbytes for array in outputs),
                    in_pageable_ms=_median(lambda: _send(cuda, to, stream)),
                    in_pinned_ms=_median(lambda: _send(cuda, pinned_to, stream)),
                    out_pageable_ms=_median(lambda: _fetch(cuda, back, stream)),
                    out_pinned_ms=_median(lambda: _fetch(cuda, pinned_back, stream)),
                )
        finally:
            cuda.destroy_stream(stream)


def _send(cuda: Cuda, copies: _Copies, stream: int) -> None:
    for address, array in copies:
        cuda.to_device(address, array, stream)
    cuda.synchronize(stream)


def _fetch(cuda: Cuda, copies: _Copies, stream: int) -> None:
    for address, array in copies:
        cuda.to_host(array, address, stream)
    cuda.synchronize(stream)


def _median(copy: Callable[[], None]) -> float:
    for _ in range(_WARM):
        copy()
    times = []
    for _ in range(_TIMED):
        begun = time.perf_counter_ns()
        copy()
        times.append(time.perf_counter_ns() - begun)
    return float(np.median(times)) / 1e6


@contextmanager
def _on_gpu(cuda: Cuda, arrays: Sequence[Array]) -> Iterator[_Copies]:
    copies: _Copies = []
    try:
        for array in arrays:
            own = np.array(array, order="C")  # the caller's arrays are never written to
            copies.append((cuda.allocate(own.nbytes), own))
        yield copies
    finally:
        for address, _ in copies:
            cuda.free(address)


@contextmanager
def _pinned(cuda: Cuda, copies: _Copies) -> Iterator[_Copies]:
    """Yield the same copies with their host side in page-locked memory."""
    held: list[int] = []
    try:
        pinned: _Copies = []
        for address, array in copies:
            held.append(cuda.allocate_pinned(array.nbytes))
            # At least one byte: numpy takes no empty buffer, and a tensor may be empty.
            memory = memoryview((ctypes.c_char * max(array.nbytes, 1)).from_address(held[-1])).cast("B")
            own: Array = np.frombuffer(memory, np.uint8)[: array.nbytes].view(array.dtype).reshape(array.shape)
            own[...] = array
            pinned.append((address, own))
        yield pinned
    finally:
        for pointer in held:
            cuda.free_pinned(pointer)
