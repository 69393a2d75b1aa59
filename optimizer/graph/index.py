"""An index over the main graph of an ONNX model: who makes a tensor, who reads it, which are constant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from optimizer.runtime.session import Array

FLOAT = onnx.TensorProto.FLOAT
# Operators whose output has the type of another input than the first: what is scaled back has that of its scale.
_TYPED_BY = {"DequantizeLinear": 1, "Where": 1, "MatMulIntegerToFloat": 2}


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Return an attribute's value, or `default` where the node has none."""
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)


def node_key(node: onnx.NodeProto) -> str:
    """Return the node's name; ONNX allows none, then the first output names it, which is unique in a graph."""
    return str(node.name or next(filter(None, node.output), node.op_type))


def free_name(wanted: str, taken: set[str]) -> str:
    """Return `wanted`, with a number where it is taken, and take it."""
    free, number = wanted, 1
    while free in taken:
        free, number = f"{wanted}_{number}", number + 1
    taken.add(free)
    return free


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the bodies of If, Loop and Scan."""
    for a in node.attribute:
        if a.type == onnx.AttributeProto.GRAPH:
            yield a.g
        yield from a.graphs


class GraphIndex:
    """Lookups over `model.graph`; valid until the graph is changed. Constants inside subgraphs are not seen."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.producers: dict[str, onnx.NodeProto] = {}
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        self.captured: set[str] = set()  # read inside a subgraph
        self._constants: dict[str, onnx.TensorProto] = {i.name: i for i in self.graph.initializer}
        for node in self.graph.node:
            self.producers.update(dict.fromkeys((o for o in node.output if o), node))
            for position, name in enumerate(node.input):
                if name:
                    self.readers.setdefault(name, []).append((node, position))
            for body in subgraphs(node):
                self.captured |= outer_names(body)
            if node.op_type == "Constant" and (value := attribute(node, "value")) is not None:
                self._constants[node.output[0]] = value
        self.outputs = {o.name for o in self.graph.output}
        self.types = {v.name: v.type.tensor_type.elem_type for v in (*self.graph.input, *self.graph.output)}
        self.types |= {name: tensor.data_type for name, tensor in self._constants.items()}
        self.shapes: dict[str, tuple[int | None, ...]] = {}  # filled by who has inferred them

    def is_constant(self, name: str) -> bool:
        """Is the tensor an initializer, or the output of a Constant node?"""
        return name in self._constants

    def may_be_zero(self, name: str) -> bool:
        """Tell whether a tensor is a constant without any value but zero, or one whose values are not loaded."""
        if not self.is_constant(name):
            return False
        stored = self._constants[name].data_location == onnx.TensorProto.EXTERNAL
        return stored or not self.constant(name).any()

    def constant(self, name: str) -> Array:
        """Return a constant's value."""
        value: Array = np.asarray(numpy_helper.to_array(self._constants[name]))
        return value

    def dims(self, name: str) -> tuple[int, ...]:
        """Return a constant's shape."""
        return tuple(self._constants[name].dims)

    def sole_reader(self, name: str) -> onnx.NodeProto | None:
        """Return the only node that reads a tensor which is neither an output nor read in a subgraph."""
        found = self.readers.get(name, [])
        return found[0][0] if len(found) == 1 and name not in self.outputs | self.captured else None

    def float_type(self, name: str) -> int:
        """Return the element type of a floating-point tensor, followed back to where it is stated; 0 if nowhere is."""
        seen: set[str] = set()
        while name and name not in seen:
            seen.add(name)
            if name in self.types:
                return int(self.types[name])
            node = self.producers.get(name)
            if node is None or not node.input:
                return 0
            if node.op_type == "Cast":
                return int(attribute(node, "to"))
            name = node.input[_TYPED_BY.get(node.op_type, 0)]
        return 0


def outer_names(graph: onnx.GraphProto) -> set[str]:
    """Return the outer names that a subgraph reads, its own subgraphs included."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    read: set[str] = {value.name for value in graph.output}
    for node in graph.node:
        own.update(node.output)
        read.update(node.input)
        for inner in subgraphs(node):
            read |= outer_names(inner)
    return read - own - {""}
