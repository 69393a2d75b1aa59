"""What a comparison finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from optimizer.results import Status

# `shown` is never judged: there is nothing to judge it by, or its conditions differ.
Finding = Literal["pass", "fail", "inconclusive", "shown"]

LEVEL = 0.99  # of every interval that judges without a gate; 95 % would call one A/A comparison in twenty


@dataclass(frozen=True, slots=True)
class Check:
    """One thing of one candidate, before and after; `sentence` says what was found and by what."""

    candidate: str
    subject: str  # a metric, "latency, batch 1", "size", "precision", "status"
    finding: Finding
    before: str
    after: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The verdict with the sentences behind it, and every check."""

    status: Status
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]
    notes: tuple[str, ...]


def conclude(checks: tuple[Check, ...], notes: tuple[str, ...]) -> Comparison:
    """Fail if a check failed, else inconclusive if one could not be decided, else pass."""
    judged = [c for c in checks if c.finding != "shown"]
    if not judged:
        return Comparison("inconclusive", ("Nothing in these two reports can be judged.",), checks, notes)
    order: tuple[Status, ...] = ("fail", "inconclusive")
    for status in order:
        reasons = tuple(f"{c.candidate}: {c.sentence}" for c in judged if c.finding == status)
        if reasons:
            return Comparison(status, reasons, checks, notes)
    count = len({c.candidate for c in judged})
    reason = f"{len(judged)} checks of {count} candidates found nothing beyond their limits."
    return Comparison("pass", (reason,), checks, notes)
