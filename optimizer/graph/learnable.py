"""What can be learned in a quantized graph, and how it is written back: weights, biases, and scales of activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

from optimizer.graph.affine import Float32, to_int8, to_int32
from optimizer.graph.index import GraphIndex, attribute, node_key
from optimizer.graph.quantizable import COMPUTE
from optimizer.runtime.session import Array


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """An integer weight: the tensor it is dequantized to, its constants' names, and the float values it stands for."""

    result: str
    integers: str
    scale: str
    zero_point: str
    axis: int
    value: Array


@dataclass(frozen=True, slots=True)
class Bias:
    """A bias by the tensor that is read, and the node that adds it; in integers, with their scale, or in float."""

    result: str
    value: Array
    added_by: str
    integers: str = ""
    scale: str = ""


@dataclass(slots=True)
class Learnable:
    """What may change; `scales` are names of activations' scales, `biases` by the key of their layer."""

    weights: list[QuantizedWeight] = field(default_factory=list)
    biases: dict[str, Bias] = field(default_factory=dict)
    scales: list[str] = field(default_factory=list)


def find(quantized: onnx.ModelProto, float32: onnx.ModelProto) -> Learnable:
    """Return what may change in `quantized`; `float32` is the graph it was made from, with the unrounded weights."""
    index = GraphIndex(quantized)
    original = GraphIndex(float32)
    floats = {node_key(node): node for node in float32.graph.node}
    found = Learnable()
    seen: set[str] = set()
    for node in quantized.graph.node:
        if node.op_type not in COMPUTE:
            continue
        weight = index.producers.get(node.input[1])
        if weight is None or weight.op_type != "DequantizeLinear" or not index.is_constant(weight.input[0]):
            continue
        if weight.output[0] not in seen:
            seen.add(weight.output[0])
            before = floats.get(node_key(node))
            # A stack of matrices has scale 1 here, its columns' scales stand behind the product: its integers count.
            stacked = not index.dims(weight.input[1])
            known = before is not None and original.is_constant(before.input[1]) and not stacked
            value = original.constant(before.input[1]) if known and before is not None else _dequantized(index, weight)
            axis = int(attribute(weight, "axis", 1)) % value.ndim
            found.weights.append(QuantizedWeight(weight.output[0], *_constants(weight), axis, value.astype(np.float32)))
        bias = _bias(index, node)
        if bias is not None and bias.result not in seen:
            seen.add(bias.result)
            found.biases[node_key(node)] = bias
    found.scales = shared_scales(index)
    return found


def _constants(node: onnx.NodeProto) -> tuple[str, str, str]:
    integers, scale, zero_point = node.input
    return integers, scale, zero_point


def _dequantized(index: GraphIndex, node: onnx.NodeProto) -> Array:
    integers, scale = (index.constant(name).astype(np.float64) for name in node.input[:2])
    if scale.ndim:
        scale = scale.reshape([-1 if i == int(attribute(node, "axis", 1)) else 1 for i in range(integers.ndim)])
    return np.asarray(integers * scale, dtype=np.float32)


def _bias(index: GraphIndex, node: onnx.NodeProto) -> Bias | None:
    """Return a layer's bias: its third input, or what an Add alone puts on a MatMul's result."""
    name, adder = node.input[2] if len(node.input) > 2 else "", node
    if node.op_type == "MatMul" and (reader := index.sole_reader(node.output[0])) is not None:
        others = [i for i in reader.input if i != node.output[0]]
        name, adder = (others[0] if reader.op_type == "Add" and len(others) == 1 else ""), reader
    if not name:
        return None
    if index.is_constant(name):
        value = index.constant(name)
        stored = any(tensor.name == name for tensor in index.graph.initializer)
        whole = value.shape == (_channels(index, node),) and attribute(node, "beta", 1.0) == 1.0
        plain = stored and whole and value.dtype == np.float32 and len(index.readers[name]) == 1
        return Bias(name, value, node_key(adder)) if plain else None
    made = index.producers.get(name)
    if made is None or made.op_type != "DequantizeLinear" or not index.is_constant(made.input[0]):
        return None
    alone = len(index.readers[name]) == 1
    return Bias(name, _dequantized(index, made), node_key(node), made.input[0], made.input[1]) if alone else None


def _channels(index: GraphIndex, node: onnx.NodeProto) -> int:
    """Return how many values a bias has that belong to one output channel each."""
    dims = index.dims(index.producers[node.input[1]].input[0])
    if node.op_type == "ConvTranspose":
        return dims[1] * int(attribute(node, "group", 1))
    return dims[0] if node.op_type == "Conv" or attribute(node, "transB", 0) else dims[-1]


def shared_scales(index: GraphIndex) -> list[str]:
    """Return the single scales that every reader of their integers shares, and no integer bias was rounded with."""
    names: dict[str, bool] = {}
    for node in index.graph.node:
        if node.op_type == "QuantizeLinear" and index.is_constant(node.input[1]) and not index.dims(node.input[1]):
            readers = index.readers.get(node.output[0], [])
            shared = all(r.op_type == "DequantizeLinear" and r.input[1] == node.input[1] for r, _ in readers)
            names[node.input[1]] = names.get(node.input[1], True) and shared
    return [name for name, shared in names.items() if shared]


def write_back(model: onnx.ModelProto, learnable: Learnable, learned: Mapping[str, Float32]) -> None:
    """Round what was learned into the constants of `model`, in place; `learned` is by the tensor that is read.

    An integer bias keeps the scale input scale * weight scale, so it is rounded anew where its layer's input scale
    changed.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def put(name: str, value: Array) -> None:
        # Not ascontiguousarray: it gives a scalar an axis, and TensorRT computes behind a scale of shape [1] in float.
        tensors[name].CopyFrom(numpy_helper.from_array(np.asarray(value, order="C"), name))

    for name in learnable.scales:
        put(name, np.asarray(learned[name], dtype=np.float32))
    for weight in learnable.weights:
        scales = np.atleast_1d(numpy_helper.to_array(tensors[weight.scale]))
        put(weight.integers, to_int8(learned[weight.result], scales, weight.axis))
    index = GraphIndex(model)
    layers = {node_key(node): node for node in model.graph.node}
    for key, bias in learnable.biases.items():
        if not bias.integers:
            put(bias.result, learned[bias.result])
            continue
        data, weighted = (index.producers[layers[key].input[i]] for i in (0, 1))
        steps = np.float64(index.constant(data.input[1])) * index.constant(weighted.input[1]).astype(np.float64)
        scales32 = np.atleast_1d(steps).astype(np.float32)
        put(bias.scale, scales32.reshape(index.dims(bias.scale)))
        put(bias.integers, to_int32(learned[bias.result], scales32))
