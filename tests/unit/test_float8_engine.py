"""What TensorRT-RTX makes of FP8 pairs and of 4-bit weights: real engines, built here without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from quantization_graphs import HEADER, attention, build, pictures, ranges_of, residual, sequences

from optimizer.errors import StageError
from optimizer.graph import build_engine
from optimizer.graph.blocks import quantize_blocks
from optimizer.graph.engine_receipt import engine_receipt
from optimizer.graph.float8 import quantize_float8
from optimizer.stages.float8 import Float8
from optimizer.stages.int4 import Int4

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
PROFILE = {"batch": [1, 4, 8]}
Layers = list[dict[str, Any]]


def engine(model: onnx.ModelProto, folder: Path, *capabilities: str) -> Layers:
    onnx.save(model, folder / "model.onnx")
    found = build_engine.build(
        str(folder / "model.onnx"), str(folder / "engine.plan"), "tensorrt_rtx", PROFILE, [*capabilities]
    )
    layers: Layers = found["layers"]
    return layers


def fp8(model: onnx.ModelProto, folder: Path, **options: object) -> onnx.ModelProto:
    feed = {"image": np.stack(pictures(4, 16))}
    feed = sequences(4) if len(model.graph.input[0].type.tensor_type.shape.dim) == 3 else feed
    return quantize_float8(model, ranges_of(model, feed, folder), **options).model  # type: ignore[arg-type]


LAYERS: dict[str, tuple[str, tuple[int, ...], str]] = {
    "Conv": ("batch, 32, 16, 16", (32, 3, 3, 3), "y = Conv <pads = [1, 1, 1, 1]> (image, w0)"),
    "Conv, depthwise": ("batch, 3, 16, 16", (3, 1, 3, 3), "y = Conv <group = 3, pads = [1, 1, 1, 1]> (image, w0)"),
    "MatMul": ("batch, 3, 16, 8", (16, 8), "y = MatMul (image, w0)"),
    "MatMul, stack": ("batch, 3, 16, 8", (3, 16, 8), "y = MatMul (image, w0)"),
    "Gemm": ("batch, 8", (768, 8), "f = Flatten (image)  y = Gemm (f, w0)"),
    "Gemm, transB": ("batch, 8", (8, 768), "f = Flatten (image)  y = Gemm <transB = 1> (f, w0)"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_multiply_fp8(name: str, tmp_path: Path) -> None:
    output, shape, text = LAYERS[name]
    model = build(f"g (float[batch, 3, 16, 16] image) => (float[{output}] y) {{ {text} }}", {"w0": shape})
    made = fp8(model, tmp_path)
    receipt = engine_receipt(made, engine(made, tmp_path, "8.9"))
    assert (receipt.shares, receipt.notes) == ({"fp8": 1.0}, ())


def test_a_residual_block_is_built_for_every_capability_from_8_9_on(tmp_path: Path) -> None:
    made = fp8(residual(), tmp_path)
    for capability in ("8.9", "12.0", "12.1"):
        assert engine_receipt(made, engine(made, tmp_path, capability)).shares == {"fp8": 1.0}


def test_attention_in_fp8_builds(tmp_path: Path) -> None:
    made = fp8(attention(), tmp_path, attention=True)
    assert engine_receipt(made, engine(made, tmp_path, "8.9")).shares == {"fp8": 1.0}


@pytest.mark.parametrize("capability", ["8.0", "8.6"])
def test_earlier_capabilities_refuse_fp8_with_the_reason(capability: str, tmp_path: Path) -> None:
    """The twin, and why the stage says what it needs."""
    sm = capability.replace(".", "")
    with pytest.raises(StageError, match=rf"sm{sm}, because the model contains HW-specific datatypes: fp8_e4m3"):
        engine(fp8(residual(), tmp_path), tmp_path, capability)
    assert Float8.needs_capability == "8.9"


def test_a_transposed_convolution_behind_fp8_pairs_would_run_in_float32(tmp_path: Path) -> None:
    """Why the stage leaves it alone: pairs as at a Conv only lose digits."""
    text = """g (float[batch, 3, 16, 16] image) => (float[batch, 8, 32, 32] y) {
      a = QuantizeLinear (image, scale, zero)
      b = DequantizeLinear (a, scale, zero)
      c = QuantizeLinear (w0, scale, zero)
      d = DequantizeLinear (c, scale, zero)
      y = ConvTranspose <strides = [2, 2]> (b, d) }"""
    model = onnx.parser.parse_model(HEADER + text)
    rng = np.random.default_rng(0)
    for name, value in (("w0", rng.normal(size=(3, 8, 2, 2))), ("scale", np.asarray(0.01))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.float32), name))
    zero = onnx.helper.make_tensor("zero", onnx.TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True)
    model.graph.initializer.append(zero)
    model.graph.node[-1].name = "node_y"
    receipt = engine_receipt(model, engine(model, tmp_path, "8.9"))
    assert receipt.notes == ("the engine computes node_y in fp32 instead of fp8",)


def large(shape: tuple[int, int], text: str) -> onnx.ModelProto:
    return build(f"g (float[batch, 16, 256] x) => (float[batch, 16, 512] y) {{ {text} }}", {"w": shape})


@pytest.mark.parametrize("block", [32, 64, 128])
def test_an_engine_holds_its_weights_in_4_bits(block: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = large((256, 512), "y = MatMul (x, w)")
    engine(model, tmp_path, "8.6")
    assert "Datatype: Int4" not in capsys.readouterr().out  # the twin
    as_float32 = (tmp_path / "engine.plan").stat().st_size
    made = quantize_blocks(model, block=block)
    layers = engine(made.quantized.model, tmp_path, "8.6")
    assert "Datatype: Int4" in capsys.readouterr().out  # among a kernel's constants
    # Half a megabyte of weights shrinks to an eighth and the scales; the kernel itself is 0.1 MB larger.
    assert as_float32 - (tmp_path / "engine.plan").stat().st_size > 0.6 * (made.float_bytes - made.stored_bytes)
    assert {t["type"] for row in layers for t in row["inputs"]} == {"Float"}  # activations stay as they are


@pytest.mark.parametrize("capability", ["8.0", "8.6", "8.9", "12.0"])
def test_int4_builds_from_8_0_on(capability: str, tmp_path: Path) -> None:
    text = """g (float[batch, 64] x) => (float[batch, 8] y) { h = Gemm <transB = 1> (x, w0) y = Gemm (h, w1) }"""
    engine(quantize_blocks(build(text, {"w0": (96, 64), "w1": (96, 8)})).quantized.model, tmp_path, capability)
    assert (tmp_path / "engine.plan").stat().st_size


def test_a_stack_of_4_bit_weights_builds(tmp_path: Path) -> None:
    text = "g (float[batch, 3, 16, 64] x) => (float[batch, 3, 16, 8] y) { y = MatMul (x, w) }"
    engine(quantize_blocks(build(text, {"w": (3, 64, 8)})).quantized.model, tmp_path, "8.6")


def test_turing_refuses_int4_with_the_reason(tmp_path: Path) -> None:
    """The twin."""
    with pytest.raises(StageError, match=r"sm75, because the model contains HW-specific datatypes: int4"):
        engine(quantize_blocks(large((256, 512), "y = MatMul (x, w)")).quantized.model, tmp_path, "7.5")
    assert Int4.needs_capability == "8.0"


def test_blocks_that_do_not_divide_the_rows_would_be_read_otherwise(tmp_path: Path) -> None:
    """Why such weights stay in float: 100 rows with 4 scales build, although ONNX says 32, 32, 32 and 4."""
    from onnx import TensorProto, helper

    initializers = [
        helper.make_tensor("w", TensorProto.INT4, [100, 8], b"\0" * 400, raw=True),
        onnx.numpy_helper.from_array(np.ones((4, 8), np.float32), "s"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", size]) for n, size in (("x", 100), ("y", 8)))
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    engine(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path, "8.6")
    graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.ones((3, 8), np.float32), "s"))
    with pytest.raises(StageError, match="must divide into whole blocks"):
        engine(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path, "8.6")
