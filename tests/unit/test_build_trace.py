"""`build --trace FILE`: what cannot be written is refused before anything is built."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from optimizer.cli.build import command
from optimizer.errors import OptimizerError, RecipeError, UsageError


def refused(folder: Path, trace: Path) -> OptimizerError:
    """Build a recipe that is none: whatever passes the check of the trace is refused there."""
    recipe = folder / "recipe.yaml"
    recipe.write_text("not: a recipe\n")
    error = CliRunner().invoke(command, [str(recipe), "--trace", str(trace)]).exception
    assert isinstance(error, OptimizerError)
    return error


def test_a_trace_that_is_a_folder_is_refused_first(tmp_path: Path) -> None:
    error = refused(tmp_path, tmp_path)
    assert error.render() == f"--trace {tmp_path}: cannot be written: it is a folder"
    assert (type(error), error.exit_code) == (UsageError, 2)


def test_a_trace_in_no_folder_is_refused_first(tmp_path: Path) -> None:
    assert refused(tmp_path, tmp_path / "none" / "t.json").what == "cannot be written: there is no such folder"


def test_a_trace_where_nobody_may_write_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system is asked of the file, or of its folder where there is none yet."""
    (tmp_path / "old.json").touch()
    asked: list[Any] = []
    real = os.access

    def denied(path: Path, mode: int) -> bool:
        if mode != os.W_OK:  # click asks whether the recipe can be read
            return real(path, mode)
        asked.append(path)
        return False

    monkeypatch.setattr(os, "access", denied)
    for name in ("old.json", "new.json"):
        assert refused(tmp_path, tmp_path / name).what == "cannot be written: no permission"
    assert asked == [tmp_path / "old.json", tmp_path]


def test_a_trace_that_can_be_written_is_no_reason(tmp_path: Path) -> None:
    (tmp_path / "old.json").touch()
    for name in ("old.json", "new.json"):
        assert isinstance(refused(tmp_path, tmp_path / name), RecipeError)
