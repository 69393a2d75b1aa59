"""What else happened on the machine while measuring: waiting for a processor, throttling, clocks, other load.

A round is marked by what surrounded it and never by how long its calls took.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from optimizer.environment import cgroups
from optimizer.errors import MissingToolError
from optimizer.measure.gpu_watch import GpuWatch, held_down
from optimizer.measure.nvml import opened
from optimizer.measure.observed import complaints

# docs/measurement.md explains each of these.
WAITED_SHARE = 0.02  # of a round's time, in which a thread of ours was ready and the processor was somebody else's
WAITED_LEAST_NS = 100_000
SLOW_EVERY_NS = 100_000_000  # clocks and the GPU are read at most every 0.1 s
_TASKS = Path("/proc/self/task")
_CPUS = Path("/sys/devices/system/cpu")
_STAT = Path("/proc/stat")

Times = Mapping[int, tuple[int, int]]  # per thread: nanoseconds it ran, and was ready but waited


@dataclass(frozen=True, slots=True)
class Reading:
    """The counters at one moment, all of them growing; None where this system has none.

    Units: nanoseconds. Source: Linux Documentation/scheduler/sched-stats.rst (schedstat of a thread),
    Documentation/admin-guide/cgroup-v2.rst (cpu.stat).
    """

    wall_ns: int
    threads: Times | None
    throttled_ns: int | None


@dataclass(slots=True)
class _Slow:
    """What is read seldom: clocks of the processors in MHz."""

    read_ns: int = -SLOW_EVERY_NS
    mhz: list[float] = field(default_factory=list)
    held_down: tuple[str, ...] = ()


class Watch:
    """Watches this process's surroundings; a context manager. `begin` opens a stretch, `round` ends each round of it.

    `processors` are those that this process is pinned to, () all that it may use; `device` is the GPU that computes.
    """

    def __init__(self, processors: tuple[int, ...] = (), device: str = "cpu") -> None:
        self.processors = processors or tuple(sorted(allowed()))
        self.device = device
        self._files: dict[str, int] = {}
        self._gpu: GpuWatch | None = None
        self._unwatched: str | None = None
        self._stack = contextlib.ExitStack()
        self._throttle = _throttle_file()

    def __enter__(self) -> Self:
        if self.device != "cpu":
            try:
                self._gpu = GpuWatch(*self._stack.enter_context(opened(self.device)))
            except MissingToolError as error:
                self._unwatched = str(error)
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._forget(set(self._files))
        self._gpu = None
        self._stack.close()

    def begin(self) -> None:
        """Start anew: what `facts` tells is counted from here."""
        self._slow = _Slow()
        if self._gpu:
            self._gpu.clear()
        self._ticks = ticks()
        self._rounds = 0
        self._marked: dict[str, int] = {}
        self._start = self._last = self.read()
        self._look()

    def read(self) -> Reading:
        """Read the counters: a few microseconds a thread."""
        return Reading(time.perf_counter_ns(), self._threads(), _throttled_ns(self._throttle))

    def round(self) -> tuple[str, ...]:
        """End a round; return what disturbed it, nothing if nothing did."""
        now = self.read()
        found = disturbances(self._last, now, len(self.processors))
        self._look()
        found += tuple(f"GPU: {name}" for name in self._slow.held_down)
        self._rounds += 1
        for reason in found:
            self._marked[reason] = self._marked.get(reason, 0) + 1
        # What reading itself took belongs to no round.
        self._last = self.read() if self._slow.read_ns > now.wall_ns else now
        return found

    def facts(self) -> dict[str, Any]:
        """Return what was seen since `begin`, as JSON; null where this system does not tell."""
        now = self.read()
        wall = max(1, now.wall_ns - self._start.wall_ns)
        ran, waited = _grown(self._start.threads, now.threads)
        busy, stolen = shares(self.processors, self._ticks, ticks())
        known = None not in (self._start.threads, now.threads)
        others = max(0.0, busy - ran / wall / len(self.processors)) if busy is not None and known else None
        document = {
            "processors": list(self.processors),
            "seconds": wall / 1e9,
            "rounds": self._rounds,
            "disturbed_rounds": dict(self._marked),
            "threads": len(now.threads) if now.threads is not None else None,
            "cpu_seconds_per_second": ran / wall if known else None,
            "waited_share": waited / wall if known else None,
            "others_share": others,  # of the pinned processors' time
            "stolen_share": stolen,
            "throttled_ms": _difference(self._start.throttled_ns, now.throttled_ns, 1e6),
            "cpu_limit": _cpu_limit(),
            "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            "governor": _governor(self.processors),
            "mhz": [min(self._slow.mhz), max(self._slow.mhz)] if self._slow.mhz else None,
            "gpu": self._gpu.summary() if self._gpu else None,
            "gpu_unwatched": self._unwatched,
        }
        return document | {"complaints": complaints(document)}

    def _threads(self) -> Times | None:
        try:
            names = [task.name for task in _TASKS.iterdir()]
        except OSError:
            return None
        self._forget(self._files.keys() - set(names))
        found = {}
        for name in names:
            try:
                if name not in self._files:
                    self._files[name] = os.open(_TASKS / name / "schedstat", os.O_RDONLY)
                ran, waited, _ = os.pread(self._files[name], 64, 0).split()
            except (FileNotFoundError, ProcessLookupError, ValueError):  # it has ended, or did and left its number
                self._forget(self._files.keys() & {name})
                continue
            except OSError:  # no descriptor is left, say: some threads are not all threads
                return None
            found[int(name)] = int(ran), int(waited)
        return found or None

    def _forget(self, names: set[str]) -> None:
        for name in names:
            os.close(self._files.pop(name))

    def _look(self) -> None:
        """Read clocks, and the GPU, if it is time again."""
        now = time.perf_counter_ns()
        if now - self._slow.read_ns < SLOW_EVERY_NS:
            return
        for processor in self.processors:
            text = _text(_CPUS / f"cpu{processor}/cpufreq/scaling_cur_freq")
            if text.isdigit():
                self._slow.mhz.append(int(text) / 1000)
        if self._gpu:
            self._slow.held_down = tuple(held_down(self._gpu.read().reasons))
        self._slow.read_ns = time.perf_counter_ns()


def disturbances(before: Reading, after: Reading, processors: int) -> tuple[str, ...]:
    """Return what disturbed the time between two readings.

    Waiting counts only as far as the processors were not our own threads': a pool of ours that waits for another pool
    of ours is no disturbance, but how this runtime is.
    """
    wall = after.wall_ns - before.wall_ns
    found = []
    ran, waited = _grown(before.threads, after.threads)
    taken = min(waited, max(0, processors * wall - ran))
    if taken > max(WAITED_SHARE * wall, WAITED_LEAST_NS):
        found.append("waited for a processor")
    if (_difference(before.throttled_ns, after.throttled_ns, 1) or 0) > 0:
        found.append("throttled by the cgroup's limit")
    return tuple(found)


def _grown(before: Times | None, after: Times | None) -> tuple[int, int]:
    """Nanoseconds that all threads together ran and waited; one that has ended meanwhile is not counted."""
    if before is None or after is None:
        return 0, 0
    pairs = [(new, before.get(thread, (0, 0))) for thread, new in after.items()]
    return sum(new[0] - was[0] for new, was in pairs), sum(new[1] - was[1] for new, was in pairs)


def _difference(before: int | None, after: int | None, unit: float) -> float | None:
    return None if before is None or after is None else (after - before) / unit


def allowed() -> set[int]:
    """Return the processors that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _throttle_file() -> Path | None:
    """The innermost cgroup that counts throttling: one whose limit binds."""
    return next((group / "cpu.stat" for group in cgroups("cpu") if "throttled" in _text(group / "cpu.stat")), None)


def _throttled_ns(file: Path | None) -> int | None:
    if file is None:
        return None
    fields = dict(line.split() for line in _text(file).splitlines())
    if "throttled_usec" in fields:
        return int(fields["throttled_usec"]) * 1000
    return int(fields["throttled_time"]) if "throttled_time" in fields else None  # cgroup 1, in nanoseconds


def _cpu_limit() -> float | None:
    """Processors' worth of time that a cgroup grants; None without a limit."""
    limits = []
    for group in cgroups("cpu"):
        pair = _text(group / "cpu.max").split() or [_text(group / f"cpu.cfs_{n}_us") for n in ("quota", "period")]
        if len(pair) == 2 and all(number.isdigit() for number in pair):
            limits.append(int(pair[0]) / int(pair[1]))
    return min(limits, default=None)


def _governor(processors: tuple[int, ...]) -> str | None:
    names = {_text(_CPUS / f"cpu{p}/cpufreq/scaling_governor") for p in processors} - {""}
    return ", ".join(sorted(names)) or None


Ticks = tuple[int, int, int]


def ticks() -> dict[int, Ticks]:
    """Clock ticks of each processor: busy, stolen by the hypervisor, all. Source: proc(5), /proc/stat."""
    found = {}
    for line in _text(_STAT).splitlines():
        name, _, rest = line.partition(" ")
        if name[3:].isdigit() and name.startswith("cpu"):
            user, nice, system, idle, waiting, irq, softirq, steal = (int(v) for v in rest.split()[:8])
            busy = user + nice + system + irq + softirq
            found[int(name[3:])] = busy, steal, busy + idle + waiting + steal
    return found


def shares(
    processors: Iterable[int], before: Mapping[int, Ticks], after: Mapping[int, Ticks]
) -> tuple[float | None, float | None]:
    """Shares of these processors' time between: busy, stolen; None where the system does not tell."""
    grown = [
        [b - a for a, b in zip(before[n], after[n], strict=True)] for n in processors if n in before and n in after
    ]
    busy, stolen, total = (sum(column) for column in zip(*grown, strict=True)) if grown else (0, 0, 0)
    return (busy / total, stolen / total) if total > 0 else (None, None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
