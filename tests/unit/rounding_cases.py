"""Each operator that models of the four kinds use, as ONNX and as torch, with arguments that exercise it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper

Floats = NDArray[np.float32]
Torch = Callable[..., torch.Tensor]
F = torch.nn.functional
NODE = helper.make_node


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Floats:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """One operator on `x` and its float constants; `fixed` are constants of other types."""

    node: onnx.NodeProto
    torch: Torch
    x: Floats
    constants: dict[str, Floats] = field(default_factory=dict)
    fixed: dict[str, NDArray[np.generic]] = field(default_factory=dict)


X2 = normal(16, 64)
X4 = normal(2, 8, 12, 12)
WIDE = normal(16, 64, scale=4.0)
POSITIVE = np.abs(normal(16, 64)) + np.float32(0.1)
OTHER = {"o": normal(16, 64, seed=9) + np.float32(3)}
IMAGE = {"s": normal(8, seed=5), "b": normal(8, seed=6)}
LAST = np.array([-1])


def unary(name: str, function: Torch, x: Floats = X2, **attributes: object) -> Case:
    return Case(NODE(name, ["x"], ["y"], **attributes), function, x)


def binary(name: str, function: Torch) -> Case:
    return Case(NODE(name, ["x", "o"], ["y"]), function, X2, OTHER)


CASES: dict[str, Case] = {
    "Conv": Case(
        NODE("Conv", ["x", "w", "c"], ["y"], pads=[1, 1, 1, 1]),
        lambda x, w, c: F.conv2d(x, w, c, padding=1),
        X4,
        {"w": normal(16, 8, 3, 3, seed=1, scale=0.1), "c": normal(16, seed=2)},
    ),
    "Conv, depthwise and strided": Case(
        NODE("Conv", ["x", "w"], ["y"], group=8, strides=[2, 2]),
        lambda x, w: F.conv2d(x, w, stride=2, groups=8),
        X4,
        {"w": normal(8, 1, 3, 3, seed=1, scale=0.3)},
    ),
    "ConvTranspose": Case(
        NODE("ConvTranspose", ["x", "w", "c"], ["y"], strides=[2, 2]),
        lambda x, w, c: F.conv_transpose2d(x, w, c, stride=2),
        X4,
        {"w": normal(8, 4, 2, 2, seed=1, scale=0.3), "c": normal(4, seed=2)},
    ),
    "Gemm": Case(
        NODE("Gemm", ["x", "w", "c"], ["y"], transB=1),
        F.linear,
        X2,
        {"w": normal(32, 64, seed=1, scale=0.1), "c": normal(32, seed=2)},
    ),
    "MatMul": Case(NODE("MatMul", ["x", "w"], ["y"]), torch.matmul, X2, {"w": normal(64, 32, seed=1)}),
    "Add": binary("Add", torch.add),
    "Sub": binary("Sub", torch.sub),
    "Mul": binary("Mul", torch.mul),
    "Div": binary("Div", torch.div),
    "Relu": unary("Relu", torch.relu),
    "LeakyRelu": unary("LeakyRelu", lambda x: F.leaky_relu(x, 0.1), alpha=0.1),
    "Elu": unary("Elu", F.elu),
    "HardSigmoid": unary("HardSigmoid", F.hardsigmoid, WIDE, alpha=1 / 6, beta=0.5),
    "HardSwish": unary("HardSwish", F.hardswish, WIDE),
    "Sigmoid": unary("Sigmoid", torch.sigmoid, WIDE),
    "Tanh": unary("Tanh", torch.tanh, WIDE),
    "Erf": unary("Erf", torch.erf),
    "Gelu": unary("Gelu", F.gelu, WIDE),
    "Gelu, tanh": unary("Gelu", lambda x: F.gelu(x, approximate="tanh"), WIDE, approximate="tanh"),
    "Softplus": unary("Softplus", F.softplus),
    "Softmax": unary("Softmax", lambda x: torch.softmax(x, -1), WIDE, axis=-1),
    "LogSoftmax": unary("LogSoftmax", lambda x: torch.log_softmax(x, -1), WIDE, axis=-1),
    "Exp": unary("Exp", torch.exp),
    "Log": unary("Log", torch.log, POSITIVE),
    "Sqrt": unary("Sqrt", torch.sqrt, POSITIVE),
    "Reciprocal": unary("Reciprocal", torch.reciprocal, POSITIVE),
    "Pow": Case(NODE("Pow", ["x", "p"], ["y"]), torch.pow, POSITIVE, {"p": np.array(3.0, np.float32)}),
    "Clip": Case(
        NODE("Clip", ["x", "low", "high"], ["y"]),
        torch.clamp,
        X2,
        {"low": np.array(-0.7, np.float32), "high": np.array(0.3, np.float32)},
    ),
    "ReduceMean": Case(NODE("ReduceMean", ["x", "axes"], ["y"]), lambda x: x.mean(-1, True), X2, {}, {"axes": LAST}),
    "ReduceSum": Case(NODE("ReduceSum", ["x", "axes"], ["y"]), lambda x: x.sum(-1, True), X2, {}, {"axes": LAST}),
    "ReduceMax": Case(NODE("ReduceMax", ["x", "axes"], ["y"]), lambda x: x.amax(-1, True), X2, {}, {"axes": LAST}),
    "AveragePool": unary("AveragePool", lambda x: F.avg_pool2d(x, 3), X4, kernel_shape=[3, 3], strides=[3, 3]),
    "GlobalAveragePool": unary("GlobalAveragePool", lambda x: F.adaptive_avg_pool2d(x, 1), X4),
    "MaxPool": unary("MaxPool", lambda x: F.max_pool2d(x, 2), X4, kernel_shape=[2, 2], strides=[2, 2]),
    "Resize, nearest": Case(
        NODE(
            "Resize",
            ["x", "", "scales"],
            ["y"],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        lambda x: F.interpolate(x, scale_factor=2),
        X4,
        {},
        {"scales": np.array([1, 1, 2, 2], np.float32)},
    ),
    "Resize, linear": Case(
        NODE("Resize", ["x", "", "scales"], ["y"], mode="linear"),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        X4,
        {},
        {"scales": np.array([1, 1, 2, 2], np.float32)},
    ),
    "LayerNormalization": Case(
        NODE("LayerNormalization", ["x", "s", "b"], ["y"], epsilon=1e-5),
        lambda x, s, b: F.layer_norm(x, (64,), s, b),
        X2,
        {"s": normal(64, seed=3), "b": normal(64, seed=4)},
    ),
    "BatchNormalization": Case(
        NODE("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], epsilon=1e-5),
        lambda x, s, b, m, v: F.batch_norm(x, m, v, s, b),
        X4,
        IMAGE | {"m": normal(8, seed=7, scale=0.1), "v": np.abs(normal(8, seed=8)) + np.float32(0.5)},
    ),
    "InstanceNormalization": Case(
        NODE("InstanceNormalization", ["x", "s", "b"], ["y"], epsilon=1e-5),
        lambda x, s, b: F.instance_norm(x, weight=s, bias=b),
        X4,
        IMAGE,
    ),
    "Concat": Case(NODE("Concat", ["x", "o"], ["y"], axis=1), lambda x, o: torch.cat([x, o], 1), X2, OTHER),
    "Transpose": unary("Transpose", lambda x: x.permute(0, 2, 3, 1), X4, perm=[0, 2, 3, 1]),
}
