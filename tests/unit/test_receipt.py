from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from quantization_graphs import HEADER, build, pictures, ranges_of, residual, small_cnn

from optimizer.errors import StageError
from optimizer.graph.cost import count
from optimizer.graph.quantizable import Dialect
from optimizer.graph.quantize import quantize
from optimizer.graph.receipt import (
    cuda_receipt,
    delivered_by_cuda_provider,
    delivered_by_graph,
    delivered_by_onnxruntime,
    graph_receipt,
    onnxruntime_receipt,
    precision_by_node,
)
from optimizer.pipeline.receipt import delivered
from optimizer.pipeline.subject import Subject
from optimizer.types import Artifact


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
    costs = count(small_cnn()).macs
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


LOOP = """g (float[batch, 8] x) => (float[batch, k] y) <int64 trips = {3}, bool go = {1}> {
  h = MatMul (x, w0)
  l = Loop (trips, go, h) <body = b (int64 i, bool on, float[m, n] st) => (bool oo, float[q, p] so) {
    oo = Identity (on)
    u = MatMul (st, w0)
    a = Add (u, bias)
    so = Tanh (a)
  }>
  y = MatMul (l, w1)
}"""


def looped(path: Path, kind: type[np.generic] = np.float32) -> Path:
    text = LOOP if kind is np.float32 else LOOP.replace("float[", "float16[")
    model = onnx.parser.parse_model(HEADER + text)
    for name, shape in {"w0": (8, 8), "w1": (8, 2), "bias": (8,)}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, kind), name))
    onnx.save(model, path)
    return path


def test_what_a_loop_repeats_is_counted_by_all(tmp_path: Path) -> None:
    path = looped(tmp_path / "model.onnx")
    for receipt in (graph_receipt(path), cuda_receipt(path), onnxruntime_receipt(path)):
        assert receipt.shares == {"fp32": 1.0}
        assert sum(receipt.macs.values()) == 64 + 3 * 64 + 16
        assert receipt.notes == ()


def test_float16_in_a_loop_is_float32_on_onnxruntimes_cpu(tmp_path: Path) -> None:
    path = looped(tmp_path / "half.onnx", np.float16)
    assert delivered_by_graph(path) == {"fp16": 1.0}
    assert delivered_by_onnxruntime(path) == {"fp32": 1.0}


def test_a_shape_that_depends_on_data_has_a_share_of_its_own(tmp_path: Path) -> None:
    text = """g (float[batch, 8] x, bool[batch] c) => (float[k, 8] y) {
      h = MatMul (x, w0)
      s = Compress <axis = 0> (h, c)
      y = MatMul (s, w1)
    }"""
    onnx.save(build(text, {"w0": (8, 8), "w1": (8, 8)}), tmp_path / "model.onnx")
    for receipt in (graph_receipt(tmp_path / "model.onnx"), onnxruntime_receipt(tmp_path / "model.onnx")):
        assert receipt.shares == {"fp32": 0.5, "unknown": 0.5}
        assert receipt.uncounted == {"node_y"}
        assert len(receipt.notes) == 1


# What the pipeline tells of a candidate.

MODULE = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(3, 3, bias=False)
        self.b = torch.nn.Linear(3, 1, bias=False).to(torch.float16)
"""


def subject(path: Path, form: str, device: str = "cpu", precision: str = "fp32") -> Subject:
    return Subject("name", precision, precision, "any", device, Artifact(form, path, "0" * 64), None, None)  # type: ignore[arg-type]


def module(folder: Path) -> Path:
    import torch

    inputs = [{"name": "x", "dtype": "float32", "shape": ["batch", 3], "keyword": False}]
    about = {"kind": "state_dict", "checkpoint": "c.pt", "factory": "model.py:Net", "arguments": {}, "key": None}
    about |= {"strip_prefix": None, "trust": False, "inputs": inputs, "outputs": ["y"]}
    (folder / "module.json").write_text(json.dumps(about))
    (folder / "model.py").write_text(MODULE)
    torch.save({"a.weight": torch.ones(3, 3), "b.weight": torch.ones(1, 3)}, folder / "c.pt")
    return folder


def test_of_a_module_the_dtypes_of_its_weights_are_read(tmp_path: Path) -> None:
    shares, source = delivered(subject(module(tmp_path), "checkpoint"), 1)
    assert shares == {"fp16": 0.25, "fp32": 0.75}
    assert source == "the dtypes of the module's weights, by element"


def test_float32_on_a_gpu_is_told_to_be_tf32(tmp_path: Path) -> None:
    _, source = delivered(subject(module(tmp_path), "checkpoint", "cuda:0"), 1)
    assert source.endswith("; float32 convolutions in TF32 where the library's defaults allow it")
    onnx.save(residual(), tmp_path / "model.onnx")
    told = "; float32 in TF32 where the library's defaults allow it"
    assert delivered(subject(tmp_path, "onnx", "cuda:0"), 1)[1].endswith(told)
    assert "TF32" not in delivered(subject(tmp_path, "onnx"), 1)[1]
    for precision, expected in (("fp32", True), ("fp16", False)):
        (tmp_path / "engine.json").write_text(json.dumps({"precision": {precision: 1.0}}))
        assert delivered(subject(tmp_path, "engine", "cuda:0"), 1)[1].endswith(told) is expected


def test_what_was_assumed_is_told_with_the_source(tmp_path: Path) -> None:
    text = """g (float[batch, 8] x, bool[batch] c) => (float[k, 8] y) {
      s = Compress <axis = 0> (x, c)
      y = MatMul (s, w0)
    }"""
    onnx.save(build(text, {"w0": (8, 8)}), tmp_path / "model.onnx")
    told = "; the multiply-accumulates of node_y cannot be counted: the shape of 's' cannot be inferred"
    shares, source = delivered(subject(tmp_path, "onnx"), 1)
    assert (shares, source) == ({"unknown": 1.0}, f"onnxruntime's optimised graph{told}")
    (tmp_path / "engine.json").write_text(json.dumps({"precision": {}, "precision_notes": list("abcde")}))
    assert delivered(subject(tmp_path, "engine"), 1)[1].endswith("the engine's build; a; b; c; and 2 more")
