from __future__ import annotations

import numpy as np
import pytest
from fake_gpu import Driver

from optimizer.errors import MissingToolError, StageError
from optimizer.runtime import cuda
from optimizer.runtime.cuda import Cuda


def test_bytes_survive_the_way_to_the_device_and_back() -> None:
    driver = Driver()
    gpu = Cuda(library=driver)
    stream = gpu.create_stream()
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    pointer = gpu.allocate(array.nbytes)
    gpu.to_device(pointer, array, stream)
    back = np.zeros_like(array)
    gpu.to_host(back, pointer, stream)
    gpu.synchronize(stream)
    np.testing.assert_array_equal(back, array)
    gpu.free(pointer)
    gpu.destroy_stream(stream)
    gpu.close()
    assert (driver.memory, driver.handles, driver.retained) == ({}, set(), 0)


def test_close_frees_what_is_left_and_may_be_called_twice() -> None:
    driver = Driver()
    gpu = Cuda(library=driver)
    gpu.allocate(100)
    gpu.close()
    gpu.close()
    assert driver.memory == {}
    assert driver.retained == 0


def test_empty_tensor_has_an_address_and_copies_nothing() -> None:
    driver = Driver()
    gpu = Cuda(library=driver)
    pointer = gpu.allocate(0)
    assert pointer
    gpu.to_device(pointer, np.empty((0, 3), np.float32), gpu.create_stream())
    assert "cuMemcpyHtoDAsync_v2" not in driver.calls


def test_events_give_the_time_on_the_device() -> None:
    driver = Driver()
    gpu = Cuda(library=driver)
    stream, start, end = gpu.create_stream(), gpu.create_event(), gpu.create_event()
    gpu.record(start, stream)
    gpu.record(end, stream)
    assert gpu.elapsed_ms(start, end) == 1.5
    assert driver.calls.index("cuEventSynchronize") < driver.calls.index("cuEventElapsedTime")
    gpu.destroy_event(start)
    gpu.destroy_event(end)


def test_device_is_described_by_capability_and_driver() -> None:
    gpu = Cuda(library=Driver())
    assert gpu.compute_capability == "8.9"
    assert gpu.driver_version == "13.2"


def test_failed_call_carries_the_drivers_words_and_a_way_out() -> None:
    gpu = Cuda(library=Driver(capacity=1000))
    with pytest.raises(StageError) as caught:
        gpu.allocate(5000)
    assert str(caught.value) == (
        "cuda:0: allocating 5,000 bytes failed: CUDA_ERROR_OUT_OF_MEMORY, out of memory\n"
        "  use a smaller batch, or free the GPU of other work"
    )
    with pytest.raises(StageError, match="cuMemFree_v2 failed: CUDA_ERROR_INVALID, invalid value"):
        gpu.free(12345)


def test_strided_array_is_never_copied_as_if_it_were_whole() -> None:
    gpu = Cuda(library=Driver())
    with pytest.raises(ValueError, match="C-contiguous"):
        gpu.to_device(gpu.allocate(64), np.zeros((4, 4), np.float32)[:, ::2], gpu.create_stream())


def test_no_device_and_a_missing_one_are_said_apart() -> None:
    with pytest.raises(MissingToolError) as caught:
        Cuda(library=Driver(gpus=0))
    assert str(caught.value) == (
        "device cuda:0: needs an NVIDIA GPU with a driver; this machine has none "
        "(cuInit: CUDA_ERROR_NO_DEVICE, no CUDA-capable device is detected)"
    )
    with pytest.raises(MissingToolError, match="device cuda:3: needs GPU 3; this machine has 2 GPUs"):
        Cuda(3, library=Driver(gpus=2))


def test_missing_driver_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "LIBRARY", "libno-such-driver.so.1")
    assert "this machine has none (libno-such-driver.so.1: cannot open shared object file" in (cuda.missing() or "")


def test_library_that_is_no_driver_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "LIBRARY", "libc.so.6")
    assert "undefined symbol: cuInit" in (cuda.missing() or "")
