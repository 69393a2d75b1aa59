"""Raising the opset: only where no operator means anything else, and with everything on the nodes kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from quantization_graphs import build, infer, pictures, small_cnn

from optimizer.errors import StageError
from optimizer.graph.opset import raise_opset


def test_the_values_and_the_nodes_metadata_stay(tmp_path: Path) -> None:
    model = small_cnn()
    model.graph.node[0].metadata_props.add(key="optimizer.module", value="conv1")
    feed = {"image": np.stack(pictures(4))}
    before = infer(model, feed, tmp_path)
    sentence = raise_opset(model, 21, "int4", "blocks")
    assert sentence == "the graph declares opset 21 instead of 20: none of its operators differs there"
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(infer(model, feed, tmp_path)[0], before[0])
    assert (model.ir_version, model.graph.node[0].metadata_props[0].value) == (10, "conv1")


def test_a_later_opset_stays() -> None:
    model = small_cnn()
    model.opset_import[0].version = 23
    assert raise_opset(model, 21, "int4", "blocks") == ""
    assert model.opset_import[0].version == 23


CHANGED = {
    # It may be dilated from 19 on.
    "AveragePool": (18, "y = AveragePool <kernel_shape = [1, 1]> (x)"),
    # Its mode is 'linear' from 20 on.
    "GridSample": (19, "y = GridSample (x, g)"),
    # 8-bit floats saturate or not from 19 on.
    "Cast": (18, "y = Cast <to = 1> (x)"),
}


@pytest.mark.parametrize("operator", CHANGED)
def test_an_operator_that_changed_is_refused_by_name(operator: str) -> None:
    opset, text = CHANGED[operator]
    header = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    shapes = {"g": (1, 4, 4, 2)} if operator == "GridSample" else {}
    model = build(f"g (float[1, 4, 4, 4] x) => (float[1, 4, 4, 4] y) {{ {text} }}", shapes, header=header)
    with pytest.raises(StageError) as caught:
        raise_opset(model, 21, "int4", "blocks")
    assert caught.value.what == (
        f"the graph is opset {opset}; blocks need 21 or later, where {operator} may mean something else"
    )
    assert caught.value.hint == "Export the model again at opset 21 or later."
    assert model.opset_import[0].version == opset


def test_an_operator_inside_a_body_counts_too() -> None:
    text = """g (bool c, float[4] x) => (float[4] y) {
      y = If (c) <then_branch = t () => (float[4] a) { a = Cast <to = 1> (x) },
                  else_branch = e () => (float[4] b) { b = Identity (x) }> }"""
    with pytest.raises(StageError, match="Cast may mean"):
        raise_opset(build(text, {}, header='<ir_version: 8, opset_import: ["" : 18]>'), 19, "float8", "8-bit floats")


def test_a_model_without_the_standard_operators_is_refused() -> None:
    model = small_cnn()
    model.opset_import[0].domain = "com.example"
    with pytest.raises(StageError, match="declares no opset of ONNX's own operators"):
        raise_opset(model, 21, "int4", "blocks")
