"""ONNX's layers written in torch, for `differentiable`: each takes its node and its inputs, and returns its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx

from optimizer.graph.index import attribute

Inputs = list[Any]  # torch tensors; None for one that is left out
Operator = Callable[[onnx.NodeProto, Inputs], Any]


def _padded(node: onnx.NodeProto, x: Any, value: float = 0.0) -> tuple[Any, list[int]]:
    """Return the input and the symmetric padding left to do; other padding is done here."""
    import torch

    spatial = x.ndim - 2
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

    x, padding = _padded(node, inputs[0], float("-inf"))
    pool = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[x.ndim - 2]
    ones = [1] * (x.ndim - 2)
    strides, dilations = attribute(node, "strides", ones), attribute(node, "dilations", ones)
    return pool(x, attribute(node, "kernel_shape"), strides, padding, dilations)


def _average_pool(node: onnx.NodeProto, inputs: Inputs) -> Any:
    from torch.nn import functional

    x, padding = _padded(node, inputs[0])
    counted = bool(attribute(node, "count_include_pad", 0))
    pool: Any = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[x.ndim - 2]
    strides = attribute(node, "strides", [1] * (x.ndim - 2))
    return pool(x, attribute(node, "kernel_shape"), strides, padding, count_include_pad=counted)


def _global_average_pool(node: onnx.NodeProto, inputs: Inputs) -> Any:
    del node
    return inputs[0].mean(tuple(range(2, inputs[0].ndim)), keepdim=True)


def _layer_normalization(node: onnx.NodeProto, inputs: Inputs) -> Any:
    from torch.nn import functional

    x, axis = inputs[0], attribute(node, "axis", -1) % inputs[0].ndim
    bias = inputs[2] if len(inputs) > 2 else None
    return functional.layer_norm(x, x.shape[axis:], inputs[1], bias, attribute(node, "epsilon", 1e-5))


def _batch_normalization(node: onnx.NodeProto, inputs: Inputs) -> Any:
    from torch.nn import functional

    x, scale, bias, mean, variance = inputs
    return functional.batch_norm(x, mean, variance, scale, bias, eps=attribute(node, "epsilon", 1e-5))


LAYERS: Mapping[str, Operator] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "LayerNormalization": _layer_normalization,
    "BatchNormalization": _batch_normalization,
}
