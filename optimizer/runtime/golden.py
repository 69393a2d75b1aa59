"""Golden samples: real inputs with the outputs they gave when the bundle was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.errors import StageError
from optimizer.runtime.session import Array, Feed, Session
from optimizer.types import TensorSpec

GOLDEN = "golden.npz"
_INPUT, _OUTPUT = "input/", "output/"


@dataclass(frozen=True, slots=True)
class Difference:
    """An output against its golden values. `allowed` bounds `max_abs`; where it is None, `min_equal` bounds `equal`.

    Units: `equal` and `min_equal` are shares of the output's values.
    """

    output: str
    samples: int
    max_abs: float
    equal: float
    allowed: float | None = None
    min_equal: float | None = None

    @property
    def within(self) -> bool:
        """Whether the output came out; a NaN never does."""
        if self.min_equal is not None:
            return self.equal >= self.min_equal
        return self.allowed is not None and self.max_abs <= self.allowed

    def __str__(self) -> str:
        if self.min_equal is not None:
            return f"{self.equal:.1%} of the values equal, allowed at least {self.min_equal:.0%}"
        return f"largest difference {self.max_abs:.3g}, allowed {self.allowed or 0.0:.3g}"


def failed(differences: Sequence[Difference]) -> list[str]:
    """Say of each output that did not come out how far it is off."""
    return [f"output '{each.output}': {each}" for each in differences if not each.within]


def write_golden(path: Path, inputs: Feed, outputs: Feed) -> None:
    """Write both sides; the first axis of every array counts the samples."""
    arrays: dict[str, Any] = {_INPUT + name: array for name, array in inputs.items()}
    arrays |= {_OUTPUT + name: array for name, array in outputs.items()}
    with path.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def read_golden(path: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return inputs and outputs by name."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return (
        {name.removeprefix(_INPUT): array for name, array in arrays.items() if name.startswith(_INPUT)},
        {name.removeprefix(_OUTPUT): array for name, array in arrays.items() if name.startswith(_OUTPUT)},
    )


def replay(session: Session, inputs: Feed, sizes: tuple[int, int] | None) -> dict[str, Array]:
    """Run samples through a session in batches that it takes, and return their outputs one below the other.

    `sizes` is the smallest and largest batch, or None where any is fine. A short batch is filled up with its last
    sample, whose extra results are dropped.
    """
    count = len(next(iter(inputs.values())))
    low, high = sizes or (1, count)
    size = min(max(count, low), high)
    parts: list[dict[str, Array]] = []
    for start in range(0, count, size):
        taken = min(size, count - start)
        filled = max(taken, low)
        rows = [start + min(row, taken - 1) for row in range(filled)]
        outputs = session.infer({name: array[rows] for name, array in inputs.items()})
        parts.append({name: array[:taken] for name, array in outputs.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def batch_sizes(inputs: Sequence[TensorSpec], profile: Mapping[str, Mapping[str, int]]) -> tuple[int, int] | None:
    """Return the smallest and largest batch that the first axis of the inputs allows."""
    axis = inputs[0].shape[0]
    if isinstance(axis, int):
        return axis, axis
    given = profile.get(axis)
    return (int(given["min"]), int(given["max"])) if given else None


def compare(found: Feed, golden: Feed, allowed: Mapping[str, Mapping[str, Any]]) -> list[Difference]:
    """Return the difference of each output; `allowed` is the passport's tolerance by output.

    Raises: StageError for a missing output or another shape.
    """
    differences = []
    for name, expected in golden.items():
        if name not in found or found[name].shape != expected.shape:
            came = list(found[name].shape) if name in found else "none"
            raise StageError(f"output '{name}' came out as {came}, golden is {list(expected.shape)}", where=GOLDEN)
        with np.errstate(invalid="ignore"):  # inf - inf is nan, which no bound allows
            gap = np.abs(found[name].astype(np.float64) - expected.astype(np.float64))
        # max() of an empty array is an error; nan stays nan.
        largest = float(gap.max()) if gap.size else 0.0
        equal = float((found[name] == expected).mean()) if gap.size else 1.0
        limits = allowed[name]
        differences.append(
            Difference(name, len(expected), largest, equal, limits.get("max_abs"), limits.get("min_equal"))
        )
    return differences
