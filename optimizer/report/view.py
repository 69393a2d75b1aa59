"""What a report says first: the verdict with its numbers, and one row per candidate."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from optimizer.gate import disturbances
from optimizer.report import format as fmt
from optimizer.report import tables
from optimizer.report.limits import gate_batch, limits
from optimizer.report.load import load_tables
from optimizer.report.tables import holders, worst_sqnr
from optimizer.report.ties import same_files, ties
from optimizer.report.title import shaky, title
from optimizer.report.worth import gain_over_fp32, not_worth_it, worth_table
from optimizer.results import CandidateReport, Report

Status = Literal["measured", "built", "failed"]
_PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int4")
_STATUS: dict[Status, str] = {
    "measured": "measured",
    "built": "built but not executable here",
    "failed": "failed",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that matters, its interval and what it was computed from."""

    label: str
    value: str
    interval: str
    detail: str


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A candidate to ship on a device."""

    device: str
    name: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class Headline:
    """The verdict. `status` is pass, fail, inconclusive or unjudged (a recipe without a gate)."""

    status: str
    label: str
    title: str
    reasons: tuple[str, ...]
    recommendations: tuple[Recommendation, ...]
    count: str
    failed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MetricCell:
    """A metric of one candidate in the summary."""

    value: str
    interval: str
    delta: str
    delta_interval: str


@dataclass(frozen=True, slots=True)
class Row:
    """One candidate in the summary, as text."""

    number: int
    name: str
    is_baseline: bool
    recommended_on: tuple[str, ...]
    status: str
    device: str
    requested: str
    shares: tuple[tuple[str, str, float], ...]
    undelivered: str
    metrics: tuple[MetricCell | None, ...]
    sqnr: str
    latency: str
    tail: str
    throughput: str
    speedup: str
    speedup_interval: str
    size: str
    size_ratio: str
    verdict: str
    reasons: tuple[str, ...]


def headline(report: Report) -> Headline:
    """Return the verdict as a title, the reasons as sentences, and the numbers that matter."""
    judged = bool(limits(report))
    chosen = [(device, c) for device, name in report.recommended.items() if (c := report.candidate(name)) is not None]
    recommendations = tuple(Recommendation(device, c.name, figures(report, c)) for device, c in chosen)
    status = report.verdict.status if judged or report.verdict.status != "pass" else "unjudged"
    label = {"pass": "Gate met", "fail": "Gate not met", "inconclusive": "Undecided", "unjudged": "No gate"}[status]
    states = Counter(c.status for c in report.candidates)
    parts = [f"{states[s]} {_STATUS[s]}" for s in _STATUS if states[s]]
    return Headline(
        status,
        label,
        title(report, status),
        (*report.verdict.reasons, *_beside(report)),
        recommendations,
        f"{fmt.count(len(report.candidates), 'candidate')}: {', '.join(parts)}",
        tuple(c.name for c in report.candidates if c.status == "failed"),
    )


def _beside(report: Report) -> tuple[str, ...]:
    """Return what a recommendation must be read with: what is as fast, and that its precision buys nothing."""
    without = not_worth_it(report)
    idle = (f"{name}: {without[name]}" for name in report.recommended.values() if name in without)
    return (*ties(report), *idle)


def details(report: Report) -> tuple[tables.Table, ...]:
    """Return the tables below the candidates, as the page and the Markdown have them."""
    return (
        tables.gate_table(report),
        tables.accuracy_table(report),
        tables.latency_table(report),
        worth_table(report),
        tables.precision_table(report),
        tables.numerics_table(report),
        tables.resources_table(report),
        *load_tables(report),
    )


def figures(report: Report, candidate: CandidateReport) -> tuple[Figure, ...]:
    """Return speedup, gain over fp32, accuracy and size, each only where it was measured."""
    base = report.candidate(report.baseline)
    gain = gain_over_fp32(report, candidate)
    found = [_speedup_figure(report, candidate, base), Figure(*gain) if gain else None]
    found += [*_accuracy_figures(report, candidate, base), _size_figure(candidate, base)]
    return tuple(f for f in found if f is not None)


def _speedup_figure(report: Report, candidate: CandidateReport, base: CandidateReport | None) -> Figure | None:
    batch = gate_batch(report)
    speedup = (candidate.speedup or {}).get(batch or "")
    latency = (candidate.latency_ms or {}).get(batch or "")
    before = ((base.latency_ms if base else None) or {}).get(batch or "")
    if speedup is None or latency is None or candidate.name == report.baseline:
        return None
    change = f"{fmt.ms(before.p50, unit=False)} \u2192 {fmt.ms(latency.p50)}" if before else fmt.ms(latency.p50)
    state = shaky([before, latency])
    detail = f"p50 {change}, batch {batch}{f'; {state}: measure again' if state else ''}"
    return Figure("Speedup", fmt.ratio(speedup.value), f"95 % interval {fmt.interval(speedup.ci95, fmt.ratio)}", detail)


def _accuracy_figures(report: Report, candidate: CandidateReport, base: CandidateReport | None) -> list[Figure]:
    gated = [limit.subject for limit in limits(report) if limit.subject in candidate.accuracy_delta]
    # The verdict speaks of what the gate asks; without one, of the first metric.
    subjects = gated or list(candidate.accuracy_delta)[:1]
    found = []
    for metric in subjects:
        delta, form = candidate.accuracy_delta[metric], fmt.metric_delta(metric)
        after, before = candidate.accuracy.get(metric), base.accuracy.get(metric) if base else None
        value = fmt.metric_value(metric)
        change = f"{_bare(value(before.value))} \u2192 {value(after.value)}" if before and after else ""
        detail = f"{change}, {fmt.count(after.samples, 'sample')}" if after else ""
        found.append(
            Figure(f"Change of {metric}", form(delta.value), f"95 % interval {fmt.interval(delta.ci95, form)}", detail)
        )
    return found


def _size_figure(candidate: CandidateReport, base: CandidateReport | None) -> Figure | None:
    if candidate.artifact is None:
        return None
    own = candidate.artifact.bytes
    if base is None or base.artifact is None or base.name == candidate.name:
        return Figure("Size", fmt.size(own), "", candidate.artifact.format)
    before = base.artifact.bytes
    return Figure("Size", fmt.size(own), size_ratio(own, before), f"baseline {fmt.size(before)}")


def size_ratio(own: int, base: int) -> str:
    """Return how a size compares with the baseline's, in words."""
    if base <= 0:
        return ""
    if round(own / base, 2) == 1:
        return "same as baseline"
    return f"{own / base * 100:.0f} % of baseline" if own / base < 9.995 else f"{fmt.ratio(own / base)} baseline"


def metric_names(report: Report) -> tuple[str, ...]:
    """Return every metric in the order of the report."""
    names = [*report.metrics, *(m for c in report.candidates for m in c.accuracy)]
    return tuple(dict.fromkeys(names))


def rows(report: Report) -> tuple[Row, ...]:
    """Return the summary: candidates in the order of the report."""
    return tuple(_row(report, number, c) for number, c in enumerate(report.candidates, 1))


def _row(report: Report, number: int, c: CandidateReport) -> Row:
    batch = gate_batch(report) or ""
    base = report.candidate(report.baseline)
    is_baseline = c.name == report.baseline
    latency, speedup = (c.latency_ms or {}).get(batch), (c.speedup or {}).get(batch)
    if is_baseline:
        speedup = None
    throughput = (c.throughput or {}).get(batch)
    base_bytes = base.artifact.bytes if base and base.artifact and not is_baseline else 0
    return Row(
        number=number,
        name=c.name,
        is_baseline=is_baseline,
        recommended_on=tuple(device for device, name in report.recommended.items() if name == c.name),
        status=c.status,
        device=c.device,
        requested=c.precision.requested,
        shares=fmt.shares(c.precision.delivered),
        undelivered=undelivered(c),
        metrics=tuple(_metric_cell(c, m) for m in metric_names(report)),
        sqnr=worst_sqnr(c),
        latency=fmt.ms(latency.p50) if latency else fmt.DASH,
        tail=f"p99 {fmt.ms(latency.p99, unit=False)}" if latency else "",
        throughput=fmt.rate(throughput) if throughput is not None else fmt.DASH,
        speedup=fmt.ratio(speedup.value) if speedup else fmt.ratio(1.0) if is_baseline and latency else fmt.DASH,
        speedup_interval=fmt.interval(speedup.ci95, fmt.ratio) if speedup else "",
        size=fmt.size(c.artifact.bytes) if c.artifact else fmt.DASH,
        size_ratio=size_ratio(c.artifact.bytes, base_bytes) if c.artifact else "",
        verdict=_verdict(report, c),
        reasons=_reasons(report, c),
    )


def undelivered(c: CandidateReport) -> str:
    """Return the sentence for a precision that was asked for and that the runtime does not execute, else nothing."""
    delivered, requested = c.precision.delivered, c.precision.requested
    if not delivered or requested in delivered or requested not in _PRECISIONS:
        return ""
    return f"{requested} not delivered"


def _metric_cell(c: CandidateReport, metric: str) -> MetricCell | None:
    value, delta = c.accuracy.get(metric), c.accuracy_delta.get(metric)
    if value is None:
        return None
    form = fmt.metric_delta(metric)
    own = fmt.metric_value(metric)
    change = (form(delta.value), fmt.interval(delta.ci95, form).removesuffix(" pp")) if delta else ("", "")
    return MetricCell(own(value.value), fmt.interval(value.ci95, own), *change)


def _verdict(report: Report, c: CandidateReport) -> str:
    if c.verdict is not None:
        return c.verdict.status
    if c.name == report.baseline:
        return "baseline"
    return "failed" if c.status == "failed" else "not judged"


def shared_reasons(found: tuple[Row, ...]) -> dict[str, tuple[str, ...]]:
    """Return the sentences that several rows have in common, with the names of those rows: said once, below all."""
    names = holders({row.name: row.reasons for row in found})
    return {reason: users for reason, users in names.items() if len(users) > 1}


def _reasons(report: Report, c: CandidateReport) -> tuple[str, ...]:
    """Return what must be said below a row: why it is not measured, why it does not pass, what it does not gain.

    What was disturbed is said of all candidates alike, and not where the verdict says it.
    """
    said = [c.reason] if c.reason else []
    if c.verdict is not None and c.verdict.status != "pass":
        said.extend(c.verdict.own_reasons)
        own = {name for one in c.verdict.disturbed for name in one.candidates}
        behind = [one for one in disturbances(report.candidates) if not own.isdisjoint(one.candidates)]
        said.extend(one.sentence for one in behind if one not in report.verdict.disturbed)
    if c.status == "built" and c.accuracy_runtime:
        said.append(f"Accuracy computed by: {c.accuracy_runtime.rstrip('.')}.")
    if (earlier := same_files(report).get(c.name)) is not None:
        said.append(f"The same file as {earlier}: what differs is chance.")
    if c.name not in report.recommended.values():  # of those it stands beside the verdict
        said += filter(None, [not_worth_it(report).get(c.name)])
    return tuple(said)


def engine_lines(report: Report) -> tuple[tuple[str, str], ...]:
    """Return each engine with the command line that builds the like with NVIDIA's own tool."""
    return tuple((c.name, c.trtexec) for c in report.candidates if c.trtexec)


def gate_summary(report: Report) -> str:
    """Return the gate in one sentence; that there is none is said here unless the verdict says it."""
    asked = [limit.text for limit in limits(report)]
    if not asked:
        return "" if report.verdict.reasons else "The recipe sets no gate: nothing was judged."
    return f"Gate: {'; '.join(asked)}."


def _bare(text: str) -> str:
    return text.removesuffix(" %")
