"""What a latency session gathered: every sample, which rounds were disturbed, and what follows from the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from optimizer.measure.bootstrap import DRIFT, Ratio, interleaved_ratio, median
from optimizer.measure.observed import together
from optimizer.measure.statistics import Floats
from optimizer.measure.verdict import Difference, difference

if TYPE_CHECKING:
    from optimizer.results import Latency, Speedup  # pydantic: where bundles are served there may be none

ROUNDS = 20
FEWEST_ROUNDS = 5
STABLE_SPREAD = 0.10

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Series:
    """One candidate at one batch. `rounds_ms` is [rounds, calls]: the samples of each turn, in milliseconds.

    `disturbed` marks the rounds that something else on the machine disturbed, for all candidates alike; () for none.
    `openings` counts the rounds of each time that the candidates were opened; () for once.
    """

    rounds_ms: Floats
    warmup: int
    disturbed: tuple[bool, ...] = ()
    openings: tuple[int, ...] = ()

    @cached_property
    def mask(self) -> Mask:
        """Which rounds count: those that nothing disturbed, or all where too few of those are left."""
        return counted(self.disturbed, len(self.rounds_ms), self.openings)

    @cached_property
    def counted_ms(self) -> Floats:
        """The rounds that count."""
        return self.rounds_ms[self.mask]

    @cached_property
    def counted_openings(self) -> tuple[int, ...]:
        """The rounds of each opening that count; an opening without any is none."""
        ends = np.cumsum(self.openings)
        counts = (int(part.sum()) for part in np.split(self.mask, ends[:-1])) if self.openings else ()
        return tuple(count for count in counts if count)

    def latency(self) -> Latency:
        """Percentiles over all samples that count (linear interpolation), and whether they held still."""
        from optimizer.results import Latency

        p50, p90, p99 = (float(v) for v in np.percentile(self.counted_ms, [50, 90, 99]))
        return Latency(
            p50=p50,
            p90=p90,
            p99=p99,
            mean=float(self.counted_ms.mean()),
            samples=self.counted_ms.size,
            warmup=self.warmup,
            stable=self.unstable is None,
        )

    @cached_property
    def unstable(self) -> str | None:
        """What did not hold still, as a sentence; None if everything did.

        Stable: the medians of the first and second half of the rounds agree within 5 %, and the median absolute
        deviation of the rounds' medians, scaled to a standard deviation, is within 10 % of their median.
        """
        medians = np.median(self.counted_ms, axis=1)
        half = len(medians) // 2
        drift = float(abs(np.median(medians[:half]) / np.median(medians[half:]) - 1)) if half else math.inf
        spread = float(1.4826 * np.median(np.abs(medians - np.median(medians))) / np.median(medians))
        if drift > DRIFT:
            return f"the medians of the first and second half differ by {drift:.0%}" if half else "there is one round"
        if spread > STABLE_SPREAD:
            return f"the medians of the rounds spread by {spread:.0%}"
        return None

    def detail(self) -> dict[str, Any]:
        """How far the samples scatter, how sure the median is, and what was disturbed, as JSON.

        Units: `p50_ci95` in milliseconds; `cv` is the standard deviation over the mean, outliers included.
        """
        calls = self.counted_ms
        return {
            "cv": float(calls.std(ddof=1) / calls.mean()) if calls.size > 1 else None,
            "p50_ci95": list(median(calls, openings=self.counted_openings).interval()),
            "rounds": len(calls),
            "openings": len(self.counted_openings) or 1,
            "disturbed_rounds": int(np.sum(self.disturbed)),
            "disturbed": bool(np.any(np.array(self.disturbed, bool)[self.mask])) if self.disturbed else False,
            "unstable": self.unstable,
        }


def counted(disturbed: tuple[bool, ...], rounds: int, openings: tuple[int, ...] = ()) -> Mask:
    """Which rounds count: the undisturbed ones if there are 20, or half of fewer than 40 rounds and at least 5.

    Of several openings at least half must have some: what differs between openings is else not seen any more.
    """
    quiet = ~np.array(disturbed, dtype=bool) if disturbed else np.ones(rounds, dtype=bool)
    needed = max(FEWEST_ROUNDS, min(ROUNDS, math.ceil(rounds / 2)))
    seen = sum(bool(part.any()) for part in np.split(quiet, np.cumsum(openings)[:-1])) if openings else 0
    return quiet if quiet.sum() >= needed and 2 * seen >= len(openings) else np.ones(rounds, dtype=bool)


@dataclass(frozen=True)
class LatencySession:
    """All series of one session, by candidate and batch; `surroundings` by batch."""

    baseline: str
    series: Mapping[str, Mapping[int, Series]]
    surroundings: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    @cached_property
    def ratios(self) -> Mapping[tuple[str, int], Ratio]:
        """Each candidate's p50 over the baseline's, by name and batch: above 1 is slower."""
        base = self.series[self.baseline]
        return {
            (name, batch): interleaved_ratio(own.counted_ms, base[batch].counted_ms, openings=own.counted_openings)
            for name, per_batch in self.series.items()
            for batch, own in per_batch.items()
            if name != self.baseline
        }

    def speedup(self, name: str, batch: int) -> Speedup | None:
        """Baseline p50 over the candidate's, with a 95 % interval over rounds; the baseline itself has none."""
        if name == self.baseline:
            return None
        from optimizer.results import Speedup

        ratio = self.ratios[name, batch].inverse()
        return Speedup(value=ratio.value, ci95=ratio.interval())

    def difference(self, name: str, batch: int) -> Difference | None:
        """Whether the candidate is faster or slower than the baseline, by the one rule; the baseline has none."""
        return None if name == self.baseline else difference(self.ratios[name, batch])

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Per candidate and batch: latency, throughput in items per second of mean latency, speedup, verdict."""
        document: dict[str, dict[str, Any]] = {}
        for name, per_batch in self.series.items():
            document[name] = {}
            for batch, series in per_batch.items():
                latency, ratio, verdict = series.latency(), self.speedup(name, batch), self.difference(name, batch)
                document[name][str(batch)] = {
                    "latency": latency.model_dump(mode="json"),
                    "detail": series.detail(),
                    "throughput": 1000 * batch / latency.mean,
                    "speedup": ratio.model_dump(mode="json") if ratio else None,
                    "difference": verdict.to_json() if verdict else None,
                }
        return document

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Every sample for `latency.npz`: those that count under `NAME/BATCH`; where rounds were left out, these under
        `NAME/BATCH/left_out`, and under `rounds/BATCH` which of all rounds count, in order. Of several openings
        `openings/BATCH` has how many rounds of each count.
        """
        found: dict[str, npt.NDArray[Any]] = {}
        for name, per_batch in self.series.items():
            for batch, series in per_batch.items():
                found[f"{name}/{batch}"] = series.counted_ms
                if not series.mask.all():
                    found[f"{name}/{batch}/left_out"] = series.rounds_ms[~series.mask]
                    found[f"rounds/{batch}"] = series.mask
                if len(series.counted_openings) > 1:
                    found[f"openings/{batch}"] = np.array(series.counted_openings)
        return found


def merged(sessions: Sequence[LatencySession]) -> LatencySession:
    """Several openings of the same candidates as one session; each turn had as many calls in all of them."""
    first = sessions[0]
    series: dict[str, dict[int, Series]] = {}
    for name, per_batch in first.series.items():
        series[name] = {}
        for batch in per_batch:
            parts = [session.series[name][batch] for session in sessions]
            series[name][batch] = Series(
                np.concatenate([part.rounds_ms for part in parts]),
                sum(part.warmup for part in parts),
                tuple(mark for part in parts for mark in part.disturbed),
                tuple(len(part.rounds_ms) for part in parts),
            )
    surroundings = {batch: together([s.surroundings[batch] for s in sessions]) for batch in first.surroundings}
    return LatencySession(first.baseline, series, surroundings)
