"""What was observed around a measurement: several stretches as one, and what of it deserves a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

STOLEN_SHARE = 0.01
OTHERS_SHARE = 0.02


def together(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the facts of several stretches as those of one: counts added up, shares weighted by time, widest ranges.

    What the last stretch alone says, such as the governor, is its word; each stretch stands under `stretches`.
    """
    marked: dict[str, int] = {}
    for part in parts:
        for reason, count in part["disturbed_rounds"].items():
            marked[reason] = marked.get(reason, 0) + count
    throttled = [part["throttled_ms"] for part in parts if part["throttled_ms"] is not None]
    shares = ("cpu_seconds_per_second", "waited_share", "others_share", "stolen_share")
    document = dict(parts[-1]) | {name: _mean(parts, name) for name in shares}
    document |= {
        "seconds": sum(part["seconds"] for part in parts),
        "rounds": sum(part["rounds"] for part in parts),
        "disturbed_rounds": marked,
        "throttled_ms": sum(throttled) if throttled else None,
        "mhz": _range([part["mhz"] for part in parts]),
    }
    return document | {"complaints": complaints(document), "stretches": [dict(part) for part in parts]}


def _mean(parts: Sequence[Mapping[str, Any]], name: str) -> float | None:
    known = [(part[name], part["seconds"]) for part in parts if part[name] is not None]
    weight = sum(seconds for _, seconds in known)
    return sum(value * seconds for value, seconds in known) / weight if weight > 0 else None


def _range(ranges: Sequence[Sequence[float] | None]) -> list[float] | None:
    known = [found for found in ranges if found]
    return [min(low for low, _ in known), max(high for _, high in known)] if known else None


def causes(facts: Mapping[str, Any]) -> list[str]:
    """Return what disturbed rounds, and how many."""
    return [f"{reason} in {count} of {facts['rounds']} rounds" for reason, count in facts["disturbed_rounds"].items()]


def used_by_others(share: float | None) -> tuple[str, ...]:
    """Return the sentence for more than a quiet machine's others use of the processors measured on."""
    return (f"others used {share:.0%} of the processors measured on",) if (share or 0) > OTHERS_SHARE else ()


def taken_by_hypervisor(share: float | None) -> tuple[str, ...]:
    """Return the sentence for more than a quiet machine's hypervisor takes of the processors' time."""
    return (f"the hypervisor took {share:.1%} of the processors' time",) if (share or 0) > STOLEN_SHARE else ()


def complaints(facts: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each thing that makes these numbers less than those of a quiet machine."""
    said = causes(facts)
    said += [*taken_by_hypervisor(facts["stolen_share"]), *used_by_others(facts["others_share"])]
    if facts["gpu_unwatched"]:
        said.append(f"the GPU was not watched: {facts['gpu_unwatched']}")
    gpu = facts["gpu"]
    if gpu and gpu["other_processes"]:
        said.append(f"{gpu['other_processes']} other processes compute on the GPU")
    return said
