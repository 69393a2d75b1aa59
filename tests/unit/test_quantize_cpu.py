"""The CPU dialect: onnxruntime must find integer kernels for it, and it must be as good as onnxruntime's own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from quantization_graphs import Arrays, build, infer, pictures, ranges_of, residual, small_cnn, sqnr_db

from optimizer.graph.index import GraphIndex
from optimizer.graph.quantize import Quantized, quantize

MINIMUM_DB = 25.0  # as in the other dialect's tests


def feed_of(size: int) -> dict[str, np.ndarray]:
    return {"image": np.stack(pictures(32, size))}


def quantized(model: onnx.ModelProto, feed: dict[str, np.ndarray], folder: Path, **options: object) -> Quantized:
    return quantize(model, ranges_of(model, feed, folder), "cpu", **options)  # type: ignore[arg-type]


def optimised(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Count the operators of the graph that onnxruntime makes of a model."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnx.save(model, folder / "model.onnx")
    ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(folder / "optimised.onnx").graph.node)


def test_a_small_cnn_runs_on_integers_from_end_to_end(tmp_path: Path) -> None:
    made = quantized(small_cnn(), feed_of(8), tmp_path).model
    onnx.checker.check_model(made, full_check=True)
    assert optimised(made, tmp_path) == {"QuantizeLinear": 1, "QLinearConv": 2, "MaxPool": 2, "Flatten": 1, "QGemm": 2}


def test_convolutions_of_a_residual_block_run_on_integers_and_its_sums_in_float(tmp_path: Path) -> None:
    found = optimised(quantized(residual(), feed_of(16), tmp_path).model, tmp_path)
    assert found["QLinearConv"] == 4
    assert found["Conv"] + found["FusedConv"] == 0
    assert found["Add"] == 2


def test_activations_are_uint8_and_bias_is_int32_without_zero_point(tmp_path: Path) -> None:
    made = quantized(small_cnn(), feed_of(8), tmp_path).model
    index = GraphIndex(made)
    assert all(index.constant(n.input[2]).dtype == np.uint8 for n in made.graph.node if n.op_type == "QuantizeLinear")
    for node in made.graph.node:
        if node.op_type not in {"Conv", "Gemm"}:
            continue
        data, weight, bias = (index.producers[name] for name in node.input)
        assert index.constant(bias.input[0]).dtype == np.int32
        assert not index.constant(bias.input[2]).any()
        product = index.constant(data.input[1]) * index.constant(weight.input[1])
        np.testing.assert_allclose(index.constant(bias.input[1]), product, rtol=1e-6)


def test_a_pool_shares_scale_and_zero_point_with_what_it_pools(tmp_path: Path) -> None:
    made = quantized(small_cnn(), feed_of(8), tmp_path).model
    pairs = {n.input[0]: list(n.input[1:]) for n in made.graph.node if n.op_type == "QuantizeLinear"}
    assert pairs["p1"] == pairs["r1"]
    assert pairs["flat"] == pairs["p2"] == pairs["r2"]


def test_the_quantized_graph_is_close_to_its_parent_with_and_without_fusion(tmp_path: Path) -> None:
    import onnxruntime as ort

    for model, size in ((small_cnn(), 8), (residual(), 16)):
        feed = feed_of(size)
        reference = infer(model, feed, tmp_path)[0]
        made = quantized(model, feed, tmp_path).model
        assert sqnr_db(reference, infer(made, feed, tmp_path)[0]) > MINIMUM_DB
        fused = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)[0]
        assert sqnr_db(reference, fused) > MINIMUM_DB


def test_a_wrong_zero_point_is_seen(tmp_path: Path) -> None:
    feed = feed_of(8)
    model = small_cnn()
    reference = infer(model, feed, tmp_path)[0]
    made = quantized(model, feed, tmp_path).model
    made.graph.initializer.append(numpy_helper.from_array(np.asarray(60, np.uint8), "wrong"))
    for node in made.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] == "r1_quantized":
            node.input[2] = "wrong"  # it was quantized with 0
    assert sqnr_db(reference, infer(made, feed, tmp_path)[0]) < 10.0


@pytest.mark.parametrize(
    ("bounds", "convolutions", "clips"), [((0.0, 1.5), {"QLinearConv": 2}, 0), ((-1.0, 1.0), {"QLinearConv": 2}, 1)]
)
def test_a_clip_is_absorbed_where_it_starts_at_zero_and_costs_no_integer_kernel_elsewhere(
    bounds: tuple[float, float], convolutions: dict[str, int], clips: int, tmp_path: Path
) -> None:
    text = """g (float[batch, 3, 8, 8] image) => (float[batch, 4, 8, 8] y) {
      a = Conv <pads = [1, 1, 1, 1]> (image, w0, b0)
      c = Clip (a, low, high)
      y = Conv <pads = [1, 1, 1, 1]> (c, w1, b1)
    }"""
    model = build(text, {"w0": (4, 3, 3, 3), "b0": (4,), "w1": (4, 4, 3, 3), "b1": (4,), "low": (), "high": ()})
    for tensor in model.graph.initializer[-2:]:
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(bounds[tensor.name == "high"], np.float32), tensor.name))
    found = optimised(quantized(model, feed_of(8), tmp_path).model, tmp_path)
    assert {k: v for k, v in found.items() if "Conv" in k} == convolutions
    assert found["Clip"] == clips


def test_a_convolution_that_is_the_output_keeps_the_outputs_name(tmp_path: Path) -> None:
    text = "g (float[batch, 3, 8, 8] image) => (float[batch, 4, 8, 8] y) { y = Conv <pads = [1, 1, 1, 1]> (image, w0) }"
    feed = feed_of(8)
    model = build(text, {"w0": (4, 3, 3, 3)})
    reference = infer(model, feed, tmp_path)[0]
    made = quantized(model, feed, tmp_path).model
    assert [o.name for o in made.graph.output] == ["y"]
    assert optimised(made, tmp_path)["QLinearConv"] == 1
    assert sqnr_db(reference, infer(made, feed, tmp_path)[0]) > MINIMUM_DB


def test_an_output_that_other_layers_read_is_quantized_once(tmp_path: Path) -> None:
    text = """g (float[batch, 3, 8, 8] image) => (float[batch, 4, 8, 8] y, float[batch, 4, 8, 8] z) {
      y = Conv <pads = [1, 1, 1, 1]> (image, w0)
      z = Conv <pads = [1, 1, 1, 1]> (y, w1)
    }"""
    feed = feed_of(8)
    model = build(text, {"w0": (4, 3, 3, 3), "w1": (4, 4, 3, 3)})
    reference = infer(model, feed, tmp_path)
    made = quantized(model, feed, tmp_path).model
    assert optimised(made, tmp_path)["QLinearConv"] == 2
    for wanted, found in zip(reference, infer(made, feed, tmp_path), strict=True):
        assert sqnr_db(wanted, found) > MINIMUM_DB


@pytest.mark.parametrize(
    ("layer", "shapes", "reason"),
    [
        ("y = ConvTranspose <strides = [2, 2]> (a, w1)", {"w1": (4, 3, 2, 2)}, "no integer ConvTranspose"),
        ("f = Flatten (a) y = Gemm <beta = 0.5> (f, w1, b1)", {"w1": (256, 3), "b1": (3,)}, "beta 1 alone"),
        ("f = Flatten (a) y = Gemm (f, w1, b1)", {"w1": (256, 3), "b1": (1,)}, "one value per output channel"),
    ],
)
def test_what_onnxruntime_has_no_kernel_for_stays_in_float_with_the_reason(
    layer: str, shapes: dict[str, tuple[int, ...]], reason: str, tmp_path: Path
) -> None:
    text = (
        f"g (float[batch, 3, 8, 8] image) => (float[a0, a1] y) {{ a = Conv <pads = [1, 1, 1, 1]> (image, w0) {layer} }}"
    )
    if "Gemm" not in layer:
        text = text.replace("float[a0, a1] y", "float[a0, a1, a2, a3] y")
    model = build(text, {"w0": (4, 3, 3, 3), **shapes})
    feed = feed_of(8)
    reference = infer(model, feed, tmp_path)[0]
    made = quantized(model, feed, tmp_path)
    assert reason in made.left["node_y"]
    assert sqnr_db(reference, infer(made.model, feed, tmp_path)[0]) > MINIMUM_DB


def test_a_matmul_with_its_bias_added_runs_on_integers(tmp_path: Path) -> None:
    text = """g (float[batch, 3, 8, 8] image) => (float[batch, 3, 8, 6] y) {
      a = MatMul (image, w0)
      y = Add (a, b0)
    }"""
    made = quantized(build(text, {"w0": (8, 6), "b0": (6,)}), feed_of(8), tmp_path).model
    assert optimised(made, tmp_path)["MatMulIntegerToFloat"] == 1


def test_quality_is_that_of_onnxruntimes_own_quantizer_or_better(tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, arrays: list[np.ndarray]) -> None:
            self.feeds = iter([{"image": np.stack(arrays)}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    for make, size in ((small_cnn, 8), (residual, 16)):
        arrays = pictures(64, size)
        unseen = {"image": np.stack(pictures(64, size, seed=9))}
        reference = infer(make(), unseen, tmp_path)[0]
        onnx.save(make(), tmp_path / "float.onnx")
        quantize_static(
            tmp_path / "float.onnx", tmp_path / "theirs.onnx", Reader(arrays), quant_format=QuantFormat.QDQ,
            per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        theirs = sqnr_db(reference, infer(onnx.load(tmp_path / "theirs.onnx"), unseen, tmp_path)[0])
        made = quantized(make(), {"image": np.stack(arrays)}, tmp_path).model
        ours = sqnr_db(reference, infer(made, unseen, tmp_path)[0])
        assert ours > theirs - 0.3, make.__name__


def test_samples_class_yields_named_pictures() -> None:
    samples = Arrays(pictures(2))
    assert [s.identity for s in samples] == ["picture-0", "picture-1"]
