"""Samples from a Python callable of the recipe's author."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.data.samples import Array, Sample, Samples
from optimizer.errors import StageError
from optimizer.imports import importable, load_function, user_code

_RETURNS = "Return (inputs, targets) as arrays, targets being None where there are none, or a sequence of pairs."


class FromArrays(Samples):
    """Arrays with a first axis of samples, and one target each."""

    def __init__(self, inputs: Mapping[str, Array], targets: Sequence[Any], split: str) -> None:
        self._inputs = inputs
        self._targets = targets
        self._split = split

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        arrays = {name: array[index] for name, array in self._inputs.items()}
        return Sample(arrays, self._targets[index], f"{self._split}[{index}]")


class FromSequence(Samples):
    """A sequence of pairs (inputs, target), read on access."""

    def __init__(self, pairs: Sequence[tuple[Any, Any]], split: str, folder: Path) -> None:
        self._pairs = pairs
        self._split = split
        self._folder = folder  # of the author's code, to name the line that failed

    def __len__(self) -> int:
        with importable(self._folder), user_code(f"data, len() of the split '{self._split}'", self._folder):
            return len(self._pairs)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        identity = f"{self._split}[{index}]"
        where = f"data, sample {identity}"
        with importable(self._folder), user_code(where, self._folder):
            pair = self._pairs[index]
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                size = f" of {len(pair)}" if isinstance(pair, tuple | list) else ""
                raise StageError(
                    f"is a {type(pair).__name__}{size}, not a pair (inputs, target)",
                    where=where,
                    hint="Return (inputs, target); several inputs as a mapping {name: array}.",
                )
            return Sample(_named(pair[0]), pair[1], identity)


def call_source(file: Path, function: str, split: str, arguments: Mapping[str, Any]) -> Samples:
    """Call `function(split, **arguments)`.

    It returns (inputs, targets), inputs being an array or a mapping of arrays with a first axis of samples; or any
    sequence with a length whose items are pairs (inputs, target) of one sample.
    Raises: StageError when it fails or returns something else.
    """
    where = f"data source {file.name}:{function}('{split}')"
    call = load_function(file, function)
    with importable(file.parent), user_code(where, file.parent):
        result = call(split, **arguments)
    if isinstance(result, tuple) and len(result) == 2 and not _is_pair_of_samples(result):
        with user_code(where, file.parent):
            return _from_arrays(*result, split, where)
    if not isinstance(result, Mapping | np.ndarray) and hasattr(result, "__len__") and hasattr(result, "__getitem__"):
        return FromSequence(result, split, file.parent)
    raise StageError(f"returned a {type(result).__name__}", where=where, hint=_RETURNS)


def _from_arrays(inputs: Any, targets: Any, split: str, where: str) -> FromArrays:
    arrays = _named(inputs)
    if not arrays or any(array.ndim == 0 for array in arrays.values()):
        raise StageError("returned inputs without a first axis of samples", where=where, hint=_RETURNS)
    if targets is None:
        targets = [None] * len(next(iter(arrays.values())))
    unlike = {name: len(a) for name, a in arrays.items() if len(a) != len(targets)}
    if unlike:
        raise StageError(f"returned {len(targets)} targets and inputs of {unlike} samples", where=where)
    return FromArrays(arrays, targets, split)


def _is_pair_of_samples(result: tuple[Any, Any]) -> bool:
    return all(isinstance(item, tuple) and len(item) == 2 for item in result)


def _named(inputs: Any) -> dict[str, Array]:
    if isinstance(inputs, Mapping):
        return {str(name): np.asarray(array) for name, array in inputs.items()}
    return {"": np.asarray(inputs)}
