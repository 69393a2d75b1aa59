"""Multiply-accumulates per node: the weight with which a precision counts."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

import onnx

from optimizer.errors import StageError
from optimizer.graph.index import attribute, node_key
from optimizer.graph.shapes import TensorType, infer

# Operators that multiply and accumulate, standard and onnxruntime's own, and where their two operands stand.
_CONVOLUTIONS = {
    "Conv": (0, 1),
    "FusedConv": (0, 1),
    "NhwcFusedConv": (0, 1),
    "ConvInteger": (0, 1),
    "QLinearConv": (0, 3),
}
_TRANSPOSED = {"ConvTranspose": (0, 1), "QLinearConvTranspose": (0, 3)}
_PRODUCTS = {
    "Gemm": (0, 1),
    "FusedGemm": (0, 1),
    "QGemm": (0, 3),
    "MatMul": (0, 1),
    "FusedMatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "DynamicQuantizeMatMul": (0, 1),
    "QLinearMatMul": (0, 3),
}
OPERANDS: Mapping[str, tuple[int, int]] = {**_CONVOLUTIONS, **_TRANSPOSED, **_PRODUCTS}

Types = Mapping[str, TensorType]


def macs(model: onnx.ModelProto | Path, types: Types | None = None) -> dict[str, int]:
    """Return the multiply-accumulates of every Conv, ConvTranspose, Gemm and MatMul, by node name.

    A node without a name is named by its first output. Batch 1; other dynamic axes count as
    `shapes.REPRESENTATIVE_SIZE`. Nodes inside If, Loop and Scan are not counted, nor are LSTM, GRU and RNN.
    `types` replaces shape inference, for a graph whose operators ONNX does not know.
    Raises: StageError when a shape that the count needs is unknown.
    """
    if isinstance(model, Path):
        model = onnx.load(model, load_external_data=False)
    known = types if types is not None else infer(model)
    return {node_key(n): _count(n, known) for n in model.graph.node if n.op_type in OPERANDS}


def _count(node: onnx.NodeProto, types: Types) -> int:
    left, right = (node.input[i] for i in OPERANDS[node.op_type])
    if node.op_type in _CONVOLUTIONS:
        # Every output value sums over the kernel and the channels of its group.
        return prod(_shape(node.output[0], types, node)) * prod(_shape(right, types, node)[1:])
    if node.op_type in _TRANSPOSED:
        # Every input value is spread over the kernel and the output channels of its group.
        return prod(_shape(left, types, node)) * prod(_shape(right, types, node)[1:])
    shape = _shape(left, types, node)
    if node.op_type == "FusedMatMul" and attribute(node, "transBatchA", 0):
        raise StageError("moves its batch axes, which is not counted", where=f"node '{node_key(node)}'")
    transposed = attribute(node, "transA", 0) and len(shape) > 1
    depth = shape[-2] if transposed else shape[-1]
    return prod(_product_shape(shape, _shape(right, types, node), node)) * depth


def _product_shape(left: tuple[int, ...], right: tuple[int, ...], node: onnx.NodeProto) -> tuple[int, ...]:
    """The output of a matrix product, from its operands: no output shape is needed."""
    if attribute(node, "transA", 0) and len(left) > 1:
        left = (*left[:-2], left[-1], left[-2])
    if attribute(node, "transB", 0) and len(right) > 1:
        right = (*right[:-2], right[-1], right[-2])
    rows, columns = left[-2:-1], right[-1:] if len(right) > 1 else ()
    batch_left, batch_right = left[:-2], right[:-2]
    wide = max(len(batch_left), len(batch_right))
    padded = [(1,) * (wide - len(b)) + b for b in (batch_left, batch_right)]
    return (*(max(a, b) for a, b in zip(*padded, strict=True)), *rows, *columns)


def _shape(name: str, types: Types, node: onnx.NodeProto) -> tuple[int, ...]:
    found = types.get(name)
    if found is None or found.shape is None or None in found.shape:
        raise StageError(
            f"the shape of '{name}' cannot be inferred, so its multiply-accumulates cannot be counted",
            where=f"node '{node_key(node)}' ({node.op_type})",
            hint="Simplify the graph, or write fixed sizes into the shapes of the recipe's inputs.",
        )
    return tuple(d for d in found.shape if d is not None)
