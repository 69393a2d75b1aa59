"""Graphs whose inputs are also outputs, or also initializers: exporters and hand-written graphs have both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from quantization_graphs import build, ranges_of, sqnr_db

from optimizer.graph import shapes
from optimizer.graph.float16 import convert_to_float16
from optimizer.graph.quantizable import Dialect
from optimizer.graph.quantize import quantize
from optimizer.graph.receipt import graph_receipt, onnxruntime_receipt
from optimizer.runtime.onnx import OnnxSession

FEED = {"x": np.random.default_rng(3).normal(size=(5, 8)).astype(np.float32)}
LAYERS = """g (float[batch, 8] x) => (float[batch, 8] y) {
  h = Gemm (x, w0, b0)
  r = Relu (h)
  y = Gemm (r, w1)
}"""
WEIGHTS = {"w0": (8, 8), "b0": (8,), "w1": (8, 8)}


def echoed() -> onnx.ModelProto:
    """The input is an output as well, under the same name."""
    model = build(LAYERS, WEIGHTS)
    model.graph.output.append(model.graph.input[0])
    return model


def listed() -> onnx.ModelProto:
    """Every initializer stands among the inputs, as exporters wrote it up to IR 3 and some still do."""
    model = build(LAYERS, WEIGHTS)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, list(tensor.dims)))
    return model


def quantized(model: onnx.ModelProto, dialect: Dialect, folder: Path) -> Path:
    onnx.save(model, folder / "fp32.onnx")
    onnx.save(
        quantize(onnx.load(folder / "fp32.onnx"), ranges_of(model, FEED, folder), dialect).model, folder / "q.onnx"
    )
    onnx.checker.check_model(str(folder / "q.onnx"), full_check=True)
    return folder / "q.onnx"


def outputs(path: Path) -> dict[str, np.ndarray]:
    with OnnxSession(path) as session:
        return session.infer(FEED)


def test_an_input_that_is_an_output_keeps_its_shape() -> None:
    found = shapes.infer(echoed())
    assert (found["x"].shape, found["h"].shape, found["y"].shape) == ((1, 8), (1, 8), (1, 8))


@pytest.mark.parametrize("dialect", ["tensorrt", "cpu", "openvino"])
def test_int8_of_a_graph_that_returns_its_input(tmp_path: Path, dialect: Dialect) -> None:
    path = quantized(echoed(), dialect, tmp_path)
    receipt = graph_receipt(path) if dialect == "tensorrt" else onnxruntime_receipt(path)
    assert receipt.shares == {"int8": 1.0}
    before, after = outputs(tmp_path / "fp32.onnx"), outputs(path)
    assert np.array_equal(after["x"], FEED["x"])
    assert sqnr_db(before["y"], after["y"]) > 25.0


def test_float16_of_a_graph_that_returns_its_input(tmp_path: Path) -> None:
    onnx.save(echoed(), tmp_path / "fp32.onnx")
    convert_to_float16(tmp_path / "fp32.onnx", tmp_path / "half.onnx")
    assert graph_receipt(tmp_path / "half.onnx").shares == {"fp16": 1.0}
    before, after = outputs(tmp_path / "fp32.onnx"), outputs(tmp_path / "half.onnx")
    assert np.array_equal(after["x"], FEED["x"])
    assert sqnr_db(before["y"], after["y"]) > 50.0


@pytest.mark.parametrize("dialect", ["tensorrt", "cpu", "openvino"])
def test_a_weight_listed_among_the_inputs_is_no_input_to_feed_afterwards(tmp_path: Path, dialect: Dialect) -> None:
    path = quantized(listed(), dialect, tmp_path)
    made = onnx.load(path)
    held = {tensor.name for tensor in made.graph.initializer}
    assert {value.name for value in made.graph.input} - held == {"x"}
    assert not {"w0", "w1"} & {value.name for value in made.graph.input}
    assert sqnr_db(outputs(tmp_path / "fp32.onnx")["y"], outputs(path)["y"]) > 25.0


def test_an_input_that_nothing_reads_stays_an_input(tmp_path: Path) -> None:
    model = listed()
    model.graph.input.append(helper.make_tensor_value_info("unread", TensorProto.FLOAT, ["batch"]))
    feed = {**FEED, "unread": np.zeros(5, np.float32)}
    made = quantize(model, ranges_of(model, feed, tmp_path), "tensorrt").model
    assert "unread" in {value.name for value in made.graph.input}
