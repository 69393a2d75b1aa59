"""Operators of positions, indices and masks written in torch, for `differentiable`: most of them have no gradient.

A transformer of dynamic length computes its positions and masks from shapes and ids. Where one of these carries floats
that are learned through (a maximum, what is gathered), torch's own gradient passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np
import onnx

from optimizer.graph.differentiable_forms import TYPES
from optimizer.graph.differentiable_layers import Inputs, Operator
from optimizer.graph.index import attribute

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def torch_type(kind: int) -> Any:
    """Return torch's type for one of ONNX."""
    import torch

    return getattr(torch, TYPES[kind])


def _range(node: onnx.NodeProto, inputs: Inputs) -> Any:
    import torch

    del node
    start, limit, step = inputs
    count = max(int(np.ceil(float(limit - start) / float(step))), 0)
    return start + torch.arange(count).to(start.dtype) * step


def _cumulative_sum(node: onnx.NodeProto, inputs: Inputs) -> Any:
    import torch

    x, axis = inputs[0], int(inputs[1]) % inputs[0].ndim
    reverse = attribute(node, "reverse", 0)
    x = x.flip(axis) if reverse else x
    if attribute(node, "exclusive", 0):
        x = torch.cat([torch.zeros_like(x.narrow(axis, 0, 1)), x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    summed = x.cumsum(axis, dtype=x.dtype)
    return summed.flip(axis) if reverse else summed


def _triangle(node: onnx.NodeProto, inputs: Inputs) -> Any:
    import torch

    diagonal = int(inputs[1]) if len(inputs) > 1 and inputs[1] is not None else 0
    return (torch.triu if attribute(node, "upper", 1) else torch.tril)(inputs[0], diagonal)


def _eye_like(node: onnx.NodeProto, inputs: Inputs) -> Any:
    import torch

    kind, (rows, columns) = attribute(node, "dtype"), inputs[0].shape
    dtype = inputs[0].dtype if kind is None else torch_type(kind)
    off = torch.arange(columns) - torch.arange(rows)[:, None]
    return (off == attribute(node, "k", 0)).to(dtype)


def _one_hot(node: onnx.NodeProto, inputs: Inputs) -> Any:
    import torch

    indices, depth, (off, on) = inputs[0].to(torch.int64), int(inputs[1]), inputs[2]
    axis = attribute(node, "axis", -1) % (indices.ndim + 1)
    shape = [1] * (indices.ndim + 1)
    shape[axis] = depth
    wrapped = torch.where(indices < 0, indices + depth, indices).unsqueeze(axis)
    return torch.where(wrapped == torch.arange(depth).reshape(shape), on, off)


def _arg(largest: bool) -> Operator:
    def find(node: onnx.NodeProto, inputs: Inputs) -> Any:
        x, axis = inputs[0], attribute(node, "axis", 0) % inputs[0].ndim
        last = attribute(node, "select_last_index", 0)
        x = x.flip(axis) if last else x
        found = (x.argmax if largest else x.argmin)(axis, keepdim=bool(attribute(node, "keepdims", 1)))
        return x.shape[axis] - 1 - found if last else found

    return find


def _top_k(node: onnx.NodeProto, inputs: Inputs) -> Any:
    """Of equals the first counts, which torch.topk does not promise; the order of unsorted ones is left open."""
    x, count = inputs[0], int(inputs[1])
    axis, largest = attribute(node, "axis", -1) % x.ndim, bool(attribute(node, "largest", 1))
    values, indices = x.sort(dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)


def _non_zero(node: onnx.NodeProto, inputs: Inputs) -> Any:
    del node
    return inputs[0].nonzero().T


def _gather_elements(node: onnx.NodeProto, inputs: Inputs) -> Any:
    import torch

    x, axis = inputs[0], attribute(node, "axis", 0) % inputs[0].ndim
    return x.gather(axis, inputs[1].to(torch.int64) % x.shape[axis])


def _count(dims: tuple[int, ...]) -> int:
    return int(np.prod(dims, dtype=np.int64))


def _flat(indices: Any, dims: tuple[int, ...]) -> Any:
    """Return the positions that index tuples (along the last axis) have among all elements of so many dimensions."""
    flat = indices[..., 0] * 0
    for number, size in enumerate(dims):
        flat = flat * size + indices[..., number] % size
    return flat


def _gather_nd(node: onnx.NodeProto, inputs: Inputs) -> Any:
    x, indices = inputs
    shared, depth = attribute(node, "batch_dims", 0), indices.shape[-1]
    batch, dims, rest = x.shape[:shared], x.shape[shared : shared + depth], x.shape[shared + depth :]
    count = _count(batch)
    flat = _flat(indices, dims).reshape(count, -1)
    rows = x.reshape(count, _count(dims), _count(rest))
    picked = rows.gather(1, flat.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))
    return picked.reshape([*indices.shape[:-1], *rest])


def _put(node: onnx.NodeProto, x: Any, axis: int, indices: Any, values: Any) -> Any:
    how = attribute(node, "reduction", b"none").decode()
    if how == "none":
        return x.scatter(axis, indices, values)
    return x.scatter_reduce(axis, indices, values, _REDUCTIONS[how], include_self=True)


def _scatter_elements(node: onnx.NodeProto, inputs: Inputs) -> Any:
    import torch

    x, axis = inputs[0], attribute(node, "axis", 0) % inputs[0].ndim
    return _put(node, x, axis, inputs[1].to(torch.int64) % x.shape[axis], inputs[2])


def _scatter_nd(node: onnx.NodeProto, inputs: Inputs) -> Any:
    x, indices, values = inputs
    dims, width = x.shape[: indices.shape[-1]], _count(x.shape[indices.shape[-1] :])
    flat = _flat(indices, dims).reshape(-1, 1).expand(-1, width)
    return _put(node, x.reshape(_count(dims), width), 0, flat, values.reshape(-1, width)).reshape(x.shape)


def _mod(node: onnx.NodeProto, inputs: Inputs) -> Any:
    import torch

    return (torch.fmod if attribute(node, "fmod", 0) else torch.remainder)(*inputs)


def _is_infinite(node: onnx.NodeProto, inputs: Inputs) -> Any:
    import torch

    above, below = attribute(node, "detect_positive", 1), attribute(node, "detect_negative", 1)
    return (torch.isposinf(inputs[0]) & bool(above)) | (torch.isneginf(inputs[0]) & bool(below))


def _extreme(name: str) -> Operator:
    """Return the greatest or least of any number of tensors."""

    def call(node: onnx.NodeProto, inputs: Inputs) -> Any:
        import torch

        del node
        return reduce(getattr(torch, name), inputs)

    return call


def _numpy(name: str) -> Operator:
    """Return an operator of integers alone: torch knows few of them for unsigned ones."""

    def call(node: onnx.NodeProto, inputs: Inputs) -> Any:
        import torch

        del node
        return torch.from_numpy(np.asarray(getattr(np, name)(*(tensor.numpy() for tensor in inputs))))

    return call


def _shift(node: onnx.NodeProto, inputs: Inputs) -> Any:
    return _numpy("left_shift" if attribute(node, "direction") == b"LEFT" else "right_shift")(node, inputs)


def _size(node: onnx.NodeProto, inputs: Inputs) -> Any:
    import torch

    del node
    return torch.tensor(inputs[0].numel(), dtype=torch.int64)


def _method(name: str) -> Operator:
    """Return what torch has as a method of the first input."""

    def call(node: onnx.NodeProto, inputs: Inputs) -> Any:
        del node
        return getattr(inputs[0], name)()

    return call


INDICES: Mapping[str, Operator] = {
    "Range": _range,
    "CumSum": _cumulative_sum,
    "Trilu": _triangle,
    "EyeLike": _eye_like,
    "OneHot": _one_hot,
    "ArgMax": _arg(largest=True),
    "ArgMin": _arg(largest=False),
    "TopK": _top_k,
    "NonZero": _non_zero,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Size": _size,
    "Tile": lambda node, inputs: inputs[0].repeat(inputs[1].tolist()),
    "CastLike": lambda node, inputs: inputs[0].to(inputs[1].dtype),
    "Max": _extreme("maximum"),
    "Min": _extreme("minimum"),
    "Mod": _mod,
    "Floor": _method("floor"),
    "Ceil": _method("ceil"),
    "Round": _method("round"),
    "Sign": _method("sign"),
    "IsNaN": _method("isnan"),
    "IsInf": _is_infinite,
    "Or": _numpy("logical_or"),
    "Xor": _numpy("logical_xor"),
    "BitwiseAnd": _numpy("bitwise_and"),
    "BitwiseOr": _numpy("bitwise_or"),
    "BitwiseXor": _numpy("bitwise_xor"),
    "BitwiseNot": _numpy("bitwise_not"),
    "BitShift": _shift,
}
