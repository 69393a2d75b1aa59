from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from quantization_graphs import build, pictures, ranges_of, residual, small_cnn

from optimizer.errors import StageError
from optimizer.graph.cost import macs
from optimizer.graph.quantizable import Dialect
from optimizer.graph.quantize import quantize
from optimizer.graph.receipt import (
    delivered_by_cuda_provider,
    delivered_by_graph,
    delivered_by_onnxruntime,
    onnxruntime_receipt,
    precision_by_node,
)


def quantized(model: onnx.ModelProto, size: int, dialect: Dialect, folder: Path, keep: tuple[str, ...] = ()) -> Path:
    feed = {"image": np.stack(pictures(16, size))}
    path = folder / f"{dialect}.onnx"
    onnx.save(quantize(model, ranges_of(model, feed, folder), dialect, keep).model, path)
    return path


def to_half(model: onnx.ModelProto, path: Path) -> Path:
    """Write the small CNN in float16 between two Casts, as a float16 stage does."""
    graph = model.graph
    for tensor in graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    graph.node[0].input[0] = "half"
    graph.node[-1].output[0] = "half_logits"
    cast = onnx.helper.make_node
    graph.node.insert(0, cast("Cast", ["image"], ["half"], to=onnx.TensorProto.FLOAT16))
    graph.node.append(cast("Cast", ["half_logits"], ["logits"], to=onnx.TensorProto.FLOAT))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def test_a_float_graph_is_float_for_both(tmp_path: Path) -> None:
    onnx.save(residual(), tmp_path / "model.onnx")
    assert delivered_by_graph(tmp_path / "model.onnx") == {"fp32": 1.0}
    assert delivered_by_onnxruntime(tmp_path / "model.onnx") == {"fp32": 1.0}


def test_each_dialect_is_int8_where_it_is_at_home(tmp_path: Path) -> None:
    for model, size in ((small_cnn(), 8), (residual(), 16)):
        again = onnx.ModelProto()
        again.CopyFrom(model)
        assert delivered_by_graph(quantized(model, size, "tensorrt", tmp_path)) == {"int8": 1.0}
        assert delivered_by_onnxruntime(quantized(again, size, "cpu", tmp_path)) == {"int8": 1.0}


def test_the_tensorrt_dialect_runs_in_float_on_onnxruntimes_cpu(tmp_path: Path) -> None:
    """Its convolutions have no quantized output, so no integer kernel fits: int8 in the graph is not int8 executed."""
    assert delivered_by_onnxruntime(quantized(residual(), 16, "tensorrt", tmp_path)) == {"fp32": 1.0}


def test_onnxruntimes_cuda_provider_has_no_int8_and_keeps_float16(tmp_path: Path) -> None:
    assert delivered_by_cuda_provider(quantized(residual(), 16, "cpu", tmp_path)) == {"fp32": 1.0}
    assert delivered_by_cuda_provider(to_half(small_cnn(), tmp_path / "half.onnx")) == {"fp16": 1.0}


def test_float16_is_float32_on_onnxruntimes_cpu(tmp_path: Path) -> None:
    path = to_half(small_cnn(), tmp_path / "half.onnx")
    assert delivered_by_graph(path) == {"fp16": 1.0}
    assert delivered_by_onnxruntime(path) == {"fp32": 1.0}


def test_a_kept_layer_counts_with_its_own_share(tmp_path: Path) -> None:
    costs = macs(small_cnn())
    share = costs["node_c2"] / sum(costs.values())
    for dialect, read in (("tensorrt", delivered_by_graph), ("cpu", delivered_by_onnxruntime)):
        found = read(quantized(small_cnn(), 8, dialect, tmp_path, ("node_c2",)))  # type: ignore[arg-type]
        assert found == pytest.approx({"fp32": share, "int8": 1 - share})
        assert sum(found.values()) == pytest.approx(1.0)


def test_a_layer_with_only_its_weight_in_integers_is_float(tmp_path: Path) -> None:
    path = quantized(small_cnn(), 8, "tensorrt", tmp_path)
    model = onnx.load(path)
    first = next(n for n in model.graph.node if n.name == "node_c1")
    first.input[0] = "image"
    assert precision_by_node(model)["node_c1"] == "fp32"
    assert precision_by_node(model)["node_c2"] == "int8"


def test_a_product_that_onnxruntime_hides_in_a_fused_operator_is_counted(tmp_path: Path) -> None:
    """MatMul and Add become one Gemm, and the transposed operand of a MatMul disappears: the sum stays whole."""
    text = """g (float[batch, 5, 8] x) => (float[batch, 5, 5] y) {
      a = MatMul (x, w0)
      b = Add (a, b0)
      t = Transpose <perm = [0, 2, 1]> (b)
      y = MatMul (b, t)
    }"""
    onnx.save(build(text, {"w0": (8, 6), "b0": (6,)}), tmp_path / "model.onnx")
    assert delivered_by_onnxruntime(tmp_path / "model.onnx") == {"fp32": 1.0}


def test_a_float_product_behind_an_integer_kernel_is_float(tmp_path: Path) -> None:
    """Attention in miniature: onnxruntime's own operators hide the types behind them from ONNX."""
    text = """g (float[batch, 3, 8, 8] image) => (float[batch, 3, 8, 8] y) {
      a = MatMul (image, w0)
      t = Transpose <perm = [0, 1, 3, 2]> (a)
      s = MatMul (a, t)
      h = Mul (s, half)
      p = Softmax (h)
      y = MatMul (p, w1)
    }"""
    model = build(text, {"w0": (8, 8), "w1": (8, 8), "half": ()})
    path = quantized(model, 8, "cpu", tmp_path)
    expected = {"node_a": "int8", "node_s": "fp32", "node_y": "int8"}
    assert precision_by_node(onnx.load(path)) == expected
    assert onnxruntime_receipt(path).precisions == expected
    assert delivered_by_onnxruntime(path) == pytest.approx({"fp32": 1 / 3, "int8": 2 / 3})


def test_a_graph_that_multiplies_nothing_has_no_shares(tmp_path: Path) -> None:
    onnx.save(build("g (float[b, 3] x) => (float[b, 3] y) { y = Relu (x) }", {}), tmp_path / "model.onnx")
    assert delivered_by_graph(tmp_path / "model.onnx") == {}
    assert delivered_by_onnxruntime(tmp_path / "model.onnx") == {}


def test_a_model_that_onnxruntime_refuses_is_named(tmp_path: Path) -> None:
    model = build("g (float[b, 3] x) => (float[b, 3] y) { y = Relu (x) }", {})
    model.graph.node[0].op_type = "NoSuchOperator"
    model.opset_import.append(onnx.helper.make_opsetid("nobody", 1))
    model.graph.node[0].domain = "nobody"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(StageError, match=r"model\.onnx: onnxruntime refuses the model"):
        delivered_by_onnxruntime(tmp_path / "model.onnx")
