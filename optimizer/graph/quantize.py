"""Write a float32 graph with Q/DQ pairs: int8 weights, quantized activations, in the dialect of the target."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import onnx

from optimizer.errors import StageError
from optimizer.graph.affine import Bounds
from optimizer.graph.index import GraphIndex, node_key
from optimizer.graph.keep import match
from optimizer.graph.modules import modules_of
from optimizer.graph.placement import (
    Layers,
    check_ranges,
    measured_tensors,
    parameters,
    place,
    read_integers,
)
from optimizer.graph.qdq import PairWriter
from optimizer.graph.quantizable import COMPUTE, UNASKED, Candidate, Product, examine, never_quantized
from optimizer.graph.residuals import residual_sums
from optimizer.graph.shapes import infer
from optimizer.types import Dialect

Residuals = Literal["float", "int8"]
KEPT = "the recipe keeps it"
_INTEGER = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"})
_START = "Start from the float32 model, or list only the fp32 variant for a model that is quantized already."

# QuantizeLinear and DequantizeLinear take one scale per channel from here on.
MINIMUM_OPSET = 13


@dataclass(frozen=True, slots=True)
class Quantized:
    """The graph, and what it says of itself: why nodes stayed in float, by node name, and sentences for the report.

    `kept` are those of them that were not asked for: named by the recipe, or attention's products without its option.
    `parameters` are the constants of scale and zero point, by the
    tensor whose range they hold; `groups` are the tensors whose ranges one of them covers, where several share it.
    """

    model: onnx.ModelProto
    left: Mapping[str, str]
    notes: tuple[str, ...]
    kept: frozenset[str] = frozenset()
    parameters: Mapping[str, Sequence[str]] = field(default_factory=dict)
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)


def activations(model: onnx.ModelProto) -> list[str]:
    """Return the activations to calibrate: what any dialect may quantize, with any option.

    Raises: StageError as `quantize` does.
    """
    _check_quantizable(model, "calibrate")
    index = typed_index(model)
    return measured_tensors(index, _layers(index, "tensorrt", {}, "int8", attention=True)[0], get_args(Dialect))


def quantize(
    model: onnx.ModelProto,
    ranges: Mapping[str, Bounds],
    dialect: Dialect,
    keep: Sequence[str] = (),
    residuals: Residuals = "float",
    attention: bool = False,
) -> Quantized:
    """Return a new model with Q/DQ pairs; `model` is changed in place and must not be used again.

    `keep` names operator types, nodes or PyTorch modules that stay in float32. `residuals` int8 adds in integers what
    bypassed a convolution, `attention` multiplies queries by keys and probabilities by values in int8.
    Raises: StageError when the graph holds Q/DQ already, has nothing to quantize or an opset below 13, when `keep`
    matches nothing, or when a range is missing.
    """
    _check_quantizable(model, "quantize")
    index = typed_index(model)
    kept = match(keep, index.graph.node, "quantize", modules_of(model))
    layers, left = _layers(index, dialect, kept, residuals, attention=attention)
    if not layers.candidates and not layers.products:
        raise StageError("no layer is left to quantize: " + "; ".join(summarize(left)), where="quantize")
    placement = place(index, layers, ranges, dialect)
    check_ranges(placement, ranges, "quantize")
    affine = parameters(placement, ranges, dialect)
    coarse = _coarse(read_integers(index, placement, kept), dialect)
    writer = PairWriter(index, placement, affine)
    for found in layers.candidates:
        writer.quantize_weight(found, with_bias=dialect == "cpu")
    writer.rewrite(model)
    flat = sorted(root for root, p in affine.items() if p.degenerate)
    notes = [f"'{name}' was zero in every calibration sample: its scale is 1" for name in flat]
    notes += _idle(layers, residuals, attention=attention)
    notes += coarse
    notes += _unneeded(index, dialect, keep, kept)
    unasked = frozenset(kept) | {name for name, reason in left.items() if reason == UNASKED}
    return Quantized(model, left, tuple(notes), unasked, writer.parameters, placement.groups)


def _idle(layers: Layers, residuals: Residuals, *, attention: bool) -> list[str]:
    """Say which options found nothing to do."""
    notes = []
    if residuals == "int8" and not layers.sums:
        notes.append(
            "residuals: int8 has no effect: no Add joins a quantized convolution's result and what bypassed it"
        )
    if attention and not layers.products:
        notes.append("attention: true has no effect: no Softmax stands between two products of activations")
    return notes


def _unneeded(index: GraphIndex, dialect: Dialect, keep: Sequence[str], kept: Mapping[str, str]) -> list[str]:
    """Say which entries of `keep` hold no layer that int8 would have."""
    multiplying = [node for node in index.graph.node if node.op_type in COMPUTE and node_key(node) in kept]
    taken = {kept[node_key(n)] for n in multiplying if not isinstance(examine(index, n, dialect, attention=True), str)}
    idle = [name for name in dict.fromkeys(keep) if name not in taken and name in kept.values()]
    return [f"keep: {', '.join(idle)}: holds no layer that int8 would compute"] if idle else []


def _coarse(layers: Sequence[str], dialect: Dialect, limit: int = 3) -> list[str]:
    """Say which kept layers read 8-bit values all the same."""
    if not layers:
        return []
    more = f" and {len(layers) - limit} more" if len(layers) > limit else ""
    read = "reads" if len(layers) == 1 else "read"
    told = f"kept in float32, {', '.join(layers[:limit])}{more} {read} 8-bit values all the same"
    why = "OpenVINO needs a pair" if dialect == "openvino" else "onnxruntime's integer kernel writes no others"
    return [f"{told}: {why} behind the layer before; keep that one, too, where this rounding counts"]


def summarize(left: Mapping[str, str], limit: int = 3) -> list[str]:
    """Return one sentence per reason, with the names of the first nodes."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left.items():
        by_reason.setdefault(reason, []).append(name)
    return [
        f"{', '.join(names[:limit])}{f' and {len(names) - limit} more' if len(names) > limit else ''}: {reason}"
        for reason, names in by_reason.items()
    ]


def typed_index(model: onnx.ModelProto) -> GraphIndex:
    """Return an index that knows the types and shapes of all tensors."""
    index = GraphIndex(model)
    inferred = infer(model, concrete=False)
    index.types |= {n: t.elem_type for n, t in inferred.items() if t.elem_type}
    index.shapes |= {n: t.shape for n, t in inferred.items() if t.shape is not None}
    return index


def _check_quantizable(model: onnx.ModelProto, where: str) -> None:
    present = [node_key(n) for n in model.graph.node if n.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    if present:
        raise StageError(
            f"the graph holds {len(present)} QuantizeLinear and DequantizeLinear nodes already, '{present[0]}' first",
            where=where,
            hint=_START,
        )
    integer = next((n for n in model.graph.node if n.op_type in _INTEGER), None)
    if integer is not None:
        raise StageError(
            f"the graph computes in integers already: {integer.op_type} '{node_key(integer)}'",
            where=where,
            hint=_START,
        )
    opset = next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), 0)
    if opset < MINIMUM_OPSET:
        raise StageError(
            f"the graph is opset {opset}; scales per channel need {MINIMUM_OPSET} or later",
            where=where,
            hint="Export it again at a later opset, or convert it with onnx.version_converter.convert_version.",
        )
    if not any(n.op_type in COMPUTE for n in model.graph.node):
        raise StageError(
            f"the graph has no layer that quantization speeds up (looked for {', '.join(COMPUTE)})",
            where=where,
            hint="Remove the int8 and fp8 variants from the recipe, or check that the right model was exported.",
        )


def _layers(
    index: GraphIndex, dialect: Dialect, kept: Mapping[str, str], residuals: Residuals, *, attention: bool
) -> tuple[Layers, dict[str, str]]:
    """Return what is to be quantized, and why the other layers are not."""
    candidates, products, left = examine_all(index, dialect, kept, attention=attention)
    sums = residual_sums(index, candidates, kept) if residuals == "int8" else []
    return Layers(candidates, products, sums, left, frozenset(kept)), left


def examine_all(
    index: GraphIndex, dialect: Dialect, kept: Collection[str], *, attention: bool
) -> tuple[list[Candidate], list[Product], dict[str, str]]:
    """Sort the nodes that multiply into layers, products and those that stay in float, with the reason."""
    candidates: list[Candidate] = []
    products: list[Product] = []
    left: dict[str, str] = {}
    for node in index.graph.node:
        key = node_key(node)
        if node.op_type not in COMPUTE:
            if reason := never_quantized(node):
                left[key] = reason
            continue
        found = KEPT if key in kept else examine(index, node, dialect, attention=attention)
        if isinstance(found, Candidate):
            candidates.append(found)
        elif isinstance(found, Product):
            products.append(found)
        else:
            left[key] = found
    return candidates, products, left
