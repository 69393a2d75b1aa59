"""Saving ONNX with further outputs, of what was read from a file and of what was made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.graph.files import external_files, save_with_outputs
from optimizer.runtime.onnx import OnnxSession

WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3)


def product() -> onnx.ModelProto:
    """y = Relu(x @ w), with p between them."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Relu", ["p"], ["y"])]
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def stored(folder: Path, place: str) -> Path | None:
    """Store the graph with its weights inside, beside, or not at all."""
    path = folder / "stored.onnx"
    if place == "nowhere":
        return None
    beside = {"save_as_external_data": True, "location": "weights", "size_threshold": 0}
    onnx.save_model(product(), path, **(beside if place == "beside" else {}))
    return path


def test_weights_of_a_branch_that_lie_beside_the_file_are_found(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(WEIGHTS, "w")
    outputs = [helper.make_tensor_value_info("b", TensorProto.FLOAT, [4, 3])]
    branch = helper.make_graph([helper.make_node("Identity", ["w"], ["b"])], "branch", [], outputs, [weight])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    made = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 3])],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    source = tmp_path / "stored.onnx"
    onnx.save_model(model, source, save_as_external_data=True, location="weights", size_threshold=0)
    assert external_files(source) == [tmp_path / "weights"]
    path = tmp_path / "elsewhere" / "model.onnx"
    path.parent.mkdir()
    save_with_outputs(onnx.load(source, load_external_data=False), [], path, source)
    with OnnxSession(path) as session:
        assert (session.infer({"c": np.array(True)})["y"] == WEIGHTS).all()


@pytest.mark.parametrize("place", ["inside", "beside", "nowhere"])
def test_tensors_become_outputs_wherever_the_weights_lie(place: str, tmp_path: Path) -> None:
    source = stored(tmp_path, place)
    model = onnx.load(source, load_external_data=False) if source else product()
    before = source.read_bytes() if source else b""
    path = tmp_path / "elsewhere" / "model.onnx"
    path.parent.mkdir()
    save_with_outputs(model, ["p", "x", "y"], path, source)  # an input and an output are there already
    assert [value.name for value in onnx.load(path).graph.output] == ["y", "p"]
    assert not source or source.read_bytes() == before
    x = -np.ones((2, 4), np.float32)
    with OnnxSession(path) as session:
        found = session.infer({"x": x})
    np.testing.assert_allclose(found["p"], x @ WEIGHTS, rtol=1e-6)
    assert (found["y"] == 0).all()
