"""What passes ask of a typed graph: element types, shapes, constants, who writes a tensor and who reads it."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from optimizer.graph.index import outer_names, subgraphs

FloatArray = npt.NDArray[np.floating]
Shape = tuple[int | str | None, ...]


class GraphFacts:
    """A read-only view of the main graph of a model whose types are inferred. Nodes are named by their position."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: list[onnx.NodeProto] = list(model.graph.node)
        self.types: dict[str, int] = {}
        self.shapes: dict[str, Shape] = {}
        graph = model.graph
        for value in (*graph.value_info, *graph.input, *graph.output):
            if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type:
                self.types[value.name] = value.type.tensor_type.elem_type
                if value.type.tensor_type.HasField("shape"):
                    self.shapes[value.name] = tuple(map(_dimension, value.type.tensor_type.shape.dim))
        overridable = {value.name for value in graph.input}
        self.initializers: dict[str, onnx.TensorProto] = {
            tensor.name: tensor for tensor in graph.initializer if tensor.name not in overridable
        }
        for tensor in self.initializers.values():
            self.types[tensor.name] = tensor.data_type
            self.shapes[tensor.name] = tuple(tensor.dims)
        self.producer = {name: index for index, node in enumerate(self.nodes) for name in node.output if name}
        self.readers: dict[str, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for name in {name for name in node.input if name}:
                self.readers.setdefault(name, []).append(index)

    @cached_property
    def opset(self) -> int:
        """The version of the default operator set."""
        return int(next(item.version for item in self.model.opset_import if item.domain in ("", "ai.onnx")))

    @cached_property
    def outputs(self) -> frozenset[str]:
        """The names of the graph's outputs."""
        return frozenset(value.name for value in self.model.graph.output)

    @cached_property
    def captured(self) -> frozenset[str]:
        """Outer tensors that some subgraph reads by name."""
        return frozenset(name for node in self.nodes for graph in subgraphs(node) for name in outer_names(graph))

    def constant(self, name: str) -> FloatArray | None:
        """Return an initializer's values, or None for a tensor that is computed."""
        tensor = self.initializers.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)


def lift_constants(model: onnx.ModelProto, element_type: int) -> None:
    """Turn Constant nodes of one element type into initializers, in place: one form of constant to treat."""
    graph = model.graph
    outputs = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        tensor = _constant_tensor(node) if node.op_type == "Constant" and node.output[0] not in outputs else None
        if tensor is None or tensor.data_type != element_type:
            kept.append(node)
        else:
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
    del graph.node[:]
    graph.node.extend(kept)


def _constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    for attribute in node.attribute:
        if attribute.name == "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(attribute.t)
            return tensor
        if attribute.name in ("value_float", "value_floats"):
            value = onnx.helper.get_attribute_value(attribute)
            return numpy_helper.from_array(np.asarray(value, dtype=np.float32))
    return None


def _dimension(dimension: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dimension.HasField("dim_value"):
        return int(dimension.dim_value)
    return str(dimension.dim_param) or None
