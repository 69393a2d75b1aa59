"""The files of a watch's threads: those that ended leave none open, and what cannot be read is not made up."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from optimizer.measure.surroundings import Reading, Watch, disturbances

MS = 1_000_000
schedstat = pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this kernel has no schedstat")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@schedstat
def test_threads_that_ended_leave_no_file_open() -> None:
    with Watch() as watch:
        watch.read()
        before = descriptors()
        for _ in range(3):
            waits = threading.Event()
            several = [threading.Thread(target=waits.wait) for _ in range(20)]
            for thread in several:
                thread.start()
            known = watch.read().threads
            assert known is not None
            assert {thread.native_id for thread in several} <= known.keys()
            assert descriptors() >= before + 20  # so that there is something to be closed
            waits.set()
            for thread in several:
                thread.join()
        until = time.monotonic() + 5  # the kernel lists a joined thread for a moment longer
        while descriptors() > before and time.monotonic() < until:
            time.sleep(0.01)
            watch.read()
        assert descriptors() <= before


@schedstat
def test_where_not_all_threads_can_be_read_nothing_is_claimed_of_any(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with Watch() as watch:
        watch.read()
        waits = threading.Event()
        thread = threading.Thread(target=waits.wait)
        thread.start()
        with monkeypatch.context() as limited:
            limited.setattr(os, "open", none_left)
            assert watch.read().threads is None
            assert watch.facts()["waited_share"] is None
        waits.set()
        thread.join()
        assert watch.read().threads


def test_a_reading_after_an_unknown_one_disturbs_nothing() -> None:
    """The twin: after a known one it would."""
    after = Reading(10 * MS, {1: (5 * MS, 5 * MS)}, 0)
    assert disturbances(Reading(0, None, 0), after, 1) == ()
    assert disturbances(Reading(0, {1: (0, 0)}, 0), after, 1) == ("waited for a processor",)
