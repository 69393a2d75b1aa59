"""Which nodes can compute in int8, and along which axis their weights are scaled; for the others, why not."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from optimizer.graph.attention import is_attention
from optimizer.graph.index import FLOAT, GraphIndex, attribute, subgraphs
from optimizer.types import Dialect

COMPUTE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_RECURRENT = ("LSTM", "GRU", "RNN")
_TWO_ACTIVATIONS = "both operands are activations"
# Why a product of attention stays in float where nobody asked for more.
UNASKED = f"{_TWO_ACTIVATIONS}: attention's products stay in float unless the recipe says attention: true"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node with one activation and one constant weight. `axis` is the weight's axis of output channels."""

    node: onnx.NodeProto
    data: int  # position among the inputs
    weight: int
    axis: int
    bias: int | None

    @property
    def data_name(self) -> str:
        """The activation."""
        return str(self.node.input[self.data])

    @property
    def weight_name(self) -> str:
        """The weight."""
        return str(self.node.input[self.weight])

    @property
    def bias_name(self) -> str | None:
        """The bias, where there is one."""
        return None if self.bias is None else str(self.node.input[self.bias])


@dataclass(frozen=True, slots=True)
class Product:
    """One of attention's two products: both operands are activations."""

    node: onnx.NodeProto


def examine(
    index: GraphIndex, node: onnx.NodeProto, dialect: Dialect, *, attention: bool = False
) -> Candidate | Product | str:
    """Return the node as a candidate, or the reason why it stays in float."""
    found = _candidate(index, node)
    if found == _TWO_ACTIVATIONS and is_attention(index, node):
        if not attention:
            return UNASKED
        floats = all(index.float_type(name) == FLOAT for name in node.input)
        return Product(node) if floats else "its inputs are not float32"
    if isinstance(found, str):
        return found
    if index.float_type(found.data_name) != FLOAT or index.float_type(found.weight_name) != FLOAT:
        return "its inputs are not float32"
    return (_refused_by_onnxruntime(index, found) if dialect == "cpu" else None) or found


def _candidate(index: GraphIndex, node: onnx.NodeProto) -> Candidate | str:
    data, weight = node.input[0], node.input[1]
    bias = 2 if len(node.input) > 2 and node.input[2] else None
    if index.is_constant(data) and not index.is_constant(weight):
        return "its weight is the first operand, which has no scale per output channel"
    if not index.is_constant(weight):
        return _TWO_ACTIVATIONS
    if index.is_constant(data):
        return "both operands are constant"
    rank = len(index.dims(weight))
    if node.op_type == "MatMul":
        if rank < 2 or len(index.shapes.get(data, (0, 0))) < 2:
            return "an operand is a vector"
        if rank > 2 and data not in index.shapes:
            return "its weight is a stack of matrices, and whether its input is a vector is not known"
        return Candidate(node, 0, 1, rank - 1, None)
    if node.op_type == "Gemm":
        return Candidate(node, 0, 1, 0 if attribute(node, "transB", 0) else 1, bias)
    # Conv weights are [out, in/group, ...], those of ConvTranspose [in, out/group, ...].
    return Candidate(node, 0, 1, 0 if node.op_type == "Conv" else 1, bias)


def _refused_by_onnxruntime(index: GraphIndex, found: Candidate) -> str | None:
    node = found.node
    if node.op_type == "ConvTranspose":
        return "onnxruntime has no integer ConvTranspose on the CPU"
    if found.bias_name is not None:
        if not index.is_constant(found.bias_name):
            return "its bias is no constant, and onnxruntime's integer kernel needs an int32 one"
        channels = index.dims(found.weight_name)[found.axis]
        if index.dims(found.bias_name) not in {(channels,), (1, channels)}:
            return "its bias is not one value per output channel"
        if attribute(node, "beta", 1.0) != 1.0:
            return "onnxruntime's integer Gemm takes beta 1 alone"
    if node.op_type == "Conv" and node.output[0] in index.captured:
        return "its output is read inside a subgraph"
    return None


def never_quantized(node: onnx.NodeProto) -> str | None:
    """Return why a node that multiplies and accumulates, or whose body does, stays in float; None for all others."""
    if node.op_type in _RECURRENT:
        return "recurrent layers are not quantized"
    if node.op_type == "Attention":
        return "the operator Attention is not quantized: export at opset 22 or earlier, where it is MatMul and Softmax"
    if node.op_type == "Einsum" and len(node.input) > 1:
        return "an Einsum is not quantized"
    if any(_multiplies(inner) for body in subgraphs(node) for inner in body.node):
        return "what stands inside it is not quantized"
    return None


def _multiplies(node: onnx.NodeProto) -> bool:
    return node.op_type in COMPUTE or never_quantized(node) is not None
