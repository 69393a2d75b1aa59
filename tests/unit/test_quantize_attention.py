"""Attention's products of activations in int8, as an option."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from quantization_graphs import (
    attention,
    build,
    dequantized,
    images,
    infer,
    ranges_of,
    sequences,
    sqnr_db,
)

from optimizer.calibration.estimators import Estimate
from optimizer.graph.quantizable import Dialect
from optimizer.graph.quantize import Quantized, activations, quantize
from optimizer.graph.receipt import onnxruntime_receipt

MINIMUM_DB = 25.0  # as in the tests of either dialect


def quantized(
    model: onnx.ModelProto, feed: dict[str, np.ndarray], folder: Path, dialect: Dialect, **options: object
) -> Quantized:
    return quantize(model, ranges_of(model, feed, folder), dialect, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dialect", ["tensorrt", "cpu", "openvino"])
def test_attention_in_int8_reads_integers_on_both_sides(tmp_path: Path, dialect: Dialect) -> None:
    feed = sequences()
    reference = infer(attention(), feed, tmp_path)[0]
    made = quantized(attention(), feed, tmp_path, dialect, attention=True)
    onnx.checker.check_model(made.model, full_check=True)
    assert dequantized(made.model, "node_s")[:1] + dequantized(made.model, "node_c") == [True, True, True]
    assert not made.left
    assert not any(dequantized(made.model, "node_p"))
    assert sqnr_db(reference, infer(made.model, feed, tmp_path)[0]) > 20.0  # six layers in a row; measured 25 to 27


def test_onnxruntime_multiplies_attention_in_integers(tmp_path: Path) -> None:
    made = quantized(attention(), sequences(), tmp_path, "cpu", attention=True).model
    onnx.save(made, tmp_path / "q.onnx")
    assert onnxruntime_receipt(tmp_path / "q.onnx").shares == {"int8": 1.0}


@pytest.mark.parametrize("dialect", ["tensorrt", "cpu", "openvino"])
def test_attention_stays_in_float_by_default_and_names_the_option(tmp_path: Path, dialect: Dialect) -> None:
    made = quantized(attention(), sequences(), tmp_path, dialect)
    reason = "both operands are activations: attention's products stay in float unless the recipe says attention: true"
    assert made.left == {"node_s": reason, "node_c": reason}


def test_attention_where_there_is_none_says_that_it_did_nothing(tmp_path: Path) -> None:
    text = """g (float[batch, 3, 8, 8] image) => (float[batch, 3, 8, 8] y) {
      a = MatMul (image, w0)
      y = MatMul (a, image)
    }"""
    made = quantized(build(text, {"w0": (8, 8)}), images(8), tmp_path, "tensorrt", attention=True)
    assert made.left == {"node_y": "both operands are activations"}
    assert made.notes == ("attention: true has no effect: no Softmax stands between two products of activations",)


def test_attention_as_one_operator_is_left_with_a_way_out(tmp_path: Path) -> None:
    header = '<ir_version: 11, opset_import: ["" : 23]>'
    text = """g (float[batch, 2, 16, 8] image) => (float[batch, 2, 16, 8] y) {
      q = MatMul (image, w0)
      y = Attention (q, image, image)
    }"""
    model = build(text, {"w0": (8, 8)}, header=header)
    ranges = {name: symmetric_range() for name in activations(model)}
    reason = "the operator Attention is not quantized: export at opset 22 or earlier, where it is MatMul and Softmax"
    assert quantize(model, ranges, "tensorrt").left == {"node_y": reason}


def symmetric_range() -> Estimate:
    return Estimate(-3.0, 3.0, 3.0)
