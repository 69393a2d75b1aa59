"""What else must be said of a run: what one batch size after the other complains of alike is said once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from optimizer.results import Report


def notes(report: Report) -> tuple[str, ...]:
    """Return the report's notes, those on the surroundings of the latency once."""
    batches = _complaints(report.environment.surroundings)
    single = {f"latency at batch {batch}: {said}" for batch, complaints in batches.items() for said in complaints}
    kept = [note for note in report.notes if note not in single]
    surroundings = together(batches) if len(kept) < len(report.notes) else ()
    return (*kept, *surroundings)


def _complaints(surroundings: Mapping[str, Mapping[str, Any]]) -> dict[str, Sequence[str]]:
    return {batch: facts.get("complaints", ()) for batch, facts in surroundings.items()}


def together(batches: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return complaints by batch size as one sentence each; numbers that differ stand with their batch."""
    alike: dict[tuple[tuple[str, ...], int], dict[str, str]] = {}
    for batch, complaints in batches.items():
        seen: Counter[tuple[str, ...]] = Counter()  # two of one batch stay two
        for said in complaints:
            words = _words(said)
            alike.setdefault((words, seen[words]), {})[batch] = said
            seen[words] += 1
    return tuple(_sentence(said) for said in alike.values())


def _words(said: str) -> tuple[str, ...]:
    """Return a sentence without what is a number in it."""
    return tuple("#" if any(letter.isdigit() for letter in word) else word for word in said.split())


def _sentence(by_batch: Mapping[str, str]) -> str:
    several = list(dict.fromkeys(by_batch.values()))
    if len(several) == 1:
        plural = "es" if len(by_batch) > 1 else ""
        return f"latency at batch{plural} {', '.join(by_batch)}: {several[0]}"
    split = {batch: said.split() for batch, said in by_batch.items()}
    length = len(next(iter(split.values())))
    unlike = [i for i in range(length) if len({words[i] for words in split.values()}) > 1]
    first, last = unlike[0], unlike[-1] + 1
    words = next(iter(split.values()))
    middle = ", ".join(f"{' '.join(own[first:last])} (batch {batch})" for batch, own in split.items())
    return " ".join(["latency:", *words[:first], middle, *words[last:]])
