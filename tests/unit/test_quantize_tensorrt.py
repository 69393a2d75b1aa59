"""The TensorRT dialect: placement, numerics, and what TensorRT-RTX makes of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from quantization_graphs import build, infer, pictures, ranges_of, residual, small_cnn, sqnr_db

from optimizer.errors import StageError
from optimizer.graph import quantize as quantizing
from optimizer.graph.index import GraphIndex, attribute
from optimizer.graph.quantizable import Candidate
from optimizer.graph.quantize import Quantized, activations, quantize

# Plain int8 with scales per channel on two to four random layers measured 30 to 38 dB; a wrong axis 5 to 12.
MINIMUM_DB = 25.0


def feed_of(size: int) -> dict[str, np.ndarray]:
    return {"image": np.stack(pictures(32, size))}


def quantized(model: onnx.ModelProto, feed: dict[str, np.ndarray], folder: Path, **options: object) -> Quantized:
    return quantize(model, ranges_of(model, feed, folder), "tensorrt", **options)  # type: ignore[arg-type]


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(n.op_type for n in model.graph.node)


def weight_behind(index: GraphIndex, name: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Return integers, scales and axis of a dequantized weight."""
    node = index.producers[name]
    assert node.op_type == "DequantizeLinear"
    return index.constant(node.input[0]), index.constant(node.input[1]), attribute(node, "axis")


def test_pairs_stand_at_the_inputs_of_compute_layers_alone(tmp_path: Path) -> None:
    model = quantized(residual(), feed_of(16), tmp_path).model
    onnx.checker.check_model(model, full_check=True)
    index = GraphIndex(model)
    assert operators(model)["QuantizeLinear"] == 4  # image, r0, r1, r2
    assert operators(model)["DequantizeLinear"] == 8  # and four weights
    for node in model.graph.node:
        dequantized = [index.producers.get(i) for i in node.input]
        behind = [n is not None and n.op_type == "DequantizeLinear" for n in dequantized]
        if node.op_type == "Conv":
            assert behind == [True, True, False]  # the bias stays float
        elif node.op_type in {"Relu", "Add"}:
            assert not any(behind)


def test_activations_are_symmetric_int8(tmp_path: Path) -> None:
    model = quantized(small_cnn(), feed_of(8), tmp_path).model
    index = GraphIndex(model)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            zero = index.constant(node.input[2])
            assert (zero.dtype, zero.item()) == (np.int8, 0)


def test_a_tensor_read_by_two_layers_has_one_pair(tmp_path: Path) -> None:
    text = """g (float[batch, 3, 8, 8] image) => (float[batch, 4, 8, 8] y) {
      a = Conv <pads = [1, 1, 1, 1]> (image, w0)
      b = Conv <pads = [1, 1, 1, 1]> (image, w1)
      y = Add (a, b)
    }"""
    model = build(text, {"w0": (4, 3, 3, 3), "w1": (4, 3, 3, 3)})
    made = quantized(model, feed_of(8), tmp_path).model
    assert operators(made)["QuantizeLinear"] == 1
    assert len({n.input[0] for n in made.graph.node if n.op_type == "Conv"}) == 1


def test_a_weight_shared_by_two_layers_is_stored_once(tmp_path: Path) -> None:
    text = """g (float[batch, 3, 8, 8] image) => (float[batch, 3, 8, 8] y) {
      a = Conv <pads = [1, 1, 1, 1]> (image, w0)
      y = Conv <pads = [1, 1, 1, 1]> (a, w0)
    }"""
    made = quantized(build(text, {"w0": (3, 3, 3, 3)}), feed_of(8), tmp_path).model
    convolutions = [n for n in made.graph.node if n.op_type == "Conv"]
    assert convolutions[0].input[1] == convolutions[1].input[1]
    assert sum(i.data_type == onnx.TensorProto.INT8 and len(i.dims) == 4 for i in made.graph.initializer) == 1


LAYERS = {
    "Conv": ("batch, 5, 8, 8", "y = Conv <pads = [1, 1, 1, 1]> (image, w0)", (5, 3, 3, 3), 0),
    "Conv, depthwise": ("batch, 6, 8, 8", "y = Conv <group = 3, pads = [1, 1, 1, 1]> (image, w0)", (6, 1, 3, 3), 0),
    "ConvTranspose, grouped": (
        "batch, 6, 16, 16",
        "y = ConvTranspose <strides = [2, 2], group = 3> (image, w0)",
        (3, 2, 2, 2),
        1,
    ),
    "ConvTranspose": ("batch, 5, 16, 16", "y = ConvTranspose <strides = [2, 2]> (image, w0)", (3, 5, 2, 2), 1),
    "MatMul": ("batch, 3, 8, 6", "y = MatMul (image, w0)", (8, 6), 1),
    "Gemm": ("batch, 6", "f = Flatten (image)  y = Gemm (f, w0)", (192, 6), 1),
    "Gemm, transB": ("batch, 6", "f = Flatten (image)  y = Gemm <transB = 1> (f, w0)", (6, 192), 0),
    "Gemm, transA": ("batch, 6", "f = Flatten (image)  t = Transpose (f)  y = Gemm <transA = 1> (t, w0)", (192, 6), 1),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_weights_are_scaled_along_their_output_channels(layer: str, tmp_path: Path) -> None:
    output, text, shape, axis = LAYERS[layer]
    model = build(f"g (float[batch, 3, 8, 8] image) => (float[{output}] y) {{ {text} }}", {"w0": shape})
    original = numpy_helper.to_array(model.graph.initializer[0]).copy()
    feed = feed_of(8)
    reference = infer(model, feed, tmp_path)[0]
    made = quantized(model, feed, tmp_path).model
    index = GraphIndex(made)
    node = next(n for n in made.graph.node if n.op_type == layer.partition(",")[0])
    integers, scales, found = weight_behind(index, node.input[1])
    assert (integers.dtype, found, scales.shape) == (np.int8, axis, (shape[axis],))
    others = tuple(i for i in range(len(shape)) if i != axis)
    np.testing.assert_allclose(scales, np.abs(original).max(axis=others) / 127, rtol=1e-6)
    assert sqnr_db(reference, infer(made, feed, tmp_path)[0]) > MINIMUM_DB


def test_the_quantized_graph_is_close_to_its_parent(tmp_path: Path) -> None:
    for model, size in ((small_cnn(), 8), (residual(), 16)):
        feed = feed_of(size)
        reference = infer(model, feed, tmp_path)[0]
        assert sqnr_db(reference, infer(quantized(model, feed, tmp_path).model, feed, tmp_path)[0]) > MINIMUM_DB


def test_a_weight_in_integers_of_the_wrong_axis_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: scales taken along one axis and applied along another of the same length."""
    feed = feed_of(16)
    model = residual()
    reference = infer(model, feed, tmp_path)[0]
    made = quantized(model, feed, tmp_path).model
    for node in made.graph.node:
        if node.op_type == "DequantizeLinear" and (axis := next((a for a in node.attribute if a.name == "axis"), None)):
            weight = next(i for i in made.graph.initializer if i.name == node.input[0])
            axis.i = 1 if weight.dims[0] == weight.dims[1] else 0
    onnx.checker.check_model(made, full_check=True)
    assert sqnr_db(reference, infer(made, feed, tmp_path)[0]) < 10.0  # the stage's tolerance


def test_a_range_that_is_ten_times_too_small_is_seen(tmp_path: Path) -> None:
    feed = feed_of(8)
    model = small_cnn()
    reference = infer(model, feed, tmp_path)[0]
    ranges = ranges_of(model, feed, tmp_path)
    ranges = {n: type(r)(r.low / 10, r.high / 10, r.magnitude / 10) for n, r in ranges.items()}
    assert sqnr_db(reference, infer(quantize(model, ranges, "tensorrt").model, feed, tmp_path)[0]) < 10.0


@pytest.mark.parametrize("keep", ["Gemm", "node_logits"])
def test_what_is_kept_stays_in_float_with_the_reason(keep: str, tmp_path: Path) -> None:
    made = quantized(small_cnn(), feed_of(8), tmp_path, keep=(keep,))
    assert made.left["node_logits"] == "the recipe keeps it"
    index = GraphIndex(made.model)
    last = index.producers["logits"]
    assert index.producers[last.input[0]].op_type == "Relu"
    assert last.input[1] == "w4"


def test_keeping_what_does_not_exist_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"keep: 'node_logit' is neither.*\n  nearest: node_logits \(node\)"):
        quantized(small_cnn(), feed_of(8), tmp_path, keep=("node_logit",))


def test_keeping_everything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"no layer is left to quantize: .*: the recipe keeps it"):
        quantized(small_cnn(), feed_of(8), tmp_path, keep=("Conv", "Gemm"))


def test_a_graph_that_is_quantized_already_is_refused(tmp_path: Path) -> None:
    made = quantized(small_cnn(), feed_of(8), tmp_path).model
    with pytest.raises(StageError, match=r"holds .* QuantizeLinear and DequantizeLinear nodes already"):
        activations(made)


def test_a_graph_without_compute_layers_is_refused() -> None:
    model = build("g (float[batch, 3, 8, 8] image) => (float[batch, 3, 8, 8] y) { y = Relu (image) }", {})
    with pytest.raises(StageError, match=r"no layer that quantization speeds up \(looked for Conv, ConvTranspose"):
        activations(model)


def test_an_opset_without_scales_per_channel_is_refused() -> None:
    header = '<ir_version: 7, opset_import: ["" : 12]>'
    text = "g (float[batch, 3, 8, 8] image) => (float[batch, 4, 8, 8] y) { y = Conv <pads = [1, 1, 1, 1]> (image, w0) }"
    model = build(text, {"w0": (4, 3, 3, 3)}, header=header)
    with pytest.raises(StageError, match=r"opset 12; scales per channel need 13"):
        activations(model)


def test_a_table_of_another_graph_is_refused() -> None:
    with pytest.raises(StageError, match="no range for flat, image, p1, r3"):
        quantize(small_cnn(), {}, "tensorrt")


def test_a_tensor_that_is_always_zero_is_told(tmp_path: Path) -> None:
    model = small_cnn()
    bias = next(i for i in model.graph.initializer if i.name == "b1")
    bias.CopyFrom(numpy_helper.from_array(np.full(8, -1e6, np.float32), "b1"))
    made = quantized(model, feed_of(8), tmp_path)
    assert "'p1' was zero in every calibration sample: its scale is 1" in made.notes


def test_a_product_of_two_activations_stays_in_float(tmp_path: Path) -> None:
    text = """g (float[batch, 3, 8, 8] image) => (float[batch, 3, 8, 8] y) {
      a = MatMul (image, w0)
      y = MatMul (a, image)
    }"""
    made = quantized(build(text, {"w0": (8, 8)}), feed_of(8), tmp_path)
    assert made.left == {"node_y": "both operands are activations"}  # no Softmax: attention: true changes nothing


def test_a_recurrent_layer_stays_in_float_and_is_told(tmp_path: Path) -> None:
    text = """g (float[batch, 3, 8] image) => (float[batch, 3, 5] y) {
      s, last, cell = LSTM <hidden_size = 4> (image, w0, w1)
      q = Squeeze (s, one)
      y = MatMul (q, w2)
    }"""
    model = build(text, {"w0": (1, 16, 8), "w1": (1, 16, 4), "w2": (4, 5), "one": (1,)})
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.array([1], np.int64), "one"))
    feed = {"image": np.random.default_rng(0).normal(size=(6, 3, 8)).astype(np.float32)}
    made = quantized(model, feed, tmp_path)
    assert made.left == {"node_s": "recurrent layers are not quantized"}
    assert operators(made.model)["QuantizeLinear"] == 1


def test_layers_and_constants_given_as_nodes_are_found(tmp_path: Path) -> None:
    """Weights as Constant nodes, and no node names."""
    model = build(
        "g (float[batch, 3, 8, 8] image) => (float[batch, 4, 8, 8] y) { y = Conv <pads = [1, 1, 1, 1]> (image, w0) }",
        {"w0": (4, 3, 3, 3)},
    )
    weight = model.graph.initializer.pop()
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w0"], value=weight))
    for node in model.graph.node:
        node.name = ""
    made = quantized(model, feed_of(8), tmp_path).model
    assert "Constant" not in operators(made)
    assert operators(made)["QuantizeLinear"] == 1


def test_names_that_exist_are_not_taken_again(tmp_path: Path) -> None:
    text = """g (float[batch, 3, 8, 8] image) => (float[batch, 4, 8, 8] y, float[batch, 3, 8, 8] image_quantized) {
      y = Conv <pads = [1, 1, 1, 1]> (image, w0)
      image_quantized = Relu (image)
      image_scale = Relu (image_quantized)
    }"""
    made = quantized(build(text, {"w0": (4, 3, 3, 3)}), feed_of(8), tmp_path).model
    onnx.checker.check_model(made, full_check=True)


def test_candidates_report_their_parts() -> None:
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"])
    found = Candidate(node, 0, 1, 0, None)
    assert (found.data_name, found.weight_name, found.bias_name) == ("x", "w", None)
    assert quantizing.MINIMUM_OPSET == 13


def test_tensorrt_rtx_parses_and_builds_the_dialect(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    for name, (output, text, shape, _) in LAYERS.items():
        fixed = output.replace("batch", "4")
        model = build(f"g (float[4, 3, 8, 8] image) => (float[{fixed}] y) {{ {text} }}", {"w0": shape})
        feed = {"image": np.stack(pictures(4))}
        path = tmp_path / "model.onnx"
        onnx.save(quantized(model, feed, tmp_path).model, path)
        assert build_engine(trt, path) > 0, name


def build_engine(trt, path: Path) -> int:  # type: ignore[no-untyped-def]
    """Build for one compute capability, as a machine without a GPU can; return the plan's bytes."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path)), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    plan = builder.build_serialized_network(network, config)
    return 0 if plan is None else int(plan.nbytes)
