"""Write Q/DQ pairs and integer constants into a graph, where a placement says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from optimizer.graph.affine import Affine, Float32, stack_scales, to_int8, to_int32, weight_scales
from optimizer.graph.index import GraphIndex, free_name, node_key, subgraphs
from optimizer.graph.placement import Placement
from optimizer.graph.quantizable import Candidate
from optimizer.runtime.session import Array


class PairWriter:
    """Builds the new node list; every name it makes is unused in the graph."""

    def __init__(self, index: GraphIndex, placement: Placement, affine: Mapping[str, Affine]) -> None:
        self.index = index
        self.placement = placement
        self.affine = affine
        self.taken = {*index.types, *index.readers, *index.producers, *inner_names(index.graph)}
        self.head: list[onnx.NodeProto] = []  # DequantizeLinear of constants
        self.tensors: dict[str, onnx.TensorProto] = {}
        self.replaced: dict[tuple[str, int], str] = {}  # inputs of nodes that now read another tensor
        self.integers: dict[str, str] = {}  # the quantized tensor of each pair
        self.parameters: dict[str, list[str]] = {}  # names of scale and zero point by root
        self.weights: dict[tuple[str, int, bytes], tuple[str, Array]] = {}
        self.columns: dict[str, str] = {}  # scales of a stack's columns by weight
        self.scaled: dict[str, str] = {}  # products that are multiplied by them

    def quantize_weight(self, found: Candidate, *, with_bias: bool) -> None:
        """Let a candidate read its weight, and on request its bias, from integers; a shared weight is stored once."""
        weight = np.asarray(self.index.constant(found.weight_name), dtype=np.float32)
        if weight.ndim > 2 and found.node.op_type == "MatMul":
            self._quantize_stack(found, weight)
            return
        bias = None
        step = self.affine[self.placement.roots[found.data_name]].scale
        if with_bias and found.bias_name is not None:
            bias = np.asarray(self.index.constant(found.bias_name), dtype=np.float32)
        scales = weight_scales(weight, found.axis, bias, step)
        key = (found.weight_name, found.axis, scales.tobytes())
        if key not in self.weights:
            integers = to_int8(weight, scales, found.axis)
            self.weights[key] = self._dequantize(found.weight_name, integers, scales, found.axis), scales
        self.replaced[found.node.output[0], found.weight] = self.weights[key][0]
        if bias is not None and found.bias is not None and found.bias_name is not None:
            steps = (np.float64(step) * scales.astype(np.float64)).astype(np.float32)
            integers32 = to_int32(bias.reshape(-1), steps)
            name = self._dequantize(found.bias_name, integers32, steps, 0)
            self.replaced[found.node.output[0], found.bias] = name

    def _quantize_stack(self, found: Candidate, weight: Float32) -> None:
        """Scale the columns of a stack of matrices behind the product, and dequantize its integers with scale 1.

        Numeric: one scale per column of each matrix, which the one axis of DequantizeLinear cannot express. With scales
        along the last axis alone onnxruntime's QLinearMatMul and MatMulIntegerToFloat refuse to run.
        """
        key = (found.weight_name, weight.ndim, b"")
        if key not in self.weights:
            scales = stack_scales(weight)
            integers = to_int8(weight, scales, None)
            one = np.asarray(1.0, dtype=np.float32)
            self.weights[key] = self._dequantize(found.weight_name, integers, one, None), scales
            self.columns[found.weight_name] = self._constant(f"{found.weight_name}_column_scales", scales)
        self.replaced[found.node.output[0], found.weight] = self.weights[key][0]
        self.scaled[found.node.output[0]] = self.columns[found.weight_name]

    def _scale(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """Multiply a product by its columns' scales; return the node that writes the result now."""
        result = str(node.output[0])
        node.output[0] = self._fresh(f"{result}_unscaled")
        return onnx.helper.make_node(
            "Mul", [node.output[0], self.scaled[result]], [result], name=f"{node_key(node)}/scale_columns"
        )

    def rewrite(self, model: onnx.ModelProto) -> None:
        """Put the pairs behind the tensors they quantize, and drop constants that nothing reads any more."""
        graph = model.graph
        body: list[onnx.NodeProto] = []
        dequantized: dict[str, str] = {}
        for value in graph.input:
            if value.name in self.placement.roots:
                body += self._pair(value.name, value.name, dequantized)
        for node in graph.node:
            body += self._guards(node)
            self._redirect(node, dequantized)
            body.append(node)
            last = node
            if node.output[0] in self.scaled:
                last = self._scale(node)
                body.append(last)
            for position, output in enumerate(last.output):
                if output not in self.placement.roots:
                    continue
                source = output
                if output in self.index.outputs and output in self.placement.whole:
                    # The graph's output keeps its name: it is the dequantized value now.
                    source = last.output[position] = self._fresh(f"{output}_float")
                body += self._pair(output, source, dequantized)
        del graph.node[:]
        graph.node.extend([*self.head, *body])
        graph.initializer.extend(self.tensors.values())
        _drop_unread(model)

    def _guards(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return the DequantizeLinear nodes that belong to this reader alone, and let it read them."""
        made: list[onnx.NodeProto] = []
        for position, name in enumerate(node.input):
            found = self.placement.guards.get((node.output[0], position))
            if found is None:
                continue
            axis, length = found
            affine = self.affine[self.placement.roots[name]]
            inputs = [
                self.integers[name],
                self._constant(f"{name}_scales", np.full(length, affine.scale, dtype=np.float32)),
                self._constant(f"{name}_zero_points", np.full(length, affine.zero_point, dtype=affine.dtype)),
            ]
            result = self._fresh(f"{name}_dequantized")
            made.append(_node("DequantizeLinear", inputs, result, f"{result}/dequantize", axis=axis))
            self.replaced[node.output[0], position] = result
        return made

    def _redirect(self, node: onnx.NodeProto, dequantized: Mapping[str, str]) -> None:
        key = node.output[0]
        for position, name in enumerate(node.input):
            if (key, position) in self.replaced:
                node.input[position] = self.replaced[key, position]
            elif name in dequantized and (name in self.placement.whole or (key, position) in self.placement.edges):
                node.input[position] = dequantized[name]

    def _pair(self, tensor: str, source: str, dequantized: dict[str, str]) -> list[onnx.NodeProto]:
        root = self.placement.roots[tensor]
        affine = self.affine[root]
        if root not in self.parameters:
            self.parameters[root] = [
                self._constant(f"{root}_scale", np.asarray(affine.scale, dtype=np.float32)),
                self._constant(f"{root}_zero_point", np.asarray(affine.zero_point, dtype=affine.dtype)),
            ]
        integers = self._fresh(f"{tensor}_quantized")
        result = tensor if source != tensor else self._fresh(f"{tensor}_dequantized")
        dequantized[tensor], self.integers[tensor] = result, integers
        return [
            _node("QuantizeLinear", [source, *self.parameters[root]], integers, f"{tensor}/quantize"),
            _node("DequantizeLinear", [integers, *self.parameters[root]], result, f"{tensor}/dequantize"),
        ]

    def _dequantize(self, name: str, integers: Array, scales: Array, axis: int | None) -> str:
        inputs = [
            self._constant(f"{name}_{integers.dtype.name}", integers),
            self._constant(f"{name}_scale", scales),
            self._constant(f"{name}_zero_point", np.zeros(scales.shape, dtype=integers.dtype)),
        ]
        result = self._fresh(f"{name}_dequantized")
        attributes = {} if axis is None else {"axis": axis}
        self.head.append(_node("DequantizeLinear", inputs, result, f"{result}/dequantize", **attributes))
        return result

    def _constant(self, name: str, value: Array) -> str:
        free = self._fresh(name)
        self.tensors[free] = numpy_helper.from_array(value, free)
        return free

    def _fresh(self, name: str) -> str:
        return free_name(name, self.taken)


def inner_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names that subgraphs give: an outer tensor must not have one of them, too."""
    for node in graph.node:
        for body in subgraphs(node):
            yield from (value.name for value in (*body.input, *body.initializer))
            yield from (name for inner in body.node for name in inner.output)
            yield from inner_names(body)


def _node(kind: str, inputs: list[str], output: str, name: str, **attributes: int) -> onnx.NodeProto:
    return onnx.helper.make_node(kind, inputs, [output], name=name, **attributes)


def _drop_unread(model: onnx.ModelProto) -> None:
    graph, index = model.graph, GraphIndex(model)
    read = {*index.readers, *index.captured, *index.outputs}
    kept = [t for t in graph.initializer if t.name in read]
    # An initializer may be listed among the inputs as well; alone the entry would be an input that must be fed.
    unread = {t.name for t in graph.initializer} - read
    inputs = [value for value in graph.input if value.name not in unread]
    del graph.input[:]
    graph.input.extend(inputs)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    nodes = [n for n in graph.node if n.op_type != "Constant" or n.output[0] in read]
    del graph.node[:]
    graph.node.extend(nodes)
