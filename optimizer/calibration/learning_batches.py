"""Batches to learn from: of one shape each, in any order, as large as that shape allows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from optimizer.calibration.paired import FEWEST, FEWEST_SAMPLES
from optimizer.errors import StageError
from optimizer.runtime.session import Array

if TYPE_CHECKING:
    from optimizer.data.samples import Samples

Feed = Mapping[str, Array]
Group = tuple[tuple[int, ...], ...]  # the shapes of a sample's inputs
# Without gradients a batch may be so many times as large, up to so many samples.
_WITHOUT_GRADIENTS, _MOST = 3, 128
# One of so many samples is held out, to tell learning from memorising: a gain of 1 dB is seen in 64 of them, where a
# graph has five outputs, and in fewer where it has more.
_HELD_OUT, _MOST_HELD_OUT = 4, 64


def groups_of(samples: Samples) -> list[Group]:
    """Return each sample's shapes: only samples of the same make a batch."""
    return [tuple(array.shape for array in samples[i].inputs.values()) for i in range(len(samples))]


def feed_of(samples: Samples, indices: Iterable[int]) -> Feed:
    """Return samples stacked along a new first axis."""
    picked = [samples[int(i)].inputs for i in indices]
    return {name: np.stack([inputs[name] for inputs in picked]) for name in picked[0]}


def split(count: int) -> tuple[Array, Array]:
    """Return which of so many samples are held out, and which are learned from.

    Raises: StageError where those held out would be too few to tell a gain from chance.
    """
    if count < FEWEST_SAMPLES:
        raise StageError(
            f"{count} samples are too few to learn from: give at least {FEWEST_SAMPLES}", where="data.calibration"
        )
    order = np.random.default_rng(0).permutation(count)
    held = min(_MOST_HELD_OUT, max(FEWEST, count // _HELD_OUT))
    return order[:held], order[held:]


@dataclass(frozen=True, slots=True)
class LearningBatches:
    """Samples with their shapes, and how many of each shape make a batch; `fixed` is the batch a graph is fixed to."""

    samples: Samples
    groups: Sequence[Group]
    fixed: int | None
    sizes: Mapping[Group, int]

    def of(self, chosen: Iterable[int] | Array) -> Iterator[Feed]:
        """Yield the chosen samples in batches of one shape, in their order as far as shapes allow."""
        return map(self._filled, self._grouped(chosen))

    def judging(self, chosen: Iterable[int] | Array) -> Iterator[tuple[Feed, Array]]:
        """Yield the chosen samples with the sample of each row.

        One at a time where the graph takes it: also an output whose first axis is not the batch is then one sample's.
        """
        for group in self._grouped(chosen) if self.fixed else ([int(i)] for i in chosen):
            yield self._filled(group), np.arange(self.fixed or 1) % len(group)

    def _grouped(self, chosen: Iterable[int] | Array) -> Iterator[list[int]]:
        waiting: dict[Group, list[int]] = {}
        for index in map(int, chosen):
            shapes = self.groups[index]
            group = waiting.setdefault(shapes, [])
            group.append(index)
            if len(group) == self.sizes[shapes]:
                yield waiting.pop(shapes)
        yield from waiting.values()

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
