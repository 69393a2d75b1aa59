"""Time per layer of one execution of an engine, as TensorRT reports it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def layer_profiler(trt: Any, times: list[tuple[str, float]]) -> Any:
    """Return an IProfiler that appends (layer, milliseconds) in the order of the report."""

    class LayerTimes(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)  # pybind11 refuses super()

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.append((layer_name, ms))

    return LayerTimes()


def as_events(times: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    """Return Trace Event Format events laid end to end: TensorRT reports durations in order, but no starts."""
    events: list[dict[str, Any]] = []
    begun = 0.0
    for order, (layer, ms) in enumerate(times):
        events.append({"name": layer, "ph": "X", "ts": begun, "dur": ms * 1e3, "args": {"layer": order}})
        begun += ms * 1e3
    return events
