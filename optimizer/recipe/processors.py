"""The processors that a recipe's threads need, asked for before anything is built."""

from __future__ import annotations

import os

from optimizer.errors import MissingToolError


def lacking_processors(threads: int) -> str | None:
    """Say that this process may use fewer processors than a measurement would pin; None where it may or nothing can.

    What is pinned counts: a container's quota of processor time, which slows but refuses nothing, does not.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = len(os.sched_getaffinity(0))
    if threads <= allowed:
        return None
    return f"{threads} threads are asked for and this process may use {allowed} processor{'s' if allowed > 1 else ''}"


def check_threads(threads: int) -> None:
    """Refuse more threads than latency could be measured with here.

    Raises: MissingToolError.
    """
    lacking = lacking_processors(threads)
    if lacking is not None:
        allowed = len(os.sched_getaffinity(0))
        raise MissingToolError(
            lacking, where="measure.threads", hint=f"Write threads: {allowed}, or build where there are {threads}."
        )
