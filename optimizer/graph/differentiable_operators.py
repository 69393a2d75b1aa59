"""ONNX operators written in torch, for `differentiable`: each takes its node and its inputs, and returns its output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx

from optimizer.graph.differentiable_indices import INDICES, torch_type
from optimizer.graph.differentiable_layers import LAYERS, Inputs, Operator
from optimizer.graph.index import attribute

__all__ = ["OPERATORS", "Inputs"]


def _axes(node: onnx.NodeProto, inputs: Inputs) -> list[int] | None:
    given = inputs[1].tolist() if len(inputs) > 1 and inputs[1] is not None else attribute(node, "axes")
    return None if given is None else [int(a) for a in given]


def _reduction(name: str) -> Operator:
    def reduce(node: onnx.NodeProto, inputs: Inputs) -> Any:
        import torch

        axes = _axes(node, inputs)
        if axes is None:
            axes = [] if attribute(node, "noop_with_empty_axes", 0) else list(range(inputs[0].ndim))
        if not axes:
            return inputs[0]
        found = getattr(torch, name)(inputs[0], dim=axes, keepdim=bool(attribute(node, "keepdims", 1)))
        return found.to(inputs[0].dtype)  # torch adds integers up in int64

    return reduce


def _reduce_product(node: onnx.NodeProto, inputs: Inputs) -> Any:
    x, axes = inputs[0], _axes(node, inputs)
    if axes is None:
        axes = [] if attribute(node, "noop_with_empty_axes", 0) else list(range(x.ndim))
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = x.prod(axis, keepdim=bool(attribute(node, "keepdims", 1)), dtype=x.dtype)
    return x


def _reshape(node: onnx.NodeProto, inputs: Inputs) -> Any:
    keep = not attribute(node, "allowzero", 0)
    return inputs[0].reshape(
        [inputs[0].shape[i] if size == 0 and keep else int(size) for i, size in enumerate(inputs[1].tolist())]
    )


def _slice(node: onnx.NodeProto, inputs: Inputs) -> Any:
    import torch

    del node
    x, starts, ends = inputs[0], inputs[1].tolist(), inputs[2].tolist()
    axes = inputs[3].tolist() if len(inputs) > 3 and inputs[3] is not None else range(len(starts))
    steps = inputs[4].tolist() if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        picked = range(*slice(start, None if step < 0 and end < -x.shape[axis] else end, step).indices(x.shape[axis]))
        plain = step > 0
        x = (
            x.narrow(axis, picked.start, max(picked.stop - picked.start, 0))
            if plain and step == 1
            else x.index_select(axis, torch.tensor(list(picked), dtype=torch.int64))
        )
    return x


def _pad(node: onnx.NodeProto, inputs: Inputs) -> Any:
    from torch.nn import functional

    del node
    pads, rank = inputs[1].tolist(), inputs[0].ndim
    flat = [int(p) for axis in reversed(range(rank)) for p in (pads[axis], pads[axis + rank])]
    value = float(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else 0.0
    return functional.pad(inputs[0], flat, value=value)


def _split(node: onnx.NodeProto, inputs: Inputs) -> Any:
    axis, length = attribute(node, "axis", 0), inputs[0].shape[attribute(node, "axis", 0)]
    if len(inputs) > 1 and inputs[1] is not None:
        return tuple(inputs[0].split(inputs[1].tolist(), axis))
    return tuple(inputs[0].split(-(-length // len(node.output)), axis))


def _gather(node: onnx.NodeProto, inputs: Inputs) -> Any:
    axis = attribute(node, "axis", 0) % inputs[0].ndim
    indices = inputs[1] % inputs[0].shape[axis]
    picked = inputs[0].index_select(axis, indices.reshape(-1))
    return picked.reshape([*inputs[0].shape[:axis], *indices.shape, *inputs[0].shape[axis + 1 :]])


def _cast(node: onnx.NodeProto, inputs: Inputs) -> Any:
    return inputs[0].to(torch_type(attribute(node, "to")))


def _clip(node: onnx.NodeProto, inputs: Inputs) -> Any:
    import torch

    del node
    low, high = ([*inputs[1:], None, None])[:2]
    return inputs[0] if low is None and high is None else torch.clamp(inputs[0], low, high)


def _squeeze(node: onnx.NodeProto, inputs: Inputs) -> Any:
    axes = _axes(node, inputs)
    return inputs[0].squeeze() if axes is None else inputs[0].squeeze(tuple(axes))


def _unsqueeze(node: onnx.NodeProto, inputs: Inputs) -> Any:
    x, axes = inputs[0], _axes(node, inputs) or []
    for axis in sorted(a % (x.ndim + len(axes)) for a in axes):
        x = x.unsqueeze(axis)
    return x


def _shape(node: onnx.NodeProto, inputs: Inputs) -> Any:
    import torch

    start, end = attribute(node, "start", 0), attribute(node, "end")
    return torch.tensor(list(inputs[0].shape)[start:end], dtype=torch.int64)


def _concat(node: onnx.NodeProto, inputs: Inputs) -> Any:
    import torch

    return torch.cat(inputs, attribute(node, "axis"))


def _flatten(node: onnx.NodeProto, inputs: Inputs) -> Any:
    from math import prod

    axis = attribute(node, "axis", 1)
    return inputs[0].reshape(prod(inputs[0].shape[: axis if axis >= 0 else inputs[0].ndim + axis]), -1)


def _transpose(node: onnx.NodeProto, inputs: Inputs) -> Any:
    return inputs[0].permute(attribute(node, "perm", tuple(reversed(range(inputs[0].ndim)))))


def _expand(node: onnx.NodeProto, inputs: Inputs) -> Any:
    import torch

    del node
    return inputs[0].expand(torch.broadcast_shapes(inputs[0].shape, [int(s) for s in inputs[1].tolist()]))


def _constant_of_shape(node: onnx.NodeProto, inputs: Inputs) -> Any:
    import numpy as np
    import torch
    from onnx import numpy_helper

    given = attribute(node, "value")
    value = np.zeros(1, np.float32) if given is None else np.array(numpy_helper.to_array(given))
    return torch.from_numpy(np.full([int(s) for s in inputs[0].tolist()], value.reshape(-1)[0]))


def _gelu(node: onnx.NodeProto, inputs: Inputs) -> Any:
    from torch.nn import functional

    return functional.gelu(inputs[0], approximate=attribute(node, "approximate", b"none").decode())


def _hard_sigmoid(node: onnx.NodeProto, inputs: Inputs) -> Any:
    return (attribute(node, "alpha", 0.2) * inputs[0] + attribute(node, "beta", 0.5)).clamp(0, 1)


def _softmax(node: onnx.NodeProto, inputs: Inputs) -> Any:
    """A row with everything masked is NaN, which the graph takes out behind it: its gradient has to be 0, not NaN."""
    axis = attribute(node, "axis", -1)
    found = inputs[0].softmax(axis)
    if not found.isnan().any():
        return found
    empty = inputs[0].isneginf().all(axis, keepdim=True)
    return inputs[0].masked_fill(empty, 0.0).softmax(axis).masked_fill(empty, float("nan"))


def _leaky_relu(node: onnx.NodeProto, inputs: Inputs) -> Any:
    from torch.nn import functional

    return functional.leaky_relu(inputs[0], attribute(node, "alpha", 0.01))


def _divide(node: onnx.NodeProto, inputs: Inputs) -> Any:
    import torch

    del node
    return torch.div(*inputs, rounding_mode=None if inputs[0].is_floating_point() else "trunc")


def _torch(name: str) -> Operator:
    """Return an operator that torch has under this name, with the inputs in the same order."""

    def call(node: onnx.NodeProto, inputs: Inputs) -> Any:
        import torch

        del node
        return getattr(torch, name)(*inputs)

    return call


OPERATORS: Mapping[str, Operator] = {
    **LAYERS,
    **INDICES,
    "ReduceMean": _reduction("mean"),
    "ReduceSum": _reduction("sum"),
    "ReduceMax": _reduction("amax"),
    "ReduceMin": _reduction("amin"),
    "ReduceProd": _reduce_product,
    "Reshape": _reshape,
    "Slice": _slice,
    "Pad": _pad,
    "Split": _split,
    "Gather": _gather,
    "Cast": _cast,
    "Clip": _clip,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Shape": _shape,
    "Concat": _concat,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "Softmax": _softmax,
    "LeakyRelu": _leaky_relu,
    "Div": _divide,
    "HardSwish": lambda node, inputs: inputs[0] * (inputs[0] / 6 + 0.5).clamp(0, 1),
    "Identity": lambda node, inputs: inputs[0],
    "Add": _torch("add"),
    "Sub": _torch("sub"),
    "Mul": _torch("mul"),
    "Pow": _torch("pow"),
    "MatMul": _torch("matmul"),
    "Relu": _torch("relu"),
    "Sigmoid": _torch("sigmoid"),
    "Tanh": _torch("tanh"),
    "Erf": _torch("erf"),
    "Exp": _torch("exp"),
    "Log": _torch("log"),
    "Sqrt": _torch("sqrt"),
    "Neg": _torch("neg"),
    "Abs": _torch("abs"),
    "Reciprocal": _torch("reciprocal"),
    "Sin": _torch("sin"),
    "Cos": _torch("cos"),
    "Where": _torch("where"),
    "Equal": _torch("eq"),
    "Less": _torch("lt"),
    "Greater": _torch("gt"),
    "LessOrEqual": _torch("le"),
    "GreaterOrEqual": _torch("ge"),
    "And": _torch("logical_and"),
    "Not": _torch("logical_not"),
}
