"""The report in a few lines for a terminal: what to ship, then a line a candidate."""

from __future__ import annotations

from optimizer.report.limits import gate_batch
from optimizer.report.notes import notes
from optimizer.report.tables import worst_sqnr
from optimizer.report.ties import one_file, ties
from optimizer.report.title import caveat, fallen, title
from optimizer.report.worth import screen_lines
from optimizer.results import CandidateReport, Report

_MOST_REASONS = 3


def render_summary(report: Report) -> str:
    """Return the verdict and one line for each candidate, aligned."""
    batch = gate_batch(report)  # what the verdict speaks of
    rows = [_row(c, report, batch) for c in report.candidates]
    timed = f"p50 ms @{batch}" if batch else ""
    head = ("candidate", "status", *list(report.metrics)[:1], "SQNR", timed, "speedup", "verdict")
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)]
    each = report.verdict.own_reasons
    reasons = [f"  {reason}" for reason in each[:_MOST_REASONS]]
    more = len(each) - len(reasons)
    reasons += [f"  and {more} more, in report.md"] if more > 0 else []
    reasons += [f"  {disturbance.sentence}" for disturbance in report.verdict.disturbed]
    said = [f"note: {note}" for note in (*notes(report), *one_file(report), *ties(report), *screen_lines(report))]
    return "\n".join([*lines, *said, _verdict(report), *reasons])


def _verdict(report: Report) -> str:
    """Return the last word; what failed is not hidden behind a pass."""
    chosen = {} if fallen(report) else report.recommended
    shipped = ", ".join(f"{name} ({device})" for device, name in chosen.items()) or "nothing"
    failed = [c for c in report.candidates if c.status == "failed"]
    gone = [] if fallen(report) else _gone(report)
    among = f", among them all of {', '.join(gone)}" if gone else ""
    lost = f"; {len(failed)} of {len(report.candidates)} candidates failed{among}" if failed else ""
    but = f", but {said}" if chosen and (said := caveat(report)) else ""
    return f"verdict: {_status(report)}{lost}; recommended: {shipped}{but}"


def _status(report: Report) -> str:
    """Return the verdict's status; without a gate that is "pass", which nobody reads as "nothing came of it"."""
    status = report.verdict.status
    if status == "inconclusive":
        return f"{status} ({title(report, status)})"
    nothing = fallen(report) if status == "pass" else ""
    if status == "pass" and report.gate is None and _gone(report):
        nothing = nothing or "no gate"
    return f"none ({nothing})" if nothing else status


def _gone(report: Report) -> list[str]:
    """Return the variants of which every candidate failed."""
    whole = {c.variant: True for c in report.candidates}
    for c in report.candidates:
        whole[c.variant] = whole[c.variant] and c.status == "failed"
    return [variant for variant, failed in whole.items() if failed]


def _row(candidate: CandidateReport, report: Report, batch: str | None) -> tuple[str, ...]:
    metric = next(iter(report.metrics), None)
    value = candidate.accuracy.get(metric or "")
    accuracy = (f"{value.value:.4f}" if value else "-",) if metric else ()
    latency = (candidate.latency_ms or {}).get(batch or "")
    ratio = (candidate.speedup or {}).get(batch or "")
    verdict = "baseline" if candidate.name == report.baseline else "-"
    if candidate.verdict is not None:
        verdict = candidate.verdict.status
    return (
        candidate.name,
        candidate.status,
        *accuracy,
        worst_sqnr(candidate),
        f"{latency.p50:.3f}" if latency else "-",
        f"{ratio.value:.2f}x" if ratio else "-",
        verdict,
    )
