"""Memory of one candidate, in a process of its own: peak resident memory, and device memory on a GPU."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optimizer.errors import MissingToolError
from optimizer.measure.fresh import measure_afresh, open_handover
from optimizer.peak_memory import peak_rss_bytes, reset_peak_rss
from optimizer.runner import Runner
from optimizer.runtime.session import Feed

CALLS = 3  # the second and third show what stays of the first
TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Memory:
    """What one candidate needs, in bytes.

    `peak_rss_bytes`: from the start of the process to the end of the calls, loading included. `baseline_rss_bytes`: the
    same of a process that imports the same modules and holds the same inputs, and opens nothing.
    `running_rss_bytes`: the peak while calling, after loading; null where the kernel cannot begin a peak anew.
    """

    peak_rss_bytes: int
    baseline_rss_bytes: int
    running_rss_bytes: int | None
    device_bytes: int | None
    device_source: str | None  # how `device_bytes` was read, or why it was not; null on the CPU

    @property
    def own_bytes(self) -> int:
        """The candidate's share: peak less baseline, which is the interpreter's and the backend's."""
        return max(0, self.peak_rss_bytes - self.baseline_rss_bytes)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"own_bytes": self.own_bytes, **asdict(self)}


def measure_memory(
    runner: Runner, feed: Feed, *, folder: Path, name: str | None = None, timeout_s: float = TIMEOUT_S
) -> Memory:
    """Open the runner in a fresh process and run bound calls there; then see what the same process needs without it.

    Nothing that this process holds counts, and what it measures does not depend on the order of candidates. Pages of a
    file that the runtime maps count once they are touched.
    Raises: what opening and running the artifact raises; MeasurementError, `where` naming the candidate, when a child
    crashes or hangs.
    """
    place: dict[str, Any] = {"folder": folder, "name": name, "timeout_s": timeout_s}
    used = measure_afresh(f"{__name__}:observe_calls", runner, [feed], **place)
    bare = measure_afresh(f"{__name__}:observe_imports", runner, [feed], **place, modules=used["modules"])
    return Memory(
        peak_rss_bytes=used["peak_rss_bytes"],
        baseline_rss_bytes=bare["peak_rss_bytes"],
        running_rss_bytes=used["running_rss_bytes"],
        device_bytes=used["device_bytes"],
        device_source=used["device_source"],
    )


def observe_calls(handover: str) -> dict[str, Any]:
    """In the child: open the runner, call it, and say what that took. Raises: MeasurementError naming what failed."""
    runner, (feed,) = open_handover(handover)
    before = set(sys.modules)
    device = DeviceMemory(runner.device)
    with runner:
        call = runner.bind(feed)
        loaded, fresh = peak_rss_bytes(), reset_peak_rss()
        for _ in range(CALLS):
            call()
        after = peak_rss_bytes()
        device_bytes, source = device.used()
    return {
        "peak_rss_bytes": max(loaded, after),
        "running_rss_bytes": after if fresh else None,
        "modules": _of_packages([name for name in sys.modules if name not in before]),
        "device_bytes": device_bytes,
        "device_source": source,
    }


def observe_imports(handover: str, modules: Iterable[str]) -> dict[str, Any]:
    """In the child: hold the same feed and import the same modules, in the same order, and open nothing."""
    held = open_handover(handover)
    for name in modules:
        with contextlib.suppress(ImportError):  # made while running, as six.moves and torch.ops are
            importlib.import_module(name)
    peak = peak_rss_bytes()
    del held
    return {"peak_rss_bytes": peak}


def _of_packages(modules: Iterable[str]) -> list[str]:
    """Return those of `modules` that belong to an installed distribution; a model's own files do not."""
    known = set(importlib.metadata.packages_distributions()) - {"optimizer"}
    return [name for name in modules if name.partition(".")[0] in known]


class DeviceMemory:
    """Memory of a GPU that this process takes from now on, read through NVML: the CUDA context counts as well.

    By process where the driver lists this one; in a container or on WSL it does not, then by the device's sum, in which
    whatever others took or freed meanwhile counts too.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._own_before, self._all_before = (None, 0) if device == "cpu" else self._read()

    def used(self) -> tuple[int | None, str | None]:
        """Return the bytes and how they were read, or null and why; both null on the CPU."""
        if self._device == "cpu":
            return None, None
        own, now = self._read()
        # One of our number that was there before is another process: in a container the driver lists the host's.
        if own is not None and self._own_before is None:
            return own, "NVML, this process"
        if isinstance(now, str):
            return None, now
        if isinstance(self._all_before, str):
            return None, self._all_before
        return max(0, now - self._all_before), "NVML, the whole device: more than before"

    def _read(self) -> tuple[int | None, int | str]:
        """Return what this process has, where that is told, and what all have, or why that is not told."""
        from optimizer.measure.nvml import opened

        try:
            with opened(self._device) as (nvml, handle):
                listed = _or_none(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle) or ()
                own = next((p.usedGpuMemory for p in listed if p.pid == os.getpid()), None)
                info = _or_none(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
        except MissingToolError as error:
            return None, error.what
        return own, int(info.used) if info else "NVML does not read this GPU's memory"


def _or_none(nvml: Any, question: Callable[[Any], Any], handle: Any) -> Any:
    try:
        return question(handle)
    except nvml.NVMLError:
        return None
