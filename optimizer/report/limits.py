"""The gate as the recipe wrote it, limit by limit, beside what each candidate measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from optimizer.report import format as fmt
from optimizer.results import CandidateReport, Report

Outcome = Literal["held", "broken", "undecided"]


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of the gate. `subject` is a metric or "speedup"; a drop is counted against the metric's direction."""

    subject: str
    bound: float
    batch: str
    lower_is_better: bool = False

    @property
    def text(self) -> str:
        """The limit in words."""
        if self.subject == "speedup":
            return f"speedup at batch {self.batch} at least {fmt.ratio(self.bound)}"
        word = "rise" if self.lower_is_better else "drop"
        allowed = fmt.metric_delta(self.subject)(self.bound).lstrip("+")
        return f"{self.subject} may {word} by at most {allowed}"


@dataclass(frozen=True, slots=True)
class Held:
    """A limit against one candidate: held or broken with the whole interval, else undecided."""

    limit: Limit
    outcome: Outcome
    text: str


def gate_batch(report: Report) -> str | None:
    """Return the batch size that the gate and the verdict speak of: `gate.batch`, else the first measured."""
    named = (report.gate or {}).get("batch")
    if named is not None:
        return str(named)
    base = report.candidate(report.baseline)
    timed = (c for c in (base, *report.candidates) if c is not None and c.latency_ms)
    return next((batch for c in timed for batch in c.latency_ms or {}), None)


def limits(report: Report) -> tuple[Limit, ...]:
    """Return the gate's limits; a metric stands in `gate` itself or below its `metrics`."""
    gate = dict(report.gate or {})
    gate.pop("batch", None)
    speedup = gate.pop("speedup", None)
    drops = {**(gate.pop("metrics", None) or {}), **gate}
    batch = gate_batch(report) or fmt.DASH
    found = [
        Limit(metric, float(limit["max_drop"]), batch, report.metrics.get(metric) == "lower")
        for metric, limit in drops.items()
        if isinstance(limit, dict) and limit.get("max_drop") is not None
    ]
    if isinstance(speedup, dict) and speedup.get("min") is not None:
        found.append(Limit("speedup", float(speedup["min"]), batch))
    return tuple(found)


def held(report: Report, candidate: CandidateReport) -> tuple[Held, ...]:
    """Return every limit against a measured candidate; nothing for one that the gate is not asked of.

    As the gate judges: a speedup of disturbed latencies decides nothing, whatever its interval.
    """
    if candidate.status != "measured" or candidate.name == report.baseline:
        return ()
    found = []
    for limit in limits(report):
        one = _held(limit, candidate)
        disturbed = limit.subject == "speedup" and any(
            c.latency_ms[limit.batch].disturbed
            for c in (report.candidate(report.baseline), candidate)
            if c is not None and c.latency_ms and limit.batch in c.latency_ms
        )
        found.append(Held(limit, "undecided", f"{one.text}; latency was disturbed") if disturbed else one)
    return tuple(found)


def _held(limit: Limit, candidate: CandidateReport) -> Held:
    if limit.subject == "speedup":
        speedup = (candidate.speedup or {}).get(limit.batch)
        if speedup is None:
            return Held(limit, "undecided", "not measured")
        low, high = speedup.ci95
        outcome: Outcome = "held" if low >= limit.bound else "broken" if high < limit.bound else "undecided"
        text = f"{fmt.ratio(speedup.value)} (95 % interval {fmt.interval(speedup.ci95, fmt.ratio)})"
        return Held(limit, outcome, text)
    delta = candidate.accuracy_delta.get(limit.subject)
    if delta is None:
        return Held(limit, "undecided", "not measured")
    # Towards worse: a drop of a metric that should be high, a rise of one that should be low.
    least, most = delta.ci95 if limit.lower_is_better else (-delta.ci95[1], -delta.ci95[0])
    outcome = "held" if most <= limit.bound else "broken" if least > limit.bound else "undecided"
    form = fmt.metric_delta(limit.subject)
    return Held(limit, outcome, f"{form(delta.value)} (95 % interval {fmt.interval(delta.ci95, form)})")
