"""Latency before and after, each in the terms of its own session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from optimizer.compare.result import WIDEST, Check, Finding, percent
from optimizer.compare.stored import AbsentError, Pair
from optimizer.gate import judge_speedup
from optimizer.measure.bootstrap import Openings, Ratio, interleaved_ratio, separate_ratio
from optimizer.measure.statistics import SEED, Floats
from optimizer.measure.verdict import TOLERANCE, Difference, difference
from optimizer.results import CandidateReport, Speedup

if TYPE_CHECKING:
    from optimizer.recipe.model import Gate

# Without a yardstick that both timed: sessions on one machine differ by more than their intervals say.
RAW_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Change:
    """Latency after over before: as the clock has it, and divided by the yardstick's own change, where there is one."""

    raw: Ratio
    normalised: Ratio | None = None
    yardstick: str | None = None
    drift: float = 1.0  # the yardstick, after over before
    identical: bool = False  # the very same measurement on both sides

    @property
    def tolerance(self) -> float:
        """A yardstick that moved shows how far sessions differ: no smaller change can be told from that."""
        return max(TOLERANCE, self.drift - 1, 1 / self.drift - 1) if self.yardstick else RAW_TOLERANCE

    @property
    def best(self) -> Ratio:
        """Against the yardstick where there is one, else by the clock."""
        return self.normalised or self.raw

    @property
    def against(self) -> str:
        """Say what it is measured against."""
        if self.yardstick is None:
            return "without a common yardstick"
        return f"measured against {self.yardstick}, itself {self.drift:.3f} x"

    def judge(self) -> tuple[Difference, Difference]:
        """Judge what is best known, and the clock alone."""
        return difference(self.best, tolerance=self.tolerance), difference(self.raw, tolerance=self.tolerance)


def change_between(
    before: tuple[Floats, Floats | None],
    after: tuple[Floats, Floats | None],
    stick: str,
    openings: Openings = ((), ()),
) -> Change:
    """Compare two sessions; each is the rounds of the candidate and of its yardstick, named `stick`, or None.

    `openings` counts the rounds of each opening, before and after; see `interleaved_ratio`.
    Divide each side by the yardstick's latency in its own session, where there is one: drift that both saw cancels.
    Shapes: [rounds, calls] each, as many rounds for a candidate as for its yardstick.
    Source: duet benchmarking, Bulej et al. 2020, ICPE; sessions as a level of variation, Kalibera and Jones 2013, ISMM.
    """
    first, second = before[0], after[0]
    raw = separate_ratio(second, first, openings=openings[::-1])
    base, base_after = before[1], after[1]
    if base is None or base_after is None:
        return Change(raw)
    now = interleaved_ratio(second, base_after, SEED, openings[1])
    then = interleaved_ratio(first, base, SEED + 1, openings[0])
    return Change(raw, now.over(then), stick, float(np.median(base_after) / np.median(base)))


_Judge = Callable[[Change], tuple[Finding, str]]


def compare_latency(pair: Pair, gate: Gate | None) -> list[Check]:
    """Compare every batch of one candidate; with a gate its speedup is asked at one batch, the rest is shown."""
    stick = _yardstick(pair)
    batches = list(dict.fromkeys([*(pair.old.latency_ms or {}), *(pair.new.latency_ms or {})]))
    if gate is None or gate.speedup is None or (stick and stick.name == pair.name) or not batches:
        return [_check(pair, batch, _regression, is_judged=gate is None) for batch in batches]
    least = gate.speedup.min
    asked = str(gate.batch) if gate.batch is not None else batches[0]

    def speedup(change: Change) -> tuple[Finding, str]:
        inverse = change.best.inverse()
        found = Speedup(value=inverse.value, ci95=inverse.interval())
        status, sentence = judge_speedup(found, least, asked)
        if status == "inconclusive" and found.ci95[1] / found.ci95[0] > (1 + WIDEST) ** 2:
            why = f"one end of the interval is more than {(1 + WIDEST) ** 2:g} x the other"
            return status, f"whether the speedup reaches {least:g} is {_untold(change, why)}"
        return status, f"{sentence}; baseline report over candidate report, {change.against}"

    checks = [_check(pair, asked, speedup, is_judged=True, is_asked=True)]
    return checks + [_check(pair, batch, _regression, is_judged=False) for batch in batches if batch != asked]


def _check(pair: Pair, batch: str, judge: _Judge, *, is_judged: bool, is_asked: bool = False) -> Check:
    finding, sentence = _found(pair, batch, judge, is_asked)
    shown = _p50(pair.old, batch), _p50(pair.new, batch)
    return Check(pair.name, f"latency, batch {batch}", finding if is_judged else "shown", *shown, sentence)


def _found(pair: Pair, batch: str, judge: _Judge, is_asked: bool) -> tuple[Finding, str]:
    if batch not in (pair.old.latency_ms or {}):
        return "inconclusive" if is_asked else "shown", f"batch {batch} was not measured in the baseline report"
    if batch not in (pair.new.latency_ms or {}):
        return "inconclusive", f"batch {batch} was not measured in the candidate report"
    unlike = _unlike(pair)
    if unlike:
        # The gate asks, and there is no answer; nobody asked otherwise.
        return "inconclusive" if is_asked else "shown", f"latency is not judged: {unlike}"
    try:
        change = _change(pair, batch)
    except AbsentError as reason:
        return "inconclusive", f"latency is not judged: {reason}"
    stick = _yardstick(pair)
    if stick and stick.name == pair.name:
        return "shown", f"{change.raw.value:.3f} x with the same artifact and runtime: so much do the sessions differ"
    finding, sentence = judge(change)
    if pair.name == pair.after.report.baseline and not is_asked:
        return "shown", f"{sentence}; the baseline does not ship"
    if change.identical:
        return finding, sentence
    if pair.unchanged and not is_asked:
        # What did not change cannot have become slower, disturbed or not: this is how far two sessions differ.
        return "shown", f"{sentence}; artifact and packages are those of before, so look at what surrounds them"
    marks = _marks(pair, batch)
    if "disturbed" in marks:
        said = " and ".join(marks["disturbed"])
        hint = "that decides nothing: measure again, on a quiet machine or for longer"
        return "inconclusive", f"{sentence}; it was disturbed {said}; {hint}"
    # The interval holds what did not hold still within a session, not why it did so in that one: nobody is convicted.
    shaky = f"; it was unstable {' and '.join(marks['unstable'])}" if "unstable" in marks else ""
    return "inconclusive" if finding == "fail" and shaky else finding, sentence + shaky


def _regression(change: Change) -> tuple[Finding, str]:
    """Slower is only what is slower by the clock and against the yardstick, each with its whole interval."""
    found, by_clock = change.judge()
    low, high = found.interval
    beyond = max(high, 1 + found.tolerance) - 1
    if found.kind not in ("slower", "faster") and beyond > WIDEST:
        moved = change.yardstick and high <= 1 + WIDEST
        still = f"{change.yardstick}, which did not change, is itself {change.drift:.3f} x the one before"
        return "inconclusive", _untold(change, still if moved else "the interval reaches beyond twice as slow")
    interval = f"{percent(found.level)} interval {low:.3f} to {high:.3f}"
    said = f"p50 is {found.ratio:.3f} x the one before ({interval}, {change.against})"
    if found.kind == "faster":
        return "pass", f"{said}: faster beyond the tolerance of {percent(found.tolerance)}"
    if found.kind != "slower":
        return "pass", f"no slowdown beyond {percent(beyond)} found; {said}: {found.kind}"
    if by_clock.kind == "slower":
        return "fail", f"{said}: slower beyond the tolerance of {percent(found.tolerance)}"
    doubt = f"by the clock it is {change.raw.value:.3f} x, so it may be the yardstick that became faster"
    return "inconclusive", f"{said}, but {doubt}"


def _untold(change: Change, why: str) -> str:
    """Say that the sessions hold no answer, without the figures that they give: those would be read as one."""
    return f"too disturbed to tell: {why}; by the clock p50 is {change.raw.value:.3f} x the one before"


def _change(pair: Pair, batch: str) -> Change:
    """Return the change between the two reports at one batch.

    Raises: AbsentError.
    """
    first, second = pair.before.rounds(pair.old, batch), pair.after.rounds(pair.new, batch)
    if np.array_equal(first, second):
        return Change(Ratio(1.0, np.ones(2)), identical=True)
    stick = _yardstick(pair)
    openings = pair.before.openings(batch), pair.after.openings(batch)
    if any(found and sum(found) != len(rounds) for found, rounds in zip(openings, (first, second), strict=True)):
        raise AbsentError("latency.npz has openings of other rounds")
    if stick is None or stick.name == pair.name or not _both_timed(stick, batch):
        return change_between((first, None), (second, None), "", openings)
    base, base_after = pair.before.rounds(stick.old, batch), pair.after.rounds(stick.new, batch)
    if len(base) != len(first) or len(base_after) != len(second):
        raise AbsentError("the rounds of the candidate and of its baseline are not the same")
    return change_between((first, base), (second, base_after), stick.name, openings)


def _yardstick(pair: Pair) -> Pair | None:
    """The baseline of both reports, if it is the same artifact on the same version of the same runtime."""
    old, new = (s.report.candidate(s.report.baseline) for s in (pair.before, pair.after))
    if old is None or new is None or old.name != new.name:
        return None
    stick = Pair(pair.before, pair.after, old, new)
    return stick if stick.same_artifact and stick.same_runtime else None


def _both_timed(pair: Pair, batch: str) -> bool:
    return batch in (pair.old.latency_ms or {}) and batch in (pair.new.latency_ms or {})


def _unlike(pair: Pair) -> str:
    """Return how the conditions of the two sessions differ, or nothing."""
    one, other = pair.before.report.environment, pair.after.report.environment
    facts: list[tuple[str, object, object]] = [
        ("processor", one.cpu, other.cpu),
        ("number of processors", one.cores, other.cores),
        ("number of threads", one.threads, other.threads),
        ("device", pair.old.device, pair.new.device),
    ]
    if pair.new.device != "cpu":
        facts.append(("GPU", one.gpu and one.gpu.name, other.gpu and other.gpu.name))
        facts.append(("GPU driver", one.gpu and one.gpu.driver, other.gpu and other.gpu.driver))
    return "; ".join(f"another {what} ({a} before, {b} after)" for what, a, b in facts if a != b)


def _marks(pair: Pair, batch: str) -> dict[str, list[str]]:
    """Return what is marked of the latencies, with when: before, after, or both."""
    sides = (("before", pair.old), ("after", pair.new))
    timed = [(when, c.latency_ms[batch]) for when, c in sides if c.latency_ms]
    kinds = {
        "unstable": [when for when, latency in timed if not latency.stable],
        "disturbed": [when for when, latency in timed if latency.disturbed],
    }
    return {kind: found for kind, found in kinds.items() if found}


def _p50(candidate: CandidateReport, batch: str) -> str:
    latency = (candidate.latency_ms or {}).get(batch)
    return f"{latency.p50:.4g} ms" if latency else "-"
