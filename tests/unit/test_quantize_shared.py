"""Shared scales, stacks of matrices, and what is left alone, in every dialect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from quantization_graphs import (
    CONCAT,
    CONCAT_WEIGHTS,
    attention,
    build,
    dequantized,
    images,
    infer,
    ranges_of,
    residual,
    small_cnn,
    sqnr_db,
)

from optimizer.calibration.estimators import Estimate
from optimizer.graph.affine import symmetric
from optimizer.graph.index import GraphIndex
from optimizer.graph.quantizable import Dialect
from optimizer.graph.quantize import Quantized, activations, quantize
from optimizer.graph.receipt import onnxruntime_receipt

MINIMUM_DB = 25.0  # as in the tests of either dialect


def quantized(
    model: onnx.ModelProto, feed: dict[str, np.ndarray], folder: Path, dialect: Dialect, **options: object
) -> Quantized:
    return quantize(model, ranges_of(model, feed, folder), dialect, **options)  # type: ignore[arg-type]


def scales(model: onnx.ModelProto) -> dict[str, float]:
    index = GraphIndex(model)
    return {n.input[0]: float(index.constant(n.input[1])) for n in model.graph.node if n.op_type == "QuantizeLinear"}


def symmetric_range() -> Estimate:
    return Estimate(-3.0, 3.0, 3.0)


def test_one_table_serves_every_option() -> None:
    assert set(activations(residual())) >= {"image", "r0", "r1", "r2", "c2", "c3", "features"}
    assert set(activations(attention())) == {"image", "q", "kt", "k", "p", "v", "c"}


def concatenated(gain: float) -> onnx.ModelProto:
    """The second input of the Concat is about `gain` times as large as the first."""
    model = build(CONCAT, CONCAT_WEIGHTS)
    weight = next(i for i in model.graph.initializer if i.name == "w1")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(gain), "w1"))
    return model


def test_inputs_of_a_concat_take_one_scale_through_a_pool(tmp_path: Path) -> None:
    feed = images(8)
    for gain in (0.1, 1.0):
        model = concatenated(gain)
        ranges = ranges_of(model, feed, tmp_path)
        widest = max(ranges["r"].magnitude, ranges["p"].magnitude)
        assert widest <= 2 * min(ranges["r"].magnitude, ranges["p"].magnitude)
        found = scales(quantize(model, ranges, "tensorrt").model)
        assert found["r"] == found["p"] == symmetric(type(ranges["r"])(0.0, widest, widest)).scale


def test_no_tensor_loses_more_than_a_bit_to_another(tmp_path: Path) -> None:
    """The twin: with ten times the range behind the Concat its own layer keeps the finer scale."""
    found = scales(quantized(concatenated(10.0), images(8), tmp_path, "tensorrt").model)
    assert found["p"] > 2 * found["r"]


def test_a_padded_shortcut_takes_the_scale_of_what_it_pads(tmp_path: Path) -> None:
    text = """g (float[batch, 3, 8, 8] image) => (float[batch, 8, 8, 8] y) {
      a = Conv <pads = [1, 1, 1, 1]> (image, w0)
      r = Relu (a)
      b = Conv <pads = [1, 1, 1, 1]> (r, w1)
      d = Pad (r, pads)
      s = Add (b, d)
      y = Relu (s)
    }"""
    model = build(text, {"w0": (4, 3, 3, 3), "w1": (8, 4, 3, 3), "pads": (8,)})
    pads = np.array([0, 2, 0, 0, 0, 2, 0, 0], np.int64)
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(pads, "pads"))
    feed = images(8)
    reference = infer(model, feed, tmp_path)[0]
    made = quantized(model, feed, tmp_path, "tensorrt", residuals="int8").model
    assert dequantized(made, "node_s") == [False, True]
    found = scales(made)
    assert found["d"] == found["r"]
    assert sqnr_db(reference, infer(made, feed, tmp_path)[0]) > MINIMUM_DB


STACKS = {
    "3, 8, 6": ("batch, 3, 8, 8", "batch, 3, 8, 6"),
    "1, 3, 8, 6": ("batch, 3, 8, 8", "batch, 3, 8, 6"),
    "1, 8, 6": ("batch, 8", "1, batch, 6"),
}


@pytest.mark.parametrize("dialect", ["tensorrt", "cpu", "openvino"])
@pytest.mark.parametrize("stack", STACKS)
def test_a_stack_of_matrices_has_a_scale_per_column_of_each_and_runs_optimised(
    tmp_path: Path, dialect: Dialect, stack: str
) -> None:
    import onnxruntime as ort

    shape = tuple(map(int, stack.split(",")))
    given, result = STACKS[stack]
    text = f"g (float[{given}] image) => (float[{result}] z) {{ y = MatMul (image, w0)  z = MatMul (y, w1) }}"
    model = build(text, {"w0": shape, "w1": (6, 6)})
    original = numpy_helper.to_array(model.graph.initializer[0]).copy()
    feed = images(8) if "3" in given else {"image": np.random.default_rng(4).normal(size=(5, 8)).astype(np.float32)}
    reference = infer(model, feed, tmp_path)[0]
    made = quantized(model, feed, tmp_path, dialect).model
    onnx.checker.check_model(made, full_check=True)
    index = GraphIndex(made)
    node = next(n for n in made.graph.node if n.name == "node_y")
    weight = index.producers[node.input[1]]
    assert index.constant(weight.input[1]).item() == 1.0
    scale = index.constant(index.producers["y"].input[1])
    np.testing.assert_allclose(scale, np.abs(original).max(axis=-2, keepdims=True) / 127, rtol=1e-6)
    np.testing.assert_array_equal(index.constant(weight.input[0]), np.rint(original / scale))
    for value in (
        infer(made, feed, tmp_path)[0],
        ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)[0],
    ):
        assert sqnr_db(reference, value) > MINIMUM_DB
    onnx.save(made, tmp_path / "q.onnx")
    assert onnxruntime_receipt(tmp_path / "q.onnx").precisions["node_y"] == "int8"


def test_onnxruntime_refuses_a_stack_with_scales_along_its_last_axis(tmp_path: Path) -> None:
    """The twin: why the scales of a stack stand behind its product."""
    import onnxruntime as ort

    text = "g (float[batch, 3, 8, 8] image) => (float[batch, 3, 8, 6] y) { y = MatMul (image, w0) }"
    made = quantized(build(text, {"w0": (3, 8, 6)}), images(8), tmp_path, "tensorrt").model
    for tensor in made.graph.initializer:
        if tensor.name in {"w0_scale", "w0_zero_point"}:
            tensor.CopyFrom(numpy_helper.from_array(np.repeat(numpy_helper.to_array(tensor), 6), tensor.name))
    node = next(n for n in made.graph.node if n.output[0] == "w0_dequantized")
    node.attribute.append(onnx.helper.make_attribute("axis", 2))
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.Fail, match="b zero point is not valid"):
        session.run(None, images(8))


def test_a_stack_that_two_products_share_is_stored_once(tmp_path: Path) -> None:
    text = """g (float[batch, 3, 8, 8] image) => (float[batch, 3, 8, 8] y) {
      a = MatMul (image, w0)
      y = MatMul (a, w0)
    }"""
    made = quantized(build(text, {"w0": (3, 8, 8)}), images(8), tmp_path, "tensorrt").model
    assert sum(i.data_type == onnx.TensorProto.INT8 and len(i.dims) == 3 for i in made.graph.initializer) == 1
    assert [n.input[1] for n in made.graph.node if n.op_type == "Mul"] == ["w0_column_scales"] * 2


def test_a_product_with_a_vector_stays_in_float(tmp_path: Path) -> None:
    text = "g (float[8] image) => (float[3, 6] y) { h = MatMul (image, w0)  y = MatMul (h, w1) }"
    model = build(text, {"w0": (3, 8, 6), "w1": (6, 6)})
    feed = {"image": np.arange(8, dtype=np.float32)}
    assert quantized(model, feed, tmp_path, "tensorrt").left == {"node_h": "an operand is a vector"}


def test_embeddings_shapes_and_normalisations_are_left_alone(tmp_path: Path) -> None:
    text = """g (int64[batch, n] image) => (float[batch, n, 6] y) {
      e = Gather (w0, image)
      shape = Shape (image)
      l = LayerNormalization (e, w1, w2)
      h = MatMul (l, w3)
      s = Add (h, e)
      m = LayerNormalization (s, w1, w2)
      y = MatMul (m, w4)
    }"""
    model = build(text, {"w0": (20, 8), "w1": (8,), "w2": (8,), "w3": (8, 8), "w4": (8, 6)})
    tensors = set(activations(model))
    assert tensors >= {"l", "m"}
    ranges = {name: symmetric_range() for name in tensors}
    made = quantize(model, ranges, "tensorrt", residuals="int8", attention=True).model
    assert set(scales(made)) == {"l", "m"}
    for node in made.graph.node:
        if node.op_type in {"Gather", "LayerNormalization", "Add", "Shape"}:
            assert not any(dequantized(made, node.name))


def test_the_first_and_the_last_layer_are_no_special_case(tmp_path: Path) -> None:
    for dialect in ("tensorrt", "cpu", "openvino"):
        made = quantized(small_cnn(), images(8), tmp_path, dialect).model  # type: ignore[arg-type]
        assert dequantized(made, "node_c1")[:2] == [True, True]
        assert dequantized(made, "node_logits")[:2] == [True, True]
