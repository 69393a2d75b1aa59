"""When two latencies differ: one rule for builds, comparisons and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from optimizer.measure.bootstrap import Ratio
from optimizer.measure.statistics import Interval

Kind = Literal["faster", "slower", "same within tolerance", "undecided"]

LEVEL = 0.99  # of the interval that decides; 95 % intervals alone call one comparison of equals in twenty
TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class Difference:
    """How a latency stands to another, with what it was judged by. `ratio` above 1 is slower."""

    kind: Kind
    ratio: float
    interval: Interval
    level: float
    tolerance: float

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "kind": self.kind,
            "ratio": self.ratio,
            "interval": list(self.interval),
            "level": self.level,
            "tolerance": self.tolerance,
        }


def difference(ratio: Ratio, *, tolerance: float = TOLERANCE, level: float = LEVEL) -> Difference:
    """Judge a ratio of latencies, the one in question over the one it is compared with.

    Slower: the whole interval lies above 1 + tolerance. Faster: the whole interval lies below 1 / (1 + tolerance), so
    that exchanging the two exchanges the answers. The same: the whole interval lies between. Undecided: anything else.
    Source: Kalibera and Jones 2013, ISMM (intervals of ratios); Wellek 2010, Testing Statistical Hypotheses of
    Equivalence (sameness must be shown as well).
    """
    low, high = interval = ratio.interval(level)
    kind: Kind = "undecided"
    if low > 1 + tolerance:
        kind = "slower"
    elif high < 1 / (1 + tolerance):
        kind = "faster"
    elif low >= 1 / (1 + tolerance) and high <= 1 + tolerance:
        kind = "same within tolerance"
    return Difference(kind, ratio.value, interval, level, tolerance)
