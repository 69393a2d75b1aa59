"""What a feed must be: the declared names, dtypes and shapes, checked with one readable error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from optimizer.errors import UsageError
from optimizer.runtime.session import Array, Feed
from optimizer.types import TensorSpec

_ROUNDS_TO_INFINITY = 65520.0  # in float16: the middle between its largest value and what the next one would be

Ranges = Mapping[str, Mapping[str, int]]  # of an axis by its name: min and max


def check_feed(
    inputs: Sequence[TensorSpec], feed: Feed, where: str, ranges: Ranges = MappingProxyType({})
) -> dict[str, Array]:
    """Return the feed in the declared order, C-contiguous; the arrays themselves are never changed.

    float32 given to a float16 input is rounded to it. `ranges` are the sizes that named axes may have.

    Raises: UsageError, listing everything wrong at once and every input that is expected.
    """
    problems = [f"no input '{spec.name}'" for spec in inputs if spec.name not in feed]
    known = {spec.name for spec in inputs}
    problems += [f"unknown input '{name}'" for name in feed if name not in known]
    axes: dict[str, tuple[str, int]] = {}
    for spec in inputs:
        if spec.name in feed:
            problems += _mismatches(spec, feed[spec.name], axes)
    problems += _outside(axes, ranges)
    if problems:
        wanted = ", ".join(f"{spec.name}: {spec.dtype}{_shape(spec.shape)}" for spec in inputs)
        open_axes = {str(axis): None for spec in inputs for axis in spec.shape if axis in ranges}
        sizes = ", ".join(f"{axis} {ranges[axis]['min']} to {ranges[axis]['max']}" for axis in open_axes)
        raise UsageError("; ".join(problems), where=where, hint=f"it takes {wanted}" + (f"; {sizes}" if sizes else ""))
    return {spec.name: _laid_out(feed[spec.name], spec.dtype) for spec in inputs}


def within(positions: Sequence[tuple[str, int, int, int]], feed: Feed) -> bool:
    """Tell whether axes have sizes in their ranges; `positions`: input, axis, smallest, largest. For every call: quick.

    What is no feed at all is for `check_feed` to refuse, which names it.
    """
    try:
        for name, axis, low, high in positions:
            if not low <= feed[name].shape[axis] <= high:
                return False
    except (KeyError, IndexError, AttributeError, TypeError):
        return False
    return True


def range_positions(inputs: Sequence[TensorSpec], ranges: Ranges) -> tuple[tuple[str, int, int, int], ...]:
    """Return where the axes of a profile stand in the inputs, as `within` takes them."""
    return tuple(
        (spec.name, position, int(ranges[axis]["min"]), int(ranges[axis]["max"]))
        for spec in inputs
        for position, axis in enumerate(spec.shape)
        if isinstance(axis, str) and axis in ranges
    )


def _outside(axes: Mapping[str, tuple[str, int]], ranges: Ranges) -> list[str]:
    problems = []
    for axis, (name, size) in axes.items():
        if axis not in ranges:
            continue
        low, high = ranges[axis]["min"], ranges[axis]["max"]
        if not low <= size <= high:
            problems.append(f"axis '{axis}' is {size} in input '{name}', outside of what was proven: {low} to {high}")
    return problems


def _laid_out(array: Array, dtype: str) -> Array:
    rounded = array.astype(np.float16) if _is_rounded(array.dtype.name, dtype) else array
    return np.ascontiguousarray(rounded) if rounded.ndim else rounded


def _is_rounded(given: str, declared: str) -> bool:
    """A model whose inputs are float16 by request takes the float32 data that its float32 form takes, rounded."""
    return given == "float32" and declared == "float16"


def _mismatches(spec: TensorSpec, array: object, axes: dict[str, tuple[str, int]]) -> list[str]:
    if not isinstance(array, np.ndarray):
        return [f"input '{spec.name}' is a {type(array).__name__}, not a numpy array"]
    problems = []
    if _is_rounded(array.dtype.name, spec.dtype):
        largest = float(np.fmax.reduce(np.abs(array), axis=None)) if array.size else 0.0  # NaN aside
        if largest >= _ROUNDS_TO_INFINITY:
            problems.append(f"input '{spec.name}' reaches {largest:g}, and float16 ends at 65504")
    elif array.dtype.name != spec.dtype:
        problems.append(f"input '{spec.name}' is {array.dtype.name}, not {spec.dtype}")
    if array.ndim != len(spec.shape):
        return [*problems, f"input '{spec.name}' has shape {_shape(array.shape)}, not {_shape(spec.shape)}"]
    for position, (axis, size) in enumerate(zip(spec.shape, array.shape, strict=True)):
        if isinstance(axis, int):
            if axis != size:
                problems.append(f"input '{spec.name}' has {size} at axis {position}, not {axis}")
        else:
            first, expected = axes.setdefault(axis, (spec.name, size))
            if expected != size:
                problems.append(f"axis '{axis}' is {expected} in input '{first}' and {size} in input '{spec.name}'")
    return problems


def _shape(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(str(axis) for axis in shape)}]"
