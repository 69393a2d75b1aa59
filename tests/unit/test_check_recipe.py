"""`optimize check RECIPE` says of a target that cannot be built here what to do, and is still sound."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from optimizer.cli.check import command
from optimizer.runtime import cuda

FIXTURES = Path(__file__).parents[1] / "fixtures" / "recipes"


def check(folder: Path, target: str) -> str:
    for name in ("model.py", "data.py", "checkpoint.safetensors"):
        (folder / name).write_bytes((FIXTURES / "bad" / name).read_bytes())
    lines = (FIXTURES / "good.yaml").read_text().splitlines()
    text = "\n".join(f"  {target}: {{}}" if line.startswith("  tensorrt_rtx:") else line for line in lines)
    (folder / "recipe.yaml").write_text(text)
    result = CliRunner().invoke(command, [str(folder / "recipe.yaml")], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_tensorrt_without_a_gpu_is_noted_with_what_builds_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "LIBRARY", "libno-such-driver.so.1")
    first, note, *advice = check(tmp_path, "tensorrt").splitlines()
    assert ": sound. " in first
    assert note.startswith("note: targets.tensorrt: tensorrt builds an engine beside the GPU that will execute it: it ")
    assert "write tensorrt_rtx under targets" in advice[0]
    assert "optimize measure RUN --device cuda:0" in advice[1]


def test_tensorrt_beside_a_gpu_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "missing", lambda: None)
    assert len(check(tmp_path, "tensorrt").splitlines()) == 1


def test_other_targets_ask_for_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "missing", lambda: pytest.fail("nobody needs one"))
    assert len(check(tmp_path, "tensorrt_rtx").splitlines()) == 1


def test_more_threads_than_processors_are_noted_and_the_recipe_is_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "missing", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(), raising=False)
    first, note = check(tmp_path, "tensorrt").splitlines()
    assert ": sound. " in first
    assert note == (
        "note: measure.threads: 1 thread is asked for and this process may use 0 processors: plan, build and measure "
        "refuse it here"
    )


def bare(*words: object, home: Path) -> tuple[int, str]:
    """Call the command line as an install without extras has it: exit code and stderr."""
    code = (
        "import sys; sys.modules['pydantic'] = sys.modules['yaml'] = sys.modules['onnx'] = None\n"
        "from optimizer.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *map(str, words)]
    env = {**os.environ, "OPTIMIZE_HOME": str(home)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", ["check", "plan", "build"])
def test_a_recipe_that_does_not_exist_is_said_before_what_a_bare_install_lacks(name: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    told = f"error: {tmp_path / 'recip.yaml'}: no such file, did you mean 'recipe.yaml'?\n"
    assert bare(name, tmp_path / "recip.yaml", home=tmp_path) == (2, told)


@pytest.mark.parametrize("words", [["measure"], ["report"], ["bundle", "--variant", "int8"], ["compare", "7"]])
def test_a_run_that_does_not_exist_is_said_before_what_a_bare_install_lacks(words: list[str], tmp_path: Path) -> None:
    code, told = bare(*words, "7", home=tmp_path)
    assert code == 2
    assert told.startswith("error: there is no run 7 under ")


@pytest.mark.parametrize("words", [["plan", "recipe.yaml"], ["build", "recipe.yaml"], ["measure", ""], ["report", ""]])
def test_of_what_exists_a_bare_install_says_what_it_lacks(words: list[str], tmp_path: Path) -> None:
    """The twin."""
    (tmp_path / "recipe.yaml").touch()
    (tmp_path / "report.json").touch()
    code, told = bare(words[0], tmp_path / words[1], home=tmp_path)
    assert code == 3
    assert "a bare install does not bring" in told
    assert "pip install '.[cpu]'" in told
