"""The cast pass: a float32 graph becomes a strongly typed one that computes in float16 wherever it may."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from optimizer.errors import StageError
from optimizer.graph.facts import GraphFacts, attribute_value, label, lift_constants, subgraphs
from optimizer.graph.files import save_model
from optimizer.graph.precision import Decision, Kind, decide
from optimizer.graph.typed import infer_types, read_model

FLOAT = onnx.TensorProto.FLOAT
FLOAT16 = onnx.TensorProto.FLOAT16
_NAMES = {FLOAT: "float32", FLOAT16: "float16"}
_WHERE = "float16"


@dataclass(frozen=True, slots=True)
class CastReport:
    """What the pass did: counts of nodes (integer nodes are in neither), the kept nodes' reasons, the casts written."""

    float16_nodes: int
    kept: Mapping[str, str]  # node label -> why it stays float32
    casts: int

    def reasons(self) -> list[tuple[str, list[str]]]:
        """Return the kept nodes grouped by reason, largest group first."""
        groups: dict[str, list[str]] = {}
        for node, reason in self.kept.items():
            groups.setdefault(reason, []).append(node)
        return sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))


def convert_to_float16(
    source: Path, destination: Path, keep: tuple[str, ...] = (), reasons: Mapping[str, str] | None = None
) -> CastReport:
    """Write the float16 form of a float32 ONNX file; its inputs and outputs stay float32.

    `keep` holds operator types and node names that stay float32; `reasons` maps node names to why they do.
    Numeric: constants are rounded to nearest even, never clipped.
    Raises: StageError when the graph already holds float16 or Q/DQ, when a name in `keep` matches nothing, or when
    nothing became float16.
    """
    model = infer_types(read_model(source))
    _refuse_typed(model)
    lift_constants(model, FLOAT)
    _name_idle_casts(model)
    facts = GraphFacts(model)
    decisions = decide(facts, keep, reasons)
    kept = {label(node): str(d.reason) for node, d in zip(facts.nodes, decisions, strict=True) if d.kind is Kind.WIDE}
    narrow = sum(decision.kind is Kind.NARROW for decision in decisions)
    report = CastReport(narrow, kept, 0)
    if not narrow:
        found = "; ".join(f"{len(nodes)} x {reason}" for reason, nodes in report.reasons()[:3])
        raise StageError(
            f"nothing became float16: {found or 'the graph holds no float32 node'}",
            where=_WHERE,
            hint="Shorten 'keep', or leave this variant out.",
        )
    rewriter = _Rewriter(facts, decisions)
    rewriter.rewrite()
    save_model(infer_types(model), destination)
    onnx.checker.check_model(destination, full_check=True)
    return CastReport(narrow, kept, rewriter.casts)


def _refuse_typed(model: onnx.ModelProto) -> None:
    operators = Counter(node.op_type for node in model.graph.node)
    quantized = {name: count for name, count in operators.items() if name in ("QuantizeLinear", "DequantizeLinear")}
    if quantized:
        raise StageError(
            f"the graph is already quantized ({', '.join(f'{n} {name}' for name, n in quantized.items())})",
            where=_WHERE,
            hint="Start from the float32 graph.",
        )
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    half = [value.name for value in values if value.type.tensor_type.elem_type == FLOAT16]
    half += [tensor.name for tensor in model.graph.initializer if tensor.data_type == FLOAT16]
    if half:
        raise StageError(
            f"the graph already holds {len(half)} float16 tensors, the first is '{half[0]}'",
            where=_WHERE,
            hint="Start from the float32 graph.",
        )


def _name_idle_casts(model: onnx.ModelProto) -> None:
    """Call a Cast from float32 to float32 what it is, an Identity: it must not be read as a change of type."""
    types = GraphFacts(model).types
    for node in model.graph.node:
        if node.op_type == "Cast" and attribute_value(node, "to") == FLOAT and types.get(node.input[0]) == FLOAT:
            node.op_type = "Identity"
            del node.attribute[:]


class _Rewriter:
    """Carries out decisions in place. Each tensor is computed in one type, its home; one Cast serves all others."""

    def __init__(self, facts: GraphFacts, decisions: list[Decision]) -> None:
        self.facts = facts
        self.decisions = decisions
        self.graph: onnx.GraphProto = facts.model.graph
        self.pinned = facts.outputs | facts.captured  # these names stay float32 tensors
        self.taken = set(facts.types) | {node.name for node in facts.nodes}
        self.taken.update(name for node in facts.nodes for graph in subgraphs(node) for name in _all_names(graph))
        self.home: dict[str, tuple[str, int]] = {}  # original name -> (name now, type)
        self.other: dict[tuple[str, int], str] = {}  # (original name, type) -> its cast copy
        self.nodes: list[onnx.NodeProto] = []
        self.casts = 0

    def rewrite(self) -> None:
        """Replace the graph's nodes, constants and recorded types."""
        wanted = self._wanted()
        self._convert_constants(wanted)
        for index, node in enumerate(self.facts.nodes):
            decision = self.decisions[index]
            outputs = self._followed_outputs(node, wanted) if decision.kind is Kind.UNTOUCHED else decision.outputs
            original = list(node.output)
            self._read(node, decision)
            self.nodes.append(node)
            for port in sorted(outputs):
                self._write_float16(node, port, original[port])
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        for value in self.graph.value_info:
            name, kind = self.home.get(value.name, (value.name, None))
            if kind == FLOAT16 and name == value.name:
                value.type.tensor_type.elem_type = FLOAT16

    def _wanted(self) -> dict[str, set[int]]:
        """Return the types in which the readers of each float32 tensor want it."""
        wanted: dict[str, set[int]] = {name: {FLOAT} for name in self.pinned}
        for node, decision in zip(self.facts.nodes, self.decisions, strict=True):
            for port, name in enumerate(node.input):
                if self.facts.types.get(name) == FLOAT and decision.kind is not Kind.UNTOUCHED:
                    wanted.setdefault(name, set()).add(FLOAT16 if port in decision.inputs else FLOAT)
        return wanted

    def _convert_constants(self, wanted: Mapping[str, set[int]]) -> None:
        for name, tensor in self.facts.initializers.items():
            kinds = wanted.get(name, set())
            if tensor.data_type != FLOAT or FLOAT16 not in kinds:
                continue
            narrowed = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name)
            if kinds == {FLOAT16}:
                tensor.CopyFrom(narrowed)
                self.home[name] = (name, FLOAT16)
            else:
                narrowed.name = self.other[name, FLOAT16] = self._fresh(name, FLOAT16)
                self.graph.initializer.append(narrowed)

    def _followed_outputs(self, node: onnx.NodeProto, wanted: Mapping[str, set[int]]) -> frozenset[int]:
        """A node that may write either type follows its readers: Cast and ConstantOfShape."""
        name = node.output[0] if node.output else ""
        if self.facts.types.get(name) != FLOAT or wanted.get(name) != {FLOAT16}:
            return frozenset()
        if node.op_type == "Cast":
            _set_attribute(node, "to", FLOAT16)
            return frozenset({0})
        if node.op_type == "ConstantOfShape":
            value = attribute_value(node, "value")
            array = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.zeros(1, np.float32)
            if np.abs(array).max() <= np.finfo(np.float16).max:
                _set_attribute(node, "value", numpy_helper.from_array(array.astype(np.float16)))
                return frozenset({0})
        return frozenset()

    def _read(self, node: onnx.NodeProto, decision: Decision) -> None:
        for port, name in enumerate(node.input):
            if self.facts.types.get(name) != FLOAT:
                continue
            if decision.kind is Kind.UNTOUCHED:
                node.input[port] = self.home.get(name, (name, FLOAT))[0]
            else:
                node.input[port] = self._as(name, FLOAT16 if port in decision.inputs else FLOAT)

    def _write_float16(self, node: onnx.NodeProto, port: int, name: str) -> None:
        if name in self.pinned:
            node.output[port] = self._fresh(name, FLOAT16)
        self.home[name] = (node.output[port], FLOAT16)
        if name in self.pinned:
            self._append_cast(node.output[port], name, FLOAT)
            self.other[name, FLOAT] = name

    def _as(self, name: str, kind: int) -> str:
        """Return the name under which a float32 tensor of the original graph is read in one type."""
        now: str
        now, home = self.home.get(name, (name, FLOAT))
        if home == kind:
            return now
        if (name, kind) not in self.other:
            self.other[name, kind] = self._fresh(name, kind)
            source = now
            writer = self.facts.producer.get(name)
            # A Cast to float32 is read past: Cast after Cast would say nothing new.
            if writer is not None and self.facts.nodes[writer].op_type == "Cast" and home == FLOAT:
                source = self.facts.nodes[writer].input[0]
            self._append_cast(source, self.other[name, kind], kind)
        return self.other[name, kind]

    def _append_cast(self, source: str, target: str, kind: int) -> None:
        name = self._fresh(f"Cast_{source}", kind)
        self.nodes.append(onnx.helper.make_node("Cast", [source], [target], name=name, to=kind))
        self.casts += 1

    def _fresh(self, name: str, kind: int) -> str:
        stem = candidate = f"{name}_{_NAMES[kind]}"
        number = 1
        while candidate in self.taken:
            number += 1
            candidate = f"{stem}_{number}"
        self.taken.add(candidate)
        return candidate


def _set_attribute(node: onnx.NodeProto, name: str, value: object) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


def _all_names(graph: onnx.GraphProto) -> set[str]:
    names = {value.name for value in (*graph.input, *graph.output)} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        names.update((*node.input, *node.output, node.name))
        for inner in subgraphs(node):
            names |= _all_names(inner)
    return names
