"""What TensorRT-RTX makes of the TensorRT dialect: the layer table of real engines, built here without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from quantization_graphs import CONCAT, CONCAT_WEIGHTS, attention, build, pictures, ranges_of, residual, sequences

from optimizer.errors import StageError
from optimizer.graph import build_engine
from optimizer.graph.engine_receipt import engine_receipt
from optimizer.graph.quantize import quantize

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
PROFILE = {"batch": [1, 4, 8]}
Layers = list[dict[str, Any]]


def engine(model: onnx.ModelProto, folder: Path) -> Layers:
    onnx.save(model, folder / "model.onnx")
    found = build_engine.build(
        str(folder / "model.onnx"), str(folder / "engine.plan"), "tensorrt_rtx", PROFILE, ["8.9"]
    )
    layers: Layers = found["layers"]
    return layers


def quantized(
    model: onnx.ModelProto, folder: Path, feed: dict[str, np.ndarray] | None = None, **options: object
) -> onnx.ModelProto:
    feed = feed or {"image": np.stack(pictures(4, 16))}
    return quantize(model, ranges_of(model, feed, folder), "tensorrt", **options).model  # type: ignore[arg-type]


def layer(layers: Layers, node: str, kinds: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the engine's only layer (of these kinds) that holds a node."""
    (found,) = [row for row in layers if node in row["onnx_nodes"] and (not kinds or row["kind"] in kinds)]
    return found


def read(row: dict[str, Any]) -> list[str]:
    return sorted(tensor["type"] for tensor in row["inputs"])


def written(row: dict[str, Any]) -> list[str]:
    return sorted(tensor["type"] for tensor in row["outputs"])


def test_an_integer_sum_is_fused_and_integers_pass_between_layers(tmp_path: Path) -> None:
    layers = engine(quantized(residual(), tmp_path, residuals="int8"), tmp_path)
    added = layer(layers, "node_s1")
    assert read(added) == ["Float", "Int8"]  # the convolution's sums, and what bypassed it
    assert written(added) == ["Int8"]
    assert "node_r2" in added["onnx_nodes"]


def test_a_float_sum_writes_its_result_twice(tmp_path: Path) -> None:
    """The twin: without the option the shortcut is read, and written for the next sum, in float."""
    added = layer(engine(quantized(residual(), tmp_path), tmp_path), "node_s1")
    assert read(added) == ["Float", "Float"]
    assert written(added) == ["Float", "Int8"]


def test_a_pair_between_a_convolution_and_its_sum_changes_no_tensor_between_kernels(tmp_path: Path) -> None:
    """Why the dialect has none there: the same kernels read and write the same types, and one more rounds."""
    model = quantized(residual(), tmp_path, residuals="int8")
    without = layer(engine(model, tmp_path), "node_s1")
    # Round the convolution's result with the pair of another tensor: types matter here, numbers do not.
    quantizing = next(n for n in model.graph.node if n.op_type == "QuantizeLinear")
    node = next(n for n in model.graph.node if n.name == "node_s1")
    at = list(model.graph.node).index(node)
    for kind, source, result in (("DequantizeLinear", "c2_q", "c2_d"), ("QuantizeLinear", "c2", "c2_q")):
        made = onnx.helper.make_node(kind, [source, *quantizing.input[1:]], [result], name=result)
        model.graph.node.insert(at, made)
    node.input[0] = "c2_d"
    onnx.checker.check_model(model, full_check=True)
    with_pair = layer(engine(model, tmp_path), "node_s1")
    assert (read(with_pair), written(with_pair)) == (read(without), written(without))
    assert {"c2_q", "c2_d"} <= set(with_pair["onnx_nodes"])


LAYERS: dict[str, tuple[str, tuple[int, ...], str]] = {
    "Conv": ("batch, 32, 16, 16", (32, 3, 3, 3), "y = Conv <pads = [1, 1, 1, 1]> (image, w0)"),
    "Conv, depthwise": ("batch, 3, 16, 16", (3, 1, 3, 3), "y = Conv <group = 3, pads = [1, 1, 1, 1]> (image, w0)"),
    "MatMul": ("batch, 3, 16, 8", (16, 8), "y = MatMul (image, w0)"),
    "MatMul, stack": ("batch, 3, 16, 8", (3, 16, 8), "y = MatMul (image, w0)"),
    "Gemm": ("batch, 8", (768, 8), "f = Flatten (image)  y = Gemm (f, w0)"),
    "Gemm, transB": ("batch, 8", (8, 768), "f = Flatten (image)  y = Gemm <transB = 1> (f, w0)"),
}
TRANSPOSED = {
    "ConvTranspose": ("batch, 8, 32, 32", (3, 8, 2, 2), "y = ConvTranspose <strides = [2, 2]> (image, w0)"),
    "ConvTranspose, grouped": (
        "batch, 6, 32, 32", (3, 2, 2, 2), "y = ConvTranspose <strides = [2, 2], group = 3> (image, w0)",
    ),
}  # fmt: skip


def one_layer(given: tuple[str, tuple[int, ...], str]) -> onnx.ModelProto:
    output, shape, text = given
    return build(f"g (float[batch, 3, 16, 16] image) => (float[{output}] y) {{ {text} }}", {"w0": shape})


@pytest.mark.parametrize("name", LAYERS)
def test_layers_read_integers_in_the_engine(name: str, tmp_path: Path) -> None:
    model = quantized(one_layer(LAYERS[name]), tmp_path)
    layers = engine(model, tmp_path)
    assert set(read(layer(layers, "node_y", ("correlation", "gemm")))) == {"Int8"}
    receipt = engine_receipt(model, layers)
    assert (receipt.shares, receipt.notes) == ({"int8": 1.0}, ())


@pytest.mark.parametrize("name", TRANSPOSED)
def test_a_transposed_convolution_runs_in_float_and_the_receipt_says_so(name: str, tmp_path: Path) -> None:
    model = quantized(one_layer(TRANSPOSED[name]), tmp_path)
    receipt = engine_receipt(model, engine(model, tmp_path))
    assert receipt.shares == {"fp32": 1.0}
    assert receipt.notes == ("the engine computes node_y in fp32 instead of int8",)


def test_integers_pass_through_a_pool_and_a_concat(tmp_path: Path) -> None:
    model = build(CONCAT.replace("8, 8] image", "16, 16] image").replace("4, 4] y", "8, 8] y"), CONCAT_WEIGHTS)
    layers = engine(quantized(model, tmp_path), tmp_path)
    assert written(layer(layers, "node_r")) == ["Int8"]
    assert read(layer(layers, "node_p")) == ["Int8"]
    assert read(layer(layers, "node_y", ("correlation",))) == ["Int8"]


def test_attention_in_int8_becomes_one_kernel_of_integers(tmp_path: Path) -> None:
    model = quantized(attention(), tmp_path, sequences(4), attention=True)
    layers = engine(model, tmp_path)
    fused = layer(layers, "node_p")
    assert {"node_s", "node_c"} <= set(fused["onnx_nodes"])
    assert "Float" not in read(fused)[1:]  # the mask alone may be
    receipt = engine_receipt(model, layers)
    assert receipt.shares == {"int8": 1.0}
    assert receipt.notes == (
        "the engine's layer table has no kernel of its own for node_s, node_c: the graph's types count",
    )


def test_attention_left_in_float_is_float_in_the_engine(tmp_path: Path) -> None:
    """The twin."""
    model = quantized(attention(), tmp_path, sequences(4))
    layers = engine(model, tmp_path)
    assert "Float" in read(layer(layers, "node_p"))
    assert engine_receipt(model, layers).shares["fp32"] > 0


def test_tensorrt_refuses_the_other_dialect(tmp_path: Path) -> None:
    """The twin: unsigned activations with a zero point, and integer bias."""
    model = residual()
    feed = {"image": np.stack(pictures(4, 16))}
    other = quantize(model, ranges_of(model, feed, tmp_path), "cpu").model
    with pytest.raises(StageError):
        engine(other, tmp_path)


def test_an_axis_of_another_length_is_refused(tmp_path: Path) -> None:
    """The twin of the axes: 32 scales do not fit the 3 input channels."""
    model = quantized(one_layer(LAYERS["Conv"]), tmp_path)
    weight = next(n for n in model.graph.node if n.output[0] == "w0_dequantized")
    next(a for a in weight.attribute if a.name == "axis").i = 1
    with pytest.raises(StageError):
        engine(model, tmp_path)
