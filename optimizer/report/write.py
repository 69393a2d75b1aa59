"""Write a report into its run's folder: report.html and report.md first, report.json last."""

from __future__ import annotations

import json
from pathlib import Path

from optimizer.report.html import render_html
from optimizer.report.markdown import render_markdown
from optimizer.report.read import write_json
from optimizer.report.trace import inference_trace
from optimizer.results import Report


def write_report(report: Report, run: Path) -> None:
    """Render all three forms, and one trace of all candidates; whoever finds report.json finds the rest beside it."""
    (run / "report.html").write_text(render_html(report), encoding="utf-8")
    (run / "report.md").write_text(render_markdown(report), encoding="utf-8")
    events = {
        file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted((run / "traces").glob("*.json"))
    }
    (run / "inference.trace.json").unlink(missing_ok=True)  # of an earlier run in this folder
    if events:
        (run / "inference.trace.json").write_text(inference_trace(events), encoding="utf-8")
    write_json(report, run / "report.json")
