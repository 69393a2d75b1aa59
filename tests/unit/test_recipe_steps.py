"""The steps of a recipe: shared by the targets unless something differs between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recipe_words import WORDS

from optimizer.recipe.loader import load_recipe
from optimizer.recipe.model import Recipe, Target, Variant
from optimizer.recipe.steps import derive

FIXTURES = Path(__file__).parents[1] / "fixtures" / "recipes"
BOTH = ("onnxruntime", "tensorrt_rtx")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    for name in ("model.py", "data.py", "checkpoint.safetensors"):
        (tmp_path / name).write_bytes((FIXTURES / "bad" / name).read_bytes())
    (tmp_path / "recipe.yaml").write_text((FIXTURES / "good.yaml").read_text())
    return load_recipe(tmp_path / "recipe.yaml", {}, WORDS)


def calibrations(recipe: Recipe, precision: str, targets: tuple[str, ...], **options: Any) -> dict[str, Any]:
    """Return the dialects that each calibration of a variant serves, by the id of its step."""
    variant = Variant(precision=precision, targets=targets, options=options)
    given = recipe.model_copy(
        update={"variants": {"v": variant}, "targets": {name: Target(options={}) for name in targets}}
    )
    steps = derive(given).steps
    return {s.id: s.stage.dialects for s in steps if s.stage.name == "calibrate"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("options", [{}, {"cross_layer": True}, {"smooth_quant": 0.5}])
def test_one_calibration_serves_both_dialects(recipe: Recipe, options: dict[str, Any]) -> None:
    assert calibrations(recipe, "int8", BOTH, **options) == {"v/calibrate": ("cpu", "tensorrt")}


def test_an_alpha_that_is_sought_is_sought_in_each_dialect(recipe: Recipe) -> None:
    found = calibrations(recipe, "int8", BOTH, smooth_quant="auto")
    assert found == {"v@cpu/calibrate": ("cpu",), "v@tensorrt/calibrate": ("tensorrt",)}


def test_each_dialect_of_the_targets_has_a_graph_from_one_calibration(recipe: Recipe) -> None:
    every = ("onnxruntime", "openvino", "tensorrt_rtx")
    assert calibrations(recipe, "int8", every) == {"v/calibrate": ("cpu", "openvino", "tensorrt")}
    variant = Variant(precision="int8", targets=every, options={})
    given = recipe.model_copy(
        update={"variants": {"v": variant}, "targets": {name: Target(options={}) for name in every}}
    )
    found = derive(given)
    assert {s.id for s in found.steps if s.stage.name == "quantize"} == {
        "v@cpu/quantize",
        "v@openvino/quantize",
        "v@tensorrt/quantize",
    }
    graphs = {c.target: c.graph for c in found.candidates if c.variant == "v"}
    assert graphs["openvino"] == "v@openvino/quantize"
    assert graphs["onnxruntime"] == "v@cpu/quantize"


def test_only_what_the_targets_ask_for_is_calibrated(recipe: Recipe) -> None:
    assert calibrations(recipe, "int8", ("openvino",)) == {"v/calibrate": ("openvino",)}
    assert calibrations(recipe, "int8", ("onnxruntime",)) == {"v/calibrate": ("cpu",)}
    assert calibrations(recipe, "int8", ("tensorrt_rtx",)) == {"v/calibrate": ("tensorrt",)}


def test_fp8_has_one_dialect_and_int8_sums_ask_for_everything(recipe: Recipe) -> None:
    assert calibrations(recipe, "fp8", BOTH) == {"v/calibrate": ("tensorrt",)}
    assert calibrations(recipe, "int8", ("onnxruntime",), residuals="int8") == {"v/calibrate": ("cpu", "tensorrt")}
