"""What LoadGen says against what the latency says: INVALID runs, and candidates that the two put in another order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optimizer.results import CandidateReport

_SHOWN = 3  # pairs in another order; the table has all numbers


def scenario_notes(candidates: Sequence[CandidateReport], agreement: float) -> list[str]:
    """Return a sentence for every INVALID run, and one for the pairs that LoadGen and the latency order differently.

    `agreement`: times within this share of each other are in no order.
    """
    return [*_invalid(candidates), *_contradictions(candidates, agreement)]


def _invalid(candidates: Sequence[CandidateReport]) -> Iterator[str]:
    for candidate in candidates:
        found = candidate.scenario
        if found is not None and not found["valid"]:
            why = "; ".join(reason.rstrip(".") for reason in found["reasons"]) or "without a reason"
            yield (
                f"{candidate.name}: LoadGen ({found['settings']['scenario']}) says INVALID: {why}; no gate reads it, "
                "and the verdict does not rest on it"
            )


def _contradictions(candidates: Sequence[CandidateReport], agreement: float) -> Iterator[str]:
    known = [(c.name, *times) for c in candidates if (times := _times(c)) is not None]
    pairs = []
    for one, other in combinations(known, 2):
        fast, slow = sorted((one, other), key=lambda timed: timed[1])  # by latency
        apart, against = slow[1] / fast[1] - 1, fast[2] / slow[2] - 1
        if apart > agreement and against > agreement:
            pairs.append((against, fast, slow))
    if not pairs:
        return
    pairs.sort(key=lambda pair: -pair[0])
    told = [
        f"{fast[0]} takes {fast[1] / slow[1]:.2f} x the time of {slow[0]} by latency and {against + 1:.2f} x by LoadGen"
        for against, fast, slow in pairs[:_SHOWN]
    ]
    more = f"; and {len(pairs) - _SHOWN} pairs more" if len(pairs) > _SHOWN else ""
    yield (
        f"LoadGen puts candidates in another order than the latency does: {'; '.join(told)}{more}: it times from numpy "
        "to numpy with queues and copies, or the machine was not the same; the verdict rests on the latency"
    )


def _times(candidate: CandidateReport) -> tuple[float, float] | None:
    """Milliseconds of one sample: by latency at LoadGen's batch, and by LoadGen; None where either is not known."""
    found = candidate.scenario
    if found is None or not candidate.latency_ms:
        return None
    batch = found["settings"]["batch"]
    timed = candidate.latency_ms.get(str(batch))
    rate = found["metrics"].get("samples_per_second")
    own = 1000.0 / rate if rate else found["metrics"].get("p50_latency_ms")
    return (timed.p50 / batch, own) if timed is not None and timed.p50 > 0 and own else None
