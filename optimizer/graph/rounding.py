"""The rounding emulator: a float16 or bfloat16 graph rewritten so that a float32 runtime gives the hardware's numbers.

Hardware (and torch on the CPU) computes an operator on narrow tensors with float32 accumulators and rounds what it
writes. onnxruntime's CPU provider runs a float16 graph in float32 throughout, so nothing overflows and nothing is
rounded, and has no bfloat16 convolution at all. Here every tensor that is narrow in the source is a float32 tensor that
holds narrow values: a pair of Casts after its producer rounds it to nearest even, with subnormals, and to infinity from
65520 on in float16. Run it without graph optimisation.
Kernels that fuse several operators round once where this rounds after each: the emulator is the stricter of the two.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from optimizer.errors import StageError
from optimizer.graph.facts import GraphFacts, lift_constants
from optimizer.graph.files import save_model
from optimizer.graph.formats import FORMATS
from optimizer.graph.index import attribute, free_name, node_key, subgraphs
from optimizer.graph.operators import EXACT
from optimizer.graph.typed import infer_types, read_model

FLOAT = onnx.TensorProto.FLOAT
_NAMES = {narrow.element_type: narrow.name for narrow in FORMATS}
_WHERE = "rounding emulator"
# Attributes that name the element type of an output.
_TYPE_ATTRIBUTES = ("dtype", "to", "output_dtype", "output_datatype")


def narrow_formats(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the narrow formats that the model's tensors have."""
    return tuple(name for kind, name in _NAMES.items() if _holds(model.graph, kind))


def emulate_rounding(source: Path, destination: Path) -> None:
    """Write the float32 graph that rounds where the float16 or bfloat16 graph at `source` does, with its interface.

    Numeric: to be executed with every graph optimisation disabled: an optimiser may drop a pair of Casts.
    Raises: StageError for narrow formats inside If, Loop or Scan, which are not emulated.
    """
    model = read_model(source)
    _refuse(model)
    infer_types(model)
    for kind in _NAMES:
        lift_constants(model, kind)
    facts = GraphFacts(model)
    for tensor in model.graph.initializer:
        if tensor.data_type in _NAMES:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    nodes = _Rounder(facts).nodes()
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for value in model.graph.value_info:
        if value.type.tensor_type.elem_type in _NAMES:
            value.type.tensor_type.elem_type = FLOAT
    save_model(infer_types(model), destination)


class _Rounder:
    """Writes the emulating nodes. A narrow tensor keeps its name and becomes float32, unless the name is public."""

    def __init__(self, facts: GraphFacts) -> None:
        self.facts = facts
        graph = facts.model.graph
        self.public = {value.name for value in (*graph.input, *graph.output)}
        self.name: dict[str, str] = {}  # original name -> the name under which it is read now
        self.taken = set(facts.types) | {node.name for node in facts.nodes}
        self.written: list[onnx.NodeProto] = []

    def nodes(self) -> list[onnx.NodeProto]:
        """Return the nodes of the emulating graph in order."""
        for value in self.facts.model.graph.input:
            if self.facts.types.get(value.name) in _NAMES:
                self.name[value.name] = self._fresh(value.name, "float32")
                self._cast(value.name, self.name[value.name], FLOAT)
        for node in self.facts.nodes:
            self._rewrite(node)
        return self.written

    def _rewrite(self, node: onnx.NodeProto) -> None:
        source = node.input[0] if node.input else ""
        to_float = node.op_type == "Cast" and attribute(node, "to") == FLOAT
        widens = to_float and self.facts.types.get(source) in _NAMES
        if widens and not self._must_keep(node.output[0]):
            self.name[node.output[0]] = self.name.get(source, source)
            return
        for port, name in enumerate(node.input):
            node.input[port] = self.name.get(name, name)
        halves = [port for port, name in enumerate(node.output) if self.facts.types.get(name) in _NAMES]
        if widens:
            # float32 already, and its name is needed: nothing is left to convert.
            self.written.append(onnx.helper.make_node("Identity", node.input[:1], node.output, name=node.name))
        elif node.op_type == "Cast" and halves:
            self._round(node.input[0], node.output[0], node.name)
        else:
            self._widen_attributes(node)
            self._append_rounded(node, halves)

    def _append_rounded(self, node: onnx.NodeProto, halves: list[int]) -> None:
        """Append an operator that now computes in float32, and the rounding of what it wrote in a narrow format."""
        pending: list[tuple[str, str]] = []
        for port in halves:
            name = node.output[port]
            if not self._is_exact(node) or name in self.public:
                node.output[port] = self._fresh(name, "unrounded")
                pending.append((node.output[port], name))
        self.written.append(node)
        for computed, name in pending:
            self._round(computed, name, self._fresh(f"Round_{name}", _NAMES[self.facts.types[name]]))

    def _round(self, computed: str, name: str, cast_name: str) -> None:
        """Round `computed` to the values of the narrow tensor `name`, under that name."""
        kind = self.facts.types[name]
        is_public = name in self.public
        rounded = name if is_public else self._fresh(name, _NAMES[kind])
        self._cast(computed, rounded, kind, cast_name)
        widened = self._fresh(name, "float32") if is_public else name
        self.name[name] = widened
        self._cast(rounded, widened, FLOAT)

    def _is_exact(self, node: onnx.NodeProto) -> bool:
        # Before opset 11 bounds and padding were attributes: float32 numbers that nobody has rounded.
        bounds = ("min", "max", "value") if node.op_type in ("Clip", "Pad") else ()
        return node.op_type in EXACT and all(attribute(node, name) is None for name in bounds)

    def _widen_attributes(self, node: onnx.NodeProto) -> None:
        for found in node.attribute:
            if found.name in _TYPE_ATTRIBUTES and found.i in _NAMES:
                found.i = FLOAT
            elif found.type == onnx.AttributeProto.TENSOR and found.t.data_type in _NAMES:
                array = numpy_helper.to_array(found.t).astype(np.float32)
                found.t.CopyFrom(numpy_helper.from_array(array))

    def _must_keep(self, name: str) -> bool:
        return name in self.public or name in self.facts.captured

    def _cast(self, source: str, target: str, kind: int, name: str | None = None) -> None:
        name = name or self._fresh(f"Cast_{target}", "")
        self.written.append(onnx.helper.make_node("Cast", [source], [target], name=name, to=kind))

    def _fresh(self, name: str, suffix: str) -> str:
        return free_name(f"{name}_{suffix}" if suffix else name, self.taken)


def _refuse(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for graph in subgraphs(node):
            found = next((name for kind, name in _NAMES.items() if _holds(graph, kind)), None)
            if found:
                raise StageError(
                    f"node '{node_key(node)}' ({node.op_type}) computes in {found} inside its subgraph",
                    where=_WHERE,
                    hint="Subgraphs are not emulated: keep such a node in float32.",
                )


def _holds(graph: onnx.GraphProto, kind: int) -> bool:
    values = (*graph.input, *graph.output, *graph.value_info)
    if any(value.type.tensor_type.elem_type == kind for value in values):
        return True
    if any(tensor.data_type == kind for tensor in graph.initializer):
        return True
    for node in graph.node:
        for found in node.attribute:
            if found.name in _TYPE_ATTRIBUTES and found.i == kind:
                return True
            if found.type == onnx.AttributeProto.TENSOR and found.t.data_type == kind:
                return True
        if any(_holds(inner, kind) for inner in subgraphs(node)):
            return True
    return False
