"""The calibration doctor: what is suspicious about a table, and whether other data fits it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from optimizer.calibration.estimators import Estimate
from optimizer.calibration.histogram import BINS, RunningHistogram
from optimizer.calibration.rounding_error import sqnr_db, unsigned_sqnr_db
from optimizer.calibration.table import CalibrationTable, MethodRange, TensorRange

# A magnitude that still moves by more than this over the last quarter of the samples wants more of them.
UNSETTLED = 0.05
# Clipped beyond this share is more than the tail of a distribution.
CLIPPED = 0.01
# Below this a tensor alone spoils what depends on it; a normal distribution leaves about 40 dB.
POOR_DB = 20.0
# Evaluation values beyond the calibrated extremes: more of them, or further out, than as many samples again would show.
OUTSIDE = 1e-3
BEYOND = 1.25
# Evaluation values that use less of the calibrated range than this are scaled otherwise, or other data.
IDLE = 0.25
_STATES = ("dead", "constant", "live")


def clipped_share(histogram: RunningHistogram, low: float, high: float) -> float:
    """Return the share of values below `low` or above `high`; a bin that a bound cuts counts by its part."""
    if histogram.total == 0 or (low <= histogram.minimum and high >= histogram.maximum):
        return 0.0
    sums = np.concatenate([[0.0], np.cumsum(histogram.counts, dtype=np.float64)])
    # No value lies beyond the extremes in the outermost bins, and many just within: SiLU and GELU have a flat minimum.
    edges = np.clip(histogram.edges, histogram.minimum, histogram.maximum)
    total = sums[-1]
    below = float(np.interp(low, edges, sums)) if low > histogram.minimum else 0.0
    above = float(total - np.interp(high, edges, sums)) if high < histogram.maximum else 0.0
    return min(1.0, (below + above) / float(total))


def expected_sqnr_db(histogram: RunningHistogram, magnitude: float) -> float | None:
    """Return the SQNR in dB that symmetric int8 leaves by rounding and clipping; None where there is no signal."""
    counts = histogram.counts.astype(np.float64)
    counts[BINS] -= histogram.zeros
    return sqnr_db(counts[BINS:] + counts[:BINS][::-1], magnitude / histogram.bin_width)


def expected_unsigned_sqnr_db(histogram: RunningHistogram, low: float, high: float) -> float | None:
    """Return the SQNR in dB that uint8 over [low, high] and zero leaves; None where there is no signal."""
    counts = histogram.counts.astype(np.float64)
    counts[BINS] -= histogram.zeros
    width = histogram.bin_width
    return unsigned_sqnr_db(counts, BINS, max(-low, 0.0) / width, max(high, 0.0) / width)


def examine(histogram: RunningHistogram, estimate: Estimate, earlier: tuple[float, ...] = ()) -> MethodRange:
    """Return a method's range together with what it costs."""
    magnitude = estimate.magnitude
    return MethodRange(
        estimate.low,
        estimate.high,
        magnitude,
        clipped=clipped_share(histogram, -magnitude, magnitude),
        sqnr_db=expected_sqnr_db(histogram, magnitude),
        earlier=earlier,
        unsigned_sqnr_db=expected_unsigned_sqnr_db(histogram, estimate.low, estimate.high),
    )


@dataclass(frozen=True, slots=True)
class Health:
    """What the doctor says of one tensor; `unsettled` is the share its magnitude moved by since the last checkpoint."""

    tensor: str
    state: str  # one of _STATES
    unsettled: float | None
    clipped: float
    sqnr_db: float | None
    unsigned_sqnr_db: float | None = None

    @property
    def complaints(self) -> tuple[str, ...]:
        """What is wrong, in words; empty for a healthy tensor."""
        if self.state == "dead":
            return ("dead: zero throughout",)
        if self.state == "constant":
            return ("constant",)
        found = []
        if self.sqnr_db is not None and self.sqnr_db < POOR_DB:
            unsigned = f", uint8 {self.unsigned_sqnr_db:.1f} dB" if self.unsigned_sqnr_db is not None else ""
            found.append(f"int8 alone leaves {self.sqnr_db:.1f} dB{unsigned}")
        if self.unsettled is not None and self.unsettled > UNSETTLED:
            found.append(f"unsettled: moved by {self.unsettled:.0%} over the last quarter of the samples")
        if self.clipped > CLIPPED:
            found.append(f"{self.clipped:.1%} clipped")
        return tuple(found)


def health(name: str, tensor: TensorRange) -> Health:
    """Return what a tensor's row says about its chosen method."""
    chosen = tensor.chosen
    state = "live"
    if tensor.min == tensor.max:
        state = "dead" if tensor.max == 0.0 else "constant"
    moved = None
    if chosen.earlier and chosen.magnitude > 0:
        moved = abs(chosen.magnitude - chosen.earlier[-1]) / chosen.magnitude
    return Health(name, state, moved, chosen.clipped, chosen.sqnr_db, chosen.unsigned_sqnr_db)


def patients(table: CalibrationTable) -> list[Health]:
    """Return every tensor, the worst first: dead and constant ones, then by SQNR."""
    found = [health(name, table.tensors[name]) for name in sorted(table.tensors)]
    return sorted(found, key=lambda h: (_STATES.index(h.state), not h.complaints, _decibels(h.sqnr_db)))


def findings(table: CalibrationTable) -> Iterator[str]:
    """Yield a sentence per kind of complaint, for the report; nothing where all is well."""
    found = patients(table)
    for state, text in (("dead", "are zero throughout"), ("constant", "never change")):
        yield from _named([h.tensor for h in found if h.state == state], text)
    live = [h for h in found if h.state == "live"]
    moved = sorted((h for h in live if (h.unsettled or 0.0) > UNSETTLED), key=lambda h: -(h.unsettled or 0.0))
    if moved:
        yield from _named(
            [h.tensor for h in moved],
            f"still move with the number of samples, by up to {moved[0].unsettled:.0%} over the last quarter: "
            "more samples would help",
        )
    yield from _named([h.tensor for h in live if h.clipped > CLIPPED], f"have more than {CLIPPED:.0%} clipped")
    poor = [h.tensor for h in live if h.sqnr_db is not None and h.sqnr_db < POOR_DB]
    yield from _named(poor, f"keep less than {POOR_DB:g} dB in int8 by themselves")


@dataclass(frozen=True, slots=True)
class Drift:
    """How evaluation values fit one tensor's calibration.

    `outside` is the share beyond the calibrated extremes, `reach` the largest magnitude over the calibrated one;
    `clipped` and `sqnr_db` are those of the chosen range on the evaluation values.
    """

    tensor: str
    outside: float
    reach: float | None
    clipped: float
    calibrated_clipped: float
    sqnr_db: float | None
    calibrated_sqnr_db: float | None

    @property
    def drifted(self) -> bool:
        """Whether the evaluation data leaves the calibrated range more often, or further, than chance would."""
        return self.outside > OUTSIDE or (self.reach is not None and self.reach > BEYOND)


def drift(table: CalibrationTable, evaluation: Mapping[str, RunningHistogram]) -> list[Drift]:
    """Return every tensor that both know, the one with most values outside first."""
    found = []
    for name in sorted(table.tensors):
        histogram = evaluation.get(name)
        if histogram is None or histogram.total == 0:
            continue
        tensor = table.tensors[name]
        largest = max(-tensor.min, tensor.max)
        reach = max(-histogram.minimum, histogram.maximum) / largest if largest > 0 else None
        magnitude = tensor.magnitude
        found.append(
            Drift(
                name,
                clipped_share(histogram, tensor.min, tensor.max),
                reach,
                clipped_share(histogram, -magnitude, magnitude),
                tensor.chosen.clipped,
                expected_sqnr_db(histogram, magnitude),
                tensor.chosen.sqnr_db,
            )
        )
    return sorted(found, key=lambda d: (-d.outside, -(d.reach or 0.0), d.tensor))


def drift_sentences(found: list[Drift], samples: int) -> Iterator[str]:
    """Yield what the report says: one sentence of the worst, and one of what drifted."""
    if not found:
        return
    worst = found[0]
    share = "no value" if worst.outside == 0 else f"up to {worst.outside:.2g} of the values ('{worst.tensor}')"
    yield f"{samples} evaluation samples: {share} outside the calibrated extremes"
    drifted = [d for d in found if d.drifted]
    reach = max((d.reach for d in drifted if d.reach is not None), default=0.0)
    far = f", up to {reach:.3g} times as far" if reach > BEYOND else ""
    yield from _named(
        [d.tensor for d in drifted],
        f"beyond the calibrated range on evaluation data{far}: the calibration data does not cover it",
    )
    narrow = [d for d in found if d.reach is not None and d.reach < IDLE]
    least = min((d.reach for d in narrow if d.reach is not None), default=0.0)
    yield from _named(
        [d.tensor for d in narrow],
        f"far within the calibrated range on evaluation data, which uses {least:.2g} of it at least: "
        "is the calibration data scaled as the evaluation data is?",
    )


def document(found: list[Drift], table: CalibrationTable, samples: int) -> dict[str, Any]:
    """Return the diagnosis as plain JSON: the table's findings, and the drift by tensor."""
    return {
        "schema": 1,
        "method": table.method,
        "calibration_samples": table.samples,
        "evaluation_samples": samples,
        "findings": [*findings(table), *drift_sentences(found, samples)],
        "tensors": {d.tensor: _rounded(asdict(d)) | {"drifted": d.drifted} for d in found},
    }


def _rounded(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in fields.items() if k != "tensor"}


def _named(names: list[str], text: str) -> Iterator[str]:
    """Yield one sentence that names the first few tensors; none for no tensor."""
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield f"{', '.join(names[:3])}{more} {text}"


def _decibels(value: float | None) -> float:
    return math.inf if value is None else value
