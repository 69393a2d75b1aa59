"""The title of a report: what to do, or what is still open and why."""

from __future__ import annotations

from collections.abc import Iterable

from optimizer.report import format as fmt
from optimizer.report.limits import gate_batch, held
from optimizer.results import Latency, Report


def title(report: Report, status: str) -> str:
    """Return the title for pass, fail, inconclusive or unjudged (a recipe without a gate)."""
    if status == "fail":
        return "Do not ship"
    if nothing := fallen(report):
        return nothing
    if status == "inconclusive":
        return _undecided(report)
    chosen = report.recommended
    several = len(chosen) > 1
    names = fmt.joined([f"{name} ({device})" if several else name for device, name in chosen.items()])
    if not names:
        return "Measured, not judged" if status == "unjudged" else "The gate is met"
    if status == "unjudged":
        state = shaky(_chosen(report))
        return f"Fastest: {names}{f', but latency was {state}: measure again' if state else ''}"
    return f"Keep {names}" if set(chosen.values()) == {report.baseline} else f"Ship {names}"


def fallen(report: Report) -> str:
    """Return that nothing came of what was asked for, where all but the baseline failed; else nothing."""
    asked = [c for c in report.candidates if c.name != report.baseline]
    if not asked or any(c.status != "failed" for c in asked):
        return ""
    return f"Nothing that was asked for could be {'measured' if any(c.artifact for c in asked) else 'built'}"


def caveat(report: Report) -> str:
    """Return what a recommendation must be read with: that the latency that it rests on was disturbed or unstable."""
    timed = _chosen(report)
    state = shaky(timed)
    worst = max(
        (t for t in timed if t.disturbed and t.rounds), key=lambda t: t.disturbed_rounds / t.rounds, default=None
    )
    share = f" in {worst.disturbed_rounds} of {worst.rounds} rounds" if worst else ""
    return f"latency was {state}{share}: measure again, with --remeasure" if state else ""


def _chosen(report: Report) -> list[Latency]:
    """Return the latencies that a recommendation rests on: that of each recommended candidate and the baseline's."""
    batch = gate_batch(report) or ""
    names = dict.fromkeys([*report.recommended.values(), report.baseline]) if report.recommended else {}
    found = [c for name in names if (c := report.candidate(name)) is not None]
    return [c.latency_ms[batch] for c in found if c.latency_ms and batch in c.latency_ms]


def _undecided(report: Report) -> str:
    """Say which limit is open: only accuracy is a matter of how many samples there are."""
    waiting = [c for c in report.candidates if c.verdict is not None and c.verdict.status == "inconclusive"]
    if not waiting:
        return "Nothing could be judged here"
    open_ = [h.limit.subject for c in waiting for h in held(report, c) if h.outcome == "undecided"]
    metrics = [subject for subject in dict.fromkeys(open_) if subject != "speedup"]
    batch = gate_batch(report) or ""
    timed = [(c.latency_ms or {}).get(batch) for c in (report.candidate(report.baseline), *waiting) if c is not None]
    # A gate may leave a limit open that its interval holds: where the latency cannot be trusted.
    state = shaky(timed) if "speedup" in open_ or not metrics else ""
    if metrics and "speedup" in open_:
        return f"Cannot decide {fmt.joined([*metrics, 'the speedup'])}{f': latency was {state}' if state else ''}"
    if metrics:
        return f"Too few samples to decide {fmt.joined(metrics)}"
    if state:
        return f"Latency was {state}: measure again"
    if any((c.speedup or {}).get(batch) is None for c in waiting):
        return "The speedup was not measured"
    return "The speedup is too near its limit to decide"


def shaky(timed: Iterable[Latency | None]) -> str:
    """Return what makes these latencies less than sure: unstable, disturbed, or both; nothing where none is."""
    known = [latency for latency in timed if latency is not None]
    said = ["unstable"] if any(not latency.stable for latency in known) else []
    said += ["disturbed"] if any(latency.disturbed for latency in known) else []
    return fmt.joined(said)
