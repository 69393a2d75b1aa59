"""Write a float32 graph with Q/DQ pairs: int8 weights, quantized activations, in the dialect of the target."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from optimizer.errors import StageError
from optimizer.graph.affine import Bounds
from optimizer.graph.index import GraphIndex, node_key
from optimizer.graph.placement import measured_tensors, parameters, place_cpu, place_tensorrt
from optimizer.graph.qdq import PairWriter
from optimizer.graph.quantizable import COMPUTE, Candidate, Dialect, examine, never_quantized
from optimizer.graph.shapes import infer

# QuantizeLinear and DequantizeLinear take one scale per channel from here on.
MINIMUM_OPSET = 13


@dataclass(frozen=True, slots=True)
class Quantized:
    """The graph, and what it says of itself: why nodes stayed in float, by node name, and sentences for the report."""

    model: onnx.ModelProto
    left: Mapping[str, str]
    notes: tuple[str, ...]


def activations(model: onnx.ModelProto) -> list[str]:
    """Return the activations to calibrate: what either dialect may quantize.

    Raises: StageError as `quantize` does.
    """
    _check_quantizable(model)
    index = _index(model)
    return measured_tensors(index, _examine_all(index, "tensorrt", ())[0])


def quantize(
    model: onnx.ModelProto, ranges: Mapping[str, Bounds], dialect: Dialect, keep: Sequence[str] = ()
) -> Quantized:
    """Return a new model with Q/DQ pairs; `model` is changed in place and must not be used again.

    `keep` names operator types or nodes that stay in float32.
    Raises: StageError when the graph holds Q/DQ already, has nothing to quantize or an opset below 13, when `keep`
    matches nothing, or when a range is missing.
    """
    _check_quantizable(model)
    index = _index(model)
    _check_keep(index, keep)
    candidates, left = _examine_all(index, dialect, keep)
    if not candidates:
        raise StageError("no layer is left to quantize: " + "; ".join(summarize(left)), where="quantize")
    placement = place_tensorrt(candidates) if dialect == "tensorrt" else place_cpu(index, candidates, left)
    missing = sorted(set(placement.roots.values()) - set(ranges))
    if missing:
        raise StageError(
            f"the calibration table has no range for {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}",
            where="quantize",
            hint="The table belongs to another graph: calibrate this one.",
        )
    affine = parameters(placement, ranges, dialect)
    writer = PairWriter(index, placement, affine)
    for found in candidates:
        writer.quantize_weight(found, with_bias=dialect == "cpu")
    writer.rewrite(model)
    flat = sorted(root for root, p in affine.items() if p.degenerate)
    notes = [f"'{name}' was zero in every calibration sample: its scale is 1" for name in flat]
    return Quantized(model, left, tuple(notes))


def summarize(left: Mapping[str, str], limit: int = 3) -> list[str]:
    """Return one sentence per reason, with the names of the first nodes."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left.items():
        by_reason.setdefault(reason, []).append(name)
    return [
        f"{', '.join(names[:limit])}{f' and {len(names) - limit} more' if len(names) > limit else ''}: {reason}"
        for reason, names in by_reason.items()
    ]


def _index(model: onnx.ModelProto) -> GraphIndex:
    index = GraphIndex(model)
    inferred = infer(model, concrete=False)
    index.types |= {n: t.elem_type for n, t in inferred.items() if t.elem_type}
    index.shapes |= {n: t.shape for n, t in inferred.items() if t.shape is not None}
    return index


def _check_quantizable(model: onnx.ModelProto) -> None:
    present = [node_key(n) for n in model.graph.node if n.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    if present:
        raise StageError(
            f"the graph holds {len(present)} QuantizeLinear and DequantizeLinear nodes already, '{present[0]}' first",
            where="quantize",
            hint="Start from the float32 model, or list only the fp32 variant for a model that is quantized already.",
        )
    opset = next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), 0)
    if opset < MINIMUM_OPSET:
        raise StageError(
            f"the graph is opset {opset}; scales per channel need {MINIMUM_OPSET} or later",
            where="quantize",
            hint="Export it again at a later opset, or convert it with onnx.version_converter.convert_version.",
        )
    if not any(n.op_type in COMPUTE for n in model.graph.node):
        raise StageError(
            f"the graph has no layer that int8 speeds up (looked for {', '.join(COMPUTE)})",
            where="quantize",
            hint="Remove the int8 variant from the recipe, or check that the right model was exported.",
        )


def _check_keep(index: GraphIndex, keep: Sequence[str]) -> None:
    known = {n.op_type for n in index.graph.node} | {node_key(n) for n in index.graph.node}
    for name in keep:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            raise StageError(
                f"keep: '{name}' is neither an operator type nor a node of the graph",
                where="quantize",
                hint=f"nearest: {', '.join(near)}" if near else f"operator types: {', '.join(_types(index))}",
            )


def _types(index: GraphIndex) -> list[str]:
    return sorted({n.op_type for n in index.graph.node})


def _examine_all(index: GraphIndex, dialect: Dialect, keep: Iterable[str]) -> tuple[list[Candidate], dict[str, str]]:
    kept = set(keep)
    candidates: list[Candidate] = []
    left: dict[str, str] = {}
    for node in index.graph.node:
        if node.op_type not in COMPUTE:
            if reason := never_quantized(node):
                left[node_key(node)] = reason
            continue
        found = "the recipe keeps it" if {node.op_type, node_key(node)} & kept else examine(index, node, dialect)
        if isinstance(found, str):
            left[node_key(node)] = found
        else:
            candidates.append(found)
    return candidates, left
