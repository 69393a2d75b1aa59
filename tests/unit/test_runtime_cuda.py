from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_gpu import CONTEXT, TORCHS_CONTEXT, Driver

from optimizer.errors import MissingToolError, StageError
from optimizer.runtime import cuda
from optimizer.runtime.cuda import Cuda
from optimizer.runtime.cuda_graph import capture


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture
def gpu(driver: Driver) -> Any:
    """An open GPU inside its `current` block."""
    opened = Cuda(library=driver)
    with opened.current:
        yield opened


def test_bytes_survive_the_way_to_the_device_and_back(driver: Driver, gpu: Cuda) -> None:
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


def test_close_frees_what_is_left_and_may_be_called_twice(driver: Driver, gpu: Cuda) -> None:
    gpu.allocate(100)
    gpu.close()
    gpu.close()
    assert driver.memory == {}
    assert driver.retained == 0


def test_empty_tensor_has_an_address_and_copies_nothing(driver: Driver, gpu: Cuda) -> None:
    pointer = gpu.allocate(0)
    assert pointer
    gpu.to_device(pointer, np.empty((0, 3), np.float32), gpu.create_stream())
    assert "cuMemcpyHtoDAsync_v2" not in driver.calls


def test_device_is_described_by_capability_and_driver() -> None:
    gpu = Cuda(library=Driver())
    assert gpu.compute_capability == "8.9"
    assert gpu.driver_version == "13.2"


def test_failed_call_carries_the_drivers_words_and_a_way_out() -> None:
    gpu = Cuda(library=Driver(capacity=1000))
    with gpu.current, pytest.raises(StageError) as caught:
        gpu.allocate(5000)
    assert str(caught.value) == (
        "cuda:0: allocating 5,000 bytes failed: CUDA_ERROR_OUT_OF_MEMORY, out of memory\n"
        "  use a smaller batch, or free the GPU of other work"
    )
    with gpu.current, pytest.raises(StageError, match="cuMemFree_v2 failed: CUDA_ERROR_INVALID, invalid value"):
        gpu.free(12345)


def test_strided_array_is_never_copied_as_if_it_were_whole(gpu: Cuda) -> None:
    with pytest.raises(ValueError, match="C-contiguous"):
        gpu.to_device(gpu.allocate(64), np.zeros((4, 4), np.float32)[:, ::2], gpu.create_stream())


def test_the_context_that_was_current_is_current_again(driver: Driver) -> None:
    gpu = Cuda(library=driver)
    assert driver.stack == [TORCHS_CONTEXT]
    with gpu.current:
        with gpu.current:
            gpu.allocate(1)
        assert driver.stack[-1] == CONTEXT
        gpu.create_stream()
    assert driver.stack == [TORCHS_CONTEXT]
    gpu.close()
    assert driver.stack == [TORCHS_CONTEXT]


def test_work_outside_the_context_is_an_error(driver: Driver) -> None:
    with pytest.raises(StageError, match="cuStreamCreate failed: error 201"):
        Cuda(library=driver).create_stream()


def test_lost_gpu_is_said_once_and_closing_hides_it_not(driver: Driver) -> None:
    gpu = Cuda(library=driver)
    with gpu.current:
        stream = gpu.create_stream()
        gpu.allocate(1)
        driver.lost = True
        with pytest.raises(StageError) as caught:
            gpu.synchronize(stream)
        gpu.destroy_stream(stream)
    gpu.close()
    assert "cuStreamSynchronize failed: CUDA_ERROR_ILLEGAL_ADDRESS" in caught.value.what
    assert "start again" in (caught.value.hint or "")


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


@pytest.mark.parametrize("queues", [False, True])
def test_a_capture_in_which_something_fails_leaves_no_graph_and_a_stream_that_works(
    driver: Driver, gpu: Cuda, queues: bool
) -> None:
    stream = gpu.create_stream()

    def enqueue() -> bool:
        if queues:
            driver.capturing[stream].append(lambda: None)
        raise StageError("execution failed", where="engine")

    with pytest.raises(StageError, match="engine: execution failed"):
        capture(gpu, stream, enqueue)
    assert (driver.graphs, driver.executables, driver.capturing) == ({}, {}, {})
    gpu.synchronize(stream)
    assert capture(gpu, stream, lambda: False) == "the runtime queues nothing while it is captured"
    assert driver.graphs == {}
