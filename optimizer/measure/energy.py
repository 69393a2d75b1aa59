"""Energy per item: NVML on a GPU, RAPL on a CPU; null with a reason where neither can be read."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from optimizer.errors import MeasurementError, MissingToolError

POWERCAP = Path("/sys/class/powercap")
IDLE_S = 1.0
BLOCK_S = 0.01  # of calls between two looks at the counter
STANDSTILL_S = 1.0  # a counter that does not move for so long while calls run does not count
SAMPLE_S = 0.02
_MOST_W = 1000.0  # of one processor package: how soon its counter may have wrapped around twice


class Source(Protocol):
    """A counter of joules since it was opened; `read_j` raises MeasurementError where it cannot be read any more."""

    name: str
    most_s: float  # how far apart two readings may be

    def read_j(self) -> float:
        """Return the joules so far; it never falls."""


class NvmlCounter:
    """The GPU's own energy counter, Volta and later: the whole board, whoever uses it.

    Source: NVML API reference, nvmlDeviceGetTotalEnergyConsumption, millijoules since the driver was loaded.
    """

    name = "NVML energy counter"
    most_s = float("inf")

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._start_mj = int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))

    def read_j(self) -> float:
        """Return the joules since opening."""
        try:
            now = int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except self._nvml.NVMLError as error:
            raise _silent(self.name, error) from error
        return (now - self._start_mj) / 1000


class NvmlPower:
    """Samples of the GPU's power, every 20 ms in a thread, integrated by trapezoids: where there is no counter.

    Numeric: what NVML calls power is an average over up to a second, and on some GPUs of a quarter of the time alone.
    Source: NVML API reference, nvmlDeviceGetPowerUsage, milliwatts; Yang et al. 2024,
    SC, "Part-time Power Measurements".
    """

    name = "NVML power, sampled every 20 ms"
    most_s = float("inf")

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._joules = 0.0
        self._gap: Exception | None = None  # a sample that failed: the integral misses it from then on
        self._last = (time.perf_counter(), self._watts())
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def read_j(self) -> float:
        """Return the joules since opening. Raises: MeasurementError once a sample failed, here or in the thread."""
        with self._lock:
            self._add()
            if self._gap is not None:
                raise _silent(self.name, self._gap) from self._gap
            return self._joules

    def close(self) -> None:
        """Stop sampling."""
        self._ended.set()
        self._thread.join()

    def _add(self) -> None:
        if self._gap is not None:
            return
        try:
            now, watts = time.perf_counter(), self._watts()
        except self._nvml.NVMLError as error:
            self._gap = error
            return
        self._joules += (now - self._last[0]) * (watts + self._last[1]) / 2
        self._last = (now, watts)

    def _watts(self) -> float:
        return int(self._nvml.nvmlDeviceGetPowerUsage(self._handle)) / 1000

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            with self._lock:
                self._add()


class Rapl:
    """The counters of all processor packages, Intel and AMD: every core and whoever uses it, no memory, no fans.

    Source: Linux Documentation/power/powercap/powercap.rst: energy_uj in microjoules wraps at max_energy_range_uj.
    """

    name = "RAPL, processor packages"

    def __init__(self, zones: tuple[Path, ...]) -> None:
        self._files = [zone / "energy_uj" for zone in zones]
        self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]
        self._last = [int(file.read_text()) for file in self._files]
        self._sum_uj = 0
        self.most_s = min(self._ranges) / 1e6 / _MOST_W

    def read_j(self) -> float:
        """Return the joules since opening."""
        for i, file in enumerate(self._files):
            try:
                now = int(file.read_text())
            except (OSError, ValueError) as error:
                raise _silent(self.name, error) from error
            # Smaller than before: wrapped around, once, because nobody draws so much power as to make it twice.
            self._sum_uj += now - self._last[i] if now >= self._last[i] else now + self._ranges[i] - self._last[i]
            self._last[i] = now
        return self._sum_uj / 1e6


def _silent(source: str, error: Exception) -> MeasurementError:
    return MeasurementError(f"{source}: it cannot be read any more: {error}", where="measure.resources")


@contextlib.contextmanager
def opened_source(device: str, powercap: Path = POWERCAP) -> Iterator[Source | str]:
    """Yield what counts the energy of `device`, or the sentence that says why nothing does."""
    with contextlib.ExitStack() as stack:
        yield _rapl(powercap) if device == "cpu" else _nvml(device, stack)


def _rapl(powercap: Path) -> Source | str:
    zones = []
    for zone in sorted(powercap.glob("intel-rapl:*")):  # AMD's too
        with contextlib.suppress(OSError):
            if (zone / "name").read_text().startswith("package"):
                zones.append(zone)
    if not zones:
        return f"this machine shows no RAPL counter under {powercap}: a virtual machine, or no such processor"
    try:
        return Rapl(tuple(zones))
    except PermissionError as error:
        return (
            f"{error.filename} is not readable: since Linux 5.10 only root may (CVE-2020-8694). "
            f"As root: chmod a+r {powercap}/intel-rapl:*/energy_uj"
        )
    except (OSError, ValueError) as error:
        return f"RAPL cannot be read: {error}"


def _nvml(device: str, stack: contextlib.ExitStack) -> Source | str:
    from optimizer.measure.nvml import opened

    try:
        nvml, handle = stack.enter_context(opened(device))
    except MissingToolError as error:
        return error.what
    try:
        return NvmlCounter(nvml, handle)
    except nvml.NVMLError:  # older than Volta, or a virtual GPU
        pass
    try:
        power = NvmlPower(nvml, handle)
    except nvml.NVMLError as error:
        return f"NVML tells neither energy nor power of this GPU: {error}"
    stack.callback(power.close)
    return power


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy of one item in millijoules: all that the source counted, idle power included, by the items done.

    A machine must be on to answer, so idle power is not subtracted; it is stated, and a reader may.
    """

    mj_per_item: float | None
    source: str | None
    reason: str | None  # why there is no number
    joules: float | None = None
    seconds: float | None = None
    items: int | None = None
    mean_w: float | None = None
    idle_w: float | None = None  # of the same source before the calls: what everything else draws

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def energy_mj_per_item(
    call: Callable[[], None],
    batch: int,
    seconds: float,
    *,
    device: str = "cpu",
    powercap: Path = POWERCAP,
    idle_s: float = IDLE_S,
) -> Energy:
    """Make calls for `seconds` and see what they take.

    The stretch begins and ends where the counter moves: one that moves every 100 ms would else be wrong by as much as
    that at each end.
    Raises: what `call` raises, MeasurementError where the counter cannot be read any more.
    """
    with opened_source(device, powercap) as source:
        if isinstance(source, str):
            return Energy(None, None, source)
        call()
        idle_w = _idle_w(source, idle_s)
        first = _calls_until_it_moves(source, call, 0.0)
        last = first if isinstance(first, str) else _calls_until_it_moves(source, call, seconds)
        if isinstance(first, str) or isinstance(last, str):
            return Energy(None, source.name, str(last), idle_w=idle_w)
    joules, took, items = last.joules - first.joules, last.now - first.now, last.calls * batch
    return Energy(1000 * joules / items, source.name, None, joules, took, items, joules / took, idle_w)


@dataclass(frozen=True, slots=True)
class _Moved:
    now: float
    joules: float
    calls: int


def _calls_until_it_moves(source: Source, call: Callable[[], None], seconds: float) -> _Moved | str:
    """Call for `seconds` and on until the counter moves; a sentence when it does not, or not so that one can tell."""
    calls, begun = 0, time.perf_counter()
    before = source.read_j()
    while True:
        block = time.perf_counter()
        while time.perf_counter() - block < BLOCK_S:
            call()
            calls += 1
        joules, now = source.read_j(), time.perf_counter()
        if now - block > source.most_s:
            return _too_long(source, now - block)
        if now - begun >= seconds and joules > before:
            return _Moved(now, joules, calls)
        if now - begun > seconds + STANDSTILL_S:
            return f"{source.name} stands still while calls run"
        if now - begun < seconds:
            before = joules


def _idle_w(source: Source, idle_s: float) -> float | None:
    """Mean power while nothing of ours runs."""
    if idle_s <= 0:
        return None
    begun, before = time.perf_counter(), source.read_j()
    time.sleep(idle_s)
    return (source.read_j() - before) / (time.perf_counter() - begun)


def _too_long(source: Source, seconds: float) -> str:
    return (
        f"{source.name} may wrap around twice in {seconds:.3g} s: at {_MOST_W:g} W it tells {source.most_s:.3g} s apart"
    )
