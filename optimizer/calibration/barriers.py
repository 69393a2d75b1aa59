"""How torch's threads wait for one another: spinning is fastest alone, and slowest beside another busy program.

After every operator a thread of libgomp spins for some milliseconds before it sleeps. Where another program holds the
processor that the last thread needs, the others spin that program's whole turn away, operator after operator. libgomp
spins 3,000 times shorter where a process has more OpenMP threads than processors: while others are busy, a second team
is kept asleep. It computes nothing; the number of threads that do, on which the sums depend, stays.
Source: GCC libgomp manual, GOMP_SPINCOUNT; measured in docs/precision.md.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from optimizer.environment import usable_cores

T = TypeVar("T")

# Others' use of these processors, in processors, beyond which threads should not spin; and how often it is looked at.
BUSY = 0.4
_LOOK_S = 0.25
_STAT = Path("/proc/stat")
_SPLIT = 1 << 18  # elements: what torch gives to all of its threads


class Barriers:
    """Makes waiting short while other programs use this process's processors."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._crowd: _Crowd | None = None
        self._seen = self._now()

    @property
    def short(self) -> bool:
        """Whether waiting threads go to sleep at once."""
        return self._crowd is not None

    def watching(self, steps: Iterable[T]) -> Iterator[T]:
        """Yield the steps, and look at the machine between them."""
        for step in steps:
            yield step
            self.look()

    def look(self) -> None:
        """Choose how to wait by what other programs used since the last look, if that is not too recent."""
        seen, since = self._now(), self._seen
        if self._threads < 2 or seen is None or since is None or seen[0] - since[0] < _LOOK_S:
            return
        self._seen = seen
        self.wait_shortly((seen[1] - since[1]) / (seen[0] - since[0]) > BUSY)

    def wait_shortly(self, short: bool) -> None:
        """Let waiting threads sleep at once, or spin again."""
        if short and self._crowd is None:
            self._crowd = _Crowd(self._threads)
        elif not short and self._crowd is not None:
            self._crowd.end()
            self._crowd = None

    def _now(self) -> tuple[float, float] | None:
        """Return the time, and the seconds for which others have used the processors of this process."""
        used = busy_seconds()
        return None if used is None else (time.perf_counter(), used - time.process_time())


def busy_seconds() -> float | None:
    """Return for how long the processors of this process were busy since the machine began, or given to other guests.

    None where the system does not say, and where a quota allows fewer processors than there are: others may use them.
    """
    try:
        lines = _STAT.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    if usable_cores() < len(mine):
        return None
    found = [line.split() for line in lines if line.split(" ", 1)[0] in mine]
    # user, nice, system, (idle, waiting for a disk,) interrupts twice, stolen by the host
    ticks = sum(int(fields[i]) for fields in found for i in (1, 2, 3, 6, 7, 8))
    return ticks / os.sysconf("SC_CLK_TCK") if found else None


class _Crowd:
    """A team of threads that sleeps: with it there are more OpenMP threads than processors."""

    def __init__(self, threads: int) -> None:
        self._over, begun = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._gather, args=(threads, begun), daemon=True)
        self._thread.start()
        begun.wait()

    def _gather(self, threads: int, begun: threading.Event) -> None:
        import torch

        # Without a team the build is slower under load, and nothing else.
        with contextlib.suppress(MemoryError, RuntimeError):
            torch.set_num_threads(threads)  # of this thread; what others have is the same
            torch.zeros(_SPLIT).add_(1)
        begun.set()
        self._over.wait()

    def end(self) -> None:
        """Let the team go."""
        self._over.set()
        self._thread.join()


@contextlib.contextmanager
def all_threads() -> Iterator[Barriers]:
    """Give torch a thread for each processor that this process may use, waiting as the machine's load asks for."""
    import torch

    before, threads = torch.get_num_threads(), usable_cores()
    torch.set_num_threads(threads)
    barriers = Barriers(threads)
    try:
        yield barriers
    finally:
        barriers.wait_shortly(False)
        torch.set_num_threads(before)
