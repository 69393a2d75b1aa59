"""docs/ci.md as its reader runs it: command by command, on a sound change and on one that breaks the model."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.e2e.conftest import Build, run_optimize
from tests.e2e.tiny import edit

PAGE = (Path(__file__).parent.parent.parent / "docs" / "ci.md").read_text()
COMMANDS = [shlex.split(line)[1:] for line in re.findall(r"^\$ (optimize .+)$", PAGE, re.MULTILINE)]
GATE = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0]


@pytest.fixture
def project(built: Build, tmp_path: Path) -> Build:
    """A repository with a recipe and the store of the session's build: what is unchanged is not built again."""
    shutil.copytree(built.recipe.parent, tmp_path / "project")
    shutil.copytree(built.home, tmp_path / "home")
    return Build(tmp_path / "project" / "recipe.yaml", tmp_path / "home", built.run, "", "")


def run(project: Build, command: list[str]) -> subprocess.CompletedProcess[str]:
    return run_optimize(*command, home=project.home, cwd=project.recipe.parent)


def test_the_page_has_the_commands_that_this_test_runs() -> None:
    assert [c[0] for c in COMMANDS] == ["build", "build", "compare", "compare"]


def test_an_unchanged_project_passes_every_command(project: Build) -> None:
    (project.recipe.parent / "gate.yaml").write_text(GATE.replace("min: 0.95", "min: 0.5"))
    for command in COMMANDS:
        done = run(project, command)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    folder = project.recipe.parent
    assert "pass" in (folder / "compare.md").read_text()
    assert ET.parse(folder / "compare.xml").getroot().tag in ("testsuite", "testsuites")


def test_a_broken_int8_fails_the_comparison_and_the_gate(project: Build) -> None:
    (project.recipe.parent / "gate.yaml").write_text("top1: {max_drop: 0.01}\n")
    assert run(project, COMMANDS[0]).returncode == 0
    edit(project.recipe, "int8: {}", "int8: {percentile: 51.0}")
    model = project.recipe.parent / "model.py"
    weights = "self.head(self.features(image))"
    model.write_text(model.read_text().replace(weights, f"{weights}.roll(1, 1)"))
    assert run(project, COMMANDS[1]).returncode in (0, 4)  # 4: calibrated so badly, a stage may refuse
    for command in COMMANDS[2:]:
        done = run(project, command)
        assert done.returncode == 6, done.stdout + done.stderr
        assert "top1" in done.stdout


def test_only_the_three_files_are_needed_to_compare(project: Build, tmp_path: Path) -> None:
    assert run(project, COMMANDS[0]).returncode == 0
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in ("report.json", "outcomes.npz", "latency.npz"):
        shutil.copy(project.recipe.parent / "baseline" / name, kept / name)
    done = run(project, ["compare", str(kept), str(project.recipe.parent / "baseline")])
    assert done.returncode == 0, done.stdout + done.stderr
