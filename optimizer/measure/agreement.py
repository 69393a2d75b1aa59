"""Two arrays that should agree: how far a child's output may lie from its parent's, and where it lies worst."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from optimizer.errors import StageError
from optimizer.runtime.session import Array, Feed
from optimizer.stage import Tolerance

# From this many elements on a batch is held to its own power alone. With fewer, one sample may happen to lie near zero,
# and its ratio says nothing (a scalar regressor at batch 1 has one element).
MANY_ELEMENTS = 1024

Floats = npt.NDArray[np.float64]
Pair = tuple[Array, Array]  # the parent's and the child's


class DisagreementError(StageError):
    """A child that does not compute what its parent computes; `feed` shows it, where one feed does."""

    feed: Feed | None = None
    samplewise: bool = False  # the outputs agree as a whole, and single samples do not


@dataclass(frozen=True, slots=True)
class Place:
    """Where a comparison stands, for its error."""

    what: str
    output: str
    situation: str
    reference: str

    def error(self, happened: str, limit: str = "") -> DisagreementError:
        """Return the error that says what happened here."""
        text = f"output '{self.output}' at {self.situation} {happened}"
        return DisagreementError(text, where=self.what, hint=limit or None)


@dataclass(slots=True)
class Worst:
    """The worst of one output over all batches; `rms` is the root mean square of the parent's over all of them."""

    rms: float
    max_abs: float = 0.0
    sqnr_db: float = math.inf
    equal: int = 0
    compared: int = 0
    exact: bool = field(default=True)

    @property
    def share(self) -> float:
        """The share of equal integers."""
        return self.equal / self.compared if self.compared else 1.0

    def sentence(self) -> str:
        """Say how far the two lie apart."""
        if self.compared:
            return f"{self.share:.2%} of {self.compared} integers equal"
        if self.exact:
            return "equal"
        return f"max abs difference {self.max_abs:.3g}, SQNR {self.sqnr_db:.1f} dB"


def compare(expected: Array, found: Array, tolerance: Tolerance, place: Place, worst: Worst) -> None:
    """Take one output of one run into `worst`. Raises: DisagreementError where it lies beyond the tolerance."""
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


def _compare_floats(expected: Floats, found: Floats, tolerance: Tolerance, place: Place, worst: Worst) -> None:
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


def _same_specials(expected: Floats, found: Floats, place: Place) -> None:
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


def common_rms(arrays: Sequence[Array]) -> float:
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


def difference(pair: Pair, tolerance: Tolerance, place: Place, rms: float) -> DisagreementError | None:
    """Return the error of one comparison, or None where the two agree."""
    try:
        compare(*pair, tolerance, place, Worst(rms))
    except DisagreementError as error:
        return error
    return None


# Where a stage changes precision an integer output (an argmax, say) may flip; below this share of equal answers over
# all batches it is no flip but a fault.
MIN_EQUAL_SHARE = 0.8


def unlike(pair: Pair, tolerance: Tolerance, *, samplewise: bool = False) -> bool:
    """Tell whether one tensor lies beyond the tolerance; with `samplewise`, whether a single row along axis 0 does."""
    expected, found = pair
    place, rms = Place("", "", "", ""), common_rms([expected])
    if expected.shape != found.shape or not samplewise or not expected.ndim:
        return _unlike(pair, tolerance, place, rms)
    return any(_unlike((e, f), tolerance, place, rms) for e, f in zip(expected, found, strict=True))


def _unlike(pair: Pair, tolerance: Tolerance, place: Place, rms: float) -> bool:
    worst = Worst(rms)
    try:
        compare(*pair, tolerance, place, worst)
    except DisagreementError:
        return True
    return worst.share < MIN_EQUAL_SHARE


def _dtype_class(array: Array) -> str:
    kind: str = array.dtype.kind
    return {"f": "float", "V": "float", "i": "integer", "u": "integer", "b": "boolean"}.get(kind, str(array.dtype))


def _shape(array: Array) -> str:
    return f"[{', '.join(str(size) for size in array.shape)}]"


def _index(index: Iterable[Any]) -> str:
    return f"[{', '.join(str(int(i)) for i in index)}]"
