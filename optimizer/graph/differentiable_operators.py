"""ONNX operators written in torch, for `differentiable`: each takes its node and its inputs, and returns its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx

from optimizer.errors import StageError
from optimizer.graph.index import attribute, node_key

Inputs = list[Any]  # torch tensors; None for one that is left out
Operator = Callable[[onnx.NodeProto, Inputs], Any]


def _refuse(node: onnx.NodeProto, what: str) -> StageError:
    return StageError(f"no gradient is known through {node.op_type} '{node_key(node)}': {what}", where="learning")


def _padded(node: onnx.NodeProto, x: Any, value: float = 0.0) -> tuple[Any, list[int]]:
    """Return the input and the symmetric padding left to do; other padding is done here."""
    import torch

    spatial = x.ndim - 2
    if attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise _refuse(node, "auto_pad is not resolved")
    pads = list(attribute(node, "pads", [0] * 2 * spatial))
    before, after = pads[:spatial], pads[spatial:]
    if before == after:
        return x, before
    flat = [p for pair in zip(reversed(before), reversed(after), strict=True) for p in pair]
    return torch.nn.functional.pad(x, flat, value=value), [0] * spatial


def _conv(node: onnx.NodeProto, inputs: Inputs) -> Any:
    from torch.nn import functional

    x, padding = _padded(node, inputs[0])
    convolve = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[x.ndim - 2]
    ones = [1] * (x.ndim - 2)
    bias = inputs[2] if len(inputs) > 2 else None
    strides, dilations = attribute(node, "strides", ones), attribute(node, "dilations", ones)
    return convolve(x, inputs[1], bias, strides, padding, dilations, attribute(node, "group", 1))


def _conv_transpose(node: onnx.NodeProto, inputs: Inputs) -> Any:
    from torch.nn import functional

    x, weight = inputs[:2]
    spatial = x.ndim - 2
    ones, pads = [1] * spatial, list(attribute(node, "pads", [0] * 2 * spatial))
    if pads[:spatial] != pads[spatial:] or attribute(node, "output_shape") is not None:
        raise _refuse(node, "its padding differs between the sides")
    convolve = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}[spatial]
    strides, dilations = attribute(node, "strides", ones), attribute(node, "dilations", ones)
    extra, group = attribute(node, "output_padding", [0] * spatial), attribute(node, "group", 1)
    return convolve(x, weight, inputs[2] if len(inputs) > 2 else None, strides, pads[:spatial], extra, group, dilations)


def _gemm(node: onnx.NodeProto, inputs: Inputs) -> Any:
    left = inputs[0].T if attribute(node, "transA", 0) else inputs[0]
    right = inputs[1].T if attribute(node, "transB", 0) else inputs[1]
    product = attribute(node, "alpha", 1.0) * (left @ right)
    has_bias = len(inputs) > 2 and inputs[2] is not None
    return product + attribute(node, "beta", 1.0) * inputs[2] if has_bias else product


def _max_pool(node: onnx.NodeProto, inputs: Inputs) -> Any:
    from torch.nn import functional

    if len(node.output) > 1 or attribute(node, "ceil_mode", 0):
        raise _refuse(node, "indices and ceil_mode are not supported")
    x, padding = _padded(node, inputs[0], float("-inf"))
    pool = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[x.ndim - 2]
    ones = [1] * (x.ndim - 2)
    strides, dilations = attribute(node, "strides", ones), attribute(node, "dilations", ones)
    return pool(x, attribute(node, "kernel_shape"), strides, padding, dilations)


def _average_pool(node: onnx.NodeProto, inputs: Inputs) -> Any:
    from torch.nn import functional

    x, padding = _padded(node, inputs[0])
    counted = bool(attribute(node, "count_include_pad", 0))
    if attribute(node, "ceil_mode", 0) or (x is not inputs[0] and not counted):
        raise _refuse(node, "ceil_mode and one-sided padding are not supported")
    pool: Any = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[x.ndim - 2]
    strides = attribute(node, "strides", [1] * (x.ndim - 2))
    return pool(x, attribute(node, "kernel_shape"), strides, padding, count_include_pad=counted)


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
        return getattr(torch, name)(inputs[0], dim=axes, keepdim=bool(attribute(node, "keepdims", 1)))

    return reduce


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

    mode = attribute(node, "mode", b"constant").decode()
    if len(inputs) > 3 and inputs[3] is not None:
        raise _refuse(node, "axes are not supported")
    pads, rank = inputs[1].tolist(), inputs[0].ndim
    flat = [int(p) for axis in reversed(range(rank)) for p in (pads[axis], pads[axis + rank])]
    value = float(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else 0.0
    if mode != "constant":
        raise _refuse(node, f"mode {mode} is not supported")
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
    import torch

    kinds = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 11: torch.float64}
    kind = attribute(node, "to")
    if kind not in kinds:
        raise _refuse(node, f"type {onnx.TensorProto.DataType.Name(kind)} is not supported")
    return inputs[0].to(kinds[kind])


def _layer_normalization(node: onnx.NodeProto, inputs: Inputs) -> Any:
    from torch.nn import functional

    x, axis = inputs[0], attribute(node, "axis", -1) % inputs[0].ndim
    if len(node.output) > 1:
        raise _refuse(node, "mean and deviation are not given out")
    bias = inputs[2] if len(inputs) > 2 else None
    return functional.layer_norm(x, x.shape[axis:], inputs[1], bias, attribute(node, "epsilon", 1e-5))


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
    return inputs[0].softmax(attribute(node, "axis", -1))


def _leaky_relu(node: onnx.NodeProto, inputs: Inputs) -> Any:
    from torch.nn import functional

    return functional.leaky_relu(inputs[0], attribute(node, "alpha", 0.01))


def _divide(node: onnx.NodeProto, inputs: Inputs) -> Any:
    import torch

    del node
    return torch.div(*inputs, rounding_mode=None if inputs[0].is_floating_point() else "trunc")


def _global_average_pool(node: onnx.NodeProto, inputs: Inputs) -> Any:
    del node
    return inputs[0].mean(tuple(range(2, inputs[0].ndim)), keepdim=True)


def _torch(name: str) -> Operator:
    """Return an operator that torch has under this name, with the inputs in the same order."""

    def call(node: onnx.NodeProto, inputs: Inputs) -> Any:
        import torch

        del node
        return getattr(torch, name)(*inputs)

    return call


OPERATORS: Mapping[str, Operator] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "ReduceMean": _reduction("mean"),
    "ReduceSum": _reduction("sum"),
    "ReduceMax": _reduction("amax"),
    "Reshape": _reshape,
    "Slice": _slice,
    "Pad": _pad,
    "Split": _split,
    "Gather": _gather,
    "Cast": _cast,
    "LayerNormalization": _layer_normalization,
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
