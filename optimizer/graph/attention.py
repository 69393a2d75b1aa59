"""The two products of attention, whose operands are both activations: queries by keys, probabilities by values."""

from __future__ import annotations

import onnx

from optimizer.graph.index import GraphIndex

# Between the product and the Softmax stand scaling, the mask, and what rearranges.
_TO_SOFTMAX = frozenset({"Mul", "Div", "Add", "Sub", "Where", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Max"})
# PyTorch replaces rows without any key by zeros: Where(IsNaN(p), 0, p).
_FROM_SOFTMAX = frozenset({"Where", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Dropout"})


def is_attention(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """Does a Softmax read the product, or does the product read a Softmax?

    Other products of two activations (positions by frequencies, distances) have ranges that int8 does not hold.
    """
    return node.op_type == "MatMul" and (_reaches_softmax(index, node) or _comes_from_softmax(index, node.input[0]))


def _reaches_softmax(index: GraphIndex, node: onnx.NodeProto) -> bool:
    waiting, seen = [str(node.output[0])], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for reader, _ in index.readers.get(name, ()):
            if reader.op_type == "Softmax":
                return True
            if reader.op_type in _TO_SOFTMAX:
                waiting.append(str(reader.output[0]))
    return False


def _comes_from_softmax(index: GraphIndex, name: str) -> bool:
    waiting, seen = [name], set[str]()
    while waiting:
        tensor = waiting.pop()
        node = index.producers.get(tensor)
        if node is None or tensor in seen:
            continue
        seen.add(tensor)
        if node.op_type == "Softmax":
            return True
        if node.op_type in _FROM_SOFTMAX:
            waiting += node.input
    return False
