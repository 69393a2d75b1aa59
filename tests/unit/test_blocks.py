"""INT4: scales and integers of blocks against float64, what the graph computes with them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from quantization_graphs import build, dequantized, infer, pictures, small_cnn, sqnr_db

from optimizer.errors import StageError
from optimizer.graph.blocks import Stored, block_scales, quantize_blocks, to_int4
from optimizer.graph.receipt import graph_receipt, onnxruntime_receipt
from optimizer.judge import open_judge
from optimizer.runtime.onnx import OnnxSession

MLP = """g (float[batch, 64] x) => (float[batch, 32] y) {
  a = Gemm <transB = 1> (x, w0, b0) h = Relu (a) c = Gemm (h, w1, b1) r = Relu (c) y = MatMul (r, w2)
}"""
MLP_WEIGHTS = {"w0": (128, 64), "b0": (128,), "w1": (128, 96), "b1": (96,), "w2": (96, 32)}


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def value(integers: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Dequantize in float64, block after block."""
    block = integers.shape[-2] // scales.shape[-2]
    parts = [
        integers[..., b * block : (b + 1) * block, :].astype(np.float64) * scales[..., b : b + 1, :].astype(np.float64)
        for b in range(scales.shape[-2])
    ]
    return np.concatenate(parts, axis=-2)


def by_search(column: np.ndarray) -> tuple[float, float]:
    """Return the least squared error of a block over 1,000 scales, and that of the scale which clips nothing."""

    def error(scale: float) -> float:
        return float(((np.clip(np.round(column / scale), -8, 7) * scale - column) ** 2).sum())

    unclipped = np.abs(column).max() / 7
    return min(error(unclipped * share) for share in np.linspace(0.4, 1.1, 1000)), error(unclipped)


def plain(weight: np.ndarray, block: int) -> np.ndarray:
    """Scales that clip nothing."""
    *stack, rows, columns = weight.shape
    scales = np.abs(weight.reshape(*stack, rows // block, block, columns)).max(axis=-2) / 7
    return np.asarray(scales, dtype=np.float32)


def test_a_blocks_scale_has_nearly_the_least_error_there_is() -> None:
    weight = normal(64, 40)
    found = value(to_int4(weight, block_scales(weight, 32)), block_scales(weight, 32))
    errors = ((found - weight) ** 2).reshape(2, 32, 40).sum(axis=1)
    least, unclipped = np.zeros((2, 40)), np.zeros((2, 40))
    for b, c in np.ndindex(2, 40):
        least[b, c], unclipped[b, c] = by_search(weight[b * 32 : b * 32 + 32, c].astype(np.float64))
    assert (errors <= unclipped * (1 + 1e-6)).all()
    # 21 scales between 0.6 and 1 miss the best of 1,000 by a few per cent; the twin, no search, by 30.
    assert errors.sum() < 1.04 * least.sum()
    assert unclipped.sum() > 1.2 * least.sum()


@pytest.mark.parametrize(("block", "least", "gain"), [(32, 21.0, 0.9), (64, 20.2, 1.0), (128, 19.6, 1.1)])
def test_normal_weights_keep_20_db(block: int, least: float, gain: float) -> None:
    """The largest of 32 / 64 / 128 magnitudes is 2.3 to 2.8 sigma, a step a seventh of it, the error step^2 / 12.

    10 log10(12 * 49 / 2.3^2) = 20.5 dB, and 18.8 dB for 2.8; clipping gains 1 dB.
    """
    weight = normal(1024, 256)
    scales = block_scales(weight, block)
    searched = sqnr_db(weight, value(to_int4(weight, scales), scales))
    unclipped = sqnr_db(weight, value(to_int4(weight, plain(weight, block)), plain(weight, block)))
    assert least < searched < least + 1
    assert searched - unclipped > gain
    # The twin: scales of the neighbouring column.
    assert sqnr_db(weight, value(to_int4(weight, scales), np.roll(scales, 1, axis=1))) < searched - 2


def test_a_block_of_zeros_has_scale_one_and_a_tiny_one_no_zero_scale() -> None:
    weight = np.zeros((64, 2), np.float32)
    weight[32:, 1] = 1e-42
    scales = block_scales(weight, 32)
    np.testing.assert_array_equal(scales, np.ones((2, 2), np.float32))
    assert not to_int4(weight, scales).any()


def test_integers_use_all_sixteen_values_and_no_more() -> None:
    integers = to_int4(normal(512, 64), block_scales(normal(512, 64), 32))
    assert set(np.unique(integers)) == set(range(-8, 8))


def test_a_stack_has_blocks_per_matrix() -> None:
    weight = normal(3, 64, 8)
    scales = block_scales(weight, 32)
    assert scales.shape == (3, 2, 8)
    np.testing.assert_array_equal(scales[1], block_scales(weight[1], 32))


def mlp(**options: object) -> Stored:
    return quantize_blocks(build(MLP, MLP_WEIGHTS), **options)  # type: ignore[arg-type]


def samples() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(2).normal(size=(16, 64)).astype(np.float32)}


def by_hand(block: int) -> np.ndarray:
    """Compute the perceptron in float64 with the weights that 4 bits leave."""
    weights = {
        t.name: onnx.numpy_helper.to_array(t).astype(np.float32) for t in build(MLP, MLP_WEIGHTS).graph.initializer
    }

    def stored(weight: np.ndarray) -> np.ndarray:
        return value(to_int4(weight, block_scales(weight, block)), block_scales(weight, block))

    a = samples()["x"].astype(np.float64) @ stored(weights["w0"].T) + weights["b0"]
    c = np.maximum(a, 0) @ stored(weights["w1"]) + weights["b1"]
    return np.asarray(np.maximum(c, 0) @ stored(weights["w2"]))


def test_a_perceptron_computes_what_it_does_by_hand(tmp_path: Path) -> None:
    """Also where a Gemm's weight was transposed."""
    (original,) = infer(build(MLP, MLP_WEIGHTS), samples(), tmp_path)
    (found,) = infer(mlp().quantized.model, samples(), tmp_path)
    assert sqnr_db(by_hand(32), found) > 120  # float32 sums against float64
    # Three weights of 20 dB: 15 dB where the products' signs are random, and more where they add up.
    assert 13 < sqnr_db(original, found) < 24
    # The twin: blocks of another size are other weights.
    (wider,) = infer(mlp(block=64, keep=["node_y"]).quantized.model, samples(), tmp_path)
    assert sqnr_db(by_hand(32), wider) < 30


@pytest.mark.parametrize("optimize", [True, False])
def test_onnxruntime_computes_in_float32(optimize: bool, tmp_path: Path) -> None:
    path = tmp_path / "int4.onnx"
    onnx.save(mlp().quantized.model, path)
    with OnnxSession(path, optimize=optimize) as session:
        (found,) = session.infer(samples()).values()
    assert sqnr_db(by_hand(32), found) > 120


def test_onnxruntime_alone_rounds_the_activations_too(tmp_path: Path) -> None:
    """The twin, and why the session sets an accuracy level: its default computes in int8, unasked."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        mlp().quantized.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    assert sqnr_db(by_hand(32), session.run(None, samples())[0]) < 60


def test_two_weights_stand_in_a_byte(tmp_path: Path) -> None:
    stored = mlp()
    weights = 64 * 128 + 128 * 96 + 96 * 32
    assert stored.float_bytes == 4 * weights
    assert stored.stored_bytes == weights // 2 + 4 * weights // 32
    packed = [t for t in stored.quantized.model.graph.initializer if t.data_type == onnx.TensorProto.INT4]
    assert sum(len(t.raw_data) for t in packed) == weights // 2
    onnx.save(stored.quantized.model, tmp_path / "int4.onnx")
    assert (tmp_path / "int4.onnx").stat().st_size < stored.stored_bytes + 4000


def test_a_shared_weight_is_stored_once() -> None:
    text = "g (float[batch, 32] x) => (float[batch, 32] y) { h = MatMul (x, w) y = MatMul (h, w) }"
    model = quantize_blocks(build(text, {"w": (32, 32)})).quantized.model
    assert [n.op_type for n in model.graph.node] == ["DequantizeLinear", "MatMul", "MatMul"]


def test_a_weight_that_others_read_as_well_stays_for_them() -> None:
    text = """g (float[batch, 32] x, int64[batch] i) => (float[batch, 64] y, float[batch, 32] e) {
      y = Gemm <transB = 1> (x, w) e = Gather (w, i) }"""
    model = quantize_blocks(build(text, {"w": (64, 32)})).quantized.model
    assert sorted(t.data_type for t in model.graph.initializer) == [1, 1, onnx.TensorProto.INT4]
    assert model.graph.node[-1].input[0] == "w"


def test_what_does_not_fit_stays_in_float_and_says_why() -> None:
    text = """g (float[batch, 40] x) => (float[batch, 8] y) {
      a = MatMul (x, w0) b = MatMul (a, w1) y = MatMul (b, w2) }"""
    made = quantize_blocks(build(text, {"w0": (40, 64), "w1": (64, 32), "w2": (32, 8)}), ["node_y"]).quantized
    assert made.left == {"node_a": "its 40 inputs are no multiple of block 32", "node_y": "the recipe keeps it"}
    assert [dequantized(made.model, f"node_{n}") for n in "aby"] == [[False, False], [False, True], [False, False]]


def test_receipts_call_the_weights_int4_and_say_what_that_means(tmp_path: Path) -> None:
    path = tmp_path / "int4.onnx"
    onnx.save(mlp().quantized.model, path)
    for receipt in (graph_receipt(path), onnxruntime_receipt(path)):
        assert receipt.shares == {"int4": 1.0}
        (note,) = receipt.notes
        assert note.startswith("int4 is how the weights of 3 products are stored; they are multiplied in the type")
    session, how = open_judge(path)
    session.close()
    assert how.endswith("on the CPU, int4 weights as its Q/DQ nodes say, float32")


def test_the_twin_of_the_receipts_without_int4_has_no_such_note() -> None:
    receipt = graph_receipt(build(MLP, MLP_WEIGHTS))
    assert (receipt.shares, receipt.notes) == ({"fp32": 1.0}, ())


def refusal(model: onnx.ModelProto, **options: object) -> str:
    with pytest.raises(StageError) as caught:
        quantize_blocks(model, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_refusals_name_what_is_wrong() -> None:
    again = mlp().quantized.model
    text = refusal(again)
    assert "int4: the graph is quantized already: 3 nodes, DequantizeLinear 'w0_dequantized/dequantize' first" in text
    assert "nearest: node_y (node)" in refusal(build(MLP, MLP_WEIGHTS), keep=["node_yy"])
    convolution = build(
        "g (float[b, 3, 8, 8] x) => (float[b, 4, 8, 8] y) { y = Conv <pads = [1, 1, 1, 1]> (x, w) }",
        {"w": (4, 3, 3, 3)},
    )
    text = refusal(convolution)
    assert "no layer is left to quantize: node_y: int4 stores the weights of MatMul and Gemm alone" in text
    text = "g (float[b, 32] x) => (float[b, 8] y) { c = Cast <to = 1> (x) y = MatMul (c, w) }"
    old = build(text, {"w": (32, 8)}, header='<ir_version: 8, opset_import: ["" : 17]>')
    assert "the graph is opset 17; 4-bit integers with block scales need 21 or later, where Cast may" in refusal(old)


def test_a_cnn_keeps_most_of_its_work_in_float(tmp_path: Path) -> None:
    model = quantize_blocks(small_cnn()).quantized.model
    assert graph_receipt(model).shares["int4"] < 0.1
    assert infer(model, {"image": np.stack(pictures(2))}, tmp_path)[0].shape == (2, 10)
