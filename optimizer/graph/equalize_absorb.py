"""Divide an activation per channel without computing anything more: in the constants of what makes it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from optimizer.graph.affine import Float64
from optimizer.graph.index import FLOAT, GraphIndex, attribute

# f(x / a) = f(x) / a for every a > 0, element by element.
HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "PRelu", "Identity", "Abs", "Neg"})
# The same over windows, within a channel.
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
Divisors = Float64  # right-aligned to the tensor that they divide, 1 along the axes that do not matter


@dataclass(frozen=True, slots=True)
class Edit:
    """Multiply a constant input of a node by `factor`, which broadcasts to it or it to `factor`."""

    node: onnx.NodeProto
    position: int
    factor: Float64


def absorb(index: GraphIndex, tensor: str, divisors: Divisors, readers: Collection[int]) -> list[Edit] | str:
    """Return the edits that divide `tensor` by `divisors`, all of them positive, or why there are none.

    `readers` are the ids of the nodes that may see the divided tensor. Walks up through what is positively homogeneous,
    linear element by element, or moves values, to a layer, a normalisation or a multiplication by a constant.
    Shapes: behind a Reshape they must be known, in `index.shapes`.
    """
    if tensor in index.outputs | index.captured:
        return f"'{tensor}' is read outside"
    reading = [id(node) for node, _ in index.readers.get(tensor, [])]
    if sorted(reading) != sorted(readers):  # a node that reads it twice would see its divisors squared
        return f"'{tensor}' has other readers"
    node = index.producers.get(tensor)
    if node is None:
        return f"'{tensor}' is an input"
    if node.op_type in LAYERS:
        return _into_layer(index, node, divisors)
    if node.op_type == "Split":
        return _through_split(index, node, tensor, divisors)
    step = _STEPS.get(node.op_type)
    if step is None or node.output[0] != tensor:
        return f"{node.op_type} is not linear"
    return step(index, node, divisors)


def _above(index: GraphIndex, node: onnx.NodeProto, position: int, divisors: Divisors) -> list[Edit] | str:
    return absorb(index, node.input[position], _trim(divisors), {id(node)})


def _trim(divisors: Divisors) -> Divisors:
    while divisors.ndim > 1 and divisors.shape[0] == 1:
        divisors = divisors[0]
    return divisors


def _aligned(divisors: Divisors, rank: int) -> Divisors:
    return divisors.reshape((1,) * (rank - divisors.ndim) + divisors.shape)


def _vector(divisors: Divisors, trailing: int = 0) -> Float64 | None:
    """Return the divisors as one per channel, where no other axis has any; `trailing` axes follow the channels."""
    shape = divisors.shape
    if divisors.ndim != trailing + 1 or any(size != 1 for size in shape[1:]):
        return None
    return divisors.reshape(-1)


def _into_layer(index: GraphIndex, node: onnx.NodeProto, divisors: Divisors) -> list[Edit] | str:
    if not index.is_constant(node.input[1]):
        return _into_product(index, node, divisors)
    if index.float_type(node.input[1]) != FLOAT:
        return f"the weight of {node.op_type} is not float32"
    if len(index.readers[node.input[1]]) > 1 or node.input[1] in index.outputs | index.captured:
        return f"the weight of {node.op_type} has other readers"
    rank = len(index.dims(node.input[1]))
    convolves = node.op_type in {"Conv", "ConvTranspose"}
    each = _vector(divisors, rank - 2 if convolves else 0)
    if each is None:
        return f"the channels of {node.op_type} are spread over several axes"
    edits = [Edit(node, 1, _output_factor(node, index.dims(node.input[1]), 1.0 / each))]
    if len(node.input) > 2 and node.input[2]:
        if not index.is_constant(node.input[2]):
            return f"the bias of {node.op_type} is no constant"
        edits.append(Edit(node, 2, 1.0 / each))
    return edits


def _output_factor(node: onnx.NodeProto, dims: tuple[int, ...], each: Float64) -> Float64:
    """Return what scales a weight's output channels, in a shape that broadcasts to the weight's."""
    if node.op_type == "Conv":
        return each.reshape((-1,) + (1,) * (len(dims) - 1))
    if node.op_type == "ConvTranspose":  # [in, out / group, ...]: a group's inputs make its outputs
        groups = attribute(node, "group", 1)
        rows = np.repeat(each.reshape(groups, -1), dims[0] // groups, axis=0)
        return rows.reshape(rows.shape + (1,) * (len(dims) - 2))
    transposed = node.op_type == "Gemm" and attribute(node, "transB", 0)
    return each.reshape(-1, 1) if transposed else each


def _into_product(index: GraphIndex, node: onnx.NodeProto, divisors: Divisors) -> list[Edit] | str:
    """A product of two activations is linear in its right one: the columns of the values in attention."""
    right = index.shapes.get(node.input[1])
    if node.op_type != "MatMul" or right is None or divisors.ndim > len(right):
        return f"the operands of {node.op_type} are activations"
    whole = _aligned(divisors, len(right))
    if whole.shape[-2] != 1 or any(size not in {1, right[axis]} for axis, size in enumerate(whole.shape)):
        return "a product of two activations sums over those channels"
    return _above(index, node, 1, whole)


def _through(index: GraphIndex, node: onnx.NodeProto, divisors: Divisors) -> list[Edit] | str:
    return _above(index, node, 0, divisors)


def _through_pool(index: GraphIndex, node: onnx.NodeProto, divisors: Divisors) -> list[Edit] | str:
    rank = len(index.shapes.get(node.output[0], ()))
    if rank < 3 or _vector(divisors, rank - 2) is None or len([o for o in node.output if o]) > 1:
        return f"{node.op_type} mixes those channels"
    return _above(index, node, 0, divisors)


def _through_transpose(index: GraphIndex, node: onnx.NodeProto, divisors: Divisors) -> list[Edit] | str:
    order = attribute(node, "perm")
    if order is None or divisors.ndim > len(order):
        return "a Transpose has no order"
    return _above(index, node, 0, _aligned(divisors, len(order)).transpose(np.argsort(order)))


def _through_reshape(index: GraphIndex, node: onnx.NodeProto, divisors: Divisors) -> list[Edit] | str:
    """Spread the divisors over the whole tensor, reshape them as its values are, and see which axes they vary along."""
    before, after = _sizes(index, node.input[0]), _sizes(index, node.output[0])
    if before is None or after is None:
        return f"the shapes at {node.op_type} are not known"
    spread = np.broadcast_to(divisors, after).reshape(before)
    for axis in range(spread.ndim):
        first = spread.take([0], axis=axis)
        spread = first if bool((spread == first).all()) else spread
    return _above(index, node, 0, spread)


def _through_split(index: GraphIndex, node: onnx.NodeProto, tensor: str, divisors: Divisors) -> list[Edit] | str:
    """Leave the other parts as they are: queries and keys beside the values."""
    whole, part = _sizes(index, node.input[0]), _sizes(index, tensor)
    before = [_sizes(index, name) for name in node.output[: list(node.output).index(tensor)]]
    if whole is None or part is None or None in before:
        return "the shapes at Split are not known"
    axis = attribute(node, "axis", 0) % len(whole)
    start = sum(sizes[axis] for sizes in before if sizes is not None)
    own = _aligned(divisors, len(whole))
    shape = list(own.shape)
    shape[axis] = whole[axis]
    spread = np.ones(shape)
    spread[(slice(None),) * axis + (slice(start, start + part[axis]),)] = own
    return _above(index, node, 0, spread)


def _sizes(index: GraphIndex, name: str) -> tuple[int, ...] | None:
    shape = index.shapes.get(name)
    known = None if shape is None else tuple(size for size in shape if size is not None)
    return known if known is not None and shape is not None and len(known) == len(shape) else None


def _into_normalization(index: GraphIndex, node: onnx.NodeProto, divisors: Divisors) -> list[Edit] | str:
    each = _vector(divisors)
    parts = [position for position in (1, 2) if position < len(node.input) and node.input[position]]
    if each is None or any(not index.is_constant(node.input[position]) for position in parts):
        return f"the scale of {node.op_type} is no constant per channel"
    return [Edit(node, position, 1.0 / each) for position in parts]


def _into_scaling(index: GraphIndex, node: onnx.NodeProto, divisors: Divisors) -> list[Edit] | str:
    """A factor, by whichever operand takes the divisors."""
    reasons: list[str] = []
    for position in (1, 0) if node.op_type == "Mul" else (1,):
        if index.is_constant(node.input[position]) and index.float_type(node.input[position]) == FLOAT:
            return [Edit(node, position, divisors if node.op_type == "Div" else 1.0 / divisors)]
    for position in (0, 1) if node.op_type == "Mul" else (0,):
        found = _operand(index, node, position, divisors)
        if not isinstance(found, str):
            return found
        reasons.append(found)
    return reasons[0]


def _through_sum(index: GraphIndex, node: onnx.NodeProto, divisors: Divisors) -> list[Edit] | str:
    edits: list[Edit] = []
    for position, name in enumerate(node.input):
        if index.is_constant(name):
            edits.append(Edit(node, position, 1.0 / divisors))
            continue
        found = _operand(index, node, position, divisors)
        if isinstance(found, str):
            return found
        edits += found
    return edits


def _operand(index: GraphIndex, node: onnx.NodeProto, position: int, divisors: Divisors) -> list[Edit] | str:
    """Go on in one operand, unless it is broadcast along an axis of the divisors."""
    shape = index.shapes.get(node.input[position])
    other = index.shapes.get(node.output[0])
    if shape is None or other is None or shape[len(shape) - divisors.ndim :] != other[len(other) - divisors.ndim :]:
        return f"an operand of {node.op_type} is broadcast, or its shape is not known"
    return _above(index, node, position, divisors)


_Step = Callable[[GraphIndex, onnx.NodeProto, Divisors], "list[Edit] | str"]
_STEPS: Mapping[str, _Step] = {
    **dict.fromkeys(HOMOGENEOUS, _through),
    **dict.fromkeys(_POOLS, _through_pool),
    **dict.fromkeys(_RESHAPES, _through_reshape),
    "Transpose": _through_transpose,
    "LayerNormalization": _into_normalization,
    "RMSNormalization": _into_normalization,
    "Mul": _into_scaling,
    "Div": _into_scaling,
    "Add": _through_sum,
    "Sub": _through_sum,
}
