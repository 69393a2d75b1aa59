"""The cast pass: a float32 graph becomes a strongly typed one that computes in a narrow format wherever it may."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from optimizer.errors import StageError
from optimizer.graph.facts import GraphFacts, lift_constants
from optimizer.graph.files import save_model
from optimizer.graph.formats import FORMATS, NarrowFormat
from optimizer.graph.index import attribute, free_name, node_key, subgraphs
from optimizer.graph.magnitudes import Measured
from optimizer.graph.narrow_interface import narrow_interface, refuse_interface
from optimizer.graph.precision import LISTED, Decision, Kind, decide
from optimizer.graph.typed import infer_types

FLOAT = onnx.TensorProto.FLOAT
_MOST_GROUPS = 8
_MOST_NODES = 3


@dataclass(frozen=True, slots=True)
class Wish:
    """What the recipe and the data say: `keep` operator types and node names, `reasons` by node name, ranges."""

    keep: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    measured: Measured | None = None
    interface: bool = False  # inputs and outputs become narrow as well


@dataclass(frozen=True, slots=True)
class CastReport:
    """What the pass did: counts of nodes (integer nodes are in neither), the kept nodes' reasons, the casts written."""

    format: NarrowFormat
    narrow_nodes: int
    kept: Mapping[str, str]  # node label -> why it stays float32
    freed: Mapping[str, str]  # node label -> what data shows of a node that the graph alone would have kept
    casts: int

    def reasons(self) -> list[tuple[str, list[str]]]:
        """Return the kept nodes grouped by reason, largest group first."""
        return _grouped(self.kept)

    @property
    def listed(self) -> frozenset[str]:
        """The nodes that stay float32 because `keep` lists them."""
        return frozenset(node for node, reason in self.kept.items() if reason.startswith(LISTED))

    def sentences(self) -> list[str]:
        """Return what a report says: counts, then the reasons with the first nodes of each."""
        total = self.narrow_nodes + len(self.kept)
        lines = [f"{self.narrow_nodes} of {total} floating-point nodes are {self.format.name}, {self.casts} casts"]
        groups = self.reasons()
        lines += [f"float32: {_count(reason, nodes)}" for reason, nodes in groups[:_MOST_GROUPS]]
        if rest := groups[_MOST_GROUPS:]:
            nodes = [node for _, group in rest for node in group]
            lines.append(f"float32: {_count(f'{len(rest)} further reasons', nodes)}")
        lines += [f"{self.format.name} on the data's word: {_count(why, nodes)}" for why, nodes in _grouped(self.freed)]
        return lines


def _grouped(sentences: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for node, sentence in sentences.items():
        groups.setdefault(sentence, []).append(node)
    return sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))


def _count(sentence: str, nodes: list[str]) -> str:
    named = ", ".join(nodes[:_MOST_NODES]) + (", ..." if len(nodes) > _MOST_NODES else "")
    return f"{len(nodes)} x {sentence} ({named})"


def prepare(model: onnx.ModelProto, where: str) -> GraphFacts:
    """Type a float32 model in place and return its facts: the form in which it is measured and narrowed.

    Raises: StageError when it already holds a narrow format or Q/DQ.
    """
    _refuse_typed(infer_types(model), where)
    lift_constants(model, FLOAT)
    _name_idle_casts(model)
    return GraphFacts(model)


def narrow_model(model: onnx.ModelProto, destination: Path, narrow: NarrowFormat, wish: Wish) -> CastReport:
    """Write the narrow form of a float32 model, which is changed; its inputs and outputs stay float32 unless wished.

    Numeric: constants are rounded to nearest even, never clipped.
    Raises: StageError when the graph already holds a narrow format or Q/DQ, when a name in `keep` matches nothing, or
    when nothing became narrow, or when an input or output that should become narrow cannot.
    """
    facts = prepare(model, narrow.name)
    if wish.interface:
        refuse_interface(facts, narrow, wish.measured)
    decisions = decide(facts, narrow, wish.keep, wish.reasons, wish.measured)
    labelled = [(node_key(node), decision) for node, decision in zip(facts.nodes, decisions, strict=True)]
    kept = {name: str(decision.reason) for name, decision in labelled if decision.kind is Kind.WIDE}
    freed = {name: d.reason for name, d in labelled if d.kind is Kind.NARROW and d.reason is not None}
    count = sum(decision.kind is Kind.NARROW for decision in decisions)
    report = CastReport(narrow, count, kept, freed, 0)
    if not count:
        found = "; ".join(f"{len(nodes)} x {reason}" for reason, nodes in report.reasons()[:3])
        raise StageError(
            f"nothing became {narrow.name}: {found or 'the graph holds no float32 node'}",
            where=narrow.name,
            hint="Shorten 'keep', or leave this variant out.",
        )
    rewriter = _Rewriter(facts, decisions, narrow)
    rewriter.rewrite()
    fewer = narrow_interface(model, narrow) if wish.interface else 0
    save_model(infer_types(model), destination)
    onnx.checker.check_model(destination, full_check=True)
    return replace(report, casts=rewriter.casts - fewer)


def _refuse_typed(model: onnx.ModelProto, where: str) -> None:
    operators = Counter(node.op_type for node in model.graph.node)
    quantized = {name: count for name, count in operators.items() if name in ("QuantizeLinear", "DequantizeLinear")}
    if quantized:
        raise StageError(
            f"the graph is already quantized ({', '.join(f'{n} {name}' for name, n in quantized.items())})",
            where=where,
            hint="Start from the float32 graph.",
        )
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    for narrow in FORMATS:
        held = [value.name for value in values if value.type.tensor_type.elem_type == narrow.element_type]
        held += [tensor.name for tensor in model.graph.initializer if tensor.data_type == narrow.element_type]
        if held:
            raise StageError(
                f"the graph already holds {len(held)} {narrow.name} tensors, the first is '{held[0]}'",
                where=where,
                hint="Start from the float32 graph.",
            )


def _name_idle_casts(model: onnx.ModelProto) -> None:
    """Call a Cast from float32 to float32 what it is, an Identity: it must not be read as a change of type."""
    types = GraphFacts(model).types
    for node in model.graph.node:
        if node.op_type == "Cast" and attribute(node, "to") == FLOAT and types.get(node.input[0]) == FLOAT:
            node.op_type = "Identity"
            del node.attribute[:]


class _Rewriter:
    """Carries out decisions in place. Each tensor is computed in one type, its home; one Cast serves all others."""

    def __init__(self, facts: GraphFacts, decisions: list[Decision], narrow: NarrowFormat) -> None:
        self.facts = facts
        self.format = narrow
        self.narrow = narrow.element_type
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
                self._write_narrow(node, port, original[port])
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        for value in self.graph.value_info:
            name, kind = self.home.get(value.name, (value.name, None))
            if kind == self.narrow and name == value.name:
                value.type.tensor_type.elem_type = self.narrow

    def _wanted(self) -> dict[str, set[int]]:
        """Return the types in which the readers of each float32 tensor want it."""
        wanted: dict[str, set[int]] = {name: {FLOAT} for name in self.pinned}
        for node, decision in zip(self.facts.nodes, self.decisions, strict=True):
            for port, name in enumerate(node.input):
                if self.facts.types.get(name) == FLOAT and decision.kind is not Kind.UNTOUCHED:
                    wanted.setdefault(name, set()).add(self.narrow if port in decision.inputs else FLOAT)
        return wanted

    def _convert_constants(self, wanted: Mapping[str, set[int]]) -> None:
        for name, tensor in self.facts.initializers.items():
            kinds = wanted.get(name, set())
            if tensor.data_type != FLOAT or self.narrow not in kinds:
                continue
            narrowed = self.format.tensor(numpy_helper.to_array(tensor), name)
            if kinds == {self.narrow}:
                tensor.CopyFrom(narrowed)
                self.home[name] = (name, self.narrow)
            else:
                narrowed.name = self.other[name, self.narrow] = self._fresh(name, self.narrow)
                self.graph.initializer.append(narrowed)

    def _followed_outputs(self, node: onnx.NodeProto, wanted: Mapping[str, set[int]]) -> frozenset[int]:
        """A node that may write either type follows its readers: Cast and ConstantOfShape."""
        name = node.output[0] if node.output else ""
        if self.facts.types.get(name) != FLOAT or wanted.get(name) != {self.narrow}:
            return frozenset()
        if node.op_type == "Cast":
            _set_attribute(node, "to", self.narrow)
            return frozenset({0})
        if node.op_type == "ConstantOfShape":
            value = attribute(node, "value")
            array = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.zeros(1, np.float32)
            if np.abs(array).max() <= self.format.largest:
                _set_attribute(node, "value", self.format.tensor(array))
                return frozenset({0})
        return frozenset()

    def _read(self, node: onnx.NodeProto, decision: Decision) -> None:
        for port, name in enumerate(node.input):
            if self.facts.types.get(name) != FLOAT:
                continue
            if decision.kind is Kind.UNTOUCHED:
                node.input[port] = self.home.get(name, (name, FLOAT))[0]
            else:
                node.input[port] = self._as(name, self.narrow if port in decision.inputs else FLOAT)

    def _write_narrow(self, node: onnx.NodeProto, port: int, name: str) -> None:
        if name in self.pinned:
            node.output[port] = self._fresh(name, self.narrow)
        self.home[name] = (node.output[port], self.narrow)
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
        return free_name(f"{name}_{'float32' if kind == FLOAT else self.format.name}", self.taken)


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
