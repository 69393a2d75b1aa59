"""Open a split of the recipe's data as Samples, and identify it by content without opening it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.data.samples import Array, Sample, Samples
from optimizer.errors import StageError, UsageError
from optimizer.runtime.preprocessing import apply
from optimizer.types import TensorSpec

if TYPE_CHECKING:
    from optimizer.recipe.model import InputSpec


class Transformed(Samples):
    """The samples of a source, preprocessed and checked against the recipe's inputs as they are read."""

    def __init__(
        self,
        source: Samples,
        steps: Sequence[Mapping[str, Any]],
        inputs: Sequence[TensorSpec],
        profile: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        self._source = source
        self._profile = profile or {}
        self._steps = steps
        self._inputs = {spec.name: spec for spec in inputs}
        self.labels = source.labels

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        raw = self._source[index]
        arrays = dict(raw.inputs)
        if set(arrays) == {""}:  # a source with one unnamed array feeds the only input
            arrays = {next(iter(self._inputs)): arrays[""]}
        if set(arrays) != set(self._inputs):
            raise StageError(
                f"yields the inputs {', '.join(sorted(arrays))}; the recipe names {', '.join(self._inputs)}",
                where=f"data, sample {raw.identity}",
            )
        first = next(iter(self._inputs))
        if self._steps:
            arrays[first] = self._preprocessed(arrays[first], raw)
        return Sample({n: self._fit(a, self._inputs[n], raw) for n, a in arrays.items()}, raw.target, raw.identity)

    def _preprocessed(self, array: Array, raw: Sample) -> Array:
        try:
            return apply(self._steps, array)
        except UsageError as error:
            hint = error.hint
            if error.what.startswith("normalize."):
                hint = (
                    "Channels are the last axis, [height, width, channels], and the first after to_chw.\n"
                    "Normalize an array [channels, length] in the data's callable, or give one number for all."
                )
            where = f"data, sample {raw.identity}, {error.where}"
            raise StageError(error.what, where=where, hint=hint) from error

    def _fit(self, array: Array, spec: TensorSpec, raw: Sample) -> Array:
        wanted = spec.shape[1:]
        fits = array.ndim == len(wanted) and all(
            isinstance(w, str) or w == s for w, s in zip(wanted, array.shape, strict=True)
        )
        where = f"data, sample {raw.identity}, input '{spec.name}'"
        if not fits:
            raise StageError(
                f"has the shape {list(array.shape)} after data.transform; the recipe says {list(wanted)}",
                where=where,
                hint="Correct inputs, data.transform or the source.",
            )
        for axis, size in zip(wanted, array.shape, strict=True):
            least, most = self._profile.get(str(axis), (size, size))
            if not least <= size <= most:
                raise StageError(
                    f"has the size {size} on axis '{axis}'; the profile covers {least} to {most}",
                    where=where,
                    hint="Widen the profile of that axis, or leave such samples out: no engine takes them.",
                )
        if array.dtype.name != spec.dtype:
            if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
                raise StageError(f"has the dtype {array.dtype}; the recipe says {spec.dtype}", where=where)
            array = array.astype(spec.dtype)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            wrong = int((~np.isfinite(array)).sum())
            raise StageError(
                f"{wrong} of its {array.size} values {'is' if wrong == 1 else 'are'} NaN or infinite",
                where=where,
                hint="Clean the data: no engine can be calibrated or judged on such a sample.",
            )
        return array


class Subset(Samples):
    """Some samples of another source, in the order of `indices`."""

    def __init__(self, source: Samples, indices: Sequence[int]) -> None:
        self._source = source
        self._indices = indices
        self.labels = source.labels

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        return self._source[self._indices[index]]


def to_specs(inputs: Mapping[str, InputSpec]) -> tuple[TensorSpec, ...]:
    """The recipe's inputs as tensor specifications."""
    return tuple(TensorSpec(name, spec.dtype, spec.shape) for name, spec in inputs.items())


def pick(samples: Samples, count: int | None, seed: int, where: str) -> Samples:
    """Return `count` samples chosen by a seeded permutation, or all of them in order.

    Raises: StageError when there are none, or fewer than asked for.
    """
    if len(samples) == 0:
        raise StageError("the split is empty", where=where, hint="Check the split's name and the data's place.")
    if count is None:
        return samples
    if count > len(samples):
        raise StageError(
            f"asks for {count} samples and the split has {len(samples)}",
            where=where,
            hint=f"Write samples: {len(samples)}, or give more.",
        )
    return Subset(samples, [int(i) for i in np.random.default_rng(seed).permutation(len(samples))[:count]])


def without_overlap(calibration: Samples, evaluation: Samples, count: int, seed: int) -> tuple[Samples, list[str]]:
    """Choose calibration samples none of which stands, by content, in the evaluation set; name those left out.

    One that is left out is replaced by the next of the seeded permutation.
    Raises: StageError when too few are left.
    """
    where = "data.calibration"
    pick(calibration, count, seed, where)  # refuses an empty or too small split
    taken = {evaluation[i].content_hash() for i in range(len(evaluation))}
    chosen: list[int] = []
    dropped: list[str] = []
    for i in np.random.default_rng(seed).permutation(len(calibration)):
        if len(chosen) == count:
            break
        sample = calibration[int(i)]
        if sample.content_hash() in taken:
            dropped.append(sample.identity)
        else:
            chosen.append(int(i))
    if len(chosen) < count:
        raise StageError(
            f"{len(dropped)} of its samples stand in the evaluation set too; {len(chosen)} of {count} are left",
            where=where,
            hint=f"Ask for at most {len(chosen)}, or give other data." if chosen else "Give other data.",
        )
    return Subset(calibration, chosen), dropped
