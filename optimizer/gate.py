"""Verdicts: each measured candidate against the gate, the front, what to recommend, and the run as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from optimizer.results import CandidateReport, Disturbance, MetricDelta, Speedup, Status, Verdict

if TYPE_CHECKING:
    from optimizer.recipe.model import Gate

Better = Literal["higher", "lower"]


def judge(
    candidate: CandidateReport,
    gate: Gate | None,
    batch: str,
    metrics: dict[str, Better],
    baseline: CandidateReport | None = None,
    causes: Sequence[str] = (),
) -> Verdict:
    """Judge one measured candidate: pass when every limit holds with its interval, fail when one is broken with it.

    A limit on latency stays undecided where the latency is marked disturbed. `baseline` is what the speedup refers to,
    `causes` what disturbed the rounds at this batch: the verdict's `disturbed` names both.
    """
    if gate is None:
        return Verdict(status="pass", reasons=("no gate",))
    found: list[tuple[Status, str]] = []
    disturbed: tuple[Disturbance, ...] = ()
    for name, limit in gate.metrics.items():
        found.append(judge_drop(name, candidate.accuracy_delta.get(name), limit.max_drop, metrics[name]))
    if gate.speedup is not None:
        ratio = (candidate.speedup or {}).get(batch)
        sides = [c for c in (baseline, candidate) if c is not None]
        weighed, disturbed = weigh(judge_speedup(ratio, gate.speedup.min, batch), sides, batch, causes)
        found.append(weighed)
    return combine(found, disturbed)


def judge_drop(name: str, delta: MetricDelta | None, max_drop: float, better: Better) -> tuple[Status, str]:
    """Judge a metric's change: a drop is a change for the worse, a rise where lower is better."""
    if delta is None:
        return "inconclusive", f"{name} was not measured against the baseline"
    # Towards worse: the drop, from the least to the most that the samples leave possible.
    least, most = delta.ci95 if better == "lower" else (-delta.ci95[1], -delta.ci95[0])
    low, high = delta.ci95
    said = f"{name} changed by {delta.value:+.4f} (95 % interval {low:+.4f} to {high:+.4f})"
    word = "drop" if better == "higher" else "rise"
    if most <= max_drop:
        return "pass", f"{said}; a {word} of {max_drop:g} is allowed"
    if least > max_drop:
        return "fail", f"{said}; a {word} of at most {max_drop:g} is allowed"
    return "inconclusive", f"{said}; whether it is a {word} of more than {max_drop:g} these samples cannot decide"


def judge_speedup(ratio: Speedup | None, least: float, batch: str) -> tuple[Status, str]:
    """Judge a speedup at the gate's batch."""
    if ratio is None:
        return "inconclusive", f"no speedup was measured at batch {batch}"
    low, high = ratio.ci95
    said = f"speedup at batch {batch} is {ratio.value:.2f} (95 % interval {low:.2f} to {high:.2f})"
    if low >= least:
        return "pass", f"{said}; at least {least:g} is needed"
    if high < least:
        return "fail", f"{said}; at least {least:g} is needed"
    return "inconclusive", f"{said}; whether it reaches {least:g} cannot be decided with these samples"


def weigh(
    found: tuple[Status, str], sides: Sequence[CandidateReport], batch: str, causes: Sequence[str] = ()
) -> tuple[tuple[Status, str], tuple[Disturbance, ...]]:
    """Return the answer with what did not hold still, and what was disturbed: that takes the answer back.

    Disturbed rounds that count, because too few others were to be had, move the median by an unknown amount, and not
    that of all candidates alike: no interval of those rounds holds that. A latency that merely did not hold still is in
    the interval: its rounds and openings are what is drawn, and it holds what each half of the session gave.
    """
    status, said = found
    timed = {c.name: c.latency_ms[batch] for c in sides if c.latency_ms and batch in c.latency_ms}
    disturbed = together(
        Disturbance(
            candidates=(name,),
            rounds=latency.rounds,
            disturbed_rounds=latency.disturbed_rounds,
            causes=tuple(causes),
        )
        for name, latency in timed.items()
        if latency.disturbed
    )
    if disturbed:
        return ("inconclusive", said), disturbed
    shaky = [f"{name}: {latency.unstable}" for name, latency in timed.items() if latency.unstable]
    if shaky:
        said = f"{said}, which includes that latency did not hold still ({'; '.join(shaky)})"
    return (status, said), ()


def together(found: Iterable[Disturbance]) -> tuple[Disturbance, ...]:
    """Return disturbances with those that are alike made one, of all their candidates."""
    alike: dict[Disturbance, dict[str, None]] = {}
    for one in found:
        alike.setdefault(one.model_copy(update={"candidates": ()}), {}).update(dict.fromkeys(one.candidates))
    return tuple(one.model_copy(update={"candidates": tuple(names)}) for one, names in alike.items())


def combine(found: Sequence[tuple[Status, str]], disturbed: tuple[Disturbance, ...] = ()) -> Verdict:
    """One broken limit fails; one undecided leaves all undecided; the reasons that decide come first."""
    order: tuple[Status, ...] = ("fail", "inconclusive", "pass")
    status = next((s for s in order if any(s == own for own, _ in found)), "pass")
    reasons = [reason for s in order for own, reason in found if own == s]
    return Verdict(status=status, reasons=(*reasons, *(d.sentence for d in disturbed)), disturbed=disturbed)


def pareto(candidates: Sequence[CandidateReport], metric: str | None, batch: str, better: Better) -> tuple[str, ...]:
    """Names of measured candidates that no other beats in both accuracy and latency, fastest first."""
    points = [
        (c.latency_ms[batch].p50, _worth(c, metric, better), c.name)
        for c in candidates
        if c.status == "measured" and c.latency_ms and batch in c.latency_ms
    ]
    front = [
        p for p in points if not any(q[0] <= p[0] and q[1] >= p[1] and (q[0] < p[0] or q[1] > p[1]) for q in points)
    ]
    return tuple(name for _, _, name in sorted(front))


def _worth(candidate: CandidateReport, metric: str | None, better: Better) -> float:
    if metric is None or metric not in candidate.accuracy:
        return 0.0
    value = candidate.accuracy[metric].value
    return value if better == "higher" else -value


def recommend(candidates: Sequence[CandidateReport], baseline: str, gate: Gate | None, batch: str) -> dict[str, str]:
    """Per device, the fastest measured candidate that passes.

    Without a gate the baseline may be that, where another candidate was timed beside it: alone it has won nothing.
    """
    timed = [c for c in candidates if c.status == "measured" and c.latency_ms and batch in c.latency_ms]
    contested = {c.device for c in timed if c.name != baseline} if gate is None else set()
    best: dict[str, tuple[float, str]] = {}
    for candidate in timed:
        passes = candidate.verdict is not None and candidate.verdict.status == "pass"
        if not passes and not (candidate.name == baseline and candidate.device in contested):
            continue
        point = ((candidate.latency_ms or {})[batch].p50, candidate.name)
        best[candidate.device] = min(best.get(candidate.device, point), point)
    return {device: name for device, (_, name) in best.items()}


def overall(candidates: Sequence[CandidateReport], gate: Gate | None) -> Verdict:
    """The run's verdict: pass if a candidate passes, fail if all fail, else it cannot be decided; no gate: pass."""
    judged = [c for c in candidates if c.verdict is not None]
    if gate is None:
        none = () if judged else ("Nothing but the baseline could be measured here.",)
        return Verdict(status="pass", reasons=("The recipe has no gate.", *none))
    if not judged:
        return Verdict(status="inconclusive", reasons=("No candidate could be measured here, so none was judged.",))
    passing = [c.name for c in judged if c.verdict and c.verdict.status == "pass"]
    if passing:
        said = f"{len(passing)} of {len(judged)} judged candidates hold every limit: {', '.join(passing)}."
        return Verdict(status="pass", reasons=(said,))
    reasons = tuple(f"{c.name}: {c.verdict.reasons[0]}" for c in judged if c.verdict and c.verdict.reasons)
    if all(c.verdict and c.verdict.status == "fail" for c in judged):
        return Verdict(status="fail", reasons=reasons)
    disturbed = disturbances(judged)
    reasons = (*reasons, *(d.sentence for d in disturbed))
    return Verdict(status="inconclusive", reasons=reasons, disturbed=disturbed)


def disturbances(candidates: Sequence[CandidateReport]) -> tuple[Disturbance, ...]:
    """Return what was disturbed behind the verdicts on candidates, alike ones once."""
    return together(one for c in candidates if c.verdict is not None for one in c.verdict.disturbed)
