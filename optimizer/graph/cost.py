"""Multiply-accumulates per node: the weight with which a precision counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx

from optimizer.graph.bodies import CONTROL_FLOW, Types, bodies, infer_all
from optimizer.graph.index import attribute, node_key

# Operators that multiply and accumulate, standard and onnxruntime's own, and where their two operands stand.
_CONVOLUTIONS = {
    "Conv": (0, 1),
    "DeformConv": (0, 1),
    "FusedConv": (0, 1),
    "NhwcFusedConv": (0, 1),
    "ConvInteger": (0, 1),
    "QLinearConv": (0, 3),
}
_TRANSPOSED = {"ConvTranspose": (0, 1), "QLinearConvTranspose": (0, 3)}
_PRODUCTS = {
    "Gemm": (0, 1),
    "FusedGemm": (0, 1),
    "QGemm": (0, 3),
    "MatMul": (0, 1),
    "FusedMatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "DynamicQuantizeMatMul": (0, 1),
    "QLinearMatMul": (0, 3),
}
_RECURRENT = dict.fromkeys(("LSTM", "GRU", "RNN"), (0, 1))
# Their products are not counted, only known to be there.
_UNCOUNTED = dict.fromkeys(("Attention", "MultiHeadAttention", "GroupQueryAttention", "DynamicQuantizeLSTM"), (0, 1))
OPERANDS: Mapping[str, tuple[int, int]] = {
    **_CONVOLUTIONS,
    **_TRANSPOSED,
    **_PRODUCTS,
    **_RECURRENT,
    **_UNCOUNTED,
    "Einsum": (0, 1),
}
# Where products of other operator sets would be missed; those of onnxruntime itself are listed above.
_STANDARD = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"})


class _UnknownSizeError(Exception):
    """A size that is needed cannot be told; the reason is the message."""


@dataclass(frozen=True, slots=True)
class Site:
    """A node that multiplies and accumulates, in the graph that holds it; a body is a model of its own.

    `macs` counts every execution. `reason` says why it is no more than a lower bound, and is empty where it is exact.
    """

    key: str
    node: onnx.NodeProto
    model: onnx.ModelProto
    types: Types
    macs: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Work:
    """What a model multiplies and accumulates, and what had to be assumed for it."""

    sites: tuple[Site, ...]
    notes: tuple[str, ...] = ()

    @property
    def macs(self) -> dict[str, int]:
        """Multiply-accumulates by node; of those in `uncounted` a lower bound."""
        return {site.key: site.macs for site in self.sites}

    @property
    def uncounted(self) -> frozenset[str]:
        """The nodes whose multiply-accumulates cannot be counted."""
        return frozenset(site.key for site in self.sites if site.reason)


def count(model: onnx.ModelProto | Path, types: Types | None = None) -> Work:
    """Count the multiply-accumulates of every node that has any.

    Convolutions, matrix products, Einsum of two operands, LSTM, GRU and RNN. Of an If counts the larger branch; the
    body of a Loop or Scan once per iteration, once where their number is not constant, which a note says. Batch 1;
    other dynamic axes count at the usual size that the graph notes, else as `shapes.REPRESENTATIVE_SIZE`. A node whose
    sizes cannot be told counts each element of its larger operand once, has its reason, and is named in a note.
    A node is named by its name, by its first output where it has none or shares it, behind the node it stands in.
    `types` replaces shape inference, for a graph whose operators ONNX does not know.
    """
    if isinstance(model, Path):
        model = onnx.load(model, load_external_data=False)
    notes: list[str] = []
    sites = tuple(_sites(model, types if types is not None else infer_all(model), "", 1, notes))
    notes += [f"the multiply-accumulates of {s.key} cannot be counted: {s.reason}" for s in sites if s.reason]
    return Work(sites, tuple(notes))


def _sites(model: onnx.ModelProto, types: Types, prefix: str, times: int, notes: list[str]) -> Iterator[Site]:
    for key, node in keyed(model.graph):
        if node.op_type in CONTROL_FLOW:
            yield from _inside(node, f"{prefix}{key}", (model, types), times, notes)
        elif multiplies(node, model):
            try:
                macs, reason = _count(node, types), ""
            except _UnknownSizeError as unknown:
                macs, reason = _lower_bound(node, types), str(unknown)
            if macs:
                yield Site(f"{prefix}{key}", node, model, types, times * macs, reason)


def _inside(
    node: onnx.NodeProto, key: str, around: tuple[onnx.ModelProto, Types], times: int, notes: list[str]
) -> Iterator[Site]:
    """Yield what a node of control flow executes: the larger of its bodies."""
    found: list[tuple[list[Site], list[str]]] = []
    for body in bodies(node, *around):
        own: list[str] = []
        sites = list(_sites(body.model, body.types, f"{key}/", times * (body.executions or 1), own))
        if sites and body.executions is None:
            own.append(f"{node.op_type} {key} counts as one iteration: how many it makes is not constant")
        found.append((sites, own))
    if found:
        sites, own = max(found, key=lambda pair: sum(site.macs for site in pair[0]))
        notes += own
        yield from sites


def keyed(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.NodeProto]]:
    """Yield every node with the name that tells it from all others of its graph."""
    names = Counter(node.name for node in graph.node)
    for node in graph.node:
        yield (node_key(node) if names[node.name] == 1 else next(filter(None, node.output), node.name)), node


def multiplies(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    """Does the node multiply and accumulate? One of a foreign operator set does where it reads a matrix of weights."""
    if node.op_type in OPERANDS:
        return node.op_type != "Einsum" or len(node.input) > 1
    if node.domain in _STANDARD:
        return False
    return any(len(tensor.dims) > 1 and tensor.name in node.input for tensor in model.graph.initializer)


def _lower_bound(node: onnx.NodeProto, types: Types) -> int:
    """Every element of an operand is multiplied once or more often."""
    shapes = [found.shape for name in node.input if (found := types.get(name)) is not None and found.shape is not None]
    return max([prod(d for d in shape if d is not None) for shape in shapes], default=1)


def _count(node: onnx.NodeProto, types: Types) -> int:
    if node.op_type == "Einsum":
        return _einsum(node, types)
    if node.op_type not in OPERANDS or node.op_type in _UNCOUNTED:
        raise _UnknownSizeError(f"{node.op_type} is none of the operators that are")
    left, right = (node.input[i] for i in OPERANDS[node.op_type])
    if node.op_type in _RECURRENT:
        # Per step and sample, each gate takes the input through W and the state through R, in every direction.
        return prod(_shape(left, types)[:2]) * (prod(_shape(right, types)) + prod(_shape(node.input[2], types)))
    if node.op_type in _CONVOLUTIONS:
        # Every output value sums over the kernel and the channels of its group.
        return prod(_shape(node.output[0], types)) * prod(_shape(right, types)[1:])
    if node.op_type in _TRANSPOSED:
        # Every input value is spread over the kernel and the output channels of its group.
        return prod(_shape(left, types)) * prod(_shape(right, types)[1:])
    shape = _shape(left, types)
    if node.op_type == "FusedMatMul" and attribute(node, "transBatchA", 0):
        raise _UnknownSizeError("it moves its batch axes")
    transposed = attribute(node, "transA", 0) and len(shape) > 1
    depth = shape[-2] if transposed else shape[-1]
    return prod(_product_shape(shape, _shape(right, types), node)) * depth


def _einsum(node: onnx.NodeProto, types: Types) -> int:
    """Multiply the sizes of all distinct indices: each combination of them is one product."""
    if len(node.input) != 2:
        raise _UnknownSizeError(
            f"in which order an Einsum of {len(node.input)} operands multiplies is the runtime's choice"
        )
    equation = attribute(node, "equation")
    terms = (equation.decode() if isinstance(equation, bytes) else str(equation)).replace(" ", "").split("->")[0]
    sizes: dict[str, int] = {}
    for term, name in zip(terms.split(","), node.input, strict=True):
        shape = _shape(name, types)
        before, dots, after = term.partition("...")
        hidden = len(shape) - len(before) - len(after) if dots else 0
        # What an ellipsis stands for is aligned from the right, as in broadcasting.
        indices = [*before, *(f"...{i}" for i in range(hidden, 0, -1)), *after]
        for index, size in zip(indices, shape, strict=True):
            sizes[index] = max(size, sizes.get(index, size))
    return prod(sizes.values())


def _product_shape(left: tuple[int, ...], right: tuple[int, ...], node: onnx.NodeProto) -> tuple[int, ...]:
    """The output of a matrix product, from its operands: no output shape is needed."""
    if attribute(node, "transA", 0) and len(left) > 1:
        left = (*left[:-2], left[-1], left[-2])
    if attribute(node, "transB", 0) and len(right) > 1:
        right = (*right[:-2], right[-1], right[-2])
    rows, columns = left[-2:-1], right[-1:] if len(right) > 1 else ()
    batch_left, batch_right = left[:-2], right[:-2]
    wide = max(len(batch_left), len(batch_right))
    padded = [(1,) * (wide - len(b)) + b for b in (batch_left, batch_right)]
    return (*(max(a, b) for a, b in zip(*padded, strict=True)), *rows, *columns)


def _shape(name: str, types: Types) -> tuple[int, ...]:
    found = types.get(name)
    shape = None if found is None else found.shape
    if shape is None or None in shape:
        raise _UnknownSizeError(f"the shape of '{name}' cannot be inferred")
    return tuple(d for d in shape if d is not None)
