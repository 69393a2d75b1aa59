"""How much faster one candidate of a latency session is than another, neither of which need be the baseline."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from optimizer.measure.bootstrap import interleaved_ratio
from optimizer.measure.verdict import difference
from optimizer.results import Difference, Speedup

Arrays = Mapping[str, npt.NDArray[np.generic]]


def speedup_over(arrays: Arrays, name: str, other: str, batch: str) -> Speedup:
    """Return p50 of `other` over p50 of `name`, paired by round as the speedup over the baseline is.

    `arrays` are a session's (`LatencySession.arrays`, `latency.npz`): of every candidate the same rounds count, so that
    row i of two candidates is one round.
    """
    openings = [int(rounds) for rounds in arrays[f"openings/{batch}"]] if f"openings/{batch}" in arrays else []
    own, base = (np.asarray(arrays[f"{each}/{batch}"], dtype=np.float64) for each in (name, other))
    ratio = interleaved_ratio(own, base, openings=openings)
    faster = ratio.inverse()
    judged = Difference.model_validate(difference(ratio).to_json())
    return Speedup(value=faster.value, ci95=faster.interval(), difference=judged)
