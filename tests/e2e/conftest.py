"""One tiny recipe built once for all tests that only look at its run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.tiny import write_tiny

Optimize = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Build:
    recipe: Path
    home: Path
    run: Path
    stdout: str
    stderr: str


def run_optimize(
    *arguments: object, home: Path, cwd: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does: another process, no terminal."""
    return subprocess.run(
        [sys.executable, "-m", "optimizer", *map(str, arguments)],
        env={**os.environ, "OPTIMIZE_HOME": str(home), **env},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The tiny recipe, built."""
    folder = tmp_path_factory.mktemp("tiny")
    recipe = write_tiny(folder / "recipe")
    home = folder / "home"
    done = run_optimize("build", recipe, home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    return Build(recipe, home, Path(done.stdout.splitlines()[-1]).parent, done.stdout, done.stderr)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A tiny recipe of one's own, not built."""
    return write_tiny(tmp_path / "tiny")
