"""Progress on stderr: bars on a terminal, one plain line a step without one."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_PATIENCE_S = 1.0  # a bar appears for what takes longer
_SILENCE_S = 20.0  # a log hears of what takes longer
_WIDTH = 28  # of a step's name at least, so that builds of most recipes look alike
_REASON = 160  # characters of a reason in a step's line; the whole error is told at the end


class PlainProgress:
    """One line a step; for logs and pipes. `names` are those of the steps to come: the columns leave room for them."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._width = max(_WIDTH, *map(len, names), 0)
        self._spoke = time.monotonic()

    def step(self, name: str, outcome: str, seconds: float | None, key: str | None, reason: str = "") -> None:
        """Write the step's line: name, outcome, seconds, first digits of its key; or the first line of a reason."""
        time_text = f"{seconds:6.1f} s" if seconds is not None else " " * 8
        self._width = max(self._width, len(name))
        last = first_line(reason) if reason else (key or "")[:8]
        self._write(f"{name:<{self._width}} {outcome:<8} {time_text}   {last}".rstrip())

    def advance(self, what: str, done: int, total: int) -> None:
        """Write a line where nothing was written for long; a log has no use for moving bars."""
        if time.monotonic() - self._spoke >= _SILENCE_S:
            self._write(f"  {what}: {done} of {total}" if _counted(what) else f"  {what}: {done / total:.0%}")

    def say(self, text: str) -> None:
        """Write the sentence."""
        self._write(text)

    def _write(self, text: str) -> None:
        click.echo(text, err=True)
        self._spoke = time.monotonic()

    def close(self) -> None:
        """Nothing to tidy."""


class TerminalProgress(PlainProgress):
    """Plain lines, and a bar below them while something takes more than a second."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        super().__init__(names)
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._what = ""
        self._since = 0.0

    def step(self, name: str, outcome: str, seconds: float | None, key: str | None, reason: str = "") -> None:
        """Take the bar away, then write the line."""
        self.close()
        super().step(name, outcome, seconds, key, reason)

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


def first_line(text: str) -> str:
    """Return the first line of a text, cut where it is too long for a line of progress."""
    line = next(iter(text.splitlines()), "")
    return line if len(line) <= _REASON else f"{line[: _REASON - 3].rstrip()}..."


def _counted(what: str) -> bool:
    """Tell whether parts have a name, as in `int8/calibrate: calibration samples`: without one a share says more."""
    return ": " in what


def _start_bars(what: str, total: int) -> tuple[Bars, TaskID]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    count = MofNCompleteColumn() if _counted(what) else TaskProgressColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), count, Remaining())
    bars = Progress(*columns, console=Console(stderr=True), transient=True)
    bars.start()
    return bars, bars.add_task(what, total=total)


def open_progress(names: Iterable[str] = ()) -> PlainProgress:
    """Bars where stderr is a terminal, plain lines elsewhere; `names` are those of the steps to come."""
    return TerminalProgress(names) if sys.stderr.isatty() else PlainProgress(names)
