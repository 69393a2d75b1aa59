"""Progress on stderr: bars on a terminal, one plain line a step without one."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_PATIENCE_S = 1.0  # a bar appears for what takes longer


class PlainProgress:
    """One line a step; for logs and pipes."""

    def __init__(self, width: int = 28) -> None:
        self._width = width

    def step(self, name: str, outcome: str, seconds: float | None, key: str | None) -> None:
        """Write the step's line: name, outcome, seconds, first digits of its key."""
        time_text = f"{seconds:6.1f} s" if seconds is not None else " " * 8
        click.echo(f"{name:<{self._width}} {outcome:<8} {time_text}   {(key or '')[:8]}".rstrip(), err=True)

    def advance(self, what: str, done: int, total: int) -> None:
        """Nothing: a log has no use for moving bars."""

    def say(self, text: str) -> None:
        """Write the sentence."""
        click.echo(text, err=True)

    def close(self) -> None:
        """Nothing to tidy."""


class TerminalProgress(PlainProgress):
    """Plain lines, and a bar below them while something takes more than a second."""

    def __init__(self, width: int = 28) -> None:
        super().__init__(width)
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._what = ""
        self._since = 0.0

    def step(self, name: str, outcome: str, seconds: float | None, key: str | None) -> None:
        """Take the bar away, then write the line."""
        self.close()
        super().step(name, outcome, seconds, key)

    def say(self, text: str) -> None:
        """Take the bar away, then write the sentence."""
        self.close()
        super().say(text)

    def advance(self, what: str, done: int, total: int) -> None:
        """Move the bar of `what`; one that is through within a second never shows."""
        if what != self._what:
            self.close()
            self._what, self._since = what, time.monotonic()
        if self._bars is None:
            if time.monotonic() - self._since < _PATIENCE_S:
                return
            self._bars, self._task = _start_bars(what, total)
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total)

    def close(self) -> None:
        """Take the bar away."""
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._task, self._what = None, None, ""


def _start_bars(what: str, total: int) -> tuple[Bars, TaskID]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = Progress(*columns, console=Console(stderr=True), transient=True)
    bars.start()
    return bars, bars.add_task(what, total=total)


def open_progress() -> PlainProgress:
    """Bars where stderr is a terminal, plain lines elsewhere."""
    return TerminalProgress() if sys.stderr.isatty() else PlainProgress()
