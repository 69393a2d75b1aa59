"""The screens of failures: short, whole, and kept beside the tests.

`SCREENS=write pytest tests/e2e` writes the files in tests/fixtures/screens anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SCREENS = Path(__file__).parent.parent / "fixtures" / "screens"
MOST_LINES = 15
FINISHED = re.compile(r"^\S+ +(built|reused|measured)\b")
PROGRESS = re.compile(r"^\S+ +(built|reused|measured|failed)\b")
RUNNING = re.compile(r"^  \S.*: (\d+ of \d+|\d+%)$")  # a slow machine is told that a step is still under way


@dataclass(frozen=True)
class Bad:
    """A bad input, the exit code, and the words that its screen must have."""

    change: Callable[[Path], None]
    code: int
    says: tuple[str, ...]
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.change.__name__


def outcomes(screen: str) -> dict[str, str]:
    """What became of each step."""
    return {line.split()[0]: line.split()[1] for line in screen.splitlines() if PROGRESS.match(line)}


def plain(text: str, home: Path, folder: Path) -> str:
    """Put placeholders where a screen differs from machine to machine, and leave out the lines of finished steps."""
    text = "".join(
        line for line in text.splitlines(keepends=True) if not FINISHED.match(line) and not RUNNING.match(line)
    )
    for found, name in (
        (re.escape(str(folder)), "<folder>"),
        (rf"{re.escape(str(home))}/runs/\w+/\d+", "<run>"),
        (re.escape(str(home)), "<home>"),
        (r"\b[0-9a-f]{64}\b", "<sha256>"),
        (r"\b[0-9a-f]{8}\b", "<digest>"),
        (r"(tensorrt_rtx|torch) [\d.]+\d\S*", r"\1 <version>"),
    ):
        text = re.sub(found, name, text)
    return text


def check_screen(name: str, screen: str) -> None:
    """Compare with the screen that is kept beside the test."""
    file = SCREENS / f"{name}.txt"
    if os.environ.get("SCREENS") == "write":
        file.parent.mkdir(exist_ok=True)
        file.write_text(screen)
    assert screen == file.read_text()


def check_short(stderr: str) -> None:
    told = [line for line in stderr.splitlines() if not PROGRESS.match(line) and not RUNNING.match(line)]
    assert 1 <= len(told) <= MOST_LINES, stderr
    assert "Traceback" not in stderr
    assert len(set(told)) == len(told), "something is said twice"
    for log in re.findall(r"log: (\S+)", stderr):
        assert Path(log).is_file()


def check_bad(bad: Bad, stderr: str, returncode: int, home: Path, folder: Path) -> None:
    """Hold what a build said and how it ended against what this bad input must get."""
    assert returncode == bad.code, stderr
    check_short(stderr)
    for words in bad.says:
        assert words in stderr
    check_screen(bad.name, plain(stderr, home, folder))
