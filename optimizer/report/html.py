"""report.html: one file with its style, script and plots inside, that asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from optimizer.report import bars, plot, precision, tables, view
from optimizer.report import format as fmt
from optimizer.report.limits import gate_batch
from optimizer.report.notes import notes
from optimizer.report.trace import OPENED_BY, Traces
from optimizer.results import Report

if TYPE_CHECKING:
    from jinja2 import Template

# Words of the report that get a colour; the word itself says it, the colour only repeats it.
_WORDS = {
    "pass": " good",
    "held": " good",
    "fail": " bad",
    "broken": " bad",
    "failed": " bad",
    "inconclusive": " unsure",
    "undecided": " unsure",
}


_LAYERS = 100  # rows per candidate on the page; report.json has more, receipt.json all


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot on the page."""

    kind: str
    title: str
    markup: str
    caption: str


def render_html(report: Report, traces: Traces = ()) -> str:
    """Return the report as one self-contained HTML file; every text of it is escaped.

    `traces` are files in the run's folder, and what each shows.
    """
    from markupsafe import Markup

    script, style = _asset("report.js"), _asset("report.css")
    batch = gate_batch(report)
    rows, shared = _rows(report)
    page: dict[str, Any] = {
        "report": report,
        "head": view.headline(report),
        "gate": view.gate_summary(report),
        "created": fmt.moment(report.created),
        "machine": report.environment.gpu.name if report.environment.gpu else report.environment.cpu,
        "batch": batch,
        "metrics": [{"name": m, "direction": _direction(report, m)} for m in view.metric_names(report)],
        "rows": rows,
        "shared": shared,
        "plots": [{**asdict(f), "markup": Markup(f.markup)} for f in _figures(report, batch)],
        "details": view.details(report),
        "layers": precision.layer_tables(report, _LAYERS),
        "calibrations": precision.calibrations(report),
        "stages": tables.stage_table(report),
        "method": tables.method_facts(report),
        "environment": tables.environment_facts(report),
        "engines": view.engine_lines(report),
        "notes": notes(report),
        "traces": traces,
        "opened_by": OPENED_BY,
        "words": _WORDS,
        "style": Markup(style),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    return _template().render(page).lstrip()


def _rows(report: Report) -> tuple[list[dict[str, Any]], dict[str, tuple[str, ...]]]:
    """Return the rows of the candidates, and the reasons that several of them share, with their names."""
    from markupsafe import Markup

    found = view.rows(report)
    shared = view.shared_reasons(found)
    rows = [
        {
            **asdict(r),
            "metrics": r.metrics,
            "bar": Markup(bars.delivered(r.shares)),
            "own_reasons": [said for said in r.reasons if said not in shared],
        }
        for r in found
    ]
    return rows, shared


def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_asset("report.html.j2"))


def _asset(name: str) -> str:
    return (files("optimizer.report") / "templates" / name).read_text(encoding="utf-8")


def _direction(report: Report, metric: str) -> str:
    direction = report.metrics.get(metric)
    return f"{direction} is better" if direction else ""


def _figures(report: Report, batch: str | None) -> list[Figure]:
    found: list[Figure] = []
    for metric in view.metric_names(report):
        drawn = plot.scatter(report, metric, batch) if batch else None
        if drawn is not None:
            several = f"{metric}, batch {batch}"
            found.append(Figure("wide", several, drawn.markup, _caption(report, drawn)))
    base = report.candidate(report.baseline)
    batches = tables.by_number({b: 0 for c in (base, *report.candidates) if c for b in c.latency_ms or {}})
    for each in batches:
        markup = bars.percentiles(report, each)
        if markup is not None:
            found.append(Figure("", f"Latency at batch {each}, ms: p50 / p90 / p99", markup, ""))
    markup = bars.sizes(report)
    if markup is not None:
        found.append(Figure("", "Size", markup, ""))
    return found


def _caption(report: Report, drawn: plot.Plot) -> str:
    said = [
        "Square: baseline. Filled circle: measured. Ringed: recommended.",
        "Hollow circle: built, accuracy computed on the CPU from the same graph." if drawn.has_margin else "",
        "Bars: 95 % intervals; of latency, the interval of the speedup, where it can be told.",
        "Dashed line: Pareto front." if report.pareto else "",
        "Dotted lines: limits of the gate." if drawn.has_gate else "",
        "Numbers: rows of the table above." if drawn.is_numbered else "",
    ]
    return " ".join(filter(None, said))
