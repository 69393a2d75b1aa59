"""A recipe that starts from an ONNX file: what identifies it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.errors import RecipeError, StageError, UsageError
from optimizer.graph.files import external_files
from optimizer.recipe.loader import load_recipe
from optimizer.recipe.sources import read_sources
from optimizer.stage import StageContext
from optimizer.stages.adopt import Adopt
from optimizer.store import ContentIndex
from optimizer.types import Artifact

RECIPE = """
name: given
model: {checkpoint: model.onnx, outputs: [y]}
inputs: {x: {dtype: float32, shape: [batch, 4]}}
data: {source: data.py:load, evaluation: {split: test}}
"""


def save(path: Path, *, external: bool = False) -> Path:
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32).repeat(200, axis=1), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "multiply")],
        "given",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 800])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path, save_as_external_data=external, location="weights.bin", size_threshold=0)
    return path


def adopt(tmp_path: Path, file: Path, **changes: tuple[str, ...]) -> Path:
    (tmp_path / "out").mkdir()
    stage = Adopt(**{"inputs": ("x",), "outputs": ("y",), **changes})
    context = StageContext(tmp_path / "log", lambda _: None, lambda *_: None, lambda _: pytest.fail("no data needed"))
    stage.run({"checkpoint": Artifact("checkpoint", file, "")}, tmp_path / "out", context)
    return tmp_path / "out" / "model.onnx"


def test_weights_in_another_file_are_part_of_the_identity(tmp_path: Path) -> None:
    save(tmp_path / "model.onnx", external=True)
    (tmp_path / "data.py").write_text("def load(split): ...")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert external_files(tmp_path / "model.onnx") == [tmp_path / "weights.bin"]
    recipe, index = load_recipe(tmp_path / "recipe.yaml"), ContentIndex(tmp_path / "store")
    before = read_sources(recipe, index)["checkpoint"].artifact.digest
    weights = bytearray((tmp_path / "weights.bin").read_bytes())
    weights[3] ^= 1
    (tmp_path / "weights.bin").write_bytes(weights)
    assert read_sources(recipe, index)["checkpoint"].artifact.digest != before
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(RecipeError, match=r"keeps weights in weights\.bin"):
        read_sources(recipe, index)


def test_an_adopted_file_is_whole_with_its_weights(tmp_path: Path) -> None:
    made = adopt(tmp_path, save(tmp_path / "model.onnx", external=True))
    assert external_files(made) == []
    assert numpy_helper.to_array(onnx.load(made).graph.initializer[0])[0, 0] == 1


def test_another_interface_and_another_kind_of_file_are_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "model.onnx")
    with pytest.raises(StageError, match="has the outputs y; the recipe names logits"):
        adopt(tmp_path, file, outputs=("logits",))
    (tmp_path / "text.onnx").write_text("this is no protobuf")
    with pytest.raises(UsageError, match="is not an ONNX file"):
        external_files(tmp_path / "text.onnx")


def test_an_option_that_another_one_switches_off_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "model.onnx")
    (tmp_path / "data.py").write_text("def load(split): ...")
    text = RECIPE.replace("evaluation:", "calibration: {split: train}, evaluation:")
    (tmp_path / "recipe.yaml").write_text(text + "variants: {int8: {method: minmax, percentile: 99.9}}\n")
    with pytest.raises(RecipeError, match=r"variants\.int8\.percentile: has no effect with method: 'minmax'"):
        load_recipe(tmp_path / "recipe.yaml")
    (tmp_path / "recipe.yaml").write_text(text + "variants: {int8: {method: percentile, percentile: 99.9}}\n")
    assert load_recipe(tmp_path / "recipe.yaml").variants["int8"].options["percentile"] == 99.9


def test_what_nothing_would_pick_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "model.onnx")
    (tmp_path / "data.py").write_text("def load(split): ...")
    text = RECIPE.replace("evaluation:", "calibration: {split: train}, evaluation:")
    (tmp_path / "recipe.yaml").write_text(text + "variants: {fp8: {method: auto}}\n")
    with pytest.raises(RecipeError, match=r"variants\.fp8\.method: fp8 has no auto: name the method"):
        load_recipe(tmp_path / "recipe.yaml")
    (tmp_path / "recipe.yaml").write_text(text + "variants: {int8: {method: auto}}\n")
    assert load_recipe(tmp_path / "recipe.yaml").variants["int8"].options["method"] == "auto"
