"""Real inputs at chosen batches: what stages are checked on and candidates are timed with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from optimizer.types import TensorSpec

if TYPE_CHECKING:
    from optimizer.data.samples import Array, Sample, Samples
    from optimizer.recipe.model import Recipe

_LOOKED_AT = 256  # samples among which the smallest and the largest are sought, where axes besides the batch vary


def check_batches(recipe: Recipe) -> tuple[int, ...]:
    """The smallest, usual, largest and one odd batch; without a profile 1, 2 and 3; the only one where it is fixed."""
    if recipe.batch_axis is None:
        return (recipe.evaluation_batch,)
    covered = recipe.profile.get(recipe.batch_axis)
    if covered is None:
        return (1, 2, 3)
    odd = next((n for n in (3, 5, 7, 9) if covered.min <= n <= covered.max), covered.min)
    return tuple(sorted({covered.min, covered.opt, covered.max, odd}))


def check_feeds(recipe: Recipe, samples: Samples, inputs: tuple[TensorSpec, ...]) -> dict[int, dict[str, Array]]:
    """One feed a batch. Where further axes vary, the first batch takes the smallest sample and the last the largest."""
    sizes = check_batches(recipe)
    starts = dict.fromkeys(sizes, 0)
    if any(isinstance(axis, str) for spec in inputs for axis in spec.shape[1:]):
        elements = [_elements(samples[i]) for i in range(min(len(samples), _LOOKED_AT))]
        starts[sizes[0]], starts[sizes[-1]] = int(np.argmin(elements)), int(np.argmax(elements))
    return {batch: feed(samples, inputs, batch, starts[batch]) for batch in sizes}


def feed(samples: Samples, inputs: tuple[TensorSpec, ...], batch: int, start: int = 0) -> dict[str, Array]:
    """Stack `batch` real samples of the shape of sample `start`, from the start again where there are too few."""
    first = samples[start]
    alike = [first]
    for i in (*range(start + 1, len(samples)), *range(start)):
        if len(alike) == batch:
            break
        sample = samples[i]
        if _shapes(sample) == _shapes(first):
            alike.append(sample)
    picked = [alike[i % len(alike)] for i in range(batch)]
    return {spec.name: np.stack([s.inputs[spec.name] for s in picked]) for spec in inputs}


def _shapes(sample: Sample) -> Mapping[str, tuple[int, ...]]:
    return {name: array.shape for name, array in sample.inputs.items()}


def _elements(sample: Sample) -> int:
    return sum(array.size for array in sample.inputs.values())
