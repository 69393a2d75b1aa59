"""Metrics; METRICS lists them."""

from __future__ import annotations

from optimizer.errors import UsageError
from optimizer.metrics.classification import TopK
from optimizer.metrics.metric import Metric
from optimizer.metrics.regression import MeanAbsoluteError, MeanSquaredError

METRICS: tuple[Metric, ...] = (TopK("top1", 1), TopK("top5", 5), MeanAbsoluteError(), MeanSquaredError())


def metric_named(name: str) -> Metric:
    """Return the metric of that name.

    Raises: UsageError when there is none.
    """
    found = next((metric for metric in METRICS if metric.name == name), None)
    if found is None:
        raise UsageError(f"there is no metric '{name}' (known: {', '.join(m.name for m in METRICS)})")
    return found
