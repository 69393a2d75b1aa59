"""Batches that fit a budget of memory: what the first sample of a shape takes tells how many of that shape go together.

Samples of mixed lengths differ by orders of magnitude in what they take (attention: with the square of the length), so
neither the first sample nor the size of the inputs tells what another one needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future

from optimizer.data.samples import Batch, Sample, Samples, stack

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


def shapes_of(sample: Sample) -> Shapes:
    """Return the shapes of a sample's inputs."""
    return tuple((name, array.shape) for name, array in sample.inputs.items())


def batch_shapes(batch: Batch) -> Shapes:
    """Return the shapes of the inputs of each sample in a batch."""
    return tuple((name, array.shape[1:]) for name, array in batch.inputs.items())


class Fit:
    """How many samples of a shape fit `budget` bytes: one until `took` was told of it, then up to `most`.

    From the second sample of a shape on, `size` waits for what the first one took, in whichever thread it runs: how
    samples are batched depends on the data alone.
    """

    def __init__(self, most: int, budget: int) -> None:
        self._most = most
        self._budget = budget
        self._bytes: dict[Shapes, Future[int]] = {}

    def size(self, shapes: Shapes) -> int:
        """Return how many samples of these shapes go together."""
        known = self._bytes.get(shapes)
        if known is None:
            self._bytes[shapes] = Future()
            return 1
        return max(1, min(self._most, self._budget // max(known.result(), 1)))

    def took(self, batch: Batch, held: int) -> None:
        """Tell how many bytes a batch took; of a shape, the first word counts."""
        known = self._bytes.get(batch_shapes(batch))
        if known is not None and not known.done():
            known.set_result(held // len(batch))


def fitting_batches(samples: Samples, size: Callable[[Shapes], int]) -> Iterator[Batch]:
    """Yield consecutive samples of one shape in batches of at most `size` of it; none is dropped.

    Of samples in a row, batches end at whole multiples of the size: behind a first one of one sample, too.
    """
    group: list[Sample] = []
    shapes: Shapes = ()
    row = 0
    for sample in samples:
        if shapes_of(sample) != shapes:
            if group:
                yield stack(group)
            group, shapes, row = [], shapes_of(sample), 0
        group.append(sample)
        row += 1
        if row % size(shapes) == 0:
            yield stack(group)
            group = []
    if group:
        yield stack(group)
