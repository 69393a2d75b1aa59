"""Shapes and element types of every tensor of the main graph, dynamic axes filled with usual sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from optimizer.graph.index import subgraphs
from optimizer.graph.shape_values import READ_VALUES, fold, holds_values
from optimizer.graph.usual_sizes import usual_sizes

# What a dynamic axis that is not the first counts as where the graph notes no usual size of it: the length of a short
# text, the side of a small picture.
REPRESENTATIVE_SIZE = 64


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type (onnx.TensorProto) and shape; None where inference could not tell.

    `value` is that of a small constant, and of what the graph computes from constants and known shapes alone.
    """

    elem_type: int
    shape: tuple[int | None, ...] | None
    value: onnx.TensorProto | None = field(default=None, compare=False, repr=False)


def infer(model: onnx.ModelProto, *, concrete: bool = True) -> dict[str, TensorType]:
    """Return what ONNX shape inference finds, by tensor name. Bodies of If, Loop and Scan are not entered.

    Shapes: with `concrete`, a dynamic first axis of an input counts as 1 (the batch), another as the usual size that
    the graph notes, else as REPRESENTATIVE_SIZE; shapes computed from these are known, see `infer_computed`.
    Raises: onnx.shape_inference.InferenceError when the graph contradicts itself.
    """
    skeleton = without_weights(model)
    if not concrete:
        return _inferred(skeleton)
    _fill_dynamic_axes(skeleton)
    return _computing(skeleton)


def infer_computed(model: onnx.ModelProto) -> dict[str, TensorType]:
    """Return what `infer` finds where the shapes that the graph computes are computed; no axis is filled.

    Raises: onnx.shape_inference.InferenceError when the graph contradicts itself.
    """
    return _computing(without_weights(model))


def infer_for(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> dict[str, TensorType]:
    """Return what `infer` finds for inputs of these shapes.

    Raises: onnx.shape_inference.InferenceError when the graph contradicts itself.
    """
    skeleton = without_weights(model)
    for value in skeleton.graph.input:
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, shapes.get(value.name, ()), strict=False):
            dim.dim_value = size
    _fill_dynamic_axes(skeleton)
    return _computing(skeleton)


def _computing(skeleton: onnx.ModelProto) -> dict[str, TensorType]:
    """Infer, evaluate what is made of known shapes alone, and infer again, until that tells nothing more.

    Inference cannot divide, and gives up behind a Reshape to half a length.
    """
    types = _inferred(skeleton)
    # A Loop reads how often it runs, which is a value where every shape is known.
    entered = any(any(subgraphs(node)) for node in skeleton.graph.node)
    while entered or not all(map(known, types.values())):
        if not fold(skeleton, {name: kind.shape for name, kind in types.items()}):
            break
        types |= _inferred(skeleton)
    return types


def known(kind: TensorType | None) -> bool:
    """Is every size of the tensor known?"""
    return kind is not None and kind.shape is not None and None not in kind.shape


def _inferred(model: onnx.ModelProto) -> dict[str, TensorType]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=False, data_prop=True).graph
    overridable = {value.name for value in model.graph.input}
    types: dict[str, TensorType] = {}
    for tensor in inferred.initializer:
        constant = tensor.name not in overridable and holds_values(tensor)
        types[tensor.name] = TensorType(tensor.data_type, tuple(tensor.dims), tensor if constant else None)
    for value in _values(inferred):
        kind = value.type.tensor_type
        shape = None
        if kind.HasField("shape"):
            shape = tuple(int(d.dim_value) if d.HasField("dim_value") else None for d in kind.shape.dim)
        types.setdefault(value.name, TensorType(kind.elem_type, shape))
    return types


def _values(graph: onnx.GraphProto) -> Iterable[onnx.ValueInfoProto]:
    return (*graph.input, *graph.value_info, *graph.output)


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy all but the values of weights: inference needs none of them, and protobuf refuses to copy 2 GB."""
    graph = onnx.GraphProto(name=model.graph.name)
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        size = 1
        for dim in tensor.dims:
            size *= dim
        if size <= READ_VALUES and tensor.data_location != onnx.TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
        else:
            graph.initializer.add(name=tensor.name, data_type=tensor.data_type).dims.extend(tensor.dims)
    skeleton = onnx.ModelProto(ir_version=model.ir_version, graph=graph)
    skeleton.opset_import.extend(model.opset_import)
    skeleton.functions.extend(model.functions)
    skeleton.metadata_props.extend(model.metadata_props)
    return skeleton


def _fill_dynamic_axes(model: onnx.ModelProto) -> None:
    weights = {i.name for i in model.graph.initializer}
    given = {value.name: value for value in model.graph.input}
    fed = [value.type.tensor_type.shape.dim for value in model.graph.input if value.name not in weights]
    # An axis has one size wherever it stands: a batch that is the second axis of another input is a batch there too.
    batches = {dims[0].dim_param for dims in fed if dims} - {""}
    usual = usual_sizes(model)
    for dims in fed:
        for axis, dim in enumerate(dims):
            if not dim.HasField("dim_value"):
                one = axis == 0 or dim.dim_param in batches
                dim.dim_value = 1 if one else usual.get(dim.dim_param, REPRESENTATIVE_SIZE)
    # Stated shapes of outputs are symbolic; left in place they would stand against the inferred ones.
    for value in model.graph.output:
        if value.name in given:  # an input that is an output as well: inference would take its shape from here
            value.CopyFrom(given[value.name])
        else:
            value.type.tensor_type.ClearField("shape")
