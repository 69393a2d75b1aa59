"""Saving ONNX with further outputs, of what was read from a file and of what was made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.graph.files import save_with_outputs
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
