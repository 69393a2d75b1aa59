"""Write a report into its run's folder: report.html and report.md first, report.json last."""

from __future__ import annotations

import json
from pathlib import Path

from optimizer.report.html import render_html
from optimizer.report.markdown import render_markdown
from optimizer.report.read import write_json
from optimizer.report.trace import BUILD, INFERENCE, inference_trace, render_trace, traces_of
from optimizer.results import Report


def write_report(report: Report, run: Path) -> None:
    """Render all three forms, and the traces that they name; whoever finds report.json finds the rest beside it."""
    _write_traces(report, run)
    traces = traces_of(run)
    (run / "report.html").write_text(render_html(report, traces), encoding="utf-8")
    (run / "report.md").write_text(render_markdown(report, traces), encoding="utf-8")
    write_json(report, run / "report.json")


def _write_traces(report: Report, run: Path) -> None:
    """Write the trace of the build, and one of all candidates' inferences where they were observed."""
    for name in (BUILD, INFERENCE):  # of an earlier run in this folder
        (run / name).unlink(missing_ok=True)
    if report.stages:
        (run / BUILD).write_text(build_trace(report), encoding="utf-8")
    events = {
        file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted((run / "traces").glob("*.json"))
    }
    if events:
        (run / INFERENCE).write_text(inference_trace(events), encoding="utf-8")


def build_trace(report: Report) -> str:
    """Return the trace of the build that a report is of, from when each of its stages began."""
    begun = {stage.id: stage.started_s for stage in report.stages if stage.started_s is not None}
    return render_trace(report, begun)
