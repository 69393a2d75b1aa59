"""What reduced precision is worth: each candidate against the fp32 candidate of the same target and device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from optimizer.report import format as fmt
from optimizer.report.limits import gate_batch, limits
from optimizer.report.tables import Cells, Column, Table, by_number, worst_sqnr
from optimizer.report.title import shaky
from optimizer.results import AgainstFp32, CandidateReport, Difference, Interval, Latency, Report, Speedup

_NOT_FASTER = {
    "slower": "Slower than",
    "same within tolerance": "As fast as",
    "undecided": "Not shown to be faster than",
}
_WITHOUT_GAIN = {
    "no gain over": ("slower", "same within tolerance"),
    "not shown to be faster than": ("undecided",),
}
_MOST_NAMED = 6  # on the last screen


@dataclass(frozen=True, slots=True)
class Pair:
    """A candidate of reduced precision, the fp32 one of its target, and what the one gains over the other."""

    candidate: CandidateReport
    fp32: CandidateReport
    against: AgainstFp32

    def at(self, batch: str | None) -> tuple[Speedup, Difference] | None:
        """Return the speedup and what it is judged to be; None where it was not measured, or disturbed."""
        found = self.against.speedup.get(batch or "")
        if found is None or found.difference is None or any(one and one.disturbed for one in self.latencies(batch)):
            return None
        return found, found.difference

    def latencies(self, batch: str | None) -> list[Latency | None]:
        """Return the latency of fp32, then the candidate's."""
        return [(c.latency_ms or {}).get(batch or "") for c in (self.fp32, self.candidate)]

    def state(self, batch: str | None) -> str:
        """Return what makes either latency less than sure."""
        return shaky(self.latencies(batch))

    @property
    def size(self) -> str:
        """The candidate's file as a share of fp32's; nothing where either is unknown."""
        own, base = self.candidate.artifact, self.fp32.artifact
        return fmt.percent(own.bytes / base.bytes, 0) if own and base and base.bytes else ""

    @property
    def delivers_the_same(self) -> bool:
        """Whether the runtime executes both in one precision."""
        own, base = self.candidate.precision.delivered, self.fp32.precision.delivered
        return bool(own) and _shares(own) == _shares(base)


def pairs(report: Report) -> tuple[Pair, ...]:
    """Return every candidate that has an fp32 one of its target beside it, in the order of the report."""
    found = []
    for c in report.candidates:
        other = report.candidate(c.against_fp32.candidate) if c.against_fp32 else None
        if c.against_fp32 is not None and other is not None:
            found.append(Pair(c, other, c.against_fp32))
    return tuple(found)


def not_worth_it(report: Report) -> dict[str, str]:
    """Return a sentence for each candidate that is not faster than fp32 on its target, at the batch of the verdict."""
    batch = gate_batch(report)
    found = {}
    for pair in pairs(report):
        judged = pair.at(batch)
        if judged is None or judged[1].kind == "faster":
            continue
        elsewhere = [b for b in by_number(dict(pair.against.speedup)) if (at := pair.at(b)) and at[1].kind == "faster"]
        but = f" Faster at batch {fmt.joined(elsewhere)}." if elsewhere else ""
        said = f"{_NOT_FASTER[judged[1].kind]} {pair.fp32.name} at batch {batch} ({_told(*judged)})"
        found[pair.candidate.name] = f"{said}: {_price(report, pair)}{_doubt(pair, batch)}.{but}"
    return found


def screen_lines(report: Report) -> tuple[str, ...]:
    """Return what the last screen says: what reduced precision buys nothing, and what the recommended one gains."""
    batch = gate_batch(report)
    judged_by_kind = [(p, at[1]) for p in pairs(report) if (at := p.at(batch))]
    found = []
    for what, kinds in _WITHOUT_GAIN.items():
        named = [_named(p, d, batch) for p, d in judged_by_kind if d.kind in kinds]
        more = [f"{len(named) - _MOST_NAMED} more in report.md"] if len(named) > _MOST_NAMED else []
        if named:
            where = f"fp32 on the same target at batch {batch} (99 % interval of the speedup)"
            found.append(f"{what} {where}: {', '.join(named[:_MOST_NAMED] + more)}")
    for pair, (speedup, judged) in _recommended(report):
        if judged.kind == "faster":
            gained = f"{pair.candidate.name} over {pair.fp32.name} at batch {batch}: {_told(speedup, judged)}"
            found.append(f"{gained}; {_price(report, pair)}{_doubt(pair, batch)}")
    return tuple(found)


def gain_over_fp32(report: Report, candidate: CandidateReport) -> tuple[str, str, str, str] | None:
    """Return label, value, interval and detail of the gain over fp32 on the target, where that is not the baseline."""
    batch = gate_batch(report)
    pair = next((p for p in pairs(report) if p.candidate.name == candidate.name), None)
    speedup = pair.against.speedup.get(batch or "") if pair else None
    if pair is None or speedup is None or pair.fp32.name == report.baseline:
        return None
    before, after = pair.latencies(batch)
    change = f"p50 {fmt.ms(before.p50, unit=False)} \u2192 {fmt.ms(after.p50)}, " if before and after else ""
    state = pair.state(batch)
    return (
        f"Over {pair.fp32.name}",
        fmt.ratio(speedup.value),
        f"95 % interval {fmt.interval(speedup.ci95, fmt.ratio)}",
        f"{change}batch {batch}{f'; {state}: measure again' if state else ''}",
    )


def worth_table(report: Report) -> Table:
    """Return every pair at every batch: what reduced precision gains over fp32 on its target, and what it gives up."""
    metrics = tuple(dict.fromkeys(m for p in pairs(report) for m in p.against.accuracy_delta))
    columns = (
        Column("Candidate", "code"),
        Column("Against", "code"),
        Column("Batch"),
        Column("Speedup"),
        Column("99 % interval"),
        Column("So it is", "text"),
        *(Column(title) for m in metrics for title in (f"Change of {m}", "95 % interval")),
        Column("SQNR"),
        Column("Size"),
        Column("Delivered", "text"),
    )
    groups = tuple((p.candidate.name, tuple(_rows(p, metrics))) for p in pairs(report))
    note = (
        "Speedup: p50 of the fp32 candidate of the same runtime and device over the candidate's, paired by round. "
        "Faster or slower by a 99 % interval outside a tolerance of 1 %, or neither. Change: paired with that one by "
        f"sample. SQNR: against {report.baseline}. Size: of the fp32 candidate's file."
    )
    return Table("Reduced precision against fp32", note, columns, tuple(g for g in groups if g[1]))


def _rows(pair: Pair, metrics: tuple[str, ...]) -> Iterator[Cells]:
    """Yield a row a batch; what all have in common stands in the first."""
    deltas = pair.against.accuracy_delta
    common: list[str] = []
    for metric in metrics:
        form, delta = fmt.metric_delta(metric), deltas.get(metric)
        common += [form(delta.value), fmt.interval(delta.ci95, form)] if delta else [fmt.DASH, fmt.DASH]
    common += [worst_sqnr(pair.candidate), pair.size or fmt.DASH, _delivered(pair)]
    for number, batch in enumerate(by_number(dict(pair.against.speedup))):
        speedup = pair.against.speedup[batch]
        judged = speedup.difference
        bounds = fmt.interval(_gain(judged), fmt.ratio) if judged else fmt.DASH
        state = pair.state(batch)
        kind = f"{judged.kind}{f' ({state})' if state else ''}" if judged else fmt.DASH
        first = number == 0
        shown = common if first else [""] * len(common)
        yield (pair.fp32.name if first else "", batch, fmt.ratio(speedup.value), bounds, kind, *shown)


def _recommended(report: Report) -> Iterator[tuple[Pair, tuple[Speedup, Difference]]]:
    """Yield the recommended candidates; one whose fp32 is the baseline is left out, the speedup says it."""
    for pair in pairs(report):
        at = pair.at(gate_batch(report))
        if at and pair.candidate.name in report.recommended.values() and pair.fp32.name != report.baseline:
            yield pair, at


def _named(pair: Pair, judged: Difference, batch: str | None) -> str:
    state = pair.state(batch)
    return f"{pair.candidate.name} {fmt.interval(_gain(judged), fmt.ratio)}{f' ({state})' if state else ''}"


def _doubt(pair: Pair, batch: str | None) -> str:
    """Return what a sentence ends with where a latency did not hold still."""
    state = pair.state(batch)
    return f"; {state}: measure again" if state else ""


def _told(speedup: Speedup, judged: Difference) -> str:
    return f"{fmt.ratio(speedup.value)}, 99 % interval {fmt.interval(_gain(judged), fmt.ratio)}"


def _gain(judged: Difference) -> Interval:
    """Return the interval of a ratio of latencies the other way round: above 1 is faster."""
    low, high = judged.interval
    return 1 / high, 1 / low


def _price(report: Report, pair: Pair) -> str:
    """Return what comes with it: the metrics of the gate, or the first one; SQNR, size, and the same precision."""
    deltas = pair.against.accuracy_delta
    asked = [limit.subject for limit in limits(report) if limit.subject in deltas] or list(deltas)[:1]
    said = []
    for metric in asked:
        form, delta = fmt.metric_delta(metric), deltas[metric]
        said.append(f"{metric} {form(delta.value)} ({fmt.interval(delta.ci95, form)})")
    own, base = worst_sqnr(pair.candidate), worst_sqnr(pair.fp32)
    if own not in ("equal", fmt.DASH):
        known = pair.fp32.name != report.baseline and base not in ("equal", fmt.DASH)
        said.append(f"SQNR {own}{f' instead of {base}' if known else ''}")
    said += [f"{pair.size} of its size"] if pair.size else []
    said += ["executed in the same precision"] if pair.delivers_the_same else []
    return ", ".join(said)


def _delivered(pair: Pair) -> str:
    """Return what the candidate executes; fp32's own shares only where they are not all fp32."""
    own = _shares(pair.candidate.precision.delivered) or fmt.DASH
    base = _shares(pair.fp32.precision.delivered)
    if pair.delivers_the_same:
        return f"{own}, as {pair.fp32.name}"
    pure = set(pair.fp32.precision.delivered) <= {"fp32"}
    return own if pure or not base else f"{own}; {pair.fp32.name}: {base}"


def _shares(delivered: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {text}" for name, text, _ in fmt.shares(delivered))
