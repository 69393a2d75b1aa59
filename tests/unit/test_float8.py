"""FP8: the format against two others, the pairs against what rounding must leave, and what is refused."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from quantization_graphs import (
    attention,
    build,
    dequantized,
    images,
    infer,
    pictures,
    ranges_of,
    residual,
    sequences,
    small_cnn,
    sqnr_db,
)

from optimizer.errors import StageError
from optimizer.graph.float8 import channel_scales, quantize_float8, round_e4m3, to_float8
from optimizer.graph.quantize import Quantized
from optimizer.graph.receipt import graph_receipt, onnxruntime_receipt
from optimizer.judge import open_judge
from optimizer.runtime.float8 import holds_float8
from optimizer.runtime.onnx import OnnxSession
from optimizer.runtime.onnx_contents import read_contents

CNN = {"image": np.stack(pictures(16))}


def every_e4m3() -> np.ndarray:
    """Return every finite E4M3 value from the definition of the format, rising."""
    found = set()
    for code in range(128):
        exponent, mantissa = code >> 3, code & 7
        if code == 127:  # the only NaN
            continue
        found.add(mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    return np.array(sorted({*found, *(-v for v in found)}))


def reference(values: np.ndarray) -> np.ndarray:
    """Round by search among all values, ties to the even mantissa: nothing in common with the code under test."""
    grid = every_e4m3()
    above = np.clip(np.searchsorted(grid, values), 1, len(grid) - 1)
    low, high = grid[above - 1], grid[above]
    near = np.where(values - low < high - values, low, high)
    step = high - low
    even = np.where(np.rint(low / step) % 2 == 0, low, high)
    return np.where(values - low == high - values, even, near)


def awkward() -> np.ndarray:
    """Return values of all magnitudes, every tie between neighbours, subnormals and what must saturate."""
    grid = every_e4m3()
    spread = np.random.default_rng(0).normal(size=4000) * np.exp2(np.random.default_rng(1).uniform(-14, 9, size=4000))
    ties = (grid[1:] + grid[:-1]) / 2
    return np.concatenate([grid, ties, np.nextafter(ties, 0), spread, [448.0, 449.0, 464.0, 1e6, -1e6, 2.0**-10, 0.0]])


def quantized(model: onnx.ModelProto, feed: dict[str, np.ndarray], folder: Path, **options: object) -> Quantized:
    return quantize_float8(model, ranges_of(model, feed, folder), **options)  # type: ignore[arg-type]


def test_values_round_half_to_even_and_saturate() -> None:
    values = awkward()
    assert len(every_e4m3()) == 253
    np.testing.assert_array_equal(round_e4m3(values), reference(values))


def test_it_is_the_format_of_ml_dtypes() -> None:
    values = awkward().astype(np.float32).astype(np.float64)  # ml_dtypes rounds to float32 first
    inside = values[np.abs(values) < 448]
    np.testing.assert_array_equal(round_e4m3(inside), inside.astype(ml_dtypes.float8_e4m3fn).astype(np.float64))
    assert round_e4m3(np.array([1e6])) == 448.0  # where ml_dtypes says NaN


def test_truncation_is_another_rounding() -> None:
    """The twin of both."""
    values = awkward()
    wrong = np.sign(values) * np.minimum(np.abs(round_e4m3(values)), np.abs(reference(values * (1 - 1 / 16))))
    assert (wrong != reference(values)).any()


def test_onnxruntime_rounds_and_saturates_the_same_way(tmp_path: Path) -> None:
    """What the accuracy of every fp8 variant is measured with."""
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[n] x, float scale, float8e4m3fn zero) => (float[n] y) {
      q = QuantizeLinear (x, scale, zero)
      y = DequantizeLinear (q, scale, zero)
    }"""
    model = onnx.parser.parse_model(text)
    del model.graph.input[1:]
    zero = onnx.helper.make_tensor("zero", onnx.TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True)
    model.graph.initializer.extend([onnx.numpy_helper.from_array(np.float32(0.25).reshape(()), "scale"), zero])
    # 2^-3 shifts every value by whole octaves: the scale itself rounds nothing.
    values = awkward().astype(np.float32)
    (found,) = infer(model, {"x": values}, tmp_path)
    np.testing.assert_array_equal(found, 0.25 * reference(values.astype(np.float64) / 0.25))


@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e3])
def test_a_tensor_keeps_31_db_whatever_its_scale(spread: float) -> None:
    """Steps of 2^-3 of the octave: 10 log10((1.5 / ln 2) * 12 * 64) = 32.2 dB where values are spread log-uniformly."""
    weight = (np.random.default_rng(0).normal(size=(64, 512)) * spread).astype(np.float32)
    scales = channel_scales(weight, 0)
    kept = to_float8(weight, scales, 0).astype(np.float64) * scales[:, None]
    assert 31.0 < sqnr_db(weight, kept) < 33.0
    # The twin: a range 2^16 too wide leaves all values below the normal ones.
    kept = to_float8(weight, scales * 2**16, 0).astype(np.float64) * scales[:, None] * 2**16
    assert sqnr_db(weight, kept) < 20


def test_scales_stand_along_the_output_channels() -> None:
    weight = np.array([[1.0, -448.0], [0.0, 0.0], [0.5, 0.25]], dtype=np.float32)
    np.testing.assert_array_equal(channel_scales(weight, 0), np.array([1.0, 1.0, 0.5 / 448], dtype=np.float32))


def by_hand(weights: dict[str, np.ndarray], x: np.ndarray, scales: dict[str, float]) -> np.ndarray:
    """Compute two layers with every operand rounded, in float64."""

    def rounded(value: np.ndarray, scale: np.ndarray | float) -> np.ndarray:
        return reference(value / scale) * scale

    def per_channel(weight: np.ndarray) -> np.ndarray:
        return (np.abs(weight).max(axis=0) / 448).astype(np.float32).astype(np.float64)

    first = rounded(x, scales["x"]) @ rounded(weights["w0"], per_channel(weights["w0"])) + weights["b0"]
    hidden = np.maximum(first, 0)
    return rounded(hidden, scales["h"]) @ rounded(weights["w1"], per_channel(weights["w1"]))


MLP = """g (float[batch, 64] x) => (float[batch, 16] y) {
  a = MatMul (x, w0) c = Add (a, b0) h = Relu (c) y = MatMul (h, w1)
}"""


def test_a_perceptron_computes_what_it_does_by_hand(tmp_path: Path) -> None:
    model = build(MLP, {"w0": (64, 128), "b0": (128,), "w1": (128, 16)})
    weights = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    x = np.random.default_rng(2).normal(size=(32, 64)).astype(np.float32)
    (original,) = infer(model, {"x": x}, tmp_path)
    ranges = ranges_of(model, {"x": x}, tmp_path)
    scales = {n: float(np.float32(ranges[n].magnitude / 448)) for n in ("x", "h")}
    made = quantize_float8(model, ranges).model
    (found,) = infer(made, {"x": x}, tmp_path)
    # Sums in another order move a few hidden values over the edge between two steps; the rest is exact.
    assert sqnr_db(by_hand(weights, x.astype(np.float64), scales), found) > 45
    # Four tensors rounded at 31 dB: 25 dB where the products' signs are random, more where they add up.
    assert 24 < sqnr_db(original, found) < 34
    # The twin: one activation's scale doubled is another graph.
    assert sqnr_db(by_hand(weights, x.astype(np.float64), {**scales, "h": 1.5 * scales["h"]}), found) < 35


def test_pairs_stand_at_both_inputs_of_every_layer(tmp_path: Path) -> None:
    made = quantized(small_cnn(), CNN, tmp_path)
    for name in ("node_c1", "node_c2", "node_g1", "node_logits"):
        assert dequantized(made.model, name)[:2] == [True, True]
        assert dequantized(made.model, name)[2:] == [False]  # the bias stays in float
    assert graph_receipt(made.model).shares == {"fp8": 1.0}


def test_what_is_kept_stays_in_float(tmp_path: Path) -> None:
    made = quantized(small_cnn(), CNN, tmp_path, keep=["Gemm"])
    assert dequantized(made.model, "node_g1") == [False, False, False]
    assert made.kept == {"node_g1", "node_logits"}
    assert 0.9 < graph_receipt(made.model).shares["fp8"] < 1.0


def test_attention_is_quantized_where_it_is_asked_for(tmp_path: Path) -> None:
    without = quantized(attention(), sequences(), tmp_path).model
    assert graph_receipt(without).precisions["node_s"] == "fp32"
    asked = quantized(attention(), sequences(), tmp_path, attention=True).model
    assert graph_receipt(asked).shares == {"fp8": 1.0}


def test_a_weight_of_two_layers_is_stored_once(tmp_path: Path) -> None:
    text = "g (float[batch, 32] x) => (float[batch, 32] y) { h = MatMul (x, w) y = MatMul (h, w) }"
    made = quantized(build(text, {"w": (32, 32)}), {"x": np.ones((4, 32), np.float32)}, tmp_path).model
    stored = [t for t in made.graph.initializer if list(t.dims) == [32, 32]]
    assert [t.data_type for t in stored] == [onnx.TensorProto.FLOAT8E4M3FN]


def test_a_transposed_convolution_stays_in_float(tmp_path: Path) -> None:
    text = """g (float[batch, 3, 8, 8] image) => (float[batch, 4, 16, 16] y) {
      c = Conv <pads = [1, 1, 1, 1]> (image, w0) y = ConvTranspose <strides = [2, 2]> (c, w1) }"""
    made = quantized(build(text, {"w0": (4, 3, 3, 3), "w1": (4, 4, 2, 2)}), CNN, tmp_path)
    assert made.left == {"node_y": "TensorRT has no FP8 ConvTranspose"}
    assert dequantized(made.model, "node_y") == [False, False]


@pytest.mark.parametrize("graph", [small_cnn, residual])
def test_onnxruntime_optimises_fp8_without_changing_it(graph: object, tmp_path: Path) -> None:
    feed = CNN if graph is small_cnn else images()
    made = quantized(graph(), feed, tmp_path).model  # type: ignore[operator]
    (written,) = infer(made, feed, tmp_path)
    path = tmp_path / "fp8.onnx"
    onnx.save(made, path)
    with OnnxSession(path) as session:
        (optimised,) = session.infer(feed).values()
    assert sqnr_db(written, optimised + 1e-9) > 90


def test_onnxruntime_alone_drops_the_relu_before_fp8(tmp_path: Path) -> None:
    """The twin, and why the session leaves optimizers out: this is onnxruntime 1.31."""
    import onnxruntime as ort

    made = quantized(small_cnn(), CNN, tmp_path).model
    (written,) = infer(made, CNN, tmp_path)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert sqnr_db(written, session.run(None, CNN)[0]) < 10


def test_fp8_is_recognised_in_the_file_without_onnx(tmp_path: Path) -> None:
    float32, fp8 = tmp_path / "float32.onnx", tmp_path / "fp8.onnx"
    onnx.save(small_cnn(), float32)
    onnx.save(quantized(small_cnn(), CNN, tmp_path).model, fp8)
    assert (holds_float8(read_contents(float32)), holds_float8(read_contents(fp8))) == (False, True)
    for content in (b"", b"no model at all", fp8.read_bytes()[:200]):
        (tmp_path / "broken").write_bytes(content)
        assert not holds_float8(read_contents(tmp_path / "broken"))


def test_fp8_in_a_constant_node_is_recognised(tmp_path: Path) -> None:
    model = quantized(small_cnn(), CNN, tmp_path).model
    constants = list(model.graph.initializer)
    del model.graph.initializer[:]
    for at, tensor in enumerate(constants):
        model.graph.node.insert(at, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
    onnx.save(model, tmp_path / "nodes.onnx")
    assert holds_float8(read_contents(tmp_path / "nodes.onnx"))


def test_the_cpu_delivers_float32_and_the_judge_says_fp8(tmp_path: Path) -> None:
    path = tmp_path / "fp8.onnx"
    onnx.save(quantized(small_cnn(), CNN, tmp_path).model, path)
    assert onnxruntime_receipt(path).shares == {"fp32": 1.0}
    session, how = open_judge(path)
    session.close()
    assert how.endswith("on the CPU, fp8 as its Q/DQ nodes say, float32")


def test_a_tensor_that_was_always_zero_is_named(tmp_path: Path) -> None:
    made = quantized(small_cnn(), {"image": np.zeros((4, 3, 8, 8), np.float32)}, tmp_path)
    assert "'image' was zero in every calibration sample: its scale is 1" in made.notes


def refusal(model: onnx.ModelProto, ranges: dict[str, object], **options: object) -> str:
    with pytest.raises(StageError) as caught:
        quantize_float8(model, ranges, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_refusals_name_what_is_wrong(tmp_path: Path) -> None:
    again = quantized(small_cnn(), CNN, tmp_path).model
    assert "the graph is quantized already: 12 nodes, DequantizeLinear 'w1_dequantized/dequantize' first" in refusal(
        again, {}
    )
    assert "nearest: node_c1 (node)" in refusal(small_cnn(), {}, keep=["node_c11"])
    assert "the calibration table has no range for flat, image, p1, r3" in refusal(small_cnn(), {})
    no_layer = build("g (float[batch, 8] x) => (float[batch, 8] y) { y = Relu (x) }", {})
    assert "no layer is left to quantize: the graph has no Conv, Gemm or MatMul" in refusal(no_layer, {})
    text = "g (float[batch, 8] x) => (float[batch, 8] y) { c = Cast <to = 1> (x) y = MatMul (c, w) }"
    old = build(text, {"w": (8, 8)}, header='<ir_version: 8, opset_import: ["" : 17]>')
    text = refusal(old, {})
    assert "float8: the graph is opset 17; 8-bit floats need 19 or later, where Cast may mean something else" in text
    assert "Export the model again at opset 19 or later." in text
