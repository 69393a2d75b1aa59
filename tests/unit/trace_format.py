"""What the Trace Event Format document (catapult project, Google) asks of a file, as a check."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

_METADATA = {"process_name": "name", "thread_name": "name", "process_sort_index": "sort_index"}


def problems(text: str) -> list[str]:
    """Say everything in which a trace departs from the format; nothing if it is sound."""
    document = json.loads(text)
    if not isinstance(document, dict) or not isinstance(document.get("traceEvents"), list):
        return ["no traceEvents"]
    found = [] if document.get("displayTimeUnit", "ms") in ("ms", "ns") else ["displayTimeUnit"]
    lanes: dict[tuple[Any, Any], list[tuple[float, float]]] = {}
    named: set[tuple[str, Any, Any]] = set()
    for i, event in enumerate(document["traceEvents"]):
        found += [f"event {i}: {said}" for said in _event(event)]
        if event.get("ph") == "M":
            named.add((event["name"], event["pid"], event.get("tid")))
        elif event.get("ph") == "X":
            lanes.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
    for (pid, tid), spans in lanes.items():
        if ("thread_name", pid, tid) not in named or ("process_name", pid, 0) not in named:
            found.append(f"lane {pid}/{tid} has no name")
        found += [f"lane {pid}/{tid}: {a} and {b} overlap" for a, b in _crossing(spans)]
    return found


def _event(event: Mapping[str, Any]) -> list[str]:
    found = [f"no {key}" for key in ("name", "ph", "pid", "tid") if key not in event]
    if not isinstance(event.get("args", {}), dict):
        found.append("args is no object")
    phase = event.get("ph")
    if phase == "M":
        argument = _METADATA.get(event["name"])
        if argument is None or argument not in event["args"]:
            found.append(f"metadata {event['name']}")
        return found
    if phase not in ("X", "i"):
        return [*found, f"phase {phase}"]
    for key in ("ts", "dur") if phase == "X" else ("ts",):
        value = event.get(key)
        if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            found.append(f"{key} {value}")
    if phase == "i" and event.get("s") not in ("g", "p", "t"):
        found.append("scope of an instant")
    return found


def _crossing(spans: list[tuple[float, float]]) -> list[tuple[Any, Any]]:
    """Return pairs that overlap without one holding the other."""
    return [
        (a, b)
        for i, a in enumerate(spans)
        for b in spans[i + 1 :]
        if max(a[0], b[0]) < min(a[1], b[1]) - 1e-2
        and not (a[0] <= b[0] + 1e-2 and b[1] <= a[1] + 1e-2)
        and not (b[0] <= a[0] + 1e-2 and a[1] <= b[1] + 1e-2)
    ]
