"""The optimization profiles of an engine: ranges of the dynamic axes, each with the sizes its kernels are tuned for."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optimizer.errors import StageError
from optimizer.types import TensorSpec

Range = tuple[int, int, int]  # min, opt, max
Ranges = Mapping[str, Range]  # axis -> its range


def complete(profiles: Sequence[Mapping[str, Sequence[int]]], profile: Ranges) -> list[dict[str, Range]]:
    """Return the profiles to build: an axis that an entry leaves out keeps the recipe's; none given, the recipe's."""
    return [{axis: _range(entry.get(axis, whole)) for axis, whole in profile.items()} for entry in profiles or ({},)]


def profile_problems(
    profiles: Sequence[Mapping[str, Sequence[int]]], profile: Ranges
) -> list[tuple[tuple[str | int, ...], str]]:
    """Return what is wrong with a target's profiles: the position in the list, and a sentence.

    Each lies inside the recipe's ranges, and together they cover them: every shape that the recipe allows must execute.
    """
    problems: list[tuple[tuple[str | int, ...], str]] = []
    for index, entry in enumerate(profiles):
        for axis, sizes in entry.items():
            if axis not in profile:
                known = ", ".join(profile) or "none"
                problems.append(((index, axis), f"the recipe's profile has no axis '{axis}' (known: {known})"))
                continue
            low, _, high = profile[axis]
            if not low <= sizes[0] <= sizes[1] <= sizes[2] <= high:
                text = f"{list(sizes)} must rise and lie inside the recipe's profile.{axis}, {low} to {high}"
                problems.append(((index, axis), text))
    if problems or not profiles or not profile:
        return problems
    entries = complete(profiles, profile)
    for index, entry in enumerate(entries):
        if entry in entries[:index]:
            problems.append(((index,), f"is the same as entry {entries.index(entry)}"))
    gap = _uncovered(entries, profile)
    if gap:
        text = f"no entry covers {gap}, which the recipe's profile allows: add one, or narrow the recipe's profile"
        problems.append(((), text))
    return problems


def _uncovered(entries: Sequence[Ranges], profile: Ranges) -> str:
    """Return the first box of sizes that no entry covers, in words; the sizes between two bounds behave alike."""
    cuts = {
        axis: sorted(
            {low} | {size for entry in entries for size in (entry[axis][0], entry[axis][2] + 1) if low <= size <= high}
        )
        for axis, (low, _, high) in profile.items()
    }
    for cell in itertools.product(*cuts.values()):
        sizes = dict(zip(cuts, cell, strict=True))
        if not any(all(e[axis][0] <= size <= e[axis][2] for axis, size in sizes.items()) for e in entries):
            ends = {axis: _end(cuts[axis], size, profile[axis][2]) for axis, size in sizes.items()}
            return ", ".join(
                f"{axis} {size}" + (f" to {ends[axis]}" if ends[axis] > size else "") for axis, size in sizes.items()
            )
    return ""


def _end(cuts: list[int], size: int, last: int) -> int:
    later = [cut - 1 for cut in cuts if cut > size]
    return later[0] if later else last


def check_profile(inputs: tuple[TensorSpec, ...], profile: Ranges) -> None:
    """Refuse dynamic axes that no profile covers, and profiles of axes that no input has.

    Raises: StageError with the line to add to the recipe.
    """
    named: dict[str, list[str]] = {}
    for spec in inputs:
        for axis in dict.fromkeys(a for a in spec.shape if isinstance(a, str)):
            named.setdefault(axis, []).append(spec.name)
    missing = {axis: users for axis, users in named.items() if axis not in profile}
    if missing:
        users = list(dict.fromkeys(name for group in missing.values() for name in group))
        plural = len(users) > 1
        lines = ", ".join(f"{axis}: {{min: 1, opt: 8, max: 32}}" for axis in missing)
        raise StageError(
            f"input{'s' * plural} {_listed(users)} {'have' if plural else 'has'} "
            f"dynamic ax{'es' if len(missing) > 1 else 'is'} {_listed(missing)} and no profile covers "
            f"{'them' if len(missing) > 1 else 'it'}.",
            hint=f"Add to the recipe:  profile: {{{lines}}}",
        )
    unknown = [axis for axis in profile if axis not in named]
    if unknown:
        raise StageError(
            f"the profile names {_listed(unknown)}, which no input has (dynamic axes: {_listed(named) or 'none'})",
            hint="Remove it from the profile, or name the axis in the recipe's inputs.",
        )


def add_profiles(
    builder: Any, config: Any, network: Any, inputs: tuple[TensorSpec, ...], profiles: Sequence[Ranges]
) -> None:
    """Give every dynamic input its smallest, usual and largest shape, once for each profile.

    Raises: StageError for a profile that the library refuses, and for inputs whose values decide a shape.
    """
    dynamic = {spec.name: spec for spec in inputs if any(isinstance(axis, str) for axis in spec.shape)}
    shapes = [network.get_input(index) for index in range(network.num_inputs)]
    values = [tensor.name for tensor in shapes if tensor.is_shape_tensor]
    if values:
        raise StageError(
            f"the values of input {_listed(values)} decide a shape; a profile here covers axes, not values",
            hint="Make that size an axis of another input, or a constant of the model.",
        )
    for profile in profiles if dynamic else ():
        entry = builder.create_optimization_profile()
        for name, spec in dynamic.items():
            entry.set_shape(name, *(sizes(spec, profile, which) for which in range(3)))
        if config.add_optimization_profile(entry) < 0:
            given = ", ".join(f"{axis}: {ranges}" for axis, ranges in profile.items())
            raise StageError(f"the profile is refused ({given})", hint="Allowed: min <= opt <= max for every axis.")


def sizes(spec: TensorSpec, profile: Mapping[str, Sequence[int]], which: int) -> tuple[int, ...]:
    """Return the shape of an input at the min (0), opt (1) or max (2) of a profile."""
    return tuple(profile[axis][which] if isinstance(axis, str) else axis for axis in spec.shape)


def named(profile: Ranges) -> dict[str, dict[str, int]]:
    """Return a profile as engine.json holds it."""
    return {axis: dict(zip(("min", "opt", "max"), ranges, strict=True)) for axis, ranges in profile.items()}


def _range(sizes: Sequence[int]) -> Range:
    low, usual, high = sizes
    return low, usual, high


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
