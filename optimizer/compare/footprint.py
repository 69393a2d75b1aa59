"""Status, size and delivered precision before and after: facts without noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimizer.compare.result import Check, Finding, percent

if TYPE_CHECKING:
    from optimizer.compare.stored import Pair
    from optimizer.recipe.model import Gate
    from optimizer.results import CandidateReport

SIZE_TOLERANCE = 0.01
SHARE_TOLERANCE = 0.01
SQNR_TOLERANCE_DB = 0.5  # less says nothing


def compare_status(pair: Pair) -> list[Check]:
    """A candidate that no longer comes out is a regression; one that cannot execute where it did leaves that open."""
    old, new = pair.old.status, pair.new.status
    reason = f": {pair.new.reason}" if pair.new.reason else ""
    if old == new:
        return []
    finding: Finding = "pass" if new == "measured" else "fail" if new == "failed" else "inconclusive"
    is_same_gpu = pair.before.report.environment.gpu == pair.after.report.environment.gpu
    if old == "failed" or (finding == "inconclusive" and not is_same_gpu):
        finding = "shown"
    return [Check(pair.name, "status", finding, old, new, f"it was {old} and is {new}{reason}")]


def absent(old: CandidateReport) -> Check:
    """A candidate that is gone is a regression, unless it had failed before: nothing usable was lost with it."""
    said = "it is not in the candidate report"
    if old.status == "failed":
        return Check(old.name, "status", "shown", "failed", "missing", f"{said}; it had failed before")
    return Check(old.name, "status", "fail", old.status, "missing", said)


def compare_footprint(pair: Pair, gate: Gate | None) -> list[Check]:
    """Compare bytes and the share of the requested precision; a gate does not ask for them, so then they are shown."""
    old, new = pair.old, pair.new
    checks = []
    if old.artifact and new.artifact:
        checks.append(size(pair.name, old.artifact.bytes, new.artifact.bytes, gate))
    wanted = old.precision.requested
    if old.precision.delivered and new.precision.delivered and wanted == new.precision.requested:
        shares = (old.precision.delivered.get(wanted, 0.0), new.precision.delivered.get(wanted, 0.0))
        checks.append(delivered(pair.name, wanted, shares, gate))
    return checks + numerics(pair.name, old, new)


def numerics(candidate: str, old: CandidateReport, new: CandidateReport) -> list[Check]:
    """Show each output whose distance from the baseline changed: it moves long before any sample's answer does."""
    checks = []
    for name in old.numerics.keys() & new.numerics.keys():
        before, after = old.numerics[name].sqnr_db, new.numerics[name].sqnr_db
        if before is None or after is None or abs(after - before) < SQNR_TOLERANCE_DB:
            continue
        change = f"{abs(after - before):.1f} dB {'further from' if after < before else 'closer to'} the baseline's"
        sentence = f"SQNR, {change}: shown, as samples decide what it does to the answers"
        checks.append(Check(candidate, f"output '{name}'", "shown", f"{before:.1f} dB", f"{after:.1f} dB", sentence))
    return sorted(checks, key=lambda check: check.subject)


def size(candidate: str, before: int, after: int, gate: Gate | None) -> Check:
    """Compare the bytes of an artifact."""
    ratio = after / max(1, before)
    worse = ratio > 1 + SIZE_TOLERANCE
    sentence = f"{ratio:.3f} x the bytes" + (f", beyond the tolerance of {percent(SIZE_TOLERANCE)}" if worse else "")
    return Check(candidate, "size", _finding(worse, gate), f"{before:,} B", f"{after:,} B", sentence)


def delivered(candidate: str, wanted: str, before_after: tuple[float, float], gate: Gate | None) -> Check:
    """Compare the share of the precision that both were asked for."""
    before, after = before_after
    worse = after < before - SHARE_TOLERANCE
    sentence = f"{wanted} in {percent(after)} of the multiply-accumulates"
    sentence += f", less than before beyond the tolerance of {percent(SHARE_TOLERANCE)}" if worse else ""
    return Check(candidate, "precision", _finding(worse, gate), percent(before), percent(after), sentence)


def _finding(worse: bool, gate: Gate | None) -> Finding:
    return "shown" if gate else "fail" if worse else "pass"
