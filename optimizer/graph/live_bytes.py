"""How much a graph holds at once: the bytes of its activations that are alive together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import onnx

from optimizer.graph.index import outer_names, subgraphs
from optimizer.graph.shapes import TensorType, infer_for, without_weights

_FLOAT_BYTES = 4  # of a type that inference does not tell


class LiveBytes:
    """The most bytes of activations alive at once, for inputs of given shapes; of weights it counts nothing.

    A tensor lives from the node that makes it to the last that reads it, in the order in which the nodes stand; an
    output to the end. What a node needs beside its results, and what is in bodies of If, Loop and Scan, is not known.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._outline = without_weights(model)
        self._last: dict[str, int] = {}
        nodes = self._outline.graph.node
        for number, node in enumerate(nodes):
            inside = [name for body in subgraphs(node) for name in outer_names(body)]
            self._last |= dict.fromkeys((*node.input, *inside), number)
        self._last |= dict.fromkeys((value.name for value in self._outline.graph.output), len(nodes))
        self._weights = {tensor.name for tensor in self._outline.graph.initializer}

    def of(self, shapes: Mapping[str, Sequence[int]]) -> int:
        """Return the bytes for inputs of these shapes; a tensor whose shape cannot be inferred counts as none."""
        try:
            types = infer_for(self._outline, shapes)
        except onnx.shape_inference.InferenceError:
            return 0
        graph = self._outline.graph
        alive = {v.name: _bytes(types.get(v.name)) for v in graph.input if v.name not in self._weights}
        held = most = sum(alive.values())
        for number, node in enumerate(graph.node):
            made = {name: _bytes(types.get(name)) for name in node.output if name}
            alive |= made
            held += sum(made.values())
            most = max(most, held)
            for name in {*node.input, *node.output}:
                if self._last.get(name, -1) <= number:
                    held -= alive.pop(name, 0)
        return most


def _bytes(kind: TensorType | None) -> int:
    if kind is None or kind.shape is None or None in kind.shape:
        return 0
    size = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize if kind.elem_type else _FLOAT_BYTES
    return prod(d for d in kind.shape if d is not None) * size
