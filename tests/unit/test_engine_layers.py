"""An engine's layers: shapes read, kernels that only move data told, receipts of several GPUs merged."""

import numpy as np
import onnx
import pytest
from onnx import parser

from optimizer.graph.engine_layers import joined, reformat, reformats
from optimizer.graph.engine_log import table
from optimizer.graph.engine_receipt import engine_receipt, merge, multiplies
from optimizer.graph.receipt import Receipt

ROW = (
    "Layers:\nName: __myl_Move_myl0_1, LayerType: kgen, Inputs: [ { Name: image, Dimensions: [-1,3,32,32], Strides: "
    "[3072,1024,32,1], StrideOrder: [3,2,1,0], Datatype: Float, Format: (Linear) Row major linear format }], Constants:"
    " [], Outputs: [ { Name: x, Dimensions: [-1,3,32,32], Strides: [3072,1,96,3], StrideOrder: [3,0,2,1], Datatype: "
    "Half, Format: (NHWC) Channel major format }, { Name: s, Dimensions: [], Datatype: Int64, Format: (Linear) }], "
    "TacticName: __myl_Move_0x18, StreamId: 0, Metadata: "
)


def test_shapes_types_and_kernels_are_read():
    (row,) = table([("VERBOSE", ROW)])
    assert (row["name"], row["kind"], row["tactic"]) == ("__myl_Move_myl0_1", "kgen", "__myl_Move_0x18")
    assert row["inputs"] == [
        {
            "tensor": "image",
            "type": "Float",
            "format": "(Linear) Row major linear format",
            "shape": [-1, 3, 32, 32],
        }
    ]
    assert [tensor["shape"] for tensor in row["outputs"]] == [[-1, 3, 32, 32], []]
    assert row["constants"] == row["onnx_nodes"] == []


def moving(name="__myl_Move_myl0_1", kind="kgen", types=("Float", "Float"), formats=("a", "b"), shape=(-1, 8)):
    sides = {
        side: [{"tensor": side, "type": t, "format": f, "shape": list(shape)}]
        for side, t, f in zip(("inputs", "outputs"), types, formats, strict=True)
    }
    return {"name": name, "kind": kind, "tactic": "", "constants": [], "onnx_nodes": [], **sides}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (moving(), "layout"),
        (moving(types=("Float", "Half")), "type"),
        (moving("__myl_CastReplConc_myl0_1", types=("Float", "Half")), "type"),
        (moving("__myl_SlicSlicReplReplConcSlic_myl0_9", formats=("a", "a")), "copy"),
        (moving("Reformatting CopyNode for Input Tensor 0 to conv", kind="Reformat"), "layout"),
        (moving("__myl_MulAddRelu_myl0_3"), None),
        (moving("__myl_TranAdd_myl0_3"), None),
        (moving("conv_myl0_2", kind="correlation"), None),
        (moving("__mye495_0_myl0_0", kind="shape_call"), None),
    ],
)
def test_kernels_that_only_move_data_are_told_from_those_that_compute(row, why):
    found = reformat(row, 4)
    assert (found and found["why"]) == why


def test_bytes_are_read_and_written_at_the_usual_size():
    assert reformat(moving(types=("Float", "Half")), 4) == {"why": "type", "bytes": 4 * 8 * (4 + 2)}
    assert reformat(moving(types=("Float", "Int4"), shape=(3, 5)), None) == {"why": "type", "bytes": 60 + 8}
    assert reformat(moving(), None) == {"why": "layout", "bytes": None}  # two dynamic axes: which is -1?
    assert reformat(moving(types=("Float", "Complex")), 4)["bytes"] is None


def test_rows_are_joined_to_modules_and_counted():
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[b,4] x, float[4,4] w) => (float[b,4] y) '
        "{ m = MatMul (x, w)  y = Relu (m) }"
    )
    for node, module in zip(model.graph.node, ("block.fc", "block.act"), strict=True):
        node.name = node.op_type
        node.metadata_props.add(key="optimizer.module", value=module)
    fused = moving("gemm_0", kind="gemm") | {"onnx_nodes": ["MatMul", "Relu", "not of this graph"]}
    rows = joined([moving(), fused, moving() | {"onnx_nodes": ["Relu"]}], model, {"b": 2})
    assert [row["modules"] for row in rows] == [[], ["block.fc", "block.act"], ["block.act"]]
    assert [row["reformat"] is None for row in rows] == [False, True, False]
    assert reformats(rows) == {"layers": 2, "own": 1, "bytes": 2 * (2 * 2 * 8 * 4), "tensors": ["inputs", "inputs"]}
    assert reformats(joined(rows, model, {"b": 2, "other": 3}))["bytes"] is None
    assert reformats([]) == {"layers": 0, "own": 0, "bytes": 0, "tensors": []}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("CaskConvolution", True), ("CaskGemmMatrixMultiply", True), ("gemm", True), ("CaskPooling", False)],
)
def test_kinds_of_both_tables_multiply(kind, expected):
    assert multiplies(kind) is expected


def test_weights_tell_the_precision_where_the_inspector_knows_no_inputs():
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[2,4] x) => (float[2,4] y) { y = MatMul (x, w) }'
    )
    model.graph.node[0].name = "fc"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), "w"))
    unknown = [{"tensor": "x", "type": "unknown", "format": "N/A due to dynamic shapes", "shape": None}]
    row = {"name": "fc", "kind": "CaskGemmMatrixMultiply", "onnx_nodes": ["fc"], "inputs": unknown, "outputs": unknown}
    half = row | {"constants": [{"tensor": "weights", "type": "Half", "format": "", "shape": None}]}
    assert engine_receipt(model, [half]).precisions == {"fc": "fp16"}
    assert engine_receipt(model, [row]).precisions == {"fc": "fp32"}


def test_receipts_of_several_gpus_are_one_with_the_least_share():
    macs = {"conv": 90, "fc": 10, "head": 5}
    old = Receipt({"conv": "fp32", "fc": "fp32", "head": "int8"}, macs, notes=("as before",))
    new = Receipt({"conv": "int8", "fc": "int8", "head": "int8"}, macs)
    merged = merge({"8.0": new, "7.5": old, "8.9": new}, "int8")
    assert merged.shares == old.shares
    assert merged.notes == (
        "as before",
        "compute capability 8.0 computes conv, fc in int8, 7.5 in fp32",
        "compute capability 8.9 computes conv, fc in int8, 7.5 in fp32",
    )
    assert merge({"8.0": new, "8.6": new}, "int8") == new
    with pytest.raises(ValueError, match="no receipt to merge"):
        merge({}, "int8")
