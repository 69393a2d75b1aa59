"""Metrics of two bundles, from what each passport says was measured: values without the samples behind them.

A paired judgement needs to know on which samples each was right, and a passport does not say. What it says leaves a
range of pairings open; what holds for the two ends of it holds for every one between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.compare.result import (
    LEVEL,
    P_VALUE,
    RELATIVE_TOLERANCE,
    SHARE_TOLERANCE,
    Check,
    Finding,
    percent,
)
from optimizer.compare.shipped import Bundle, same_inputs
from optimizer.measure.statistics import (
    FEWEST_RESAMPLED,
    Interval,
    Z,
    mcnemar,
    paired_share_difference,
    student_quantile,
)
from optimizer.metrics import METRICS
from optimizer.metrics.metric import Metric

if TYPE_CHECKING:
    from optimizer.recipe.model import Gate

_REPORTS = "compare the folders of the two runs, whose outcomes decide"


@dataclass(frozen=True, slots=True)
class Pairings:
    """What the change can be, over every pairing of the samples that two recorded values leave possible.

    `likely` is whether it is a regression if the two were right on the same samples as far as possible, `unlikely` if
    as far apart as possible; `interval` is that of the latter, the widest.
    """

    change: float
    samples: int
    interval: Interval
    tolerance: float
    likely: bool
    unlikely: bool


class UnpairedError(Exception):
    """Two recorded values cannot be held against each other; the text says why."""


def compare_recorded(before: Bundle, after: Bundle, gate: Gate | None) -> list[Check]:
    """Compare every metric that a passport of either bundle has."""
    old, new = before.passport["accuracy"], after.passport["accuracy"]
    asked = tuple(gate.metrics) if gate else ()
    checks = []
    for name in dict.fromkeys([*old, *new, *asked]):
        if name in old or name in asked:
            finding, sentence = _found(before, after, name, gate)
        else:
            finding, sentence = "shown", f"{name} is new"
        if gate is not None and name not in asked:
            finding, sentence = "shown", f"{sentence}; the gate does not ask for it"
        checks.append(Check(after.name, name, finding, _number(old.get(name)), _number(new.get(name)), sentence))
    return checks


def _found(before: Bundle, after: Bundle, name: str, gate: Gate | None) -> tuple[Finding, str]:
    if _one_accuracy(before, after, name):
        return "pass", "artifact, runtime, preprocessing and golden inputs are the same, and so is what is recorded"
    metric = next((m for m in METRICS if m.name == name), None)
    try:
        if metric is None:
            raise UnpairedError(f"this version knows no metric {name}")
        note = _same_data(before, after, name)
        old, new = (bundle.passport["accuracy"][name] for bundle in (before, after))
        found = pairings(metric, old, new, 0.95 if gate else LEVEL)
    except UnpairedError as reason:
        return "inconclusive", f"{name} is not judged: {reason}"
    limit = gate.metrics.get(name) if gate else None
    finding, sentence = _against(metric, found, limit.max_drop) if limit else _regression(metric, found)
    return finding, sentence + note + _computed(before) + _computed(after)


def _one_accuracy(before: Bundle, after: Bundle, name: str) -> bool:
    """Whether both passports say the same of the same: an answer depends on what the inputs went through as well."""
    old, new = (bundle.passport["accuracy"].get(name) for bundle in (before, after))
    same = before.same_as(after) and before.preprocessing == after.preprocessing and same_inputs(before, after)
    return same and old is not None and old == new


def pairings(metric: Metric, before: Mapping[str, Any], after: Mapping[str, Any], level: float) -> Pairings:
    """Return what can be said of the change from two recorded values of the same samples.

    Numeric: of shares exact, from the fewest and the most samples on which the two can differ. Of other means the
    standard errors are read from the recorded 95 % intervals; they add at most (Cauchy-Schwarz), and what they add to
    bounds the p-value of random signs. Those of n samples have none below 2^(1-n): of fewer than 8 none below 0.01.
    Raises: UnpairedError when a share is no share of its samples, or there is but one sample.
    """
    change = float(after["value"] - before["value"])
    if metric.binary:
        return _shares(metric, before, after, level)
    samples = int(after["samples"])
    if samples < 2:
        raise UnpairedError("a single sample has no interval")
    tolerance = RELATIVE_TOLERANCE * abs(float(before["value"]))
    wider = _quantile(level, samples) / _quantile(0.95, samples)
    (low, high), (least, most) = before["ci95"], after["ci95"]
    below = wider * ((after["value"] - least) + (high - before["value"]))
    above = wider * ((most - after["value"]) + (before["value"] - low))
    interval = Interval(change - below, change + above)
    worst, least = _towards_worse(metric, Interval(change, change)).low, _towards_worse(metric, interval).low
    likely = worst > tolerance and 2.0 ** (1 - samples) < P_VALUE
    unlikely = likely and least > tolerance and _is_rare(worst, (worst - least) / _quantile(level, samples), samples)
    return Pairings(change, samples, interval, tolerance, likely, unlikely)


def _is_rare(change: float, error: float, samples: int) -> bool:
    """Whether random signs reach this mean with p < 0.01 for all differences of this standard error, or a smaller one.

    Source: no difference has the other sign where t > n - 1, Samuelson 1968, JASA 63:1522; else Hoeffding 1963, JASA
    58:13, p <= 2 exp(-n^2 mean^2 / 2 sum d^2).
    """
    if change > (samples - 1) * error:
        return 2.0 ** (1 - samples) < P_VALUE
    squares = 1 + (samples - 1) * (error / change) ** 2  # the mean of them, over the squared mean
    return 2 * math.exp(-samples / (2 * squares)) < P_VALUE


def _quantile(level: float, samples: int) -> float:
    """That of the recorded intervals: Student's of few samples, which `bootstrap_mean` leaves for the normal one."""
    return student_quantile(level, samples - 1) if samples < FEWEST_RESAMPLED else Z[level]


def _shares(metric: Metric, before: Mapping[str, Any], after: Mapping[str, Any], level: float) -> Pairings:
    samples = int(before["samples"])
    right = [round(float(side["value"]) * samples) for side in (before, after)]
    if any(abs(count / samples - side["value"]) > 1e-9 for count, side in zip(right, (before, after), strict=True)):
        raise UnpairedError(f"what is recorded is no share of {samples:,} samples")
    first = (np.arange(samples) < right[0]).astype(np.float64)
    alike = (np.arange(samples) < right[1]).astype(np.float64)
    verdicts, interval = [], Interval(0.0, 0.0)
    for second in (alike, alike[::-1]):
        interval = paired_share_difference(first, second, level)
        lost, gained = int((first > second).sum()), int((second > first).sum())
        beyond = _towards_worse(metric, interval).low > SHARE_TOLERANCE
        verdicts.append(beyond and mcnemar(lost, gained) < P_VALUE)
    change = (right[1] - right[0]) / samples
    return Pairings(change, samples, interval, SHARE_TOLERANCE, verdicts[0], verdicts[1])


def _regression(metric: Metric, found: Pairings) -> tuple[Finding, str]:
    said, word = _said(metric, found, LEVEL), _word(metric)
    if found.unlikely:
        return "fail", f"{said}: a {word} beyond the tolerance of {found.tolerance:.4g}, however the samples pair"
    if found.likely:
        open_ = f"whether it is a {word} beyond the tolerance of {found.tolerance:.4g} depends on how the samples pair"
        return "inconclusive", f"{said}; {open_}, which no bundle holds: {_REPORTS}"
    seen = max(_towards_worse(metric, found.interval).high, found.tolerance)
    few = f"with {found.samples:,} samples, a smaller one may be there"
    return "pass", f"no {word} beyond {seen:.4g} found {few}; {said}"


def _against(metric: Metric, found: Pairings, max_drop: float) -> tuple[Finding, str]:
    said, word = _said(metric, found, 0.95), _word(metric)
    least, most = _towards_worse(metric, found.interval)
    if most <= max_drop:
        return "pass", f"{said}; a {word} of {max_drop:g} is allowed"
    if least > max_drop:
        return "fail", f"{said}; a {word} of at most {max_drop:g} is allowed"
    return "inconclusive", f"{said}; whether it is a {word} of more than {max_drop:g} no bundle holds: {_REPORTS}"


def _same_data(before: Bundle, after: Bundle, name: str) -> str:
    """Return what must be said of the data behind both values. Raises: UnpairedError when it is not the same."""
    for bundle in (before, after):
        if name not in bundle.passport["accuracy"]:
            raise UnpairedError(f"the passport of the {bundle.side} does not hold it")
    one, other = (b.passport["accuracy"][name]["samples"] for b in (before, after))
    if one != other:
        raise UnpairedError(f"{one:,} samples before and {other:,} after are not the same")
    said = [
        (before.passport["from"].get(key), after.passport["from"].get(key))
        # One run has one evaluation; an older bundle names its run alone.
        for key in ("evaluation_sha256", "report_sha256")
    ]
    if any(one is not None and one == other for one, other in said):
        return ""
    if not same_inputs(before, after):
        raise UnpairedError("the golden inputs are not the same, so neither are the evaluation samples")
    count = len(next(iter(before.golden_inputs.values())))
    if None not in said[0]:
        return f"; the evaluation data or its code changed, but {count} samples, the golden inputs, did not"
    return f"; that the samples are the same is taken from their number and {count} of them, the golden inputs"


def _computed(bundle: Bundle) -> str:
    if bundle.passport["status"] != "built":
        return ""
    by = bundle.passport.get("accuracy_runtime") or "another runtime"
    return f"; that of the {bundle.side} was computed by {by} from the same graph, not by {bundle.runtime}"


def _towards_worse(metric: Metric, interval: Interval) -> Interval:
    """The least and the most that it can have become worse by."""
    return interval if metric.better == "lower" else Interval(-interval.high, -interval.low)


def _word(metric: Metric) -> str:
    return "rise" if metric.better == "lower" else "drop"


def _said(metric: Metric, found: Pairings, level: float) -> str:
    low, high = found.interval
    interval = f"{percent(level)} interval {low:+.4f} to {high:+.4f} over every pairing of the samples"
    return f"{metric.name} changed by {found.change:+.4f} from passport to passport ({interval})"


def _number(value: Mapping[str, Any] | None) -> str:
    return f"{value['value']:.4f}" if value else "-"
