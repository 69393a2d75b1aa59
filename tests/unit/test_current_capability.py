"""`compute_capabilities: [current]`: the GPU here by its number, and without one an error that says so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from recipe_words import WORDS

from optimizer.cli.check import command
from optimizer.errors import MissingToolError, RecipeError, UsageError
from optimizer.pipeline import plan
from optimizer.recipe import here, steps
from optimizer.recipe.loader import load_recipe
from optimizer.recipe.model import Recipe, Target
from optimizer.recipe.validate import _form

FIXTURES = Path(__file__).parents[1] / "fixtures" / "recipes"


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    for name in ("model.py", "data.py", "checkpoint.safetensors"):
        (tmp_path / name).write_bytes((FIXTURES / "bad" / name).read_bytes())
    (tmp_path / "recipe.yaml").write_text((FIXTURES / "good.yaml").read_text())
    loaded = load_recipe(tmp_path / "recipe.yaml", {}, WORDS)
    targets = {"tensorrt_rtx": Target(options={"compute_capabilities": ("current",)})}
    return loaded.model_copy(update={"targets": targets})


def test_the_gpu_here_is_written_out_as_its_number(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    gpu = SimpleNamespace(compute_capability="8.9", close=lambda: closed.append(0))
    monkeypatch.setattr(here, "Cuda", lambda index: gpu)
    engines = [step.stage for step in steps.derive(recipe).steps if step.stage.name == "engine"]
    assert engines
    assert {stage.capabilities for stage in engines} == {("8.9",)}  # type: ignore[attr-defined]
    assert closed == [0]  # asked once


def of(capability: str) -> SimpleNamespace:
    return SimpleNamespace(compute_capability=capability, close=lambda: None)


def test_a_gpu_that_the_library_does_not_serve_is_refused(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here, "Cuda", lambda index: of("9.0"))
    with pytest.raises(RecipeError, match=r"the GPU here has 9\.0, and tensorrt_rtx builds for no 9\.0"):
        steps.derive(recipe)


def test_a_variant_that_needs_a_later_gpu_is_refused(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = {"fp8": recipe.variants["int8"].model_copy(update={"precision": "fp8", "options": {}})}
    narrow = recipe.model_copy(update={"variants": variants})
    monkeypatch.setattr(here, "Cuda", lambda index: of("8.6"))
    with pytest.raises(RecipeError, match=r"fp8 needs a GPU of 8\.9 or later, the one here has 8\.6"):
        steps.derive(narrow)
    monkeypatch.setattr(here, "Cuda", lambda index: of("8.9"))
    assert steps.derive(narrow).steps


def test_the_gpu_here_is_the_first_and_no_other(recipe: Recipe) -> None:
    assert here.asks_for_the_gpu_here(recipe)
    with pytest.raises(UsageError, match="builds them on cuda:0, not on cuda:1"):
        plan._bound("cuda:1")


def test_without_a_gpu_the_gpu_here_is_refused(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(index: int) -> None:
        raise MissingToolError("needs an NVIDIA GPU with a driver; this machine has none", where="device cuda:0")

    monkeypatch.setattr(here, "Cuda", absent)
    with pytest.raises(
        MissingToolError, match=r"targets\.tensorrt_rtx\.compute_capabilities: \[current\] is the"
    ) as no:
        steps.derive(recipe)
    assert "it needs an NVIDIA GPU with a driver" in no.value.what
    assert "['8.6', '8.9']" in str(no.value.hint)


def test_a_variant_that_builds_no_engine_asks_for_no_gpu(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one that is not wanted."""
    monkeypatch.setattr(here, "Cuda", lambda index: pytest.fail("no GPU is needed"))
    int8 = recipe.variants["int8"]
    variants = {"int8": int8, "plain": int8.model_copy(update={"targets": ("onnxruntime",)})}
    both = recipe.model_copy(
        update={"variants": variants, "targets": {**recipe.targets, "onnxruntime": Target(options={})}}
    )
    found = steps.derive(both, ["plain"])
    assert "plain@onnxruntime" in [c.name for c in found.candidates]
    assert not here.asks_for_the_gpu_here(both, ["plain"])
    assert here.asks_for_the_gpu_here(both, ["int8"])
    assert steps.derive(both, here=False).steps


def test_check_needs_no_gpu_and_says_who_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("model.py", "data.py", "checkpoint.safetensors"):
        (tmp_path / name).write_bytes((FIXTURES / "bad" / name).read_bytes())
    text = (FIXTURES / "good.yaml").read_text()
    assert "targets:" in text
    head, _, _ = text.partition("targets:")
    (tmp_path / "recipe.yaml").write_text(f"{head}targets: {{tensorrt_rtx: {{compute_capabilities: [current]}}}}\n")

    def absent(index: int) -> None:
        raise MissingToolError("needs an NVIDIA GPU with a driver; this machine has none", where="device cuda:0")

    monkeypatch.setattr(here, "Cuda", absent)
    done = CliRunner().invoke(command, [str(tmp_path / "recipe.yaml")])
    assert done.exit_code == 0, done.output
    assert "sound." in done.output
    assert "note: targets.tensorrt_rtx.compute_capabilities: [current] is the compute capability" in done.output


def test_listed_capabilities_ask_for_no_gpu(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here, "Cuda", lambda index: pytest.fail("no GPU is needed"))
    targets = {"tensorrt_rtx": Target(options={"compute_capabilities": ("8.6",)})}
    assert steps.derive(recipe.model_copy(update={"targets": targets})).steps


def test_a_pattern_of_two_forms_is_worded() -> None:
    assert _form(r"^(\d+\.\d|current)$") == "text of the form N.N or current, N a number"
    assert _form(r"^\d+\.\d$") == "text of the form N.N, N a number"
