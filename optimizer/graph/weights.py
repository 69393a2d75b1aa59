"""Layers with constant weights in a graph that nobody has quantized yet: what FP8 and INT4 start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from optimizer.errors import StageError
from optimizer.graph.index import GraphIndex, node_key
from optimizer.graph.quantizable import COMPUTE, Candidate, Product, examine, never_quantized
from optimizer.graph.quantize import KEPT
from optimizer.graph.shapes import infer

_QUANTIZED = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
        "MatMulNBits",
    }
)


@dataclass(frozen=True, slots=True)
class Layers:
    """What multiplies: layers with a weight, attention's products, and why the other nodes stay as they are."""

    candidates: list[Candidate]
    products: list[Product]
    left: dict[str, str]


def typed_index(model: onnx.ModelProto) -> GraphIndex:
    """Return an index that knows the types and shapes of all tensors."""
    index = GraphIndex(model)
    inferred = infer(model, concrete=False)
    index.types |= {n: t.elem_type for n, t in inferred.items() if t.elem_type}
    index.shapes |= {n: t.shape for n, t in inferred.items() if t.shape is not None}
    return index


def refuse_quantized(model: onnx.ModelProto, where: str, variant: str) -> None:
    """Refuse a graph that holds quantized values already.

    Raises: StageError with the first such node.
    """
    present = [node for node in model.graph.node if node.op_type in _QUANTIZED]
    if present:
        raise StageError(
            f"the graph is quantized already: {len(present)} node{'s' * (len(present) > 1)}, "
            f"{present[0].op_type} '{node_key(present[0])}' first",
            where=where,
            hint=f"Start from the float32 model, or remove the {variant} variant from the recipe.",
        )


def examine_all(
    index: GraphIndex, kept: Mapping[str, str], *, attention: bool = False, weights_only: bool = False
) -> Layers:
    """Sort the nodes that multiply into layers, products and those that stay in float, with the reason."""
    found = Layers([], [], {})
    for node in index.graph.node:
        key = node_key(node)
        if node.op_type not in COMPUTE:
            if reason := never_quantized(node):
                found.left[key] = reason
            continue
        layer = KEPT if key in kept else examine(index, node, "tensorrt", attention=attention)
        if isinstance(layer, Candidate):
            found.candidates.append(layer)
        elif isinstance(layer, Product):
            found.products.append(layer)
        else:
            found.left[key] = layer.partition(":")[0] if weights_only else layer  # no option would change it
    return found
