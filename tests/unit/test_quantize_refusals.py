"""Bad input to calibrate and quantize, each with its exact screen; exit code 4."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from quantization_graphs import build, pictures, ranges_of, small_cnn

from optimizer.errors import StageError
from optimizer.graph.quantize import activations, quantize

CONV = "g (float[batch, 3, 8, 8] image) => (float[batch, 4, 8, 8] y) { y = Conv <pads = [1, 1, 1, 1]> (image, w0) }"


def screen(model: onnx.ModelProto, **options: object) -> str:
    with pytest.raises(StageError) as caught:
        quantize(model, {}, "tensorrt", **options)  # type: ignore[arg-type]
    assert caught.value.exit_code == 4
    return str(caught.value)


def test_a_model_that_is_quantized_already(tmp_path: Path) -> None:
    model = small_cnn()
    made = quantize(model, ranges_of(model, {"image": np.stack(pictures(4))}, tmp_path), "cpu").model
    expected = (
        "quantize: the graph holds 22 QuantizeLinear and DequantizeLinear nodes already, "
        "'w1_dequantized/dequantize' first\n"
        "  Start from the float32 model, or list only the fp32 variant for a model that is quantized already."
    )
    assert screen(made) == expected
    with pytest.raises(StageError) as caught:
        activations(made)
    assert str(caught.value) == expected.replace("quantize:", "calibrate:", 1)


@pytest.mark.parametrize("kind", ["QLinearConv", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"])
def test_a_model_with_integer_operators(kind: str) -> None:
    model = build(CONV, {"w0": (4, 3, 3, 3)})
    model.graph.node.insert(0, helper.make_node(kind, ["a"], ["b"], name="old"))
    assert screen(model) == (
        f"quantize: the graph computes in integers already: {kind} 'old'\n"
        "  Start from the float32 model, or list only the fp32 variant for a model that is quantized already."
    )


def test_a_graph_without_a_layer_to_quantize() -> None:
    model = build("g (float[batch, 3, 8, 8] image) => (float[batch, 3, 8, 8] y) { y = Relu (image) }", {})
    assert screen(model) == (
        "quantize: the graph has no layer that quantization speeds up (looked for Conv, ConvTranspose, Gemm, MatMul)\n"
        "  Remove the int8 and fp8 variants from the recipe, or check that the right model was exported."
    )


def test_a_graph_whose_layers_all_stay_in_float() -> None:
    text = """g (float[batch, 3, 8] image) => (float[3, batch, 4] y, float[batch, 3, 3] z) {
      y, h, c = LSTM <hidden_size = 4, layout = 0> (image, w0, w1)
      t = Transpose <perm = [0, 2, 1]> (image)
      z = MatMul (image, t)
    }"""
    model = build(text, {"w0": (1, 16, 8), "w1": (1, 16, 4)})
    assert screen(model) == (
        "quantize: no layer is left to quantize: node_y: recurrent layers are not quantized; "
        "node_z: both operands are activations"
    )


def test_an_opset_below_what_scales_per_channel_need() -> None:
    model = build(CONV, {"w0": (4, 3, 3, 3)}, header='<ir_version: 7, opset_import: ["" : 12]>')
    assert screen(model) == (
        "quantize: the graph is opset 12; scales per channel need 13 or later\n"
        "  Export it again at a later opset, or convert it with onnx.version_converter.convert_version."
    )


def test_a_table_of_another_graph() -> None:
    assert screen(small_cnn()) == (
        "quantize: the calibration table has no range for flat, image, p1, r3\n"
        "  The table belongs to another graph: calibrate this one."
    )


def test_keeping_what_is_not_there() -> None:
    assert screen(small_cnn(), keep=("node_c3", "layer1")) == (
        "quantize: keep: 'node_c3' is neither an operator type, a node nor a module of the graph; "
        "'layer1' is neither an operator type, a node nor a module of the graph\n"
        "  nearest: node_r3 (node), node_c2 (node)\n"
        "  operator types: Conv, Flatten, Gemm, MaxPool, Relu"
    )
