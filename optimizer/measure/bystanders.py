"""What others took of the processors while a child process of ours was measured."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from optimizer.measure.observed import taken_by_hypervisor, used_by_others
from optimizer.measure.surroundings import allowed, shares, ticks


@dataclass(slots=True)
class Bystanders:
    """Shares of the processors' time, known once the stretch has ended; None where the system does not tell."""

    others_share: float | None = None
    stolen_share: float | None = None
    said: tuple[str, ...] = field(default=())  # each a sentence, empty where nothing disturbed


@contextlib.contextmanager
def watched(processors: Sequence[int]) -> Iterator[Bystanders]:
    """Watch what runs on `processors` besides this process and the children that end inside the block.

    A child's own waiting cannot be read from here once it has ended, so that shares of the whole stretch must do.
    Source: proc(5), /proc/stat; getrusage(2), RUSAGE_CHILDREN.
    """
    own = tuple(processors) or tuple(sorted(allowed()))
    found = Bystanders()
    before, spent, started = ticks(), _spent(), os.times().elapsed
    yield found
    wall = max(os.times().elapsed - started, 1e-9)
    busy, found.stolen_share = shares(own, before, ticks())
    if busy is not None:
        found.others_share = max(0.0, busy - (_spent() - spent) / wall / len(own))
    found.said = sentences(found.others_share, found.stolen_share)


def sentences(others: float | None, stolen: float | None) -> tuple[str, ...]:
    """Return what of it makes the numbers less than those of a quiet machine, by the limits of the latency."""
    return (*used_by_others(others), *taken_by_hypervisor(stolen))


def _spent() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
