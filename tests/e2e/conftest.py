"""One tiny recipe built once for all tests that only look at its run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from optimizer.cli import main
from optimizer.store import Store
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


@pytest.fixture(scope="session")
def warm_home(built: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that knows the good recipe already, for all bad ones."""
    place = tmp_path_factory.mktemp("bad") / "home"
    shutil.copytree(built.home, place)
    return place


@pytest.fixture
def folder(built: Build, tmp_path: Path) -> Path:
    """A copy of the good recipe's folder, to spoil."""
    place = tmp_path / "recipe"
    shutil.copytree(built.recipe.parent, place, ignore=shutil.ignore_patterns("*.lock.json", "__pycache__"))
    return place


@pytest.fixture
def stays_whole(warm_home: Path, built: Build, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Afterwards the store is intact, nothing half lies about, and the good recipe builds."""
    yield
    assert Store(warm_home / "store").verify() == []
    assert list((warm_home / "store" / "tmp").iterdir()) == []
    monkeypatch.setenv("OPTIMIZE_HOME", str(warm_home))
    assert main(["build", str(built.recipe)]) == 0
