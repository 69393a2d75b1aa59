"""Accuracy of the baseline and all candidates in one pass over the evaluation data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from optimizer.data.samples import Array, Batch, Samples, batches
from optimizer.errors import OptimizerError, StageError
from optimizer.measure.golden import GoldenSamples
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
    """Collects one model's outcomes batch by batch."""

    def __init__(self, metrics: Mapping[str, str | None]) -> None:
        self._metrics = metrics
        self._outcomes: dict[str, list[Outcomes]] = {name: [] for name in metrics}
        self._numerics: dict[str, NumericsAccumulator] = {}
        self.golden: dict[str, list[Array]] = {}
        self._nan: dict[str, int] = {}
        self._seen = 0

    def add(self, outputs: Mapping[str, Array], reference: Mapping[str, Array], batch: Batch) -> None:
        """Take in a batch."""
        for name, expected in reference.items():
            array = _like(outputs, name, expected, batch)
            self._numerics.setdefault(name, NumericsAccumulator()).add(expected, array)
            if array.dtype.kind == "f":
                bad = np.isnan(array).reshape(len(array), -1).any(axis=1)
                self._nan[name] = self._nan.get(name, 0) + int(bad.sum())
        for name, chosen in self._metrics.items():
            # By the baseline's order: a candidate may return its outputs in another one.
            output = _chosen(outputs, chosen or next(iter(reference)), name)
            self._outcomes[name].append(metric_named(name).outcomes(output, batch.targets, batch.identities))
        self._seen += len(batch)

    def keep(self, outputs: Mapping[str, Array], reference: Mapping[str, Array], batch: Batch, golden: int) -> None:
        """Keep the outputs of a batch's first `golden` samples."""
        for name, expected in reference.items():
            array = _like(outputs, name, expected, batch)
            self.golden.setdefault(name, []).append(array[:golden].copy())

    def result(self) -> Evaluation:
        """Return what was found over all batches."""
        notes = [
            f"output '{n}' has NaN in {count:,} of {self._seen:,} samples; where a metric ranks answers, they are wrong"
            for n, count in self._nan.items()
            if count
        ]
        notes += [
            f"output '{n}': {a.not_finite:,} values are NaN or infinite where the baseline's differ, "
            "so its numerics are not defined"
            for n, a in self._numerics.items()
            if a.not_finite
        ]
        return Evaluation(
            outcomes={name: np.concatenate(parts) for name, parts in self._outcomes.items()},
            numerics={name: a.result() for name, a in self._numerics.items()},
            golden_outputs={name: np.concatenate(arrays) for name, arrays in self.golden.items()},
            notes=notes,
        )


def evaluate(  # noqa: PLR0913 - every one is needed, and a bag of settings would only hide them
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

    `metrics` maps each metric to the output it reads (None: the first). A batch that the end of the data leaves short,
    or that is short of a model's fixed batch, is filled up with its last sample, and the answers to those are cut off.
    Golden are the first samples or, where shapes vary, samples of one shape: those are decoded and run once more.
    Raises: OptimizerError of the baseline, StageError when targets do not fit the outputs; a candidate's own error
    takes just that candidate out.
    """
    if not len(samples):
        raise StageError("there are none", where="evaluation samples", hint="Correct data.evaluation.")
    models = _Models(baseline, candidates, metrics)
    golden = GoldenSamples(golden_samples)
    done = 0
    for part in batches(samples, batch):
        models.run(part, batch if done + len(part) == len(samples) else 0, golden.take(part))
        done += len(part)
        progress(done, len(samples))
    scattered = golden.gather(samples, batch)
    if scattered:
        models.forget_golden()
    for part in scattered:
        models.run(part, batch, len(part), is_measured=False)
    return models.evaluated(golden)


class _Models:
    """The baseline and the candidates, run on the same batches."""

    def __init__(
        self, baseline: Executable, candidates: Mapping[str, Executable], metrics: Mapping[str, str | None]
    ) -> None:
        self._baseline, self._candidates = baseline, candidates
        self._base = _Tally(metrics)
        self._tallies = {name: _Tally(metrics) for name in candidates}
        self._failures: dict[str, OptimizerError] = {}

    def run(self, part: Batch, size: int, golden: int, *, is_measured: bool = True) -> None:
        """Run a batch, filled up to `size`, and keep what comes of its first `golden` samples."""
        reference = _infer(self._baseline, part, size)

        def take(tally: _Tally, outputs: Mapping[str, Array]) -> None:
            if is_measured:
                tally.add(outputs, reference, part)
            if golden:
                tally.keep(outputs, reference, part, golden)

        take(self._base, reference)
        for name, candidate in self._candidates.items():
            if name in self._failures:
                continue
            try:
                take(self._tallies[name], _infer(candidate, part, size))
            except OptimizerError as error:
                self._failures[name] = error

    def forget_golden(self) -> None:
        """Drop the outputs that were kept: other samples are golden."""
        for tally in (self._base, *self._tallies.values()):
            tally.golden.clear()

    def evaluated(self, golden: GoldenSamples) -> Evaluated:
        """Return what was found of all, the golden inputs with the baseline."""
        result = self._base.result()
        result.golden_inputs = golden.inputs()
        result.notes += golden.notes()
        found = {name: tally.result() for name, tally in self._tallies.items() if name not in self._failures}
        return Evaluated(result, found, self._failures)


def _infer(executable: Executable, batch: Batch, size: int) -> dict[str, Array]:
    """Run one batch; one that is short of `size` or of a fixed batch is filled up and cut again."""
    fixed = [s.shape[0] for s in executable.inputs if s.shape and isinstance(s.shape[0], int)]
    missing = max([size, *fixed]) - len(batch)
    if missing <= 0:
        return executable.infer(batch.inputs)
    feed = {n: np.concatenate([a, np.repeat(a[-1:], missing, axis=0)]) for n, a in batch.inputs.items()}
    found = executable.infer(feed)
    # An output whose first axis is not the batch stays as it is, and is refused as such.
    return {n: a[: len(batch)] if a.ndim and len(a) == missing + len(batch) else a for n, a in found.items()}


def _like(outputs: Mapping[str, Array], name: str, expected: Array, batch: Batch) -> Array:
    """Return an output that has the baseline's shape and one row a sample."""
    where = f"evaluation sample {batch.identities[0]}"
    array = _chosen(outputs, name, None)
    if array.ndim == 0 or len(array) != len(batch):
        what = f"output '{name}' has the shape {list(array.shape)}: its first axis is not the batch of {len(batch)}"
        raise StageError(what, where=where, hint="Leave it out of model.outputs, or export it with the batch first.")
    if array.shape != expected.shape:
        what = f"output '{name}' has the shape {list(array.shape)}, the baseline's {list(expected.shape)}"
        raise StageError(what, where=where)
    return array


def _chosen(outputs: Mapping[str, Array], name: str, metric: str | None) -> Array:
    if name not in outputs:
        where = f"metric {metric}" if metric else "evaluation"
        raise StageError(f"there is no output '{name}' (there are: {', '.join(outputs)})", where=where)
    return outputs[name]


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
