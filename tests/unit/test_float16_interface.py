"""Inputs and outputs in float16 on request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from float16_graphs import Split, cnn, model, normal, run, sqnr_db
from onnx import TensorProto

from optimizer.calibration.ranges import measure_graph
from optimizer.errors import StageError
from optimizer.graph.float16 import convert_to_float16
from optimizer.graph.narrow import CastReport
from optimizer.runtime.onnx import OnnxSession

HALF = TensorProto.FLOAT16


def convert(folder: Path, source: onnx.ModelProto, keep: tuple[str, ...] = ()) -> tuple[onnx.ModelProto, CastReport]:
    onnx.save(source, folder / "source.onnx")
    report = convert_to_float16(folder / "source.onnx", folder / "half.onnx", keep, io="fp16")
    return onnx.load(folder / "half.onnx"), report


def test_a_float16_interface_needs_no_cast(tmp_path: Path) -> None:
    result, report = convert(tmp_path, cnn())
    assert [node.op_type for node in result.graph.node] == ["Conv", "Relu", "MaxPool", "Flatten", "Gemm"]
    assert report.casts == 0
    ports = (*result.graph.input, *result.graph.output)
    assert [(v.name, v.type.tensor_type.elem_type) for v in ports] == [("x", HALF), ("y", HALF)]
    assert [d.dim_param for d in result.graph.input[0].type.tensor_type.shape.dim][:1] == ["batch"]


# What reads an input or writes an output: float16, float32, or both; an output read inside; outputs that are the same.
EDGES = {
    "a float32 node at each end": "[p] a = Relu(x) b = MatMul(a, w) [q] y = Relu(b)",
    "both types read the input": "[p] a = Relu(x) b = MatMul(x, w) c = Add(a, b) y = MatMul(c, w)",
    "the output is read inside": "y = MatMul(x, w) [p] a = Relu(y) z = MatMul(y, w)",
    "two outputs from one float16 tensor": "a = MatMul(x, w) y = MatMul(a, w) z = Identity(y)",
    "an input goes straight out": "y = MatMul(x, w) z = Identity(x)",
}


@pytest.mark.parametrize("edge", EDGES)
def test_every_kind_of_edge_gives_the_same_numbers(edge: str, tmp_path: Path) -> None:
    outputs = "float[batch, 8] y" + (", float[batch, 8] z" if " z = " in EDGES[edge] else "")
    source = model(f"g (float[batch, 8] x) => ({outputs}) {{ {EDGES[edge]} }}", w=normal(8, 8, scale=0.3))
    names = {node.name for node in source.graph.node}
    result, report = convert(tmp_path, source, tuple(name for name in ("p", "q") if name in names))
    assert report.casts == sum(node.op_type == "Cast" for node in result.graph.node)
    x = normal(6, 8).astype(np.float16)
    with OnnxSession(tmp_path / "source.onnx", optimize=False) as session:
        expected = session.infer({"x": x.astype(np.float32)})["y"]
    found = run(tmp_path / "half.onnx", x=x)
    assert found.dtype == np.float16
    assert sqnr_db(expected, found) > 55
    assert not sqnr_db(expected, found * np.float16(1.01)) > 55
    OnnxSession(tmp_path / "half.onnx", optimize=False).close()


def test_integer_inputs_stay_what_they_are(tmp_path: Path) -> None:
    text = "g (int64[batch, n] x) => (float[batch, n, 8] y) { a = Gather(t, x) y = MatMul(a, w) }"
    result, _ = convert(tmp_path, model(text, t=normal(50, 8), w=normal(8, 8)))
    assert result.graph.input[0].type.tensor_type.elem_type == TensorProto.INT64
    assert result.graph.output[0].type.tensor_type.elem_type == HALF


def test_an_output_that_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    source = model(
        "g (float[batch, 8] x) => (float[batch, 8] y) { a = MatMul(x, w) y = MatMul(a, w) }", w=np.eye(8) * 300
    )
    onnx.save(source, tmp_path / "source.onnx")
    x = normal(16, 8)
    x[0, 0] = 1.0
    measured = measure_graph(tmp_path / "source.onnx", Split(x=np.abs(x[:8])), lambda *_: None, "float16")
    with pytest.raises(StageError, match=r"output 'y' cannot be float16: it reaches .* float16 ends at 65,504"):
        convert_to_float16(tmp_path / "source.onnx", tmp_path / "half.onnx", measured=measured, io="fp16")


def test_an_input_that_a_subgraph_reads_is_refused(tmp_path: Path) -> None:
    text = """g (bool c, float[batch, 8] x) => (float[batch, 8] y) { a = MatMul(x, w) b = If(c) <
      then_branch = t () => (float[k, 8] p) { p = Relu(x) }, else_branch = e () => (float[k, 8] q) { q = Neg(x) }>
      y = MatMul(a, w) }"""
    with pytest.raises(StageError, match="input 'x' cannot be float16: it is read inside a subgraph"):
        convert(tmp_path, model(text, w=np.eye(8)))
