"""Layers with constant weights in a graph that nobody has quantized yet: what FP8 and INT4 start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from optimizer.errors import StageError
from optimizer.graph.index import GraphIndex, node_key
from optimizer.graph.quantizable import Candidate, Product
from optimizer.graph.quantize import examine_all

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


def layers_of(
    index: GraphIndex, kept: Mapping[str, str], *, attention: bool = False, weights_only: bool = False
) -> Layers:
    """Return what multiplies; where `weights_only`, the reasons name no option: none would change them."""
    candidates, products, left = examine_all(index, "tensorrt", kept, attention=attention)
    if weights_only:
        left = {name: reason.partition(":")[0] for name, reason in left.items()}
    return Layers(candidates, products, left)
