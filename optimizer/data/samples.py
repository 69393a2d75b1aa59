"""Samples: what every data source yields, and how they are batched."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample. `inputs` holds arrays by input name, without a batch axis; `identity` names it in messages."""

    inputs: Mapping[str, Array]
    target: Any
    identity: str

    def content_hash(self) -> str:
        """Return a digest of the inputs: two samples with the same one are the same sample to the model."""
        digest = hashlib.sha256()
        for name in sorted(self.inputs):
            array = np.ascontiguousarray(self.inputs[name])
            digest.update(f"{name}:{array.dtype.str}:{array.shape}:".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive samples stacked along a new first axis."""

    inputs: dict[str, Array]
    targets: list[Any]
    identities: list[str]

    def __len__(self) -> int:
        return len(self.targets)


class Samples(ABC, Sequence[Sample]):
    """A split of a data set, decoded on access; `labels` are class names by index where the source knows them."""

    labels: tuple[str, ...] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...  # type: ignore[override]

    def __iter__(self) -> Iterator[Sample]:
        """Yield every sample. Sequence's own loop would take an IndexError of the source for the end of the data."""
        for index in range(len(self)):
            yield self[index]


def batches(samples: Samples, size: int) -> Iterator[Batch]:
    """Yield batches of at most `size` in order; samples of unlike shapes never share one, and none is dropped."""
    group: list[Sample] = []
    for sample in samples:
        if group and (len(group) == size or _shapes(sample) != _shapes(group[0])):
            yield stack(group)
            group = []
        group.append(sample)
    if group:
        yield stack(group)


def _shapes(sample: Sample) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in sample.inputs.items()}


def stack(group: Sequence[Sample]) -> Batch:
    """Return samples of one shape as a batch."""
    inputs = {name: np.stack([s.inputs[name] for s in group]) for name in group[0].inputs}
    return Batch(inputs, [s.target for s in group], [s.identity for s in group])
