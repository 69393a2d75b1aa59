"""Metrics before and after, paired by sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optimizer.compare.result import LEVEL, P_VALUE, RELATIVE_TOLERANCE, SHARE_TOLERANCE, Check, Finding, percent
from optimizer.compare.stored import AbsentError, Pair
from optimizer.gate import judge_drop
from optimizer.measure.accuracy import metric_delta
from optimizer.measure.statistics import Floats
from optimizer.metrics import METRICS
from optimizer.metrics.metric import Metric
from optimizer.results import CandidateReport, MetricDelta

if TYPE_CHECKING:
    from optimizer.recipe.model import Gate, MetricLimit


def compare_metrics(pair: Pair, gate: Gate | None) -> list[Check]:
    """Compare every metric of one candidate."""
    old, new = pair.old, pair.new
    checks = [_metric(pair, name, gate) for name in old.accuracy]
    checks += [
        Check(pair.name, name, "shown", "-", _number(name, new), f"{name} is new")
        for name in new.accuracy
        if name not in old.accuracy
    ]
    for name in gate.metrics if gate else ():
        if name not in old.accuracy:
            sentence = f"the gate asks for {name}, which the baseline report does not hold"
            checks.append(Check(pair.name, name, "inconclusive", "-", _number(name, new), sentence))
    return checks


def _metric(pair: Pair, name: str, gate: Gate | None) -> Check:
    limit = gate.metrics.get(name) if gate else None
    is_judged = gate is None or limit is not None
    try:
        finding, sentence = _judged(pair, name, gate is not None, limit)
    except AbsentError as reason:
        finding, sentence = "inconclusive", f"{name} is not judged: {reason}"
    if not is_judged:
        finding = "shown"
    return Check(pair.name, name, finding, _number(name, pair.old), _number(name, pair.new), sentence)


def _judged(pair: Pair, name: str, has_gate: bool, limit: MetricLimit | None) -> tuple[Finding, str]:
    metric = next((m for m in METRICS if m.name == name), None)
    if metric is None:
        raise AbsentError(f"this version knows no metric {name}")
    if name not in pair.new.accuracy:
        raise AbsentError(f"{name} is not in the candidate report")
    first, second = pair.before.outcomes(pair.old, name), pair.after.outcomes(pair.new, name)
    note = _pairing(pair, len(first), len(second))
    if pair.same_artifact and np.array_equal(first, second):
        return "pass", f"the artifact is the same, and so are the outcomes of all {len(first):,} samples"
    if not has_gate:
        finding, sentence = _regression(metric, first, second)
        return finding, sentence + note
    delta = metric_delta(name, first, second)
    if limit is None:
        return "shown", f"{_said(name, delta, 0.95)}; the gate does not ask for it"
    status, sentence = judge_drop(name, delta, limit.max_drop, metric.better)
    return status, sentence + note


def _regression(metric: Metric, first: Floats, second: Floats) -> tuple[Finding, str]:
    """Find a regression only where the whole interval lies beyond the tolerance, and the test agrees."""
    delta = metric_delta(metric.name, first, second, LEVEL)
    is_lower_better = metric.better == "lower"
    least, most = delta.ci95 if is_lower_better else (-delta.ci95[1], -delta.ci95[0])
    tolerance = SHARE_TOLERANCE if metric.binary else RELATIVE_TOLERANCE * abs(float(first.mean()))
    word = "rise" if is_lower_better else "drop"
    said = _said(metric.name, delta, LEVEL)
    if least > tolerance and delta.p_value < P_VALUE:
        return "fail", f"{said}: a {word} beyond the tolerance of {tolerance:.4g}"
    # Never just "no regression": so many samples see only so much.
    seen = max(most, tolerance)
    return "pass", f"no {word} beyond {seen:.4g} found with {len(first):,} samples, a smaller one may be there; {said}"


def _said(name: str, delta: MetricDelta, level: float) -> str:
    low, high = delta.ci95  # of `level`, whatever the field is called
    interval = f"{percent(level)} interval {low:+.4f} to {high:+.4f}"
    return f"{name} changed by {delta.value:+.4f} ({interval}, {delta.test} p = {delta.p_value:.2g})"


def _pairing(pair: Pair, first: int, second: int) -> str:
    """Return what must be said of the pairing; nothing where both runs name the same data.

    Raises: AbsentError when the samples are not the same.
    """
    if first != second:
        raise AbsentError(f"{first:,} samples before and {second:,} after cannot be paired")
    one, other = pair.before.evaluation(), pair.after.evaluation()
    if one is not None and one == other:
        return ""
    inputs, others = pair.before.golden_inputs(), pair.after.golden_inputs()
    if not inputs or not others:
        return "; no golden inputs lie beside both reports, so that the samples are the same is taken from their number"
    alike = inputs.keys() == others.keys() and all(np.array_equal(a, others[n]) for n, a in inputs.items())
    if not alike:
        raise AbsentError("the evaluation samples are not the same, so they cannot be paired")
    count = len(next(iter(inputs.values())))
    return f"; the evaluation data or its code changed, but {count} samples, the golden inputs, are the same"


def _number(name: str, candidate: CandidateReport) -> str:
    value = candidate.accuracy.get(name)
    return f"{value.value:.4f}" if value is not None else "-"
