"""What a recipe's author reads: every problem with its place, root cause first, follow-ons left out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from optimizer.errors import RecipeError

KeyPath = tuple[str | int, ...]

# Ranks: a problem of a lower rank explains those of a higher rank that touch the same keys.
SYNTAX, SHAPE, MISSING, CROSS = range(4)
_MAX_KNOWN = 16
_NEAR = 0.6  # ratio of equal characters from which two names are taken for one with a typing error


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Line and column, both from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong. `needs` are the keys whose values were believed; `explains` is the key that was meant."""

    path: KeyPath
    text: str
    rank: int
    at_key: bool = False  # it is the key that is wrong, not its value
    needs: tuple[KeyPath, ...] = ()
    explains: KeyPath | None = None
    place: Place | None = None


class Places(Protocol):
    """Where keys and values stand."""

    def key_place(self, path: KeyPath) -> Place:
        """Return where a key stands."""

    def value_place(self, path: KeyPath) -> Place:
        """Return where a value stands."""


@dataclass
class Problems:
    """Collects what is wrong with the file `name`, and renders it once."""

    name: str
    document: Places | None = None
    found: list[Problem] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)

    def add(self, problem: Problem) -> None:
        """Note a problem at a key."""
        self.found.append(problem)

    def add_at(self, place: Place, text: str, path: KeyPath = ()) -> None:
        """Note a problem of the YAML itself."""
        self.found.append(Problem(path, text, SYNTAX, place=place))

    def add_plain(self, text: str) -> None:
        """Note a problem that stands on no line."""
        self.plain.append(text)

    def cross(self, path: KeyPath, text: str, *needs: KeyPath, at_key: bool = False) -> None:
        """Note a combination of values that cannot be right together."""
        self.found.append(Problem(path, text, CROSS, at_key, needs))

    def __bool__(self) -> bool:
        return bool(self.found or self.plain)

    def lines(self) -> list[str]:
        """Return one line a problem, root cause first, and every one of them."""
        placed = [(p.rank, self._place(p), p) for p in self.found if not self._is_follow_on(p)]
        placed.sort(key=lambda item: item[:2])
        lines = [f"{self.name}: {text}" for text in self.plain]
        for _, place, problem in placed:
            where = f"{self.name}:{place.line}:{place.column}:"
            key = f" {dotted(problem.path)}:" if problem.path else ""
            lines.append(f"{where}{key} {problem.text}")
        return list(dict.fromkeys(lines))

    def _place(self, problem: Problem) -> Place:
        if problem.place is not None or self.document is None:
            return problem.place or Place(1, 1)
        at = self.document.key_place if problem.at_key else self.document.value_place
        return at(problem.path)

    def _is_follow_on(self, problem: Problem) -> bool:
        paths = (problem.path, *problem.needs)
        return any(
            other.rank < problem.rank and any(_touch(path, cause) for path in paths for cause in _causes(other))
            for other in self.found
        )


def _causes(problem: Problem) -> Iterable[KeyPath]:
    if problem.path:
        yield problem.path
    if problem.explains:
        yield problem.explains


def _touch(a: KeyPath, b: KeyPath) -> bool:
    shorter = min(len(a), len(b))
    return shorter > 0 and a[:shorter] == b[:shorter]


def dotted(path: KeyPath) -> str:
    """Return a path as it is written: `data.transform[0].resize`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return _line(text)


@dataclass(frozen=True, slots=True)
class Nearest:
    """The known name that is nearest to a given one, if any is near."""

    name: str | None

    @property
    def asked(self) -> str:
        """The question, ready to be appended."""
        return f", did you mean '{self.name}'?" if self.name else ""


def nearest(given: str, known: Sequence[str]) -> Nearest:
    """Find the known name nearest to `given`, whatever its case and dashes."""
    ratios = {name: difflib.SequenceMatcher(None, _plain(name), _plain(given)).ratio() for name in known}
    best = max(ratios, key=lambda name: ratios[name], default=None)  # the first of equals
    return Nearest(best if best is not None and ratios[best] >= _NEAR else None)


def no_such_file(path: Path) -> RecipeError:
    """Return the error for a recipe that is not there, with the YAML file beside it that is named most like it."""
    near = nearest(path.name, sorted(p.name for p in path.parent.glob("*.y*ml")))
    return RecipeError(f"no such file{near.asked}", where=str(path))


def check_is_there(path: Path) -> None:
    """Refuse a path where nothing is, before anything heavy is imported: what a bare install lacks would mend nothing.

    Raises: RecipeError.
    """
    if not path.exists():
        raise no_such_file(path)


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def listed(names: Iterable[str]) -> str:
    """Return `(known: a, b, c)`, cut where it gets long."""
    known = list(names)
    shown = known[:_MAX_KNOWN] + (["..."] if len(known) > _MAX_KNOWN else [])
    return f"(known: {', '.join(shown)})" if known else "(known: none)"


def unknown(what: str, given: str, known: Sequence[str]) -> str:
    """Return `unknown WHAT, did you mean 'X'? (known: ...)`."""
    return f"unknown {what}{nearest(given, known).asked} {listed(known)}"


def shown(value: Any) -> str:
    """Return a value as a recipe's author would write it, cut where it gets long."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return (
            f"a mapping with {', '.join(_line(str(key)) for key in list(value)[:4])}" if value else "an empty mapping"
        )
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, str):
        return f"'{_line(value if len(value) <= 60 else value[:57] + '...')}'"
    return str(value)


def _line(text: str) -> str:
    """Write what breaks a line, and what cannot be seen, as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
