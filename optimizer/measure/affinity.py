"""The processors that a measurement is pinned to."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from optimizer.environment import check_threads
from optimizer.measure.surroundings import shares, ticks

BUSY_S = 0.1
BUSY_SHARE = 0.5


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[tuple[int, ...]]:
    """Keep every thread of this process on `threads` processors while measuring; give back which, () where the system
    cannot pin. Threads started meanwhile inherit it, and afterwards every thread has what it had before.

    Raises: MissingToolError when fewer processors are allowed than threads asked for.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield ()
        return
    allowed = os.sched_getaffinity(0)
    check_threads(threads)
    chosen = _choose(allowed, threads, _busy(allowed) if threads < len(allowed) else frozenset())
    before = {thread: _affinity(thread, set(chosen)) for thread in _threads()}
    try:
        yield chosen
    finally:
        for thread in _threads():
            _affinity(thread, before.get(thread) or allowed)


def _choose(allowed: set[int], threads: int, busy: frozenset[int] = frozenset()) -> tuple[int, ...]:
    """The fastest processors, one a core as long as there are cores, and of equal ones those that nobody keeps busy,
    the last first: the first processors serve most interrupts.
    """
    ordered = sorted(allowed, key=lambda n: (-_number(n, "cpufreq/cpuinfo_max_freq"), n in busy, -n))
    seen: dict[str, int] = {}
    sibling = {}
    for processor in ordered:
        core = _read(processor, "topology/thread_siblings_list") or str(processor)
        sibling[processor] = seen[core] = seen.get(core, -1) + 1
    return tuple(sorted(sorted(ordered, key=lambda n: sibling[n])[:threads]))


def _busy(allowed: set[int]) -> frozenset[int]:
    """Processors that were busy for more than half of a short while: another measurement may be pinned there."""
    before = ticks()
    time.sleep(BUSY_S)
    after = ticks()
    return frozenset(n for n in allowed if (shares((n,), before, after)[0] or 0) > BUSY_SHARE)


def _read(processor: int, name: str) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/sys/devices/system/cpu/cpu{processor}/{name}").read_text().strip()
    return ""


def _number(processor: int, name: str) -> int:
    text = _read(processor, name)
    return int(text) if text.isdigit() else 0


def _threads() -> list[int]:
    return [int(task.name) for task in Path("/proc/self/task").iterdir()]


def _affinity(thread: int, processors: set[int]) -> set[int]:
    """Pin a thread; return where it was allowed before, nothing when it has ended."""
    with contextlib.suppress(ProcessLookupError):
        before = os.sched_getaffinity(thread)
        os.sched_setaffinity(thread, processors)
        return before
    return set()
