"""Where Q/DQ pairs stand, in each of three dialects; what they hold the ranges of one calibration table decide."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from optimizer.errors import StageError
from optimizer.graph.affine import ACTIVATION, Affine, Bounds
from optimizer.graph.index import FLOAT, GraphIndex, node_key
from optimizer.graph.quantizable import Candidate, Product
from optimizer.graph.residuals import Sum
from optimizer.graph.sharing import Span, share
from optimizer.types import Dialect

# Moving or picking values keeps their scale: onnxruntime runs these on the integers themselves.
SAME_SCALE = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"})
# Operators that only pick or move values: onnxruntime moves a DequantizeLinear behind them.
_MOVING = SAME_SCALE | {
    "Slice",
    "Gather",
    "Expand",
    "Tile",
    "Resize",
    "DepthToSpace",
    "SpaceToDepth",
    "Identity",
    "Pad",
}
# Layers that onnxruntime quantizes by itself, one scale per weight, where it finds them between integers.
_TAKEN = frozenset({"Conv", "ConvTranspose", "Gemm"})
# What OpenVINO moves the scale of a layer across.
_SCALED = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Neg", "Mul", "Div"})
Edge = tuple[str, int]  # first output of the reading node, position among its inputs


@dataclass(slots=True)
class Placement:
    """Q/DQ pairs by tensor: who reads the dequantized value. Tensors of one `root` share scale and zero point."""

    roots: dict[str, str] = field(default_factory=dict)
    edges: set[Edge] = field(default_factory=set)
    whole: set[str] = field(default_factory=set)  # every reader, the graph's output included
    groups: dict[str, list[str]] = field(default_factory=dict)  # tensors whose ranges a root covers, where several
    guards: dict[Edge, tuple[int, int]] = field(default_factory=dict)  # axis and its length, see `_guard`

    def read(self, tensor: str, node: onnx.NodeProto, position: int) -> None:
        """Let one input of a node read `tensor` dequantized."""
        self.roots.setdefault(tensor, tensor)
        self.edges.add((node.output[0], position))

    def read_operands(self, node: onnx.NodeProto) -> None:
        """Let both operands of a node be dequantized."""
        for position in (0, 1):
            self.read(str(node.input[position]), node, position)

    def join(self, groups: Mapping[str, list[str]]) -> None:
        """Give the tensors of a group one scale, for the range that covers them all."""
        for first, group in groups.items():
            self.roots.update(dict.fromkeys(group, first))
            self.groups[first] = group

    def read_everywhere(self, tensor: str) -> None:
        """Let all readers read `tensor` dequantized."""
        self.roots.setdefault(tensor, tensor)
        self.whole.add(tensor)


@dataclass(frozen=True, slots=True)
class Layers:
    """What is to be quantized: layers with a weight, attention's products, residual sums.

    `left` stay in float; `kept` are the nodes that the recipe names, which read float tensors wherever there are any.
    """

    candidates: Sequence[Candidate]
    products: Sequence[Product] = ()
    sums: Sequence[Sum] = ()
    left: Collection[str] = ()
    kept: Collection[str] = ()


def place(index: GraphIndex, layers: Layers, ranges: Mapping[str, Bounds], dialect: Dialect) -> Placement:
    """Place the pairs as a dialect wants them."""
    if dialect == "cpu":
        return place_cpu(index, layers)
    if dialect == "openvino":
        return place_openvino(index, layers)
    return place_tensorrt(index, layers, ranges)


def place_tensorrt(index: GraphIndex, layers: Layers, ranges: Mapping[str, Bounds]) -> Placement:
    """Quantize the inputs of the candidates and products, and of sums the input that is no convolution's result.

    Numeric: fewer pairs round less often. Between Conv and Relu there is none, so that TensorRT fuses the two; it moves
    pairs across MaxPool, Reshape, Transpose and Concat by itself. Nor is there one between a convolution and its
    residual sum: the kernel adds its float32 result to the integers and writes integers. A pair there changes no tensor
    between kernels (TensorRT-RTX 1.7's layer table) and costs 0.5 dB. Integer sums cost 1.5 dB of ResNet-20's logits
    and 4.3 dB of ResNet-56's (512 CIFAR-10 pictures calibrate, 3,000 judge).
    Source: the TensorRT documentation, "Q/DQ layer-placement recommendations".
    """
    placement = _inputs(layers)
    if placement.roots.keys() <= ranges.keys():  # who is missing is named by the caller
        placement.join(share(index, placement.roots, ranges))
    return placement


def _inputs(layers: Layers) -> Placement:
    """Quantize what layers and products read, and of sums what is no convolution's result."""
    placement = Placement()
    for found in layers.candidates:
        placement.read(found.data_name, found.node, found.data)
    for product in layers.products:
        placement.read_operands(product.node)
    for found_sum in layers.sums:
        placement.read(found_sum.node.input[found_sum.other], found_sum.node, found_sum.other)
    return placement


def place_openvino(index: GraphIndex, layers: Layers) -> Placement:
    """Quantize as for TensorRT, in front of the operators that only move values: OpenVINO moves no pair across them.

    Numeric: like TensorRT's, its convolutions add a residual in their kernel and write what the next layer reads, in
    integers or float: pairs behind them would round once more and gain nothing. In Concat every input keeps its scale.
    """
    placement = _inputs(layers)
    for found in layers.candidates:
        if tensor := _scaled_twice(index, found):
            placement.read_everywhere(tensor)
    for tensor in list(placement.roots):
        _share_scale_upwards(index, placement, tensor, layers.kept)
    return placement


def _scaled_twice(index: GraphIndex, found: Candidate) -> str:
    """Return what several operators read of a layer whose result OpenVINO 2026.4 multiplies by its scale twice, or "".

    It does so for a convolution without bias (it drops one of zeros) whose result, or a multiple of it, several
    operators read as float. A pair there ends what it fuses.
    """
    biased = found.bias_name is not None and not index.may_be_zero(found.bias_name)
    if biased or found.node.op_type not in {"Conv", "ConvTranspose"}:
        return ""
    tensor = str(found.node.output[0])
    while (reader := index.sole_reader(tensor)) is not None and reader.op_type in _SCALED:
        tensor = str(reader.output[0])
    return tensor if len(index.readers.get(tensor, ())) + (tensor in index.outputs) > 1 else ""


def place_cpu(index: GraphIndex, layers: Layers) -> Placement:
    """Quantize the inputs of the candidates, and the outputs of convolutions, which onnxruntime's QLinearConv needs.

    Of sums both inputs and the output, which its QLinearAdd needs.
    Numeric: outputs of Gemm and MatMul that no other candidate reads stay in float. Without sums residual Adds do too:
    against integer sums that costs 13 % of ResNet-20's latency and gains 0.4 dB there, 1.4 dB on ResNet-56 (512
    CIFAR-10 pictures calibrate, 1,000 judge, batch 1, one thread).
    """
    placement = Placement()
    for found in layers.candidates:
        placement.read(found.data_name, found.node, found.data)
        if found.node.op_type == "Conv":
            placement.read_everywhere(exit_tensor(index, found.node))
    for product in layers.products:
        placement.read_operands(product.node)
    for found_sum in layers.sums:
        placement.read_operands(found_sum.node)
        placement.read_everywhere(exit_tensor(index, found_sum.node))
    for tensor in list(placement.roots):
        _share_scale_upwards(index, placement, tensor, layers.kept)
    for node in index.graph.node:
        if node.op_type in _TAKEN and node_key(node) in layers.left:
            _guard(index, placement, node)
    return placement


def exit_tensor(index: GraphIndex, node: onnx.NodeProto) -> str:
    """Return the tensor in which a node's result leaves it: behind the Relu, or Clip from 0, that alone reads it.

    Numeric: saturation of the unsigned integers behind it does that operator's work, so onnxruntime drops it. A Clip
    from another minimum stays in float: rounding of the zero point would let values pass beyond it.
    """
    reader = index.sole_reader(node.output[0])
    if reader is not None and reader.input[0] == node.output[0] and _starts_at_zero(index, reader):
        return str(reader.output[0])
    return str(node.output[0])


def _starts_at_zero(index: GraphIndex, node: onnx.NodeProto) -> bool:
    if node.op_type != "Clip":
        return bool(node.op_type == "Relu")
    least = node.input[1] if len(node.input) > 1 else ""
    return index.is_constant(least) and float(index.constant(least)) == 0.0


def _share_scale_upwards(index: GraphIndex, placement: Placement, tensor: str, kept: Collection[str]) -> None:
    """Move a pair in front of the operators that keep scales: they then run on integers and round nothing.

    Where the values above are float32 it stays behind the last tensor that somebody wants so: an output of the graph,
    or a node that the recipe keeps. Above integers there is no float tensor left to read.
    """
    chain = [tensor]
    while (node := index.producers.get(chain[-1])) is not None and node.op_type in SAME_SCALE:
        above = node.input[0]
        if len([o for o in node.output if o]) > 1 or index.is_constant(above) or chain[-1] in index.captured:
            break
        if node_key(node) in kept:
            break
        chain.append(above)
    if chain[-1] not in placement.whole:
        wanted = next((i for i, name in enumerate(chain) if _is_wanted_in_float(index, name, kept)), len(chain))
        chain = chain[: wanted + 1]
    for name in chain[:-1]:
        placement.edges.add((index.producers[name].output[0], 0))
        placement.whole.add(name)
    root = placement.roots.get(chain[-1], chain[-1])
    placement.roots.update(dict.fromkeys(chain, root))


def _is_wanted_in_float(index: GraphIndex, tensor: str, kept: Collection[str]) -> bool:
    """Is a tensor, or what only moves its values, an output of the graph or read by a node that the recipe keeps?"""
    waiting = [tensor]
    while waiting:
        name = waiting.pop()
        readers = [node for node, _ in index.readers.get(name, ())]
        if name in index.outputs or any(node_key(node) in kept for node in readers):
            return True
        waiting += [node.output[0] for node in readers if node.op_type in _MOVING and node.input[0] == name]
    return False


def read_integers(index: GraphIndex, placement: Placement, nodes: Collection[str]) -> list[str]:
    """Return those of the nodes, by node key, that compute with the dequantized values of integers."""
    computing = (node for node in index.graph.node if node_key(node) in nodes and node.op_type not in _MOVING)
    return [node_key(n) for n in computing if any(_is_integer(index, placement, name) for name in n.input)]


def _is_integer(index: GraphIndex, placement: Placement, tensor: str) -> bool:
    while tensor not in placement.whole:
        above = index.producers.get(tensor)
        if above is None or above.op_type not in _MOVING:
            return False
        tensor = above.input[0]
    return True


def _integer_input(index: GraphIndex, placement: Placement, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """Return the node whose first input is of integers: this one, or one above it that only moves values."""
    while node.input[0] not in placement.whole:
        above = index.producers.get(node.input[0])
        if above is None or above.op_type not in _MOVING:
            return None  # it reads float
        node = above
    return node


def _guard(index: GraphIndex, placement: Placement, node: onnx.NodeProto) -> None:
    """Let a float layer read integers through a DequantizeLinear that repeats its scale along an axis.

    Numeric: the same values. Behind a single scale onnxruntime (1.20 to 1.31, WeightBiasQuantization) would quantize
    the layer against the recipe, with one scale for the whole weight.
    """
    reader = _integer_input(index, placement, node)
    if reader is None:
        return
    shape = index.shapes.get(reader.input[0], ())
    axis = next((i for i, size in enumerate(shape) if i > 0 and size is not None and size > 1), None)
    if axis is not None:
        placement.guards[reader.output[0], 0] = axis, int(shape[axis] or 0)


def check_ranges(placement: Placement, ranges: Mapping[str, Bounds], where: str) -> None:
    """Refuse a table without a range for every root: it belongs to another graph.

    Raises: StageError naming the first of them.
    """
    missing = sorted(set(placement.roots.values()) - set(ranges))
    if missing:
        raise StageError(
            f"the calibration table has no range for {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}",
            where=where,
            hint="The table belongs to another graph: calibrate this one.",
        )


def parameters(placement: Placement, ranges: Mapping[str, Bounds], dialect: Dialect) -> dict[str, Affine]:
    """Return scale and zero point of every root."""
    choose = ACTIVATION[dialect]
    found: dict[str, Affine] = {}
    for root in set(placement.roots.values()):
        group = placement.groups.get(root, [root])
        found[root] = choose(ranges[root] if len(group) == 1 else Span.over([ranges[name] for name in group]))
    return found


def measured_tensors(index: GraphIndex, layers: Layers, dialects: Collection[Dialect]) -> list[str]:
    """Return the activations whose ranges the dialects may ask for, sorted."""
    names = {name for dialect in dialects for name in place(index, layers, {}, dialect).roots}
    return sorted(n for n in names if index.float_type(n) == FLOAT)
