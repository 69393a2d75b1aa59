"""Run a session over samples and keep its floating-point outputs: what trials are judged by."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from optimizer.data.samples import Array, Samples, batches
from optimizer.runtime.session import Session

_BATCH = 16


def infer_all(
    session: Session, samples: Samples, constants: Mapping[str, Array] | None = None
) -> list[dict[str, Array]]:
    """Return the floating-point outputs of every batch; `constants` are inputs that are the same for all.

    A batch that a graph of fixed batch needs more samples for is filled with its own from the start again.
    """
    given = dict(constants or {})
    sizes = [s.shape[0] for s in session.inputs if s.shape and s.name not in given]
    fixed = next((size for size in sizes if isinstance(size, int)), None)
    found: list[dict[str, Array]] = []
    for batch in batches(samples, fixed or _BATCH):
        rows = np.arange(fixed or len(batch)) % len(batch)
        values = session.infer({**{name: array[rows] for name, array in batch.inputs.items()}, **given})
        found.append({name: value for name, value in values.items() if value.dtype.kind == "f"})
    return found
