"""A runner in a fresh process: nothing that this one holds, loaded or changed reaches the measurement."""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optimizer.errors import MeasurementError, StageError
from optimizer.isolated import run_isolated
from optimizer.runner import Runner
from optimizer.runtime.session import Feed

LOG = "child.log"  # whatever the child and native code in it printed


def measure_afresh(
    function: str,
    runner: Runner,
    feeds: Sequence[Feed],
    *,
    folder: Path,
    timeout_s: float,
    name: str | None = None,
    **arguments: Any,
) -> Any:
    """Call `function` ("module:name") in a child with `handover`, which `open_handover` reads, and `arguments`.

    The child gets the runner as it was made, not what it has open; `folder` keeps the child's log, `name` is the
    candidate's in errors.
    Raises: what opening and running the artifact raises; MeasurementError when the child crashes or hangs.
    """
    closed = copy.copy(runner)
    closed._session = None  # a session cannot travel, and another process must not share one
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="optimizer-") as place:
        # A pickle between this process and its own child; it is never stored.
        handover = Path(place, "handover")
        with handover.open("wb") as stream:
            pickle.dump((closed, [dict(feed) for feed in feeds]), stream, protocol=5)
        try:
            result = run_isolated(
                function,
                {"handover": str(handover), **arguments},
                log=folder / LOG,
                what=name or f"{runner.runtime} on {runner.device}",
                timeout_s=timeout_s,
            )
        except StageError as error:
            raise MeasurementError(error.what, where=error.where, hint=error.hint) from error
    return result.value


def open_handover(handover: str) -> tuple[Runner, list[dict[str, Any]]]:
    """Return the runner, not yet entered, and the feeds that `measure_afresh` put down."""
    with Path(handover).open("rb") as stream:
        runner, feeds = pickle.load(stream)
    return runner, feeds
