"""Move scale per channel from an activation into the weights that read it: the same function, easier to quantize.

Numeric: (x / s) @ (s * w) = x @ w up to the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from optimizer.graph.affine import Float64
from optimizer.graph.equalize_absorb import Edit, absorb
from optimizer.graph.facts import lift_constants
from optimizer.graph.index import FLOAT, GraphIndex, attribute
from optimizer.graph.qdq import inner_names
from optimizer.graph.shapes import infer

# What dynamic axes count as while channels are followed through a Reshape: primes, so that no product of sizes looks
# like another one. The first axis is the batch.
_BATCH, _SIZES = 3, (67, 71, 73, 79, 83, 89, 97)
# Between the largest and the smallest divisor of an activation: more would leave weights that float32 flushes to zero.
_RATIO = 2.0**40


@dataclass(frozen=True, slots=True)
class Readers:
    """Layers with constant weights of their own that read one activation."""

    tensor: str
    nodes: tuple[onnx.NodeProto, ...]
    channels: int

    @property
    def ids(self) -> frozenset[int]:
        """What `absorb` compares nodes by."""
        return frozenset(id(node) for node in self.nodes)


class Rewriting:
    """A model that is changed in place, with an index that stays valid while it is."""

    def __init__(self, model: onnx.ModelProto) -> None:
        lift_constants(model, FLOAT)
        self.model = model
        self._shapes = _shapes(model)
        self._reindex()

    def readers(self, operators: Collection[str]) -> list[Readers]:
        """Return the layers of these types, grouped by the activation they read, in the graph's order.

        A layer whose weight others read as well is none of them: they would see it scaled.
        """
        found: dict[tuple[str, int], list[onnx.NodeProto]] = {}
        for node in self.model.graph.node:
            if node.op_type in operators and self._scalable(node):
                found.setdefault((node.input[0], self.channels(node)), []).append(node)
        return [Readers(tensor, tuple(nodes), channels) for (tensor, channels), nodes in found.items()]

    def channels(self, node: onnx.NodeProto) -> int:
        """Return how many input channels a layer's weight has."""
        dims = self.index.dims(node.input[1])
        if node.op_type == "Conv":
            return int(dims[1] * attribute(node, "group", 1))
        return int(dims[input_axis(node, len(dims))])

    def value(self, node: onnx.NodeProto, position: int) -> Float64:
        """Return a constant input."""
        return np.asarray(self.index.constant(node.input[position]), dtype=np.float64)

    def magnitudes(self, readers: Readers) -> Float64:
        """Return the largest magnitude of the weights that each input channel meets."""
        each = [input_magnitudes(node, self.value(node, 1)) for node in readers.nodes]
        return np.asarray(np.max(each, axis=0), dtype=np.float64)

    def divide(self, readers: Readers, edits: list[Edit], each: Float64) -> None:
        """Divide the activation by `each`, a divisor per channel, with what `absorb` returned; scale the weights."""
        for edit in edits:
            self._multiply(edit)
        for node in readers.nodes:
            self._multiply(Edit(node, 1, input_factor(node, self.index.dims(node.input[1]), each)))

    def insert_division(self, readers: Readers, each: Float64) -> None:
        """Divide the activation by a Mul in front of its readers, for channels along the last axis."""
        name = self._fresh(f"{readers.tensor}_smoothed")
        factor = self._fresh(f"{readers.tensor}_smoothing")
        first = next(i for i, node in enumerate(self.model.graph.node) if id(node) in readers.ids)
        self.model.graph.initializer.append(numpy_helper.from_array((1.0 / each).astype(np.float32), factor))
        multiply = onnx.helper.make_node("Mul", [readers.tensor, factor], [name], name=self._fresh(f"{name}_mul"))
        for node in readers.nodes:
            node.input[0] = name
        self.model.graph.node.insert(first, multiply)
        self._reindex()
        self.divide(Readers(name, self._same(readers), readers.channels), [], each)

    def _same(self, readers: Readers) -> tuple[onnx.NodeProto, ...]:
        outputs = {node.output[0] for node in readers.nodes}
        return tuple(node for node in self.model.graph.node if node.output and node.output[0] in outputs)

    def _scalable(self, node: onnx.NodeProto) -> bool:
        data, weight = node.input[0], node.input[1]
        if self.index.is_constant(data) or not self.index.is_constant(weight) or attribute(node, "transA", 0):
            return False
        alone = len(self.index.readers[weight]) == 1 and weight not in self.index.outputs | self.index.captured
        return alone and self.index.types[weight] == FLOAT and len(self.index.dims(weight)) >= 2

    def _multiply(self, edit: Edit) -> None:
        """Multiply a constant input; where others read the constant too, in a copy."""
        name = edit.node.input[edit.position]
        value = np.asarray(self.value(edit.node, edit.position) * edit.factor, dtype=np.float32)
        if len(self.index.readers[name]) == 1 and name not in self.index.outputs | self.index.captured:
            self._initializers[name].CopyFrom(numpy_helper.from_array(value, name))
            return
        copied = self._fresh(f"{name}_equalized")
        self.model.graph.initializer.append(numpy_helper.from_array(value, copied))
        edit.node.input[edit.position] = copied
        self._reindex()

    def _reindex(self) -> None:
        self.index = GraphIndex(self.model)
        self.index.shapes = self._shapes
        self._initializers = {tensor.name: tensor for tensor in self.model.graph.initializer}

    def _fresh(self, name: str) -> str:
        taken = {o for node in self.model.graph.node for o in (*node.output, node.name)} | self._initializers.keys()
        taken |= {value.name for value in self.model.graph.input} | set(inner_names(self.model.graph))
        fresh, count = name, 1
        while fresh in taken:
            fresh, count = f"{name}_{count}", count + 1
        return fresh


def input_axis(node: onnx.NodeProto, rank: int) -> int:
    """Return the axis of a layer's weight along which its inputs lie, a group's inputs for Conv."""
    if node.op_type == "MatMul":
        return rank - 2
    if node.op_type == "Gemm":
        return 1 if attribute(node, "transB", 0) else 0
    return 1 if node.op_type == "Conv" else 0


def input_magnitudes(node: onnx.NodeProto, weight: Float64) -> Float64:
    """Return the largest magnitude of the weights per input channel, across all groups."""
    if node.op_type == "Conv":  # [out, in / group, ...]
        grouped = weight.reshape(attribute(node, "group", 1), -1, *weight.shape[1:])
        return np.asarray(np.abs(grouped).max(axis=(1, *range(3, grouped.ndim))).reshape(-1))
    axis = input_axis(node, weight.ndim)
    return np.asarray(np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis)))


def input_factor(node: onnx.NodeProto, dims: tuple[int, ...], each: Float64) -> Float64:
    """Return what multiplies a weight's input channels by `each`, in a shape that broadcasts to the weight's."""
    if node.op_type == "Conv":
        groups = attribute(node, "group", 1)
        rows = np.repeat(each.reshape(groups, -1), dims[0] // groups, axis=0)
        return rows.reshape(rows.shape + (1,) * (len(dims) - 2))
    shape = [1] * len(dims)
    shape[input_axis(node, len(dims))] = -1
    return each.reshape(shape)


def find_absorption(rewriting: Rewriting, readers: Readers, each: Float64) -> list[Edit] | str:
    """Return the edits that divide an activation by one divisor per channel, or why there are none."""
    first = readers.nodes[0]
    spatial = len(rewriting.index.dims(first.input[1])) - 2 if first.op_type in {"Conv", "ConvTranspose"} else 0
    return absorb(rewriting.index, readers.tensor, each.reshape((-1,) + (1,) * spatial), readers.ids)


def bounded(each: Float64) -> Float64:
    """Return divisors that float32 can hold as they are and inverted; a channel without one gets 1.

    Numeric: their common factor is free, as a scale per tensor follows it; here the largest and the smallest are each
    other's inverse.
    """
    usable = np.isfinite(each) & (each > 0)
    if not usable.any():
        return np.ones_like(each)
    middle = np.sqrt(each[usable].max()) * np.sqrt(each[usable].min())
    limit = np.sqrt(_RATIO)
    return np.where(usable, np.clip(np.where(usable, each, 1.0) / middle, 1.0 / limit, limit), 1.0)


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Return the shapes for one choice of the dynamic axes."""
    sizes: dict[str, int] = {}
    probe = onnx.GraphProto()
    probe.input.extend(model.graph.input)
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                label = dim.dim_param or f"{value.name}.{axis}"
                unused = _BATCH if axis == 0 else _SIZES[len(sizes) % len(_SIZES)]
                dim.dim_value = sizes.setdefault(label, unused)
    try:
        inferred = infer(model, concrete=False)
    except onnx.shape_inference.InferenceError:
        inferred = {}  # at these sizes the graph makes no sense: nothing is followed through a Reshape
    finally:
        for value, declared in zip(model.graph.input, probe.input, strict=True):
            value.CopyFrom(declared)
    return {name: kind.shape for name, kind in inferred.items() if kind.shape is not None}
