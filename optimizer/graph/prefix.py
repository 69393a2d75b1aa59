"""Parts of an ONNX graph as models of their own: its first nodes, a few nodes between, or all with more outputs.

Cutting marks nothing on the graph that is to be executed whole: a runtime that fuses across a marked tensor would
compute another graph than the one that fails.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from optimizer.graph.files import external_files
from optimizer.graph.index import outer_names, subgraphs
from optimizer.graph.shapes import infer
from optimizer.runtime.session import Array

# What numpy has no type for cannot go in or out of a session.
_NOT_IN_NUMPY = frozenset(
    kind
    for name, kind in TensorProto.DataType.items()
    if name.startswith(("BFLOAT16", "FLOAT8", "FLOAT4", "INT4", "UINT4", "INT2", "UINT2"))
)


class Cuts:
    """The parts of one model; its weights may lie beside it, see `write`. Nodes are in the file's order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = onnx.load(path, load_external_data=False)
        graph = self.model.graph
        self.nodes = list(graph.node)
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = {value.name: value for value in graph.input if value.name not in self.weights}
        self.outputs = [value.name for value in graph.output]
        self.producer = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.reads = [tuple(dict.fromkeys(_reads(node))) for node in self.nodes]
        try:
            self._inferred = infer(self.model, concrete=False)
        except onnx.shape_inference.InferenceError:
            self._inferred = {}  # a graph that contradicts itself may be what is looked into: the runtime infers types
        self._types = {name: found.elem_type for name, found in self._inferred.items()}
        last = dict.fromkeys(self.outputs, len(self.nodes))
        for i, names in enumerate(self.reads):
            for name in names:
                last[name] = max(last.get(name, i), i)
        self._last_read = last

    def frontier(self, count: int) -> tuple[str, ...]:
        """Return what the first `count` nodes make for the others and for the outputs: all that is known of them."""
        made = (name for node in self.nodes[:count] for name in node.output if name)
        return tuple(name for name in made if self._last_read.get(name, -1) >= count)

    def can_leave(self, names: Sequence[str]) -> bool:
        """Tell whether all these tensors have types that a session can return."""
        return bool(names) and all(self._types.get(name, 0) not in _NOT_IN_NUMPY for name in names)

    def dtype(self, name: str) -> np.dtype[Any] | None:
        """Return numpy's type of a tensor, or None where inference could not tell."""
        kind = self._types.get(name, 0)
        return np.dtype(helper.tensor_dtype_to_np_dtype(kind)) if kind else None

    def ancestors(self, names: Iterable[str], stop: frozenset[str] = frozenset()) -> list[int]:
        """Return the nodes, in order, that the tensors are made by; nothing behind a tensor of `stop` is entered."""
        found: set[int] = set()
        waiting = list(names)
        while waiting:
            made_by = self.producer.get(waiting.pop())
            if made_by is not None and made_by not in found:
                found.add(made_by)
                waiting += [name for name in self.reads[made_by] if name not in stop]
        return sorted(found)

    def part(
        self, chosen: Sequence[int], outputs: Sequence[str], given: Mapping[str, Array] | None = None
    ) -> onnx.ModelProto:
        """Return a model of the chosen nodes; `given` are the tensors fed from outside, with their fixed shapes."""
        given = given or {}
        inside = {name for i in chosen for name in self.nodes[i].output}
        read = dict.fromkeys(name for i in chosen for name in self.reads[i] if name not in inside)
        graph = onnx.GraphProto(name=self.model.graph.name or "part")
        graph.node.extend(self.nodes[i] for i in chosen)
        for name in read:
            if name in given:
                kind = helper.np_dtype_to_tensor_dtype(np.dtype(given[name].dtype))
                graph.input.append(helper.make_tensor_value_info(name, kind, list(given[name].shape)))
            elif name in self.inputs:
                graph.input.append(self.inputs[name])
            elif name in self.weights:
                graph.initializer.append(self.weights[name])
        public = {value.name: value for value in self.model.graph.output}
        for name in outputs:
            graph.output.append(public.get(name) or self._value(name))
        model = onnx.ModelProto(ir_version=self.model.ir_version, graph=graph)
        model.opset_import.extend(self.model.opset_import)
        model.functions.extend(self.model.functions)
        return model

    def prefix(self, count: int) -> onnx.ModelProto:
        """Return the first `count` nodes, as far as the frontier depends on them."""
        frontier = self.frontier(count)
        return self.part(self.ancestors(frontier), frontier)

    def ending_in(self, names: Sequence[str]) -> onnx.ModelProto:
        """Return what computes these tensors from the inputs."""
        return self.part(self.ancestors(names), names)

    def open_inputs(self, chosen: Sequence[int]) -> tuple[str, ...]:
        """Return the tensors that the chosen nodes read from other nodes."""
        inside = {name for i in chosen for name in self.nodes[i].output}
        read = dict.fromkeys(name for i in chosen for name in self.reads[i] if name not in inside)
        return tuple(name for name in read if name in self.producer)

    def write(self, model: onnx.ModelProto, folder: Path) -> Path:
        """Save a part as `model.onnx`, with the weights that lie beside the whole."""
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / "model.onnx"
        onnx.save_model(model, target)
        for file in external_files(target):
            source = self.path.parent / file.name
            file.unlink(missing_ok=True)
            try:
                os.link(source, file)
            except OSError:
                shutil.copyfile(source, file)
        return target

    def _value(self, name: str) -> onnx.ValueInfoProto:
        kind = self._types.get(name, 0)
        if not kind:
            return onnx.ValueInfoProto(name=name)  # the runtime infers it, as it does for every inner tensor
        return helper.make_tensor_value_info(name, kind, self._inferred[name].shape)


def _reads(node: onnx.NodeProto) -> Iterable[str]:
    yield from filter(None, node.input)
    for body in subgraphs(node):
        yield from outer_names(body)
