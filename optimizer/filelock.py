"""Locks between processes: one lock file for each thing, freed by the kernel when its process ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def locked(path: Path, *, wait: bool = True, waiting: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Hold the lock on the file `path`, which is made when it is missing; yields whether it is held.

    Without `wait` a lock that is busy is not held. With it, `waiting` is called before the wait. The lock is not
    reentrant: a thread that takes one it holds waits for itself.
    """
    stream = _take(path, wait, waiting)
    if stream is None:
        yield False
        return
    with stream:
        yield True


def _take(path: Path, wait: bool, waiting: Callable[[], None]) -> IO[str] | None:
    while True:
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(path.open("a"))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    return None
                waiting()
                fcntl.flock(stream, fcntl.LOCK_EX)
            # A lock file that was removed meanwhile locks nothing; the next turn takes the one that is there now.
            if _is_at(stream, path):
                stack.pop_all()
                return stream


def _is_at(stream: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False
