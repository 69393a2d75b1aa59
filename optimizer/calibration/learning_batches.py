"""Batches to learn from: of one shape each, in any order, as large as that shape allows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from optimizer.runtime.session import Array

if TYPE_CHECKING:
    from optimizer.data.samples import Samples

Feed = Mapping[str, Array]
Group = tuple[tuple[int, ...], ...]  # the shapes of a sample's inputs
# Without gradients a batch may be so many times as large, up to so many samples.
_WITHOUT_GRADIENTS, _MOST = 3, 128


def groups_of(samples: Samples) -> list[Group]:
    """Return each sample's shapes: only samples of the same make a batch."""
    return [tuple(array.shape for array in samples[i].inputs.values()) for i in range(len(samples))]


def feed_of(samples: Samples, indices: Iterable[int]) -> Feed:
    """Return samples stacked along a new first axis."""
    picked = [samples[int(i)].inputs for i in indices]
    return {name: np.stack([inputs[name] for inputs in picked]) for name in picked[0]}


@dataclass(frozen=True, slots=True)
class LearningBatches:
    """Samples with their shapes, and how many of each shape make a batch; `fixed` is the batch a graph is fixed to."""

    samples: Samples
    groups: Sequence[Group]
    fixed: int | None
    sizes: Mapping[Group, int]

    def of(self, chosen: Iterable[int] | Array) -> Iterator[Feed]:
        """Yield the chosen samples in batches of one shape, in their order as far as shapes allow."""
        waiting: dict[Group, list[int]] = {}
        for index in map(int, chosen):
            shapes = self.groups[index]
            group = waiting.setdefault(shapes, [])
            group.append(index)
            if len(group) == self.sizes[shapes]:
                yield self._filled(waiting.pop(shapes))
        for group in waiting.values():
            yield self._filled(group)

    def steps(self, chosen: Iterable[int] | Array) -> int:
        """Return how many batches a pass makes."""
        counts = Counter(self.groups[int(i)] for i in chosen)
        return sum(math.ceil(count / self.sizes[shapes]) for shapes, count in counts.items())

    def largest(self, chosen: Iterable[int] | Array) -> Feed:
        """Return a batch of the shape that most of the samples have, for a pass without gradients."""
        every = [int(i) for i in chosen]
        common = Counter(self.groups[i] for i in every).most_common(1)[0][0]
        size = self.fixed or min(self.sizes[common] * _WITHOUT_GRADIENTS, _MOST)
        return self._filled([i for i in every if self.groups[i] == common][:size])

    def _filled(self, group: Sequence[int]) -> Feed:
        return feed_of(self.samples, [group[i % len(group)] for i in range(self.fixed or len(group))])
