"""What tests share: the real data, a place of their own, small models."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store and runs folder that no other test sees."""
    place = tmp_path / "home"
    monkeypatch.setenv("OPTIMIZE_HOME", str(place))
    return place


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data; a test that needs it is skipped, saying so, where it is absent."""
    folder = os.environ.get("OPTIMIZE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("OPTIMIZE_DATA names no folder of real data")
    return Path(folder)


@pytest.fixture(autouse=True)
def same_numbers(request: pytest.FixtureRequest) -> None:
    """Draw the same numbers in each test, whichever tests of its module ran before it."""
    for drawn in vars(request.module).values():
        if isinstance(drawn, np.random.Generator):
            drawn.bit_generator.state = np.random.default_rng(0).bit_generator.state


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> Iterator[None]:
    """Take SIGINT as in a terminal: what a shell starts in the background ignores it, and its children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
