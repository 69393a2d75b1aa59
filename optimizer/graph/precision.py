"""Decide for every node of a float32 graph whether it computes in float16, and if not, why."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np
import onnx

from optimizer.errors import StageError
from optimizer.graph.facts import GraphFacts, attribute_value, label, subgraphs
from optimizer.graph.operators import (
    CONTRACTIONS,
    EXACT,
    FLOAT16_FLUSHES_TO_ZERO,
    FLOAT16_MAX,
    INDIFFERENT,
    KEEPS_MAGNITUDE,
    LEAVES_RANGE,
    float32_reason,
    narrow_ports,
)

FLOAT = onnx.TensorProto.FLOAT

BETWEEN = "stands between float32 nodes: its casts would cost more than float16 saves"
SHAPE = "computes with sizes, which float16 cannot hold exactly above 2048"
LISTED = "listed in keep"


class Kind(Enum):
    """How a node stands to the pass."""

    NARROW = "float16"
    WIDE = "float32"
    UNTOUCHED = "no float32 tensors"


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one node: the ports that narrow, or the reason why none does."""

    kind: Kind
    reason: str | None = None
    inputs: frozenset[int] = frozenset()
    outputs: frozenset[int] = frozenset()


def decide(facts: GraphFacts, keep: tuple[str, ...] = (), reasons: Mapping[str, str] | None = None) -> list[Decision]:
    """Return one decision a node. `keep` names operator types or nodes, `reasons` maps node labels to reasons.

    Raises: StageError when `keep` or `reasons` names what the graph does not hold.
    """
    listed = dict.fromkeys(keep, LISTED) | dict(reasons or {})
    _check_names(facts, listed)
    decisions = [_own(facts, node, listed) for node in facts.nodes]
    _keep_shape_arithmetic(facts, decisions)
    _keep_out_of_range(facts, decisions)
    _keep_between(facts, decisions)
    _keep_idle_groups(facts, decisions)
    return decisions


def _check_names(facts: GraphFacts, listed: Mapping[str, str]) -> None:
    known = {node.op_type for node in facts.nodes} | {label(node) for node in facts.nodes}
    unknown = [name for name in listed if name not in known]
    if not unknown:
        return
    lines = []
    for name in unknown:
        near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
        meant = f", did you mean {' or '.join(map(repr, near))}?" if near else ""
        lines.append(f"'{name}' is neither an operator type nor a node of this graph{meant}")
    types = ", ".join(sorted({node.op_type for node in facts.nodes}))
    raise StageError("; ".join(lines), where="float16.keep", hint=f"operator types in this graph: {types}")


def _own(facts: GraphFacts, node: onnx.NodeProto, listed: Mapping[str, str]) -> Decision:
    """Decide by the node alone: its schema, its operator, its constants."""
    names = [name for name in (*node.input, *node.output) if name]
    has_body = any(True for _ in subgraphs(node))
    if has_body:
        return Decision(Kind.WIDE, "holds a subgraph, which stays float32 whole")
    if any(name not in facts.types for name in names):
        return Decision(Kind.WIDE, "the type of a tensor it touches is unknown")
    if FLOAT not in {facts.types[name] for name in names} or node.op_type in INDIFFERENT or node.op_type == "Constant":
        return Decision(Kind.UNTOUCHED)
    for name in (label(node), node.op_type):
        if name in listed:
            return Decision(Kind.WIDE, listed[name])
    if node.domain not in ("", "ai.onnx"):
        return Decision(Kind.WIDE, f"operator of domain {node.domain}, whose types are not known here")
    inputs, outputs = narrow_ports(node, facts.types, facts.opset)
    if not inputs:
        return Decision(
            Kind.UNTOUCHED if node.op_type == "ConstantOfShape" else Kind.WIDE, "ONNX defines no float16 for it"
        )
    reason = float32_reason(node, facts.shapes, _axes(facts, node)) or _constant_reason(facts, node, inputs)
    return Decision(Kind.WIDE, reason) if reason else Decision(Kind.NARROW, None, inputs, outputs)


def _axes(facts: GraphFacts, node: onnx.NodeProto) -> list[int] | None:
    axes = attribute_value(node, "axes")
    if axes is None and node.op_type.startswith("Reduce") and len(node.input) > 1 and node.input[1]:
        constant = facts.constant(node.input[1])
        axes = None if constant is None else constant.tolist()
    return [int(axis) for axis in axes] if isinstance(axes, list) else None


def _constant_reason(facts: GraphFacts, node: onnx.NodeProto, inputs: frozenset[int]) -> str | None:
    for index in sorted(inputs):
        # A bias too small for float16 is lost beside what it is added to.
        if misfit := _misfit(facts, node, index, bias=node.op_type in CONTRACTIONS and index == 2):
            too, value = misfit
            fate = f"lies beyond float16's {FLOAT16_MAX:g}" if too == "large" else "would become 0 in float16"
            return f"its constant '{node.input[index]}' ({value:.6g}) {fate}"
    return None


def _misfit(facts: GraphFacts, node: onnx.NodeProto, index: int, bias: bool = False) -> tuple[str, float] | None:
    """Return ("large" | "small", the value) when a constant input does not survive float16, or None."""
    values = facts.constant(node.input[index])
    if values is None or values.size == 0 or facts.types[node.input[index]] != FLOAT:
        return None
    magnitude = np.abs(values)
    # Infinity exists in float16; a finite value above its largest would become one.
    largest = float(magnitude.max(where=np.isfinite(magnitude), initial=0.0))
    if largest > FLOAT16_MAX:
        return "large", largest
    lost = (magnitude > 0) & (magnitude <= FLOAT16_FLUSHES_TO_ZERO)
    # One weight lost among many shifts a result by at most 2^-25 of an input; a lost denominator, or a constant lost
    # altogether, changes what the node computes.
    denominator = node.op_type == "Div" and index == 1
    if not bias and lost.any() and (denominator or bool((lost | (magnitude == 0)).all())):
        return "small", float(magnitude.max(where=lost, initial=0.0))
    return None


def _narrow(decisions: list[Decision], index: int) -> bool:
    return decisions[index].kind is Kind.NARROW


def _float_inputs(facts: GraphFacts, node: onnx.NodeProto) -> list[str]:
    """Return the float32 inputs that are computed, not constant."""
    return [name for name in node.input if facts.types.get(name) == FLOAT and name not in facts.initializers]


def _keep_shape_arithmetic(facts: GraphFacts, decisions: list[Decision]) -> None:
    """Keep float32 what is computed from sizes and constants alone: sizes to be, positions, interpolation factors."""
    derived: set[str] = set()
    for index, node in enumerate(facts.nodes):
        computed = [name for name in node.input if name and name not in facts.initializers]
        # A table or a token that is merely moved by an index made from sizes stays the constant that it is.
        asked = _float_inputs(facts, node) if node.op_type in EXACT and _has_float_output(facts, node) else computed
        if node.op_type in ("Shape", "Size") or (asked and derived.issuperset(asked)):
            derived.update(name for name in node.output if name)
            if _narrow(decisions, index):
                decisions[index] = Decision(Kind.WIDE, SHAPE)


def _has_float_output(facts: GraphFacts, node: onnx.NodeProto) -> bool:
    return any(facts.types.get(name) == FLOAT for name in node.output)


def _keep_out_of_range(facts: GraphFacts, decisions: list[Decision]) -> None:
    """Keep float32 who reads a tensor that a float32 node may place outside float16's range: no Cast stands between."""
    certain: dict[str, str] = {}  # by a constant: what reads it stays float32 whatever it costs
    possible: dict[str, str] = {}  # by the operator: a contraction is not held back for it
    for index, node in enumerate(facts.nodes):
        read = _float_inputs(facts, node)
        sure = next((certain[name] for name in read if name in certain), None)
        maybe = next((possible[name] for name in read if name in possible), None)
        origin = sure or (None if node.op_type in CONTRACTIONS else maybe)
        if origin and _narrow(decisions, index):
            decisions[index] = Decision(Kind.WIDE, f"reads what {origin} may place outside float16's range")
        if decisions[index].kind is not Kind.WIDE:
            continue
        keeps = node.op_type in KEEPS_MAGNITUDE
        if (sure and keeps) or _writes_out_of_range(facts, node):
            certain.update((name, sure or f"'{label(node)}'") for name in node.output if name)
        elif (maybe and keeps) or node.op_type in LEAVES_RANGE:
            possible.update((name, maybe or f"'{label(node)}'") for name in node.output if name)


def _writes_out_of_range(facts: GraphFacts, node: onnx.NodeProto) -> bool:
    """Whether a constant that does not survive float16 may place this node's result outside its range too."""
    if node.op_type not in KEEPS_MAGNITUDE | {"Mul", "Div"}:
        return False
    misfits = {index: _misfit(facts, node, index) for index in range(len(node.input))}
    # Dividing by a large constant brings values back into range.
    return any(
        found and not (node.op_type == "Div" and index == 1 and found[0] == "large") for index, found in misfits.items()
    )


def _keep_between(facts: GraphFacts, decisions: list[Decision]) -> None:
    """Move an inexpensive node to float32 when a float32 node writes one of its inputs and only such nodes read it."""

    def stays(index: int) -> bool:
        node = facts.nodes[index]
        if not _narrow(decisions, index) or node.op_type in CONTRACTIONS:
            return False
        written = any(_written_float32(facts, decisions, name) for name in _float_inputs(facts, node))
        readers = [reader for name in node.output for reader in facts.readers.get(name, ())]
        outside = facts.outputs.intersection(node.output) or facts.captured.intersection(node.output)
        wanted = all(decisions[reader].kind is not Kind.NARROW for reader in readers)
        return bool(written and (readers or outside) and wanted)

    _until_settled(decisions, stays)


def _written_float32(facts: GraphFacts, decisions: list[Decision], name: str) -> bool:
    writer = facts.producer.get(name)
    return writer is None or decisions[writer].kind is not Kind.NARROW


def _until_settled(decisions: list[Decision], stays: Callable[[int], bool]) -> None:
    changed = True
    while changed:
        changed = False
        for index in reversed(range(len(decisions))):
            if stays(index):
                decisions[index] = Decision(Kind.WIDE, BETWEEN)
                changed = True


def _keep_idle_groups(facts: GraphFacts, decisions: list[Decision]) -> None:
    """Keep float32 every connected group of float16 nodes that holds no contraction: it would only pay for casts."""
    group = list(range(len(decisions)))

    def root(index: int) -> int:
        while group[index] != index:
            group[index] = group[group[index]]
            index = group[index]
        return index

    for index, node in enumerate(facts.nodes):
        if not _narrow(decisions, index):
            continue
        for name in _float_inputs(facts, node):
            writer = facts.producer.get(name)
            if writer is not None and _narrow(decisions, writer):
                group[root(writer)] = root(index)
    paying = {root(index) for index, node in enumerate(facts.nodes) if node.op_type in CONTRACTIONS}
    for index in range(len(decisions)):
        if _narrow(decisions, index) and root(index) not in paying:
            decisions[index] = Decision(Kind.WIDE, BETWEEN)
