"""Values of the small tensors that shapes are computed from: ONNX's own inference gives up at a division."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

import numpy as np
import onnx
from onnx import numpy_helper

from optimizer.graph.index import attribute, subgraphs

# Tensors up to this many values may be shapes, axes or pads; larger ones are weights.
READ_VALUES = 1024
# What has no one value, and what makes weights of what is stored: no shape comes of either.
_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
_LEFT = frozenset(_RANDOM | {"QuantizeLinear", "DequantizeLinear"})
# What the reference implementation raises on what it does not have, or on values that an operator does not take.
_REFUSALS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

Shapes = Mapping[str, tuple[int | None, ...] | None]


def fold(model: onnx.ModelProto, shapes: Shapes) -> bool:
    """Replace nodes by what they compute, in place: those that read shapes in `shapes`, or small constants, alone.

    Returns whether there were any. What depends on the values of inputs stays, and so does what is random.
    """
    graph = model.graph
    opsets = {item.domain: item.version for item in model.opset_import}
    overridable = {value.name for value in graph.input}
    values = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.name not in overridable and holds_values(tensor)
    }
    folded: dict[str, np.ndarray] = {}
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        found = _result(node, shapes, {**opsets, "": opsets.get("", opsets.get("ai.onnx", 1))}, values)
        if found is None:
            kept.append(node)
        else:
            values[node.output[0]] = folded[node.output[0]] = found
    if folded:
        del graph.node[:]
        graph.node.extend(kept)
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in folded.items())
    return bool(folded)


def _result(
    node: onnx.NodeProto, shapes: Shapes, opsets: dict[str, int], values: Mapping[str, np.ndarray]
) -> np.ndarray | None:
    if node.domain not in ("", "ai.onnx") or len(node.output) != 1 or node.op_type in _LEFT:
        return None
    if node.op_type in ("Shape", "Size"):
        return _measured(node, shapes.get(node.input[0]))
    size = _size(shapes.get(node.output[0]))
    if size is None or size > READ_VALUES or any(subgraphs(node)):
        return None
    if any(name and name not in values for name in node.input):
        return None
    if node.op_type == "Div" and values[node.input[0]].dtype.kind == "i":
        return _divided(values[node.input[0]], values[node.input[1]])
    return _computed(node, opsets, values)


def _divided(values: np.ndarray, by: np.ndarray) -> np.ndarray | None:
    """Divide towards zero, as runtimes do; they refuse a zero, which the reference divides by all the same."""
    if not np.all(by):
        return None
    quotient: np.ndarray = np.sign(values) * np.sign(by) * (np.abs(values) // np.abs(by))
    return quotient.astype(values.dtype)


def _measured(node: onnx.NodeProto, shape: tuple[int | None, ...] | None) -> np.ndarray | None:
    size = _size(shape)
    if shape is None or size is None:
        return None
    if node.op_type == "Size":
        return np.asarray(size, np.int64)
    return np.asarray(shape[attribute(node, "start", 0) : attribute(node, "end")], np.int64)


def _computed(node: onnx.NodeProto, opsets: dict[str, int], values: Mapping[str, np.ndarray]) -> np.ndarray | None:
    from onnx.reference import ReferenceEvaluator

    try:
        with np.errstate(all="ignore"):
            (found,) = ReferenceEvaluator(node, opsets=opsets).run(None, dict(_feed(node, values)))
    except _REFUSALS:
        return None
    # Sequences and optional values are not tensors; a bfloat16 or smaller type has no counterpart in numpy.
    return np.asarray(found) if isinstance(found, np.ndarray | np.generic) and found.dtype.kind in "biuf" else None


def _feed(node: onnx.NodeProto, values: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    yield from ((name, values[name]) for name in node.input if name)


def holds_values(tensor: onnx.TensorProto) -> bool:
    """Is it a small tensor whose values are here? An outline names its weights without any."""
    if prod(tensor.dims) > READ_VALUES or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return False
    return prod(tensor.dims) == 0 or _filled(tensor)


def _filled(tensor: onnx.TensorProto) -> bool:
    fields = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
    return any(len(getattr(tensor, field)) for field in fields)


def _size(shape: tuple[int | None, ...] | None) -> int | None:
    return None if shape is None or None in shape else prod(size for size in shape if size is not None)
