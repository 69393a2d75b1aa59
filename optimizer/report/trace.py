"""Traces a person can open in Perfetto or chrome://tracing: of the build, and of one inference per runner."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimizer.errors import MeasurementError
from optimizer.results import Report

Event = Mapping[str, Any]
Traces = Sequence[tuple[str, str]]  # a file in the run's folder, and what it shows
BUILD, INFERENCE = "build.trace.json", "inference.trace.json"
OPENED_BY = "Traces beside report.json, for Perfetto (ui.perfetto.dev) or chrome://tracing"
_SHOWS = {
    BUILD: "the build, a span for each step that was not reused",
    INFERENCE: "one inference of each candidate, operator by operator",
}
_BUILD = 1
_ROUNDING_US = 1e-3  # a nanosecond: what sums of floating-point microseconds are off by


def render_trace(report: Report, started_s: Mapping[str, float] | None = None) -> str:
    """Return the build as Trace Event JSON: one span for every stage that was built, a mark for each that was reused.

    `started_s`: seconds from the build's start to each stage's, by its id. A stage without one begins where the stage
    before it ended, and says so in its arguments: then gaps between stages do not show.
    Source: Trace Event Format; "X" complete, "i" instant and "M" metadata events, times in microseconds.
    """
    known = started_s or {}
    events = [*_named_process(_BUILD, f"build of {report.recipe.name}", 0), _named_thread(_BUILD, 1, "stages")]
    now_s = 0.0
    for stage in report.stages:
        begun_s = known.get(stage.id, now_s)
        placed = "started" if stage.id in known else "after the stage before it"
        event = {"name": stage.id, "cat": stage.stage, "ts": begun_s * 1e6, "pid": _BUILD, "tid": 1}
        arguments: dict[str, Any] = {"key": stage.key, "variant": stage.variant, "placed": placed}
        if stage.reused or stage.key is None:
            arguments["became"] = "reused" if stage.reused else "not run"
            events.append(event | {"ph": "i", "s": "t", "args": arguments})
            now_s = max(now_s, begun_s)
            continue
        arguments |= {"peak_rss_bytes": stage.peak_rss_bytes, "output_sha256": stage.output_sha256}
        if stage.notes:
            arguments["notes"] = list(stage.notes)
        events.append(event | {"ph": "X", "dur": stage.seconds * 1e6, "args": arguments})
        now_s = begun_s + stage.seconds
    return _document(events, {"recipe": report.recipe.name, "created": report.created})


def traces_of(run: Path) -> Traces:
    """Return the traces that lie in a run's folder, with what each shows."""
    return tuple((name, what) for name, what in _SHOWS.items() if (run / name).is_file())


def inference_trace(traces: Mapping[str, Sequence[Event]]) -> str:
    """Join one inference of each candidate into one file: a process a candidate, its threads as lanes, all from 0.

    `traces` holds what `Session.trace` gave, by candidate's name: complete events in microseconds on any clock. Lanes
    follow the events' own `pid` and `tid`; spans of one lane that overlap without nesting, which no viewer can draw,
    go to a further lane.
    Raises: MeasurementError naming the candidate whose event is none.
    """
    events: list[dict[str, Any]] = []
    for pid, (name, given) in enumerate(traces.items(), start=1):
        events += _named_process(pid, name, pid)
        spans = [_span(event, name, i) for i, event in enumerate(given)]
        origin = min((span["ts"] for span in spans), default=0.0)
        lanes: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for span in spans:
            span["ts"] -= origin
            lanes.setdefault((str(span.pop("pid", "")), str(span.pop("tid", ""))), []).append(span)
        tid = 0
        for (_, thread), lane in lanes.items():
            for further, row in enumerate(_nested_rows(lane)):
                tid += 1
                own = thread if thread and not thread.isdigit() else f"lane {tid}" if not thread else f"thread {thread}"
                events.append(_named_thread(pid, tid, f"{own}, overlapping {further}" if further else own))
                events += [span | {"pid": pid, "tid": tid} for span in row]
    return _document(events, {"candidates": list(traces)})


def _span(event: Event, candidate: str, number: int) -> dict[str, Any]:
    """Return a copy of a complete event that the format allows."""
    problem = None
    if event.get("ph") != "X":
        problem = f"is of phase {event.get('ph')!r}, not 'X'"
    elif not isinstance(event.get("name"), str):
        problem = f"has the name {event.get('name')!r}"
    else:
        for key in ("ts", "dur"):
            value = event.get(key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                problem = f"has {key} {value!r}"
        if problem is None and event["dur"] < 0:
            problem = f"has dur {event['dur']!r}"
    if problem:
        raise MeasurementError(
            f"event {number} of the trace {problem}",
            where=candidate,
            hint="A trace holds complete events: name, ph 'X', ts and dur in microseconds.",
        )
    return {**event, "ts": float(event["ts"]), "dur": float(event["dur"])}


def _nested_rows(spans: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Spread spans over rows so that in each every two of them nest or do not touch; the fewest first-fit needs."""
    rows: list[list[dict[str, Any]]] = []
    ends: list[list[float]] = []  # per row, the ends of the spans that are open, innermost last
    for span in sorted(spans, key=lambda s: (s["ts"], -s["dur"])):
        begin, end = span["ts"], span["ts"] + span["dur"]
        fitting = next((i for i, open_ in enumerate(ends) if _nests(open_, begin, end)), len(rows))
        if fitting == len(rows):
            rows.append([])
            ends.append([])
        rows[fitting].append(span)
        ends[fitting].append(end)
    return rows


def _nests(open_: list[float], begin: float, end: float) -> bool:
    """Close what ended before `begin`; whether the rest encloses the span."""
    while open_ and open_[-1] <= begin + _ROUNDING_US:
        open_.pop()
    return not open_ or end <= open_[-1] + _ROUNDING_US


def _named_process(pid: int, name: str, order: int) -> list[dict[str, Any]]:
    return [
        {"name": "process_name", "ph": "M", "pid": pid, "tid": 0, "args": {"name": name}},
        {"name": "process_sort_index", "ph": "M", "pid": pid, "tid": 0, "args": {"sort_index": order}},
    ]


def _named_thread(pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": "thread_name", "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}


def _document(events: Sequence[Event], about: Mapping[str, Any]) -> str:
    document = {"traceEvents": list(events), "displayTimeUnit": "ms", "otherData": dict(about)}
    return json.dumps(document, indent=1, allow_nan=False) + "\n"
