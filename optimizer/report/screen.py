"""The last screen of a build: the summary, then what was measured besides, a line for each kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from optimizer.report import format as fmt
from optimizer.report.summary import render_summary
from optimizer.results import CandidateReport, Report


def render_screen(report: Report) -> str:
    """Return the summary, why candidates do not execute here, and what was measured under load."""
    return "\n".join([render_summary(report), *_unexecuted(report), *load_lines(report)])


def _unexecuted(report: Report) -> list[str]:
    """Say why what was built is not measured; what several have in common once."""
    why: dict[str, list[str]] = {}
    for c in report.candidates:
        if c.status == "built":
            why.setdefault(c.reason or "it cannot execute here", []).append(c.name)
    return [f"built, not measured: {', '.join(names)}: {' '.join(reason.split())}" for reason, names in why.items()]


def load_lines(report: Report) -> list[str]:
    """Return a line each on the sweep, LoadGen, concurrency and memory, only where they were measured."""
    return [*_sweeps(report), *_scenarios(report), *_concurrencies(report), *_memories(report)]


def _sweeps(report: Report) -> Iterator[str]:
    found = [(c.name, c.sweep) for c in report.candidates if c.sweep is not None]
    if found:
        first = found[0][1]
        budget = first["budget_ms"]
        asked = f" with p{first['percentile']} <= {budget:g} ms" if budget is not None else ""
        yield f"sweep, best batch{asked}: {', '.join(f'{name} {_best(sweep)}' for name, sweep in found)}"


def _best(sweep: Mapping[str, Any]) -> str:
    best = sweep["best_batch"]
    if best is None:
        open_ = any(point["held"] == "undecided" for point in sweep["points"].values())
        return "none" + (" (undecided)" if open_ else "")
    point = sweep["points"][str(best)]
    return f"{best} ({fmt.rate(point['items_per_second'])} items/s{_marked(point['latency_ms']['disturbed'])})"


def _scenarios(report: Report) -> Iterator[str]:
    found = [(c.name, c.scenario) for c in report.candidates if c.scenario is not None]
    if found:
        said = [f"{name} {'VALID' if s['valid'] else 'INVALID'} ({_headline(s)})" for name, s in found]
        yield f"LoadGen, {found[0][1]['settings']['scenario']}: {', '.join(said)}"


def _headline(scenario: Mapping[str, Any]) -> str:
    metrics = scenario["metrics"]
    rate, p99 = metrics.get("samples_per_second"), metrics.get("p99_latency_ms")
    said = f"{fmt.rate(rate)} samples/s" if rate is not None else f"p99 {fmt.ms(p99)}" if p99 is not None else "-"
    return said + _marked(bool(scenario.get("disturbed")))


def _concurrencies(report: Report) -> Iterator[str]:
    found = [c for c in report.candidates if c.concurrency]
    if found:
        yield f"concurrency, most items/s: {', '.join(f'{c.name} {_most(c)}' for c in found)}"


def _most(candidate: CandidateReport) -> str:
    best = max(candidate.concurrency, key=lambda load: load["items_per_second"])
    noisy = _marked(bool(best.get("disturbed")))
    return f"{fmt.rate(best['items_per_second'])} ({best['workers']} at once, batch {best['batch']}{noisy})"


def _memories(report: Report) -> Iterator[str]:
    found = [(c.name, c.memory) for c in report.candidates if c.memory is not None]
    if found:
        said = [f"{name} {fmt.size(m['own_bytes']) if m['own_bytes'] is not None else fmt.DASH}" for name, m in found]
        yield f"memory of its own, batch {found[0][1]['batch']}: {', '.join(said)}"


def _marked(disturbed: bool) -> str:
    return ", disturbed" if disturbed else ""
