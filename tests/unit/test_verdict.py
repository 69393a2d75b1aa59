"""When two latencies are called different."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.measure.bootstrap import Ratio, interleaved_ratio
from optimizer.measure.verdict import difference


def spread(value: float, half: float) -> Ratio:
    """A ratio whose 99 % interval is about `half` wide on each side."""
    return Ratio(value, np.linspace(value - half, value + half, 2001))


@pytest.mark.parametrize(
    ("value", "half", "kind"),
    [
        (1.05, 0.02, "slower"),
        (1.02, 0.005, "slower"),
        (1.02, 0.015, "undecided"),  # the interval begins within the tolerance
        (1.008, 0.001, "same within tolerance"),  # surely slower, by less than is told apart
        (1.0, 0.005, "same within tolerance"),
        (1.0, 0.05, "undecided"),  # nothing found is not the same
        (0.95, 0.02, "faster"),
        (0.985, 0.01, "undecided"),
    ],
)
def test_a_difference_is_a_whole_interval_outside_the_tolerance(value: float, half: float, kind: str) -> None:
    assert difference(spread(value, half)).kind == kind


def test_exchanging_the_two_exchanges_the_answers() -> None:
    opposite = {"faster": "slower", "slower": "faster"}
    for value in np.linspace(0.9, 1.1, 81):
        ratio = Ratio(float(value), value * np.random.default_rng(0).lognormal(0, 0.004, 2001))
        kind = difference(ratio).kind
        assert difference(ratio.inverse()).kind == opposite.get(kind, kind)


def test_the_tolerance_and_the_level_decide_and_are_told() -> None:
    ratio = spread(1.03, 0.01)
    found = difference(ratio, tolerance=0.05)
    assert (found.kind, found.tolerance, found.level) == ("same within tolerance", 0.05, 0.99)
    assert difference(ratio).to_json() == {
        "kind": "slower",
        "ratio": 1.03,
        "interval": list(ratio.interval(0.99)),
        "level": 0.99,
        "tolerance": 0.01,
    }


def test_equals_are_not_called_different_where_95_percent_intervals_alone_do_and_5_percent_is_found() -> None:
    rng = np.random.default_rng(0)
    trials, called, called_by_95, found, faster = 40, 0, 0, 0, 0
    for _ in range(trials):
        drift = rng.lognormal(0, 0.02, 40)[:, None]
        base, equal = (drift * rng.lognormal(0, 0.03, (40, 6)) * rng.lognormal(0, 0.01, (40, 1)) for _ in range(2))
        ratio = interleaved_ratio(equal, base)
        called += difference(ratio).kind in ("faster", "slower")
        drawn = np.quantile(ratio.draws, [0.025, 0.975])
        called_by_95 += not drawn[0] <= 1 <= drawn[1]
        found += difference(Ratio(1.05 * ratio.value, 1.05 * ratio.draws, ratio.degrees)).kind == "slower"
        faster += difference(Ratio(1.02 * ratio.value, 1.02 * ratio.draws, ratio.degrees)).kind == "faster"
    assert called == 0
    assert called_by_95 > 0
    assert found / trials >= 0.95
    assert faster == 0
