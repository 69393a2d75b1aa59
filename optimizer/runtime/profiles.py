"""Which optimization profile of an engine serves a feed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from optimizer.errors import UsageError

Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]  # min, opt, max
Profile = Mapping[str, Range]  # of the inputs with open axes


def choose_profile(profiles: Sequence[Profile], shapes: Mapping[str, Shape], where: str) -> int:
    """Return the profile that covers the shapes; of several the one tuned nearest to them, then the first.

    Raises: UsageError with the ranges of all profiles when none covers them.
    """
    fitting = [index for index, profile in enumerate(profiles) if _covers(profile, shapes)]
    if not fitting:
        raise UsageError(_refusal(profiles, shapes), where=where)
    return min(fitting, key=lambda index: (_distance(profiles[index], shapes), index))


def _covers(profile: Profile, shapes: Mapping[str, Shape]) -> bool:
    return not _outside(profile, shapes)


def _outside(profile: Profile, shapes: Mapping[str, Shape]) -> list[str]:
    """Return the inputs whose shapes the profile does not allow."""
    return [
        name
        for name, (low, _, high) in profile.items()
        if not all(least <= size <= most for least, size, most in zip(low, shapes[name], high, strict=True))
    ]


def _distance(profile: Profile, shapes: Mapping[str, Shape]) -> float:
    """Sum over the axes of |log(size / tuned size)|: 8 is as far from 4 as from 16."""
    return sum(
        abs(math.log(max(size, 1) / max(usual, 1)))
        for name, (_, opt, _) in profile.items()
        for size, usual in zip(shapes[name], opt, strict=True)
    )


def _refusal(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> str:
    if len(profiles) == 1:
        name = _outside(profiles[0], shapes)[0]
        low, _, high = profiles[0][name]
        return f"input '{name}' has shape {list(shapes[name])}; the engine's profile allows {list(low)} to {list(high)}"
    given = ", ".join(f"'{name}' {list(shapes[name])}" for name in profiles[0])
    allowed = "; ".join(
        f"{index}: " + ", ".join(f"'{name}' {list(low)} to {list(high)}" for name, (low, _, high) in profile.items())
        for index, profile in enumerate(profiles)
    )
    return f"none of the engine's {len(profiles)} profiles covers {given}; they allow {allowed}"
