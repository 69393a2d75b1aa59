"""The bodies of If, Loop and Scan as models of their own, typed by what surrounds them, and how often each runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import onnx
from onnx import numpy_helper

from optimizer.graph.index import attribute, outer_names, subgraphs
from optimizer.graph.shapes import TensorType, infer, infer_computed

CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
# Constants up to this many values may be shapes, axes or trip counts; larger ones are weights.
_READ_VALUES = 1024
_LOOP_STATE = 2  # the inputs before a Loop's state: trip count and condition
_ENDLESS = 2**31 - 1  # a while loop is written as a Loop of the largest integer's trips
_SCALARS = (TensorType(onnx.TensorProto.INT64, ()), TensorType(onnx.TensorProto.BOOL, ()))

Types = Mapping[str, TensorType]


@dataclass(frozen=True, slots=True)
class Body:
    """A subgraph as a model, the types in it, and how often one execution of the node runs it (None: not known)."""

    model: onnx.ModelProto
    types: Types
    executions: int | None


def infer_all(model: onnx.ModelProto) -> dict[str, TensorType]:
    """Return the types of the main graph as `shapes.infer` does, and also behind a Loop that keeps its state's shapes.

    ONNX takes the shapes of what a Loop returns for unknown. An inference that fails leaves the constants' types.
    """
    outlined = _outline(model)
    types = _infer(outlined, concrete=True)
    while found := dict(_behind_loops(outlined, types)):
        nodes = [node for node in outlined.graph.node if not set(node.output) & found.keys()]
        del outlined.graph.node[:]
        outlined.graph.node.extend(nodes)
        outlined.graph.input.extend(_value(name, kind) for name, kind in found.items())
        again = _infer(outlined, concrete=True)
        types |= {n: kind for n, kind in again.items() if _complete(kind) and not _complete(types.get(n))}
    return types


def bodies(node: onnx.NodeProto, model: onnx.ModelProto, types: Types) -> Iterator[Body]:
    """Yield the bodies of a node in the graph of `model`, whose tensors have `types`."""
    for graph in subgraphs(node):
        given = _given(node, types)
        inner, found = _enter(graph, given, model, types)
        while (kept := _kept(node, graph, given, found)) != given:
            given = kept
            inner, found = _enter(graph, given, model, types)
        yield Body(inner, found, _executions(node, model, types))


def _behind_loops(model: onnx.ModelProto, types: Types) -> Iterator[tuple[str, TensorType]]:
    """Yield the outputs of those Loops whose every output is known once the body is."""
    for node in model.graph.node:
        if node.op_type != "Loop" or all(_complete(types.get(name)) for name in node.output if name):
            continue
        body = next(bodies(node, model, types))
        inner = [body.types.get(value.name) for value in body.model.graph.output][1:]
        state = len(node.input) - _LOOP_STATE
        found = inner[:state] + [_stacked(kind, body.executions) for kind in inner[state:]]
        pairs = [(name, kind) for name, kind in zip(node.output, found, strict=False) if name]
        known = [(name, kind) for name, kind in pairs if kind is not None and _complete(kind)]
        if len(known) == len(pairs):
            yield from known


def _given(node: onnx.NodeProto, types: Types) -> list[TensorType | None]:
    """Return the types of what a body's inputs get from outside."""
    if node.op_type == "Loop":
        return [*_SCALARS, *(types.get(name) for name in node.input[_LOOP_STATE:])]
    if node.op_type != "Scan":
        return []
    state = len(node.input) - int(attribute(node, "num_scan_inputs", 0))
    axes = attribute(node, "scan_input_axes") or [0] * (len(node.input) - state)
    slices = [_slice(types.get(name), axis) for name, axis in zip(node.input[state:], axes, strict=True)]
    return [*(types.get(name) for name in node.input[:state]), *slices]


def _kept(
    node: onnx.NodeProto, graph: onnx.GraphProto, given: list[TensorType | None], found: Types
) -> list[TensorType | None]:
    """Return `given` without those sizes of the state that an iteration changes."""
    if node.op_type != "Loop":  # a Scan's state keeps its shape by definition
        return given
    returned = [found.get(value.name) for value in graph.output][1:]
    state = given[_LOOP_STATE:]
    return [*_SCALARS, *(_common(a, b) for a, b in zip(state, returned, strict=False))]


def _common(first: TensorType | None, second: TensorType | None) -> TensorType | None:
    if first is None or first.shape is None:
        return first
    if second is None or second.shape is None or len(second.shape) != len(first.shape):
        return TensorType(first.elem_type, None)
    return TensorType(
        first.elem_type, tuple(a if a == b else None for a, b in zip(first.shape, second.shape, strict=True))
    )


def _enter(
    graph: onnx.GraphProto, given: Iterable[TensorType | None], outer: onnx.ModelProto, types: Types
) -> tuple[onnx.ModelProto, dict[str, TensorType]]:
    """Make a model of a body: what it reads from outside becomes a constant where one is small, else an input."""
    made = onnx.GraphProto(name=graph.name or "body", node=graph.node, initializer=graph.initializer)
    for value, kind in zip(graph.input, (*given, *(None for _ in graph.input)), strict=False):
        made.input.append(_value(value.name, kind) if kind and kind.elem_type else value)
    read = outer_names(graph)
    small = {n: value for n in sorted(read) if n in types and (value := types[n].value) is not None}
    small |= {t.name: t for t in outer.graph.initializer if t.name in read and _readable(t)}
    made.initializer.extend(small.values())
    made.input.extend(_value(name, types[name]) for name in sorted(read - small.keys()) if _typed(types.get(name)))
    for value in graph.output:
        # A stated shape is symbolic, and would stand against the inferred one.
        made.output.append(_value(value.name, TensorType(value.type.tensor_type.elem_type, None)))
    model = onnx.ModelProto(ir_version=outer.ir_version, graph=made, functions=outer.functions)
    model.opset_import.extend(outer.opset_import)
    found = _infer(model, concrete=False)
    # No name is used twice in nested graphs: what `types` has of the body's own is known from elsewhere.
    return model, found | {n: kind for n, kind in types.items() if _complete(kind) and not _complete(found.get(n))}


def _executions(node: onnx.NodeProto, model: onnx.ModelProto, types: Types) -> int | None:
    if node.op_type == "If":
        return 1
    if node.op_type == "Scan":
        count = int(attribute(node, "num_scan_inputs", 0))
        axis = (attribute(node, "scan_input_axes") or [0])[0]
        kind = types.get(node.input[-count]) if count else None
        return kind.shape[axis] if kind is not None and kind.shape else None
    tensors = {t.name: t for t in model.graph.initializer}
    tensors |= {
        n.output[0]: value
        for n in model.graph.node
        if n.op_type == "Constant" and (value := attribute(n, "value")) is not None
    }
    computed = types[node.input[0]].value if node.input[0] in types else None
    trips = tensors.get(node.input[0], computed)
    count = int(numpy_helper.to_array(trips).item()) if trips is not None and _readable(trips) else _ENDLESS
    return count if count < _ENDLESS else None


def _infer(model: onnx.ModelProto, *, concrete: bool) -> dict[str, TensorType]:
    try:
        return infer(model) if concrete else infer_computed(model)
    except onnx.shape_inference.InferenceError:
        return {t.name: TensorType(t.data_type, tuple(t.dims)) for t in model.graph.initializer}


def _outline(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model without the values of its weights."""
    graph = onnx.GraphProto(
        name=model.graph.name, node=model.graph.node, input=model.graph.input, output=model.graph.output
    )
    for tensor in model.graph.initializer:
        if _readable(tensor):
            graph.initializer.append(tensor)
        else:
            graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    outlined = onnx.ModelProto(ir_version=model.ir_version, graph=graph, functions=model.functions)
    outlined.opset_import.extend(model.opset_import)
    outlined.metadata_props.extend(model.metadata_props)  # the sizes at which work is counted
    return outlined


def _readable(tensor: onnx.TensorProto) -> bool:
    return bool(prod(tensor.dims) <= _READ_VALUES and tensor.data_location != onnx.TensorProto.EXTERNAL)


def _value(name: str, kind: TensorType) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, kind.elem_type, kind.shape)


def _typed(kind: TensorType | None) -> bool:
    return kind is not None and kind.elem_type != 0


def _complete(kind: TensorType | None) -> bool:
    return kind is not None and kind.shape is not None and None not in kind.shape


def _slice(kind: TensorType | None, axis: int) -> TensorType | None:
    if kind is None or not kind.shape:
        return kind
    axis %= len(kind.shape)
    return TensorType(kind.elem_type, kind.shape[:axis] + kind.shape[axis + 1 :])


def _stacked(kind: TensorType | None, count: int | None) -> TensorType | None:
    """What a Loop collects over its iterations. A condition may end it early: this is the most it returns."""
    if kind is None or kind.shape is None:
        return kind
    return TensorType(kind.elem_type, (count, *kind.shape))
