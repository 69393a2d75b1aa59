"""Real inputs at chosen sizes: what stages are checked on, candidates are proven on, and latency is timed with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from optimizer.types import TensorSpec

if TYPE_CHECKING:
    from optimizer.data.samples import Array, Sample, Samples
    from optimizer.recipe.model import Recipe
    from optimizer.verify import Trials

_LOOKED_AT = 256  # samples among which sizes are sought, where axes besides the batch vary
_SEPARATOR = 0  # between the sizes of two axes in a key


def check_batches(recipe: Recipe) -> tuple[int, ...]:
    """The smallest, usual, largest and one odd batch; without a profile 1, 2 and 3; the only one where it is fixed."""
    if recipe.batch_axis is None:
        return (recipe.evaluation_batch,)
    covered = recipe.profile.get(recipe.batch_axis)
    if covered is None:
        return (1, 2, 3)
    odd = next((n for n in (3, 5, 7, 9) if covered.min <= n <= covered.max), covered.min)
    return tuple(sorted({covered.min, covered.opt, covered.max, odd}))


def check_sizes(recipe: Recipe) -> tuple[int, ...]:
    """What of the checks stands in a key: the batches and, each after a 0, the sizes of the profile's other axes."""
    found = list(check_batches(recipe))
    for axis, covered in sorted(recipe.profile.items()):
        if axis != recipe.batch_axis:
            found += (_SEPARATOR, *axis_sizes(covered.min, covered.opt, covered.max))
    return tuple(found)


def axis_sizes(smallest: int, usual: int, largest: int) -> tuple[int, ...]:
    """The smallest, usual, largest and one odd size: the odd one nearest to the middle that is none of the others.

    Powers of two and multiples of a tile hide what an odd size shows.
    """
    known = {smallest, usual, largest}
    middle = (smallest + largest) / 2
    odd = [n for n in range(smallest | 1, largest + 1, 2) if n not in known]
    return tuple(sorted(known | set(sorted(odd, key=lambda n: abs(n - middle))[:1])))


def check_feeds(recipe: Recipe, samples: Samples, inputs: tuple[TensorSpec, ...]) -> Trials:
    """One feed a batch and, where further axes vary, one for each size of each of them, and both ends of all at once.

    At the batches samples have their own sizes: the first takes the smallest sample, the last the largest. Sizes that
    no sample has are cut from longer samples or repeated from shorter ones, by one index for all inputs that share the
    axis: what belongs together (a token and its mask) stays together, and every value is one that the data has.
    """
    from optimizer.verify import Trials

    batches = check_batches(recipe)
    starts = dict.fromkeys(batches, 0)
    looked = dynamic_axes(inputs, batch=recipe.batch_axis)
    if not looked:
        return Trials({batch: feed(samples, inputs, batch) for batch in batches})
    seen = [samples[i] for i in range(min(len(samples), _LOOKED_AT))]
    elements = [_elements(sample) for sample in seen]
    starts[batches[0]], starts[batches[-1]] = int(np.argmin(elements)), int(np.argmax(elements))
    feeds = {batch: feed(samples, inputs, batch, starts[batch]) for batch in batches}
    maker = _Maker(inputs, seen)
    sizes = {axis: _sizes_of(axis, recipe, maker.sizes(axis)) for axis in looked}
    usual = batches[len(batches) // 2] if len(batches) < 3 else batches[1]
    asked = [(f"{axis} {size}", usual, {axis: size}) for axis, chosen in sizes.items() for size in chosen]
    for batch, end in ((batches[0], 0), (batches[-1], -1)):
        corner = {axis: chosen[end] for axis, chosen in sizes.items()}
        title = " and ".join(f"{axis} {size}" for axis, size in {"batch": batch, **corner}.items())
        asked.append((title, batch, corner))
    further = {title: maker.feed(batch, wanted) for title, batch, wanted in asked}
    kinds = {title: maker.kind(wanted) for title, _, wanted in asked}
    notes = _told({title: kinds[title] for title, _, wanted in asked if len(wanted) == 1 and " and " not in title})
    return Trials(feeds, further, frozenset(title for title, kind in kinds.items() if kind), notes)


def feed(samples: Samples, inputs: tuple[TensorSpec, ...], batch: int, start: int = 0) -> dict[str, Array]:
    """Stack `batch` real samples of the shape of sample `start`, from the start again where there are too few."""
    first = samples[start]
    alike = [first]
    for i in (*range(start + 1, len(samples)), *range(start)):
        if len(alike) == batch:
            break
        sample = samples[i]
        if _shapes(sample) == _shapes(first):
            alike.append(sample)
    picked = [alike[i % len(alike)] for i in range(batch)]
    return {spec.name: np.stack([s.inputs[spec.name] for s in picked]) for spec in inputs}


def dynamic_axes(inputs: Sequence[TensorSpec], batch: str | None = None) -> list[str]:
    """The named axes besides the batch, each once."""
    named = (axis for spec in inputs for axis in spec.shape[1:] if isinstance(axis, str) and axis != batch)
    return list(dict.fromkeys(named))


def usual_sizes(recipe: Recipe, inputs: Sequence[TensorSpec]) -> dict[str, int]:
    """The profile's `opt` of each axis besides the batch: at what is closest to it, latency is timed."""
    named = dynamic_axes(inputs, batch=recipe.batch_axis)
    return {axis: recipe.profile[axis].opt for axis in named if axis in recipe.profile}


def usual_start(samples: Samples, inputs: Sequence[TensorSpec], usual: Mapping[str, int]) -> int:
    """Return the first of the samples looked at whose sizes come closest to the usual ones: with what is timed, begins.

    Several axes count by their shares of the usual size. Without usual sizes no sample is looked at.
    """
    closest, start = float("inf"), 0
    for i in range(min(len(samples), _LOOKED_AT) if usual else 0):
        sample = samples[i]
        apart = sum(abs(_size(sample, inputs, axis) - size) / size for axis, size in usual.items())
        if apart < closest:
            closest, start = apart, i
        if not apart:
            break
    return start


class _Maker:
    """Makes feeds in which named axes have a wanted size."""

    def __init__(self, inputs: Sequence[TensorSpec], samples: Sequence[Sample]) -> None:
        self.inputs = inputs
        self.samples = samples

    def sizes(self, axis: str) -> list[int]:
        """The size of an axis in each sample."""
        return [_size(sample, self.inputs, axis) for sample in self.samples]

    def kind(self, wanted: Mapping[str, int]) -> str:
        """Say how the sizes came to be: empty where a sample has them, else `cut`, `repeated` or both."""
        own = self._nearest(wanted)[0]
        sizes = {axis: _size(own, self.inputs, axis) for axis in wanted}
        kinds = {"cut" if sizes[axis] > size else "repeated" for axis, size in wanted.items() if sizes[axis] != size}
        return " and ".join(sorted(kinds))

    def feed(self, batch: int, wanted: Mapping[str, int]) -> dict[str, Array]:
        """Stack the samples nearest to the wanted sizes; axes that are not named take the first one's."""
        near = self._nearest(wanted)
        axes = dynamic_axes(self.inputs)
        target = {axis: wanted.get(axis, _size(near[0], self.inputs, axis)) for axis in axes}
        picked = [near[i % len(near)] for i in range(batch)]
        return {spec.name: np.stack([_fitted(s, spec, self.inputs, target) for s in picked]) for spec in self.inputs}

    def _nearest(self, wanted: Mapping[str, int]) -> list[Sample]:
        """The samples in order of how little has to be done to them: as they are, cut, repeated."""

        def effort(sample: Sample) -> tuple[int, int]:
            sizes = {axis: _size(sample, self.inputs, axis) for axis in wanted}
            short = sum(max(0, size - sizes[axis]) for axis, size in wanted.items())
            return short, sum(abs(size - sizes[axis]) for axis, size in wanted.items())

        return sorted(self.samples, key=effort)


def _fitted(sample: Sample, spec: TensorSpec, inputs: Sequence[TensorSpec], target: Mapping[str, int]) -> Array:
    array = sample.inputs[spec.name]
    for position, axis in enumerate(spec.shape[1:]):
        if isinstance(axis, str) and axis in target:
            index = np.arange(target[axis]) % _size(sample, inputs, axis)
            array = np.take(array, index, axis=position)
    return array


def _size(sample: Sample, inputs: Sequence[TensorSpec], axis: str) -> int:
    """The size of a named axis in a sample, which has no batch axis."""
    found = next((s.name, s.shape.index(axis, 1) - 1) for s in inputs if axis in s.shape[1:])
    return int(sample.inputs[found[0]].shape[found[1]])


def _sizes_of(axis: str, recipe: Recipe, seen: Sequence[int]) -> tuple[int, ...]:
    """The sizes at which an axis is checked: of its profile or, without one, of the samples."""
    covered = recipe.profile.get(axis)
    if covered is not None:
        return axis_sizes(covered.min, covered.opt, covered.max)
    return axis_sizes(min(seen), sorted(seen)[len(seen) // 2], max(seen))


def _told(kinds: Mapping[str, str]) -> tuple[str, ...]:
    """Say which sizes the samples have and which were made from them."""
    groups: dict[str, list[str]] = {}
    for title, kind in kinds.items():
        groups.setdefault(kind, []).append(title)
    words = {"": "real samples", "cut": "cut from longer samples", "repeated": "repeated from shorter samples"}
    return ("inputs: " + "; ".join(f"{', '.join(titles)}: {words[kind]}" for kind, titles in groups.items()),)


def _shapes(sample: Sample) -> Mapping[str, tuple[int, ...]]:
    return {name: array.shape for name, array in sample.inputs.items()}


def _elements(sample: Sample) -> int:
    return sum(array.size for array in sample.inputs.values())
