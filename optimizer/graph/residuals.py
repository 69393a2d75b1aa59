"""Residual sums: where the branch of a convolution meets what bypassed it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx

from optimizer.graph.index import FLOAT, GraphIndex, node_key
from optimizer.graph.quantizable import Candidate

# What a convolution's kernel takes along, one value at a time.
_ALONG = frozenset(
    {"Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "Mish", "Tanh", "Sigmoid", "HardSigmoid"}
    | {"HardSwish", "Softplus", "Softsign", "BatchNormalization", "Identity", "Mul", "Add", "Sub", "Div"}
)


@dataclass(frozen=True, slots=True)
class Sum:
    """An Add of two activations of one shape. `branch` is the position of the convolution's result, `other` not."""

    node: onnx.NodeProto
    branch: int
    other: int


def residual_sums(index: GraphIndex, candidates: Sequence[Candidate], kept: Collection[str]) -> list[Sum]:
    """Return the sums of a quantized convolution's result, which nothing else reads, and another activation.

    Where both are such results (a convolution in the shortcut), the later one is the branch: the other waits for it.
    """
    convolutions = {str(c.node.output[0]) for c in candidates if c.node.op_type in {"Conv", "ConvTranspose"}}
    order = {output: i for i, node in enumerate(index.graph.node) for output in node.output}
    found = []
    for node in index.graph.node:
        if node.op_type != "Add" or node_key(node) in kept or not _one_shape(index, node):
            continue
        branches = [p for p in (0, 1) if _is_branch(index, str(node.input[p]), convolutions)]
        if branches:
            branch = max(branches, key=lambda p: order[node.input[p]])
            found.append(Sum(node, branch, 1 - branch))
    return found


def _one_shape(index: GraphIndex, node: onnx.NodeProto) -> bool:
    left, right = node.input
    if left == right or index.is_constant(left) or index.is_constant(right):
        return False
    if index.float_type(left) != FLOAT or index.float_type(right) != FLOAT:
        return False
    a, b = index.shapes.get(left), index.shapes.get(right)
    if a is None or b is None:
        return True
    return len(a) == len(b) and all(x == y or x is None or y is None for x, y in zip(a, b, strict=True))


def _is_branch(index: GraphIndex, tensor: str, convolutions: set[str]) -> bool:
    if index.sole_reader(tensor) is None:
        return False
    while tensor not in convolutions:
        node = index.producers.get(tensor)
        if node is None or node.op_type not in _ALONG:
            return False
        computed = {str(name) for name in node.input if name and not index.is_constant(name)}
        if len(computed) == 2 and node.op_type == "Mul":
            computed -= {name for name in computed if _gates(index, name, computed)}  # x * sigmoid(x)
        if len(computed) != 1:
            return False
        tensor = computed.pop()
    return True


def _gates(index: GraphIndex, name: str, others: set[str]) -> bool:
    node = index.producers.get(name)
    return node is not None and node.op_type in {"Sigmoid", "HardSigmoid", "Tanh"} and node.input[0] in others - {name}
