"""Shapes and element types of every tensor of the main graph, dynamic axes filled with representative sizes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx

# What a dynamic axis that is not the first counts as: the length of a short text, the side of a small picture.
REPRESENTATIVE_SIZE = 64
# Initializers up to this many values may be shapes, axes or pads, which inference reads; larger ones are weights.
_READ_VALUES = 1024


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type (onnx.TensorProto) and shape; None where inference could not tell."""

    elem_type: int
    shape: tuple[int | None, ...] | None


def infer(model: onnx.ModelProto, *, concrete: bool = True) -> dict[str, TensorType]:
    """Return what ONNX shape inference finds, by tensor name. Bodies of If, Loop and Scan are not entered.

    Shapes: with `concrete`, a dynamic first axis of an input counts as 1 (the batch), another as REPRESENTATIVE_SIZE.
    Raises: onnx.shape_inference.InferenceError when the graph contradicts itself.
    """
    skeleton = _without_weights(model)
    if concrete:
        _fill_dynamic_axes(skeleton)
    inferred = onnx.shape_inference.infer_shapes(skeleton, strict_mode=False, data_prop=True).graph
    types = {i.name: TensorType(i.data_type, tuple(i.dims)) for i in inferred.initializer}
    for value in _values(inferred):
        tensor = value.type.tensor_type
        shape = None
        if tensor.HasField("shape"):
            shape = tuple(int(d.dim_value) if d.HasField("dim_value") else None for d in tensor.shape.dim)
        types.setdefault(value.name, TensorType(tensor.elem_type, shape))
    return types


def _values(graph: onnx.GraphProto) -> Iterable[onnx.ValueInfoProto]:
    return (*graph.input, *graph.value_info, *graph.output)


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy all but the values of weights: inference needs none of them, and protobuf refuses to copy 2 GB."""
    graph = onnx.GraphProto(name=model.graph.name)
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        size = 1
        for dim in tensor.dims:
            size *= dim
        if size <= _READ_VALUES and tensor.data_location != onnx.TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
        else:
            graph.initializer.add(name=tensor.name, data_type=tensor.data_type).dims.extend(tensor.dims)
    skeleton = onnx.ModelProto(ir_version=model.ir_version, graph=graph)
    skeleton.opset_import.extend(model.opset_import)
    skeleton.functions.extend(model.functions)
    return skeleton


def _fill_dynamic_axes(model: onnx.ModelProto) -> None:
    weights = {i.name for i in model.graph.initializer}
    given = {value.name: value for value in model.graph.input}
    for value in model.graph.input:
        if value.name in weights:
            continue
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                dim.dim_value = 1 if axis == 0 else REPRESENTATIVE_SIZE
    # Stated shapes of outputs are symbolic; left in place they would stand against the inferred ones.
    for value in model.graph.output:
        if value.name in given:  # an input that is an output as well: inference would take its shape from here
            value.CopyFrom(given[value.name])
        else:
            value.type.tensor_type.ClearField("shape")
