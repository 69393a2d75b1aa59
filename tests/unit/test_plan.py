"""A plan says once what two variants share, and which steps it has yet to build."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from optimizer.cli.plan import command
from optimizer.errors import StageError
from optimizer.pipeline.build import documents_of_built
from optimizer.pipeline.execute import Executed
from optimizer.recipe.loader import load_recipe
from optimizer.recipe.steps import derive
from optimizer.types import Artifact

FIXTURES = Path(__file__).parents[1] / "fixtures" / "recipes"
MINMAX = "int8_minmax: {precision: int8, method: minmax}"
KEPT = "int8_kept: {precision: int8, method: percentile, keep: [head]}"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with three int8 variants, two of them with one calibration, and an empty store."""
    monkeypatch.setenv("OPTIMIZE_HOME", str(tmp_path / "home"))
    for name in ("model.py", "data.py", "checkpoint.safetensors"):
        (tmp_path / name).write_bytes((FIXTURES / "bad" / name).read_bytes())
    text = (FIXTURES / "good.yaml").read_text()
    assert "int8: {method: percentile}" in text
    text = text.replace("int8: {method: percentile}", f"int8: {{method: percentile}}, {MINMAX}, {KEPT}")
    (tmp_path / "recipe.yaml").write_text(text)
    return tmp_path / "recipe.yaml"


def planned(recipe: Path) -> tuple[dict[str, list[str]], str]:
    result = CliRunner().invoke(
        command, [str(recipe), "--only", "int8", "--only", "int8_minmax", "--only", "int8_kept"]
    )
    assert result.exit_code == 0, result.output
    *lines, last = result.output.splitlines()
    return {line.split()[0]: line.split()[1:] for line in lines}, last


def test_what_two_variants_share_is_to_be_built_once(recipe: Path) -> None:
    steps, last = planned(recipe)
    assert steps["int8/calibrate"][0] == "build"
    assert steps["int8_kept/calibrate"] == ["share", "made", "by", "int8/calibrate"]
    assert steps["int8_kept/diagnose"] == ["share", "made", "by", "int8/diagnose"]
    built = sum(what == "build" for what, *_ in steps.values())
    assert last == f"{len(steps)} stages: 0 to reuse, {built} to build, 2 to share"


def test_what_differs_in_an_option_is_not_shared(recipe: Path) -> None:
    """The twin: another method is another table, and what is made of it another graph."""
    steps, _ = planned(recipe)
    assert [steps[f"int8_minmax/{name}"][0] for name in ("calibrate", "diagnose")] == ["build", "build"]
    assert {what for name, (what, *_) in steps.items() if "quantize" in name} == {"build"}


def test_a_step_that_failed_was_not_built_before() -> None:
    """Its output is not one that was removed or damaged."""
    done = Executed(
        documents={"int8/calibrate": {"stage": "calibrate"}, "int8@cpu/quantize": {"stage": "quantize"}},
        failures={"int8@cpu/quantize": StageError("keep: ...")},
    )
    assert documents_of_built(done) == {"int8/calibrate": {"stage": "calibrate"}}


def test_steps_that_share_have_one_key(recipe: Path) -> None:
    """What the plan takes for one before it knows keys has one key once it does."""
    from optimizer.pipeline.plan import _Same, step_key

    loaded = load_recipe(recipe)
    steps = {step.id: step for step in derive(loaded).steps}
    made = {name: Artifact("data", Path(), name * 8) for name in ("checkpoint", "code", "calibration", "evaluation")}
    same = _Same(made)
    shared = {step.id: same.as_earlier(step) for step in steps.values()}
    outputs: Any = {**made, "simplify": SimpleNamespace(digest="d" * 64)}

    def key(name: str) -> str:
        return step_key(steps[name], outputs, "cpu", loaded)[0]

    assert shared["int8_kept/calibrate"] == "int8/calibrate"
    assert key("int8_kept/calibrate") == key("int8/calibrate")
    assert shared["int8_minmax/calibrate"] is None
    assert key("int8_minmax/calibrate") != key("int8/calibrate")
