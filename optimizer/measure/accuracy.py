"""Accuracy of the baseline and all candidates in one pass over the evaluation data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from optimizer.data.samples import Array, Batch, Samples, batches
from optimizer.errors import MeasurementError, OptimizerError
from optimizer.measure.numerics import NumericsAccumulator
from optimizer.measure.statistics import (
    bootstrap_mean,
    mcnemar,
    paired_share_difference,
    sign_flip,
    wilson,
)
from optimizer.metrics import metric_named
from optimizer.metrics.metric import Outcomes
from optimizer.results import MetricDelta, MetricValue, Numerics
from optimizer.types import TensorSpec


class Executable(Protocol):
    """A session or a runner: whatever infers."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `infer` takes."""

    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run once."""


@dataclass(slots=True)
class Evaluation:
    """What one candidate computed over the whole evaluation set."""

    outcomes: dict[str, Outcomes] = field(default_factory=dict)
    numerics: dict[str, Numerics] = field(default_factory=dict)
    golden_outputs: dict[str, Array] = field(default_factory=dict)
    golden_inputs: dict[str, Array] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Evaluated:
    """The baseline's and every candidate's evaluation, and the error of each candidate that had to be dropped."""

    baseline: Evaluation
    candidates: dict[str, Evaluation]
    failures: dict[str, OptimizerError]


class _Tally:
    """Collects one candidate's outcomes batch by batch."""

    def __init__(self, metrics: Mapping[str, str | None], golden_samples: int) -> None:
        self._metrics = metrics
        self._golden_samples = golden_samples
        self._outcomes: dict[str, list[Outcomes]] = {name: [] for name in metrics}
        self._numerics: dict[str, NumericsAccumulator] = {}
        self._golden: dict[str, list[Array]] = {}
        self._kept = 0

    def add(self, outputs: Mapping[str, Array], reference: Mapping[str, Array], batch: Batch) -> None:
        for name, chosen in self._metrics.items():
            output = outputs[chosen or next(iter(outputs))]
            self._outcomes[name].append(metric_named(name).outcomes(output, batch.targets, batch.identities))
        for name, array in outputs.items():
            if array.shape != reference[name].shape:
                raise MeasurementError(
                    f"output '{name}' has the shape {list(array.shape)}, the baseline's {list(reference[name].shape)}",
                    where=f"sample {batch.identities[0]}",
                )
            self._numerics.setdefault(name, NumericsAccumulator()).add(reference[name], array)
        room = self._golden_samples - self._kept
        if room > 0:
            for name, array in outputs.items():
                self._golden.setdefault(name, []).append(array[:room])
            self._kept += min(room, len(batch))

    def result(self) -> Evaluation:
        notes = [
            f"output '{n}': {a.not_finite} values are NaN or infinite"
            for n, a in self._numerics.items()
            if a.not_finite
        ]
        return Evaluation(
            outcomes={name: np.concatenate(parts) for name, parts in self._outcomes.items()},
            numerics={name: a.result() for name, a in self._numerics.items()},
            golden_outputs=_join(self._golden),
            notes=notes,
        )


def evaluate(
    baseline: Executable,
    candidates: Mapping[str, Executable],
    samples: Samples,
    *,
    batch: int,
    metrics: Mapping[str, str | None],
    progress: Callable[[int, int], None],
    golden_samples: int = 8,
) -> Evaluated:
    """Run baseline and candidates over all samples; each batch is decoded once and nothing of it is kept.

    `metrics` maps each metric to the output it reads (None: the first). A model with a fixed batch gets full batches:
    the last one is filled up with its last sample and cut again.
    Raises: OptimizerError of the baseline; a candidate's own error takes just that candidate out.
    """
    tallies = {name: _Tally(metrics, golden_samples) for name in candidates}
    base = _Tally(metrics, golden_samples)
    failures: dict[str, OptimizerError] = {}
    golden: dict[str, list[Array]] = {}
    done = 0
    for part in batches(samples, batch):
        reference = _infer(baseline, part)
        base.add(reference, reference, part)
        for name, candidate in candidates.items():
            if name in failures:
                continue
            try:
                tallies[name].add(_infer(candidate, part), reference, part)
            except OptimizerError as error:
                failures[name] = error
        if done < golden_samples:
            for name, array in part.inputs.items():
                golden.setdefault(name, []).append(array[: golden_samples - done])
        done += len(part)
        progress(done, len(samples))
    result = base.result()
    result.golden_inputs = _join(golden)
    return Evaluated(result, {n: t.result() for n, t in tallies.items() if n not in failures}, failures)


def _infer(executable: Executable, batch: Batch) -> dict[str, Array]:
    """Run one batch; one that is short of a fixed batch size is filled up and cut again."""
    axis = executable.inputs[0].shape[0] if executable.inputs[0].shape else 0
    if isinstance(axis, int) and axis > len(batch):
        missing = axis - len(batch)
        feed = {n: np.concatenate([a, np.repeat(a[-1:], missing, axis=0)]) for n, a in batch.inputs.items()}
        return {name: array[: len(batch)] for name, array in executable.infer(feed).items()}
    return executable.infer(batch.inputs)


def _join(parts: Mapping[str, Sequence[Array]]) -> dict[str, Array]:
    """Concatenate along the samples; where samples differ in shape, those like the first are kept."""
    found = {}
    for name, arrays in parts.items():
        alike = [a for a in arrays if a.shape[1:] == arrays[0].shape[1:]]
        found[name] = np.concatenate(alike)
    return found


def metric_value(name: str, outcomes: Outcomes) -> MetricValue:
    """A metric over the evaluation set with its 95 % interval: Wilson's for shares, a bootstrap for other means."""
    count = len(outcomes)
    if metric_named(name).binary:
        low, high = wilson(int(outcomes.sum()), count)
    else:
        low, high = bootstrap_mean(outcomes)
    return MetricValue(value=float(outcomes.mean()), samples=count, ci95=(low, high))


def metric_delta(name: str, baseline: Outcomes, candidate: Outcomes, level: float = 0.95) -> MetricDelta:
    """Candidate minus baseline, paired by sample: exact McNemar for right and wrong answers, a bootstrap otherwise."""
    value = float(candidate.mean() - baseline.mean())
    if metric_named(name).binary:
        low, high = paired_share_difference(baseline, candidate, level)
        only_baseline = int(((baseline == 1) & (candidate == 0)).sum())
        only_candidate = int(((baseline == 0) & (candidate == 1)).sum())
        p_value = mcnemar(only_baseline, only_candidate)
        return MetricDelta(value=value, ci95=(low, high), test="exact McNemar", p_value=p_value)
    low, high = bootstrap_mean(candidate - baseline, level)
    p_value = sign_flip(candidate - baseline)
    return MetricDelta(value=value, ci95=(low, high), test="paired bootstrap", p_value=p_value)
