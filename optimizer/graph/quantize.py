"""Write a float32 graph with Q/DQ pairs: int8 weights, quantized activations, in the dialect of the target."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from optimizer.errors import StageError
from optimizer.graph.affine import Affine, Bounds, to_int8, to_int32, weight_scales
from optimizer.graph.index import GraphIndex, node_key
from optimizer.graph.placement import Placement, measured_tensors, parameters, place_cpu, place_tensorrt
from optimizer.graph.quantizable import COMPUTE, Candidate, Dialect, examine
from optimizer.graph.shapes import infer
from optimizer.runtime.session import Array

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
    placement = place_tensorrt(candidates) if dialect == "tensorrt" else place_cpu(index, candidates)
    missing = sorted(set(placement.roots.values()) - set(ranges))
    if missing:
        raise StageError(
            f"the calibration table has no range for {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}",
            where="quantize",
            hint="The table belongs to another graph: calibrate this one.",
        )
    affine = parameters(placement, ranges, dialect)
    writer = _Writer(index, placement, affine)
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
    index.types |= {n: t.elem_type for n, t in infer(model, concrete=False).items() if t.elem_type}
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


def _examine_all(
    index: GraphIndex, dialect: Dialect, keep: Iterable[str]
) -> tuple[list[Candidate], dict[str, str]]:
    kept = set(keep)
    candidates: list[Candidate] = []
    left: dict[str, str] = {}
    for node in index.graph.node:
        if node.op_type not in COMPUTE:
            continue
        found = "the recipe keeps it" if {node.op_type, node_key(node)} & kept else examine(index, node, dialect)
        if isinstance(found, str):
            left[node_key(node)] = found
        else:
            candidates.append(found)
    return candidates, left


class _Writer:
    """Builds the new node list; every name it makes is unused in the graph."""

    def __init__(self, index: GraphIndex, placement: Placement, affine: Mapping[str, Affine]) -> None:
        self.index = index
        self.placement = placement
        self.affine = affine
        self.taken = {*index.types, *index.readers, *index.producers}
        self.head: list[onnx.NodeProto] = []  # DequantizeLinear of constants
        self.tensors: dict[str, onnx.TensorProto] = {}
        self.replaced: dict[tuple[str, int], str] = {}  # inputs of nodes that now read another tensor
        self.weights: dict[tuple[str, int, bytes], tuple[str, Array]] = {}

    def quantize_weight(self, found: Candidate, *, with_bias: bool) -> None:
        """Let a candidate read its weight, and on request its bias, from integers; a shared weight is stored once."""
        weight = np.asarray(self.index.constant(found.weight_name), dtype=np.float32)
        bias = None
        step = self.affine[self.placement.roots[found.data_name]].scale
        if with_bias and found.bias_name is not None:
            bias = np.asarray(self.index.constant(found.bias_name), dtype=np.float32)
        scales = weight_scales(weight, found.axis, bias, step)
        key = (found.weight_name, found.axis, scales.tobytes())
        if key not in self.weights:
            integers = to_int8(weight, scales, found.axis)
            self.weights[key] = self._dequantize(found.weight_name, integers, scales, found.axis), scales
        self.replaced[found.node.output[0], found.weight] = self.weights[key][0]
        if bias is not None and found.bias is not None and found.bias_name is not None:
            steps = (np.float64(step) * scales.astype(np.float64)).astype(np.float32)
            integers32 = to_int32(bias.reshape(-1), steps)
            name = self._dequantize(found.bias_name, integers32, steps, 0)
            self.replaced[found.node.output[0], found.bias] = name

    def rewrite(self, model: onnx.ModelProto) -> None:
        """Put the pairs behind the tensors they quantize, and drop constants that nothing reads any more."""
        graph = model.graph
        body: list[onnx.NodeProto] = []
        dequantized: dict[str, str] = {}
        for value in graph.input:
            if value.name in self.placement.roots:
                body += self._pair(value.name, value.name, dequantized)
        for node in graph.node:
            self._redirect(node, dequantized)
            body.append(node)
            for position, output in enumerate(node.output):
                if output not in self.placement.roots:
                    continue
                source = output
                if output in self.index.outputs and output in self.placement.whole:
                    # The graph's output keeps its name: it is the dequantized value now.
                    source = node.output[position] = self._fresh(f"{output}_float")
                body += self._pair(output, source, dequantized)
        del graph.node[:]
        graph.node.extend([*self.head, *body])
        graph.initializer.extend(self.tensors.values())
        _drop_unread(graph)

    def _redirect(self, node: onnx.NodeProto, dequantized: Mapping[str, str]) -> None:
        key = node.output[0]
        for position, name in enumerate(node.input):
            if name in dequantized and (name in self.placement.whole or (key, position) in self.placement.edges):
                node.input[position] = dequantized[name]
            elif (key, position) in self.replaced:
                node.input[position] = self.replaced[key, position]

    def _pair(self, tensor: str, source: str, dequantized: dict[str, str]) -> list[onnx.NodeProto]:
        root = self.placement.roots[tensor]
        affine = self.affine[root]
        scale = self._constant(f"{root}_scale", np.asarray(affine.scale, dtype=np.float32))
        zero = self._constant(f"{root}_zero_point", np.asarray(affine.zero_point, dtype=affine.dtype))
        integers = self._fresh(f"{tensor}_quantized")
        result = tensor if source != tensor else self._fresh(f"{tensor}_dequantized")
        dequantized[tensor] = result
        return [
            _node("QuantizeLinear", [source, scale, zero], integers, f"{tensor}/quantize"),
            _node("DequantizeLinear", [integers, scale, zero], result, f"{tensor}/dequantize"),
        ]

    def _dequantize(self, name: str, integers: Array, scales: Array, axis: int) -> str:
        inputs = [
            self._constant(self._fresh(f"{name}_{integers.dtype.name}"), integers),
            self._constant(self._fresh(f"{name}_scale"), scales),
            self._constant(self._fresh(f"{name}_zero_point"), np.zeros(scales.shape, dtype=integers.dtype)),
        ]
        result = self._fresh(f"{name}_dequantized")
        self.head.append(_node("DequantizeLinear", inputs, result, f"{result}/dequantize", axis=axis))
        return result

    def _constant(self, name: str, value: Array) -> str:
        self.tensors.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def _fresh(self, name: str) -> str:
        free, count = name, 1
        while free in self.taken:
            free, count = f"{name}_{count}", count + 1
        self.taken.add(free)
        return free


def _node(kind: str, inputs: list[str], output: str, name: str, **attributes: int) -> onnx.NodeProto:
    return onnx.helper.make_node(kind, inputs, [output], name=name, **attributes)


def _drop_unread(graph: onnx.GraphProto) -> None:
    index = GraphIndex(onnx.ModelProto(graph=graph))
    read = {*index.readers, *index.captured, *index.outputs}
    kept = [t for t in graph.initializer if t.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    nodes = [n for n in graph.node if n.op_type != "Constant" or n.output[0] in read]
    del graph.node[:]
    graph.node.extend(nodes)
