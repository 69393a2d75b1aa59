"""Which evaluation samples are golden: as many as asked for, of one shape, so that they stack and any batch fits."""

from __future__ import annotations

import numpy as np

from optimizer.data.samples import Array, Batch, Samples, stack

_Shape = tuple[tuple[str, tuple[int, ...]], ...]


class GoldenSamples:
    """Chooses them as the data streams by: the first of the shape that has `wanted` before any other has, else the
    most frequent shape's, of equals the one seen first.

    Of the first samples the inputs are kept, as far as they have one shape; of others the places alone. Kept arrays of
    every shape would cost memory that nothing bounds.
    """

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._seen = 0
        self._first = 0  # how many samples, from the first on, have one shape and are kept
        self._parts: list[dict[str, Array]] = []
        self._places: dict[_Shape, list[int]] = {}
        self._is_complete = not wanted

    def take(self, batch: Batch) -> int:
        """Note the samples of a batch, which have one shape; return how many are among the first and to be kept."""
        if self._is_complete:
            return 0
        shape = tuple((name, array.shape[1:]) for name, array in sorted(batch.inputs.items()))
        places = self._places.setdefault(shape, [])
        count = min(self._wanted - len(places), len(batch))
        places.extend(range(self._seen, self._seen + count))
        follows = places[0] == 0 and self._first == self._seen  # on the first ones, nothing of another shape between
        self._seen += len(batch)
        self._is_complete = len(places) == self._wanted
        if self._is_complete:
            self._places = {shape: places}
        if not follows:
            return 0
        self._first += count
        self._parts.append({name: array[:count].copy() for name, array in batch.inputs.items()})
        return count

    def gather(self, samples: Samples, batch: int) -> list[Batch]:
        """Return the golden samples, decoded again in batches of at most `batch`; none where the first ones are it."""
        places = self._chosen()
        if places == list(range(self._first)):
            return []
        groups = [places[start : start + batch] for start in range(0, len(places), batch)]
        parts = [stack([samples[place] for place in group]) for group in groups]
        self._parts = [part.inputs for part in parts]
        return parts

    def inputs(self) -> dict[str, Array]:
        """The arrays by input, samples first."""
        return {n: np.concatenate([part[n] for part in self._parts]) for n in (self._parts or [{}])[0]}

    def notes(self) -> list[str]:
        """Say where fewer are golden than asked for, though there are as many samples."""
        found = self._chosen()
        if self._is_complete or self._seen < self._wanted:
            return []
        count = f"{len(found)} golden sample{'s' if len(found) > 1 else ''} instead of {self._wanted}"
        shapes = ", ".join(f"'{name}' {list(array.shape[1:])}" for name, array in self.inputs().items())
        return [f"{count}, of {shapes}: no more of the {self._seen:,} evaluation samples have one shape"]

    def _chosen(self) -> list[int]:
        return max(self._places.values(), key=len, default=[])  # of equals the first
