"""One inference as onnxruntime's own profiler saw it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_KINDS = ("Node", "Kernel")  # an operator on the host; a kernel on the GPU, in builds that record them
_ENDING = "_kernel_time"


def last_run(profile: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the last `model_run` of a profile and what it contains, as Trace Event Format events from 0 on.

    Numeric: on a GPU a Node event is the time to queue the operator's kernels, not that of their execution.
    """
    runs = [event for event in profile if event.get("cat") == "Session" and event.get("name") == "model_run"]
    if not runs:
        return []
    begun, ended = runs[-1]["ts"], runs[-1]["ts"] + runs[-1]["dur"]
    events = [{"name": "inference", "ph": "X", "ts": 0.0, "dur": float(runs[-1]["dur"])}]
    for event in profile:
        if event.get("cat") not in _KINDS or not begun <= event["ts"] <= ended:
            continue
        said = event.get("args", {})
        events.append(
            {
                "name": event["name"].removesuffix(_ENDING),
                "ph": "X",
                "ts": float(event["ts"] - begun),
                "dur": float(event["dur"]),
                "args": {"operator": said.get("op_name", event["cat"]), "provider": said.get("provider", "")},
            }
        )
    return events
