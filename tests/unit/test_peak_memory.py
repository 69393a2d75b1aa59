"""Memory as the kernel counts it, of this process and of a candidate in a process of its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from child_runners import ScriptedRunner, onnx_runner, samples

from optimizer import peak_memory
from optimizer.errors import MeasurementError
from optimizer.measure import memory
from optimizer.measure.memory import DeviceMemory, Memory, measure_memory
from optimizer.peak_memory import peak_rss_bytes, reset_peak_rss

MIB = 1 << 20


def test_the_peak_remembers_what_was_freed_until_it_begins_anew() -> None:
    if not reset_peak_rss():
        pytest.skip("this kernel does not let a process begin its peak anew")
    before = peak_rss_bytes()
    held = np.ones(64 * MIB, np.uint8)
    del held
    assert peak_rss_bytes() - before > 50 * MIB
    assert reset_peak_rss()
    assert peak_rss_bytes() - before < 32 * MIB


def test_a_kernel_that_refuses_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peak_memory, "_CLEAR", tmp_path / "absent" / "clear_refs")
    assert not reset_peak_rss()
    monkeypatch.setattr(peak_memory, "_STATUS", tmp_path / "absent")
    assert peak_rss_bytes() > 10 * MIB  # from getrusage


def test_a_candidates_memory_is_its_own_whatever_this_process_holds(tmp_path: Path) -> None:
    """16 MiB of weights; this process holds 256 MiB more the second time, and nothing of that counts."""
    runner, feed = onnx_runner(tmp_path / "onnx", size=2048), samples(1, size=2048)[0]
    first = measure_memory(runner, feed, folder=tmp_path)
    held = np.ones(256 * MIB, np.uint8)
    again = measure_memory(runner, feed, folder=tmp_path)
    del held
    assert 15 * MIB < first.own_bytes < 100 * MIB  # the file, its copy in the session, and packing while loading
    assert abs(again.own_bytes - first.own_bytes) < 6 * MIB
    assert first.baseline_rss_bytes > 20 * MIB
    assert first.running_rss_bytes is None or first.running_rss_bytes <= first.peak_rss_bytes
    assert (first.device_bytes, first.device_source) == (None, None)
    assert first.to_json()["own_bytes"] == first.peak_rss_bytes - first.baseline_rss_bytes


def test_a_small_model_takes_less_than_a_large_one(tmp_path: Path) -> None:
    """The twin: the number follows the model, not the backend."""
    small = measure_memory(onnx_runner(tmp_path / "onnx", size=16), samples(1)[0], folder=tmp_path)
    assert small.own_bytes < 15 * MIB


def test_a_candidate_that_fails_names_itself(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match=r"^scripted on cpu: RuntimeError: no kernel for this sample"):
        measure_memory(ScriptedRunner(fails_at=2), samples(1)[0], folder=tmp_path)


def test_memory_below_the_baseline_is_none_of_its_own() -> None:
    assert Memory(5, 7, None, None, None).own_bytes == 0


class Nvml:
    """A GPU's memory as NVML tells it: what all use, and the processes that the driver lists."""

    class NVMLError(Exception):
        pass

    def __init__(self, used: list[int], processes: list[tuple[int, int | None]] | None) -> None:
        self.used, self.processes = used, processes

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:  # noqa: N802
        if not self.used:
            raise self.NVMLError("not supported")
        return SimpleNamespace(used=self.used.pop(0))

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> Any:  # noqa: N802
        if self.processes is None:
            raise self.NVMLError("not supported")
        return [SimpleNamespace(pid=pid, usedGpuMemory=bytes_) for pid, bytes_ in self.processes]


def fake(monkeypatch: pytest.MonkeyPatch, nvml: Nvml) -> None:
    import contextlib

    from optimizer.measure import nvml as module

    monkeypatch.setattr(module, "opened", lambda device: contextlib.nullcontext((nvml, 0)))


@pytest.mark.parametrize("processes", [None, [], [(1, 10**9)], [(4711, None)]])
def test_device_memory_is_the_devices_sum_where_this_process_is_not_listed(
    monkeypatch: pytest.MonkeyPatch, processes: Any
) -> None:
    monkeypatch.setattr(memory.os, "getpid", lambda: 4711)
    fake(monkeypatch, Nvml([300, 1000], processes))
    assert DeviceMemory("cuda:0").used() == (700, "NVML, the whole device: more than before")


def test_device_memory_is_this_processes_where_it_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.os, "getpid", lambda: 4711)
    nvml = Nvml([300, 1000], [(1, 10**9)])
    fake(monkeypatch, nvml)
    device = DeviceMemory("cuda:0")
    nvml.processes = [(1, 10**9), (4711, 500)]
    assert device.used() == (500, "NVML, this process")


def test_a_number_that_was_listed_before_is_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container the driver lists the host's numbers: ours by chance, and there before we used the GPU."""
    monkeypatch.setattr(memory.os, "getpid", lambda: 4711)
    fake(monkeypatch, Nvml([300, 1000], [(4711, 500)]))
    assert DeviceMemory("cuda:0").used() == (700, "NVML, the whole device: more than before")


def test_device_memory_that_nobody_tells_is_null_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, Nvml([], None))
    assert DeviceMemory("cuda:0").used() == (None, "NVML does not read this GPU's memory")
