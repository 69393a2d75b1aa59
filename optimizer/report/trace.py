"""The build as a Chrome trace: open it in Perfetto or chrome://tracing."""

from __future__ import annotations

import json

from optimizer.results import Report


def render_trace(report: Report) -> str:
    """Return Trace Event JSON: a complete event for every stage that was built, one after another.

    Source: Trace Event Format, 'X' events; times in microseconds.
    """
    events = []
    now = 0.0
    for stage in report.stages:
        seconds = 0.0 if stage.reused else stage.seconds
        events.append(
            {
                "name": stage.id,
                "cat": stage.stage,
                "ph": "X",
                "ts": now * 1e6,
                "dur": seconds * 1e6,
                "pid": 1,
                "tid": 1,
                "args": {"key": stage.key, "reused": stage.reused, "peak_rss_bytes": stage.peak_rss_bytes},
            }
        )
        now += seconds
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, indent=1) + "\n"
