"""How the pipeline tells what it is doing; the command line decides what a person sees of it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives what happens, in order."""

    def step(self, name: str, outcome: str, seconds: float | None, key: str | None, reason: str = "") -> None:
        """Report a finished step: `built`, `reused`, `failed` or `measured`; of one that failed its reason."""

    def advance(self, what: str, done: int, total: int) -> None:
        """Report that `done` of `total` parts of something are through."""

    def say(self, text: str) -> None:
        """Report a sentence that a person should read."""
