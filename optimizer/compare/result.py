"""What a comparison finds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from optimizer.results import Status  # pydantic: where bundles are served there may be none

# `shown` is never judged: there is nothing to judge it by, or its conditions differ.
Finding = Literal["pass", "fail", "inconclusive", "shown"]

LEVEL = 0.99  # of every interval that judges without a gate; 95 % would call one A/A comparison in twenty
P_VALUE = 1 - LEVEL
SHARE_TOLERANCE = 0.001  # of a metric that is a share: 0.1 percentage points
RELATIVE_TOLERANCE = 0.01  # of any other metric: 1 % of its value before
# Where not even so much of a slowdown can be ruled out (1: twice as slow), a measurement tells nothing.
WIDEST = 1.0
# What differs between two failures that are one: the digest of the graph, the file of the log.
_DIGEST = re.compile(r" \([0-9a-f]{8}\)")
_LOG = re.compile(r"\blog: \S+")


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


def percent(fraction: float) -> str:
    """Return a fraction of 1 in percent."""
    return f"{fraction * 100:.3g} %"


def conclude(checks: tuple[Check, ...], notes: tuple[str, ...]) -> Comparison:
    """Fail if a check failed, else inconclusive if one could not be decided, else pass."""
    judged = [c for c in checks if c.finding != "shown"]
    if not judged:
        return Comparison("inconclusive", ("Nothing of these two can be judged.",), checks, notes)
    order: tuple[Status, ...] = ("fail", "inconclusive")
    for status in order:
        reasons = _once(c for c in judged if c.finding == status)
        if reasons:
            return Comparison(status, reasons, checks, notes)
    count = len({c.candidate for c in judged})
    of = "1 candidate" if count == 1 else f"{count} candidates"
    reason = f"{len(judged)} checks of {of} found nothing beyond their limits."
    return Comparison("pass", (reason,), checks, notes)


def _once(checks: Iterable[Check]) -> tuple[str, ...]:
    """Return each sentence once, behind the candidates that it is said of."""
    alike: dict[str, list[Check]] = {}
    for check in checks:
        alike.setdefault(_LOG.sub("log:", _DIGEST.sub("", check.sentence)), []).append(check)
    return tuple(_told(found) for found in alike.values())


def _told(alike: Sequence[Check]) -> str:
    names = ", ".join(dict.fromkeys(check.candidate for check in alike))
    first, sentence = alike[0], alike[0].sentence
    if len(alike) > 1:
        return f"{names}: {_DIGEST.sub('', sentence)}"
    # Its sentences do not say at which batch.
    return f"{names}, {first.subject}: {sentence}" if first.subject.startswith("latency") else f"{names}: {sentence}"
