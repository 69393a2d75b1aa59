"""The receipt layer by layer, in every dialect and as the stage writes it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from quantization_graphs import attention, build, pictures, ranges_of, sequences, small_cnn

from optimizer.calibration.estimators import Estimate
from optimizer.graph.engine_receipt import engine_receipt
from optimizer.graph.layer_receipt import document, layer_rows
from optimizer.graph.layers import LayerRow
from optimizer.graph.modules import MODULE
from optimizer.graph.quantizable import Dialect
from optimizer.graph.quantize import Quantized, quantize
from optimizer.graph.receipt import Receipt, graph_receipt, onnxruntime_receipt


def receipt_of(path: Path, dialect: Dialect) -> Receipt:
    return onnxruntime_receipt(path) if dialect == "cpu" else graph_receipt(path)


def rows_of(made: Quantized, dialect: Dialect, folder: Path) -> tuple[tuple[LayerRow, ...], Receipt]:
    path = folder / "model.onnx"
    onnx.save(made.model, path)
    receipt = receipt_of(path, dialect)
    return layer_rows(path, receipt, "int8", made.left, made.kept), receipt


def with_modules(model: onnx.ModelProto) -> onnx.ModelProto:
    for node in model.graph.node:
        node.metadata_props.add(key=MODULE, value=f"net.{node.output[0]}")
    return model


@pytest.mark.parametrize("dialect", ["tensorrt", "cpu", "openvino"])
def test_each_layer_has_a_row_with_its_module_and_what_it_was_asked_for(tmp_path: Path, dialect: Dialect) -> None:
    model = with_modules(small_cnn())
    feed = {"image": np.stack(pictures(8))}
    rows, _ = rows_of(quantize(model, ranges_of(model, feed, tmp_path), dialect, ("net.c2",)), dialect, tmp_path)
    assert rows == (
        LayerRow("node_c1", "net.c1", "Conv", 8 * 8 * 8 * 27, "int8", "int8", ""),
        LayerRow("node_c2", "net.c2", "Conv", 16 * 4 * 4 * 72, "fp32", "fp32", "the recipe keeps it"),
        LayerRow("node_g1", "net.g1", "Gemm", 64 * 32, "int8", "int8", ""),
        LayerRow("node_logits", "net.logits", "Gemm", 32 * 10, "int8", "int8", ""),
    )


@pytest.mark.parametrize("dialect", ["tensorrt", "cpu", "openvino"])
def test_rows_add_up_to_the_shares(tmp_path: Path, dialect: Dialect) -> None:
    model = attention()
    rows, receipt = rows_of(quantize(model, ranges_of(model, sequences(), tmp_path), dialect), dialect, tmp_path)
    total = sum(row.macs for row in rows)
    for kind, share in receipt.shares.items():
        assert sum(row.macs for row in rows if row.delivered == kind) / total == pytest.approx(share)
    assert {row.node: row.reason[:29] for row in rows if row.reason} == {
        "node_s": "both operands are activations",
        "node_c": "both operands are activations",
    }


def test_a_layer_that_the_runtime_does_not_take_says_so(tmp_path: Path) -> None:
    """The TensorRT dialect has no pair behind a convolution: onnxruntime has no integer kernel for that."""
    model = small_cnn()
    made = quantize(model, ranges_of(model, {"image": np.stack(pictures(8))}, tmp_path), "tensorrt")
    rows, _ = rows_of(made, "cpu", tmp_path)
    first = rows[0]
    assert (first.requested, first.delivered) == ("int8", "fp32")
    assert first.reason == "the runtime has no kernel for it as it stands"


def test_work_that_a_fused_operator_hides_is_told(tmp_path: Path) -> None:
    onnx.save(attention(), tmp_path / "model.onnx")
    whole = graph_receipt(tmp_path / "model.onnx")
    seen = {name: kind for name, kind in whole.precisions.items() if name != "node_s"}
    receipt = Receipt({**seen, "hidden in fused operators": "fp32"}, whole.macs)
    rows = {row.node: row for row in layer_rows(tmp_path / "model.onnx", receipt, "int8")}
    assert (rows["node_s"].delivered, rows["node_s"].reason) == ("fp32", "the runtime hides it in a larger operator")


def test_a_layer_whose_work_cannot_be_counted_says_why(tmp_path: Path) -> None:
    text = """g (float[batch, 8] x, bool[batch] c) => (float[k, 8] y) {
      s = Compress <axis = 0> (x, c)
      y = MatMul (s, w0)
    }"""
    model = build(text, {"w0": (8, 8)})
    made = quantize(model, {"s": Estimate(-3.0, 3.0, 3.0), "x": Estimate(-3.0, 3.0, 3.0)}, "tensorrt")
    rows, _ = rows_of(made, "tensorrt", tmp_path)
    assert rows[0].reason.startswith("at least this much work, how much more cannot be counted: the shape of 's")


def test_the_document_is_plain_json(tmp_path: Path) -> None:
    model = small_cnn()
    made = quantize(model, ranges_of(model, {"image": np.stack(pictures(8))}, tmp_path), "cpu", ("Gemm",))
    rows, receipt = rows_of(made, "cpu", tmp_path)
    found = json.loads(json.dumps(document(rows, receipt, "cpu")))
    assert {k: v for k, v in found.items() if k not in {"layers", "precision"}} == {
        "schema_version": 1,
        "dialect": "cpu",
        "notes": [],
    }
    assert found["precision"] == receipt.shares
    assert found["layers"][3] == {
        "node": "node_logits",
        "module": "",
        "operator": "Gemm",
        "macs": 320,
        "requested": "fp32",
        "delivered": "fp32",
        "reason": "the recipe keeps it",
    }


def layer(kind: str, nodes: list[str], *types: str) -> dict[str, object]:
    return {"name": "k", "kind": kind, "inputs": [{"type": t} for t in types], "outputs": [], "onnx_nodes": nodes}


def test_the_engines_table_outweighs_the_graph(tmp_path: Path) -> None:
    model = small_cnn()
    made = quantize(model, ranges_of(model, {"image": np.stack(pictures(8))}, tmp_path), "tensorrt").model
    table = [
        layer("kgen", ["node_c1"], "Float"),  # what surrounds a kernel does not count
        layer("correlation", ["node_c1", "image/dequantize"], "Int8"),
        layer("correlation", ["node_c2"], "Float"),
        layer("gemm", ["node_g1"], "Half"),
    ]
    receipt = engine_receipt(made, table)
    assert receipt.precisions == {"node_c1": "int8", "node_c2": "fp32", "node_g1": "fp16", "node_logits": "int8"}
    assert receipt.notes == (
        "the engine computes node_c2, node_g1 in fp16 instead of int8 and fp32 instead of int8",
        "the engine's layer table has no kernel of its own for node_logits: the graph's types count",
    )
    assert sum(receipt.shares.values()) == pytest.approx(1.0)
