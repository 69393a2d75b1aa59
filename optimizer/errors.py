"""One tree of errors; every text says where, what is wrong, what was given, what is allowed, what to do."""

from __future__ import annotations

from typing import ClassVar


class OptimizerError(Exception):
    """An error the user can act on. `where` locates it, `hint` says what to do next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.what = what
        self.where = where
        self.hint = hint
        super().__init__(self.render())

    def render(self) -> str:
        """Return the text a person reads: `where: what` and, indented below it, what to do."""
        text = f"{self.where}: {self.what}" if self.where else self.what
        if self.hint:
            text += "".join(f"\n  {line}" for line in self.hint.splitlines())
        return text

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process boundaries; rebuild from the three fields."""
        return _rebuild, (type(self), self.what, self.where, self.hint)


def _rebuild(kind: type[OptimizerError], what: str, where: str | None, hint: str | None) -> OptimizerError:
    return kind(what, where=where, hint=hint)


class UsageError(OptimizerError):
    """Found without executing anything: a wrong argument, an unreadable report, a missing file."""

    exit_code = 2


class RecipeError(UsageError):
    """Something is wrong in a recipe; the text holds every problem, root cause first."""


class MissingToolError(OptimizerError):
    """A tool or device that was asked for is missing on this machine."""

    exit_code = 3


class StageError(OptimizerError):
    """A stage failed, or data or checkpoint turned out wrong while executing."""

    exit_code = 4


class MeasurementError(OptimizerError):
    """A measurement failed, or stayed unstable where the recipe demands stability."""

    exit_code = 5
