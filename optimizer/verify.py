"""A stage's output against its parent, on real inputs: several batches, and a sample alone against in a batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from optimizer.errors import StageError
from optimizer.runtime.session import Array, Feed, Session
from optimizer.stage import Tolerance

# Where a stage changes precision an integer output (an argmax, say) may flip; below this share of equal answers over
# all batches it is no flip but a fault.
MIN_EQUAL_SHARE = 0.8

# From this many elements on a batch is held to its own power alone. With fewer, one sample may happen to lie near zero,
# and its ratio says nothing (a scalar regressor at batch 1 has one element).
MANY_ELEMENTS = 1024

Floats = npt.NDArray[np.float64]
Pair = tuple[Array, Array]  # the parent's and the child's


def verify(parent: Session, child: Session, feeds: Mapping[int, Feed], tolerance: Tolerance, *, what: str) -> list[str]:
    """Run both at each batch and compare every output; return one sentence per output with its worst difference.

    `feeds` maps each batch size to real inputs of that size. A float output passes when every element lies within
    atol + rtol * |parent|, or when its SQNR reaches `min_sqnr_db`, whichever of the two the tolerance states.
    Numeric: the SQNR of a batch is the parent's power per element over all batches, or over this one where that is
    larger or it has MANY_ELEMENTS, by the power per element of this batch's error. Rounding is a share of the output's
    range, so an error beside a value that happens to lie near zero is no fault.
    Raises: StageError, naming the output, the batch, the worst element, both values, the limit and its reason.
    """
    if not feeds:
        raise StageError("there are no inputs to compare on", where=what)
    _same_names("inputs", [s.name for s in parent.inputs], [s.name for s in child.inputs], what)
    results: dict[int, dict[str, Pair]] = {}
    for batch, feed in sorted(feeds.items()):
        expected, found = parent.infer(feed), child.infer(feed)
        _same_names("outputs", list(expected), list(found), what)
        results[batch] = {name: (expected[name], found[name]) for name in expected}
    worst = {
        spec.name: _Worst(_common_rms([pairs[spec.name][0] for pairs in results.values()])) for spec in child.outputs
    }
    for batch, pairs in results.items():
        for name, seen in worst.items():
            _compare(*pairs[name], tolerance, _Place(what, name, f"batch {batch}", "the parent"), seen)
    for name, seen in worst.items():
        if seen.compared and seen.share < MIN_EQUAL_SHARE:
            limit = f"at least {MIN_EQUAL_SHARE:.0%} ({tolerance.reason})"
            raise StageError(
                f"output '{name}' equals the parent's in {seen.share:.1%} only; allowed: {limit}", where=what
            )
    coupled = _alone_and_together(parent, child, feeds, results[max(feeds)], (tolerance, what, worst))
    sizes = ", ".join(str(batch) for batch in sorted(feeds))
    notes = [f"output '{name}' at batch {sizes}: {seen.sentence()}" for name, seen in worst.items()]
    notes += [f"output '{name}': a sample's result depends on its batch, in the parent as well" for name in coupled]
    return notes


def _same_names(kind: str, expected: list[str], found: list[str], what: str) -> None:
    if expected != found:
        raise StageError(f"{kind} are {', '.join(found)}; its parent's are {', '.join(expected)}", where=what)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a comparison stands, for its error."""

    what: str
    output: str
    situation: str
    reference: str

    def error(self, happened: str, limit: str = "") -> StageError:
        text = f"output '{self.output}' at {self.situation} {happened}"
        return StageError(text, where=self.what, hint=limit or None)


@dataclass(slots=True)
class _Worst:
    """The worst of one output over all batches; `rms` is the root mean square of the parent's over all of them."""

    rms: float
    max_abs: float = 0.0
    sqnr_db: float = math.inf
    equal: int = 0
    compared: int = 0
    exact: bool = field(default=True)

    @property
    def share(self) -> float:
        return self.equal / self.compared if self.compared else 1.0

    def sentence(self) -> str:
        if self.compared:
            return f"{self.share:.2%} of {self.compared} integers equal"
        if self.exact:
            return "equal"
        return f"max abs difference {self.max_abs:.3g}, SQNR {self.sqnr_db:.1f} dB"


def _compare(expected: Array, found: Array, tolerance: Tolerance, place: _Place, worst: _Worst) -> None:
    if expected.shape != found.shape:
        raise place.error(f"has shape {_shape(found)}; {place.reference}'s is {_shape(expected)}")
    if _dtype_class(expected) != _dtype_class(found):
        raise place.error(f"is {found.dtype}; {place.reference}'s is {expected.dtype}")
    if _dtype_class(expected) == "float":
        _compare_floats(expected.astype(np.float64), found.astype(np.float64), tolerance, place, worst)
        return
    unequal = expected != found
    if tolerance.exact_integers:
        if unequal.any():
            index = np.unravel_index(int(np.argmax(unequal)), unequal.shape)
            raise place.error(
                f"is {found[index]} at index {_index(index)}; {place.reference}'s is {expected[index]} "
                f"({np.count_nonzero(unequal)} of {unequal.size} differ)",
                f"allowed: equal ({tolerance.reason})",
            )
        return
    worst.compared += unequal.size
    worst.equal += unequal.size - int(np.count_nonzero(unequal))


def _compare_floats(expected: Floats, found: Floats, tolerance: Tolerance, place: _Place, worst: _Worst) -> None:
    _same_specials(expected, found, place)
    finite = np.isfinite(expected)
    error = np.zeros_like(expected)
    np.subtract(found, expected, out=error, where=finite)
    absolute = np.abs(error)
    if not absolute.any():
        return
    largest, sqnr_db = float(absolute.max()), _sqnr_db(expected[finite], error[finite], worst.rms)
    worst.exact = False
    worst.max_abs = max(worst.max_abs, largest)
    worst.sqnr_db = min(worst.sqnr_db, sqnr_db)
    if tolerance.min_sqnr_db is not None and sqnr_db >= tolerance.min_sqnr_db:
        return
    excess, limits = absolute, []
    if tolerance.atol is not None or tolerance.min_sqnr_db is None:
        allowed = (tolerance.atol or 0.0) + tolerance.rtol * np.where(finite, np.abs(expected), 0.0)
        if (absolute <= allowed).all():
            return
        excess = absolute - allowed
        limits.append(f"a difference of at most {tolerance.atol or 0.0:g} + {tolerance.rtol:g} * |value|")
    if tolerance.min_sqnr_db is not None:
        limits.append(f"an SQNR of at least {tolerance.min_sqnr_db:g} dB")
    index = np.unravel_index(int(np.argmax(excess)), excess.shape)
    raise place.error(
        f"is {found[index]:.6g} at index {_index(index)}; {place.reference}'s is {expected[index]:.6g} "
        f"(max abs difference {largest:.3g}, SQNR {sqnr_db:.1f} dB)",
        f"allowed: {' or '.join(limits)} ({tolerance.reason})",
    )


def _same_specials(expected: Floats, found: Floats, place: _Place) -> None:
    """NaN and infinities must stand where the parent has them, and nowhere else."""
    same = (expected == found) | (np.isnan(expected) & np.isnan(found)) | (np.isfinite(expected) & np.isfinite(found))
    if not same.all():
        index = np.unravel_index(int(np.argmin(same)), same.shape)
        raise place.error(
            f"is {found[index]} at index {_index(index)}; {place.reference}'s is {expected[index]:.6g} "
            f"({np.count_nonzero(~same)} of {same.size} elements)",
            "allowed: NaN and infinity only where the parent has them",
        )


def _sqnr_db(expected: Floats, error: Floats, common_rms: float) -> float:
    """Return the signal-to-noise ratio in dB: mean squares of signal and error of this batch, see `verify`."""
    signal, noise = _rms(expected), _rms(error)
    if expected.size < MANY_ELEMENTS:
        signal = max(signal, common_rms)
    if noise == 0.0:
        return math.inf
    # Logarithms are subtracted: the quotient of a huge and a tiny number leaves the range of a double.
    return 20.0 * (math.log10(signal) - math.log10(noise)) if signal > 0.0 else -math.inf


def _rms(values: Floats) -> float:
    """Return the root mean square. Scaled first: squares of large or tiny numbers leave the range of a double."""
    scale = float(np.abs(values).max(initial=0.0))
    return scale * math.sqrt(float(np.square(values / scale).mean())) if scale > 0.0 else 0.0


def _common_rms(arrays: list[Array]) -> float:
    """Return the root mean square of all finite elements of an output over its batches; 0 where it is no float."""
    parts = []
    for array in arrays:
        if _dtype_class(array) == "float":
            values = array.astype(np.float64)
            finite = values[np.isfinite(values)]
            parts.append((_rms(finite), finite.size))
    scale, count = max((rms for rms, _ in parts), default=0.0), sum(size for _, size in parts)
    if scale == 0.0:
        return 0.0
    return scale * math.sqrt(sum((rms / scale) ** 2 * size for rms, size in parts) / count)


def _alone_and_together(
    parent: Session,
    child: Session,
    feeds: Mapping[int, Feed],
    results: Mapping[str, Pair],
    terms: tuple[Tolerance, str, Mapping[str, _Worst]],
) -> list[str]:
    """Compare samples run alone with the same samples inside the largest batch; return the outputs that couple them.

    A model that mixes its samples on purpose does so in the parent too: that is a note, no fault of the stage.
    """
    tolerance, what, worst = terms
    alone, largest = min(feeds), max(feeds)
    if alone == largest:
        return []
    feed = feeds[largest]
    batched = {name for name, array in feed.items() if array.ndim and all(len(feeds[b][name]) == b for b in feeds)}
    coupled: dict[str, None] = {}
    for start in sorted({0, (largest - alone) // 2, largest - alone}):
        rows = slice(start, start + alone)
        part = {name: array[rows] if name in batched else array for name, array in feed.items()}
        single, reference = child.infer(part), None
        for name, (expected, together) in results.items():
            if not together.ndim or len(together) != largest or len(single[name]) != alone:
                continue  # an output without the batch as its first axis
            place = _Place(what, name, f"sample {start} alone", f"the same sample inside batch {largest}")
            rms = worst[name].rms
            fault = _difference((together[rows], single[name]), tolerance, place, rms)
            if fault is None:
                continue
            reference = reference or parent.infer(part)
            if _difference((expected[rows], reference[name]), tolerance, place, rms) is None:
                raise fault
            coupled[name] = None
    return list(coupled)


def _difference(pair: Pair, tolerance: Tolerance, place: _Place, rms: float) -> StageError | None:
    try:
        _compare(*pair, tolerance, place, _Worst(rms))
    except StageError as error:
        return error
    return None


def _dtype_class(array: Array) -> str:
    kind: str = array.dtype.kind
    return {"f": "float", "V": "float", "i": "integer", "u": "integer", "b": "boolean"}.get(kind, str(array.dtype))


def _shape(array: Array) -> str:
    return f"[{', '.join(str(size) for size in array.shape)}]"


def _index(index: Iterable[Any]) -> str:
    return f"[{', '.join(str(int(i)) for i in index)}]"
