"""Decide for every node of a float32 graph whether it computes in a narrow format, and if not, why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np
import onnx

from optimizer.graph.facts import GraphFacts
from optimizer.graph.formats import NarrowFormat
from optimizer.graph.index import node_key, subgraphs
from optimizer.graph.keep import match
from optimizer.graph.magnitudes import Judgement, Measured, axes
from optimizer.graph.modules import modules_of
from optimizer.graph.operators import (
    CONTRACTIONS,
    EXACT,
    INDIFFERENT,
    KEEPS_MAGNITUDE,
    LEAVES_RANGE,
    RANGE,
    float32_reason,
    narrow_ports,
)

FLOAT = onnx.TensorProto.FLOAT

BETWEEN = "stands between float32 nodes: its casts would cost more than {format} saves"
SHAPE = "computes with sizes, which {format} cannot hold exactly above {exact}"
LISTED = "listed in keep"


class Kind(Enum):
    """How a node stands to the pass."""

    NARROW = "narrow"
    WIDE = "float32"
    UNTOUCHED = "no float32 tensors"


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one node: the ports that narrow, or the reason why none does.

    The reason of a narrow node is the data's that lets it be, where the graph alone would have kept it float32.
    """

    kind: Kind
    reason: str | None = None
    inputs: frozenset[int] = frozenset()
    outputs: frozenset[int] = frozenset()


def decide(
    facts: GraphFacts,
    narrow: NarrowFormat,
    keep: tuple[str, ...] = (),
    reasons: Mapping[str, str] | None = None,
    measured: Measured | None = None,
) -> list[Decision]:
    """Return one decision a node. `keep` names operator types, nodes or modules, `reasons` maps node names to reasons.

    `measured` holds what calibration data made of each tensor; without it the graph alone decides.
    Raises: StageError when `keep` or `reasons` names what the graph does not hold.
    """
    own = dict(reasons or {})
    named = match((*keep, *own), facts.nodes, narrow.name, modules_of(facts.model))
    listed = {node: own.get(name, LISTED) for node, name in named.items()}
    judgement = Judgement(facts, measured or {}, narrow)
    decisions = [_own(judgement, node, listed) for node in facts.nodes]
    _free_harmless(judgement, decisions)
    _keep_shape_arithmetic(facts, decisions, SHAPE.format(format=narrow.name, exact=narrow.exact_integers))
    _keep_out_of_range(judgement, decisions)
    between = BETWEEN.format(format=narrow.name)
    _keep_between(facts, decisions, between)
    _keep_idle_groups(facts, decisions, between)
    return decisions


def _own(judgement: Judgement, node: onnx.NodeProto, listed: Mapping[str, str]) -> Decision:
    """Decide by the node alone: its schema, its operator, its constants, its tensors on calibration data."""
    facts, narrow = judgement.facts, judgement.narrow
    names = [name for name in (*node.input, *node.output) if name]
    has_body = any(True for _ in subgraphs(node))
    if has_body:
        return Decision(Kind.WIDE, "holds a subgraph, which stays float32 whole")
    if any(name not in facts.types for name in names):
        return Decision(Kind.WIDE, "the type of a tensor it touches is unknown")
    if FLOAT not in {facts.types[name] for name in names} or node.op_type in INDIFFERENT or node.op_type == "Constant":
        return Decision(Kind.UNTOUCHED)
    if node_key(node) in listed:
        return Decision(Kind.WIDE, listed[node_key(node)])
    if node.domain not in ("", "ai.onnx"):
        return Decision(Kind.WIDE, f"operator of domain {node.domain}, whose types are not known here")
    inputs, outputs = narrow_ports(node, facts.types, facts.opset, narrow)
    if not inputs:
        return Decision(
            Kind.UNTOUCHED if node.op_type == "ConstantOfShape" else Kind.WIDE, f"ONNX defines no {narrow.name} for it"
        )
    reason = (
        _constant_reason(judgement, node, inputs)
        or float32_reason(node, facts.shapes, axes(facts, node), narrow)
        or judgement.reason(node, inputs, outputs)
    )
    return Decision(Kind.WIDE, reason) if reason else Decision(Kind.NARROW, None, inputs, outputs)


def _constant_reason(judgement: Judgement, node: onnx.NodeProto, inputs: frozenset[int]) -> str | None:
    name, largest = judgement.narrow.name, judgement.narrow.largest
    for index in sorted(inputs):
        # A bias too small for the format is lost beside what it is added to.
        bias = node.op_type in CONTRACTIONS and index == 2
        if misfit := _misfit(judgement, node, index, bias=bias):
            too, value = misfit
            fate = f"lies beyond {name}'s {largest:g}" if too == "large" else f"would become 0 in {name}"
            return f"its constant '{node.input[index]}' ({value:.6g}) {fate}"
    return None


def _misfit(judgement: Judgement, node: onnx.NodeProto, index: int, bias: bool = False) -> tuple[str, float] | None:
    """Return ("large" | "small", the value) when a constant input does not survive the format, or None."""
    values = judgement.facts.constant(node.input[index])
    if values is None or values.size == 0 or judgement.facts.types[node.input[index]] != FLOAT:
        return None
    magnitude = np.abs(values)
    # Infinity exists in the format; a finite value above its largest would become one.
    largest = float(magnitude.max(where=np.isfinite(magnitude), initial=0.0))
    if largest > judgement.narrow.largest:
        return "large", largest
    lost = (magnitude > 0) & (magnitude <= judgement.narrow.flushes)
    # One weight lost among many shifts a result by at most 2^-25 of an input; a lost denominator, or a constant lost
    # altogether, changes what the node computes.
    denominator = (node.op_type, index) in (("Div", 1), ("BatchNormalization", 4))
    if not bias and lost.any() and (denominator or bool((lost | (magnitude == 0)).all())):
        return "small", float(magnitude.max(where=lost, initial=0.0))
    return None


def _free_harmless(judgement: Judgement, decisions: list[Decision]) -> None:
    """Narrow what was kept only because it may leave the range, where data and theory agree that it does not.

    Only where every neighbour is narrow too: there it takes Casts away; beside a float32 node it would add some.
    """
    facts = judgement.facts
    for index, node in enumerate(facts.nodes):
        if decisions[index].reason != RANGE or not judgement.is_harmless(node):
            continue
        writers = [facts.producer.get(name) for name in _float_inputs(facts, node)]
        readers = facts.readers.get(node.output[0], [])
        if not readers or node.output[0] in facts.outputs | facts.captured:
            continue
        if all(writer is not None and _narrow(decisions, writer) for writer in writers) and all(
            _narrow(decisions, reader) for reader in readers
        ):
            ports = narrow_ports(node, facts.types, facts.opset, judgement.narrow)
            decisions[index] = Decision(Kind.NARROW, judgement.reach(node.output[0]), *ports)


def _narrow(decisions: list[Decision], index: int) -> bool:
    return decisions[index].kind is Kind.NARROW


def _float_inputs(facts: GraphFacts, node: onnx.NodeProto) -> list[str]:
    """Return the float32 inputs that are computed, not constant."""
    return [name for name in node.input if facts.types.get(name) == FLOAT and name not in facts.initializers]


def _keep_shape_arithmetic(facts: GraphFacts, decisions: list[Decision], reason: str) -> None:
    """Keep float32 what is computed from sizes and constants alone: sizes to be, positions, interpolation factors."""
    derived: set[str] = set()
    for index, node in enumerate(facts.nodes):
        computed = [name for name in node.input if name and name not in facts.initializers]
        # A table or a token that is merely moved by an index made from sizes stays the constant that it is.
        asked = _float_inputs(facts, node) if node.op_type in EXACT and _has_float_output(facts, node) else computed
        if node.op_type in ("Shape", "Size") or (asked and derived.issuperset(asked)):
            derived.update(name for name in node.output if name)
            if _narrow(decisions, index):
                decisions[index] = Decision(Kind.WIDE, reason)


def _has_float_output(facts: GraphFacts, node: onnx.NodeProto) -> bool:
    return any(facts.types.get(name) == FLOAT for name in node.output)


def _keep_out_of_range(judgement: Judgement, decisions: list[Decision]) -> None:
    """Keep float32 who reads a tensor that a float32 node may place outside the range: no Cast stands between.

    What an operator may do needs no such caution where data shows that it does not; what a constant may do, always.
    """
    facts, narrow = judgement.facts, judgement.narrow
    leaves = frozenset() if narrow.has_range_of_float32 else LEAVES_RANGE
    certain: dict[str, str] = {}  # by a constant: what reads it stays float32 whatever it costs
    possible: dict[str, str] = {}  # by the operator: a contraction is not held back for it
    for index, node in enumerate(facts.nodes):
        read = _float_inputs(facts, node)
        sure = next((certain[name] for name in read if name in certain), None)
        maybe = next((possible[name] for name in read if name in possible), None)
        origin = sure or (None if node.op_type in CONTRACTIONS else maybe)
        if origin and _narrow(decisions, index):
            decisions[index] = Decision(Kind.WIDE, f"reads what {origin} may place outside {narrow.name}'s range")
        if decisions[index].kind is not Kind.WIDE:
            continue
        keeps = node.op_type in KEEPS_MAGNITUDE
        if (sure and keeps) or _writes_out_of_range(judgement, node):
            certain.update((name, sure or f"'{node_key(node)}'") for name in node.output if name)
        elif (maybe and keeps) or node.op_type in leaves:
            unseen = [name for name in node.output if name and not judgement.within(name)]
            possible.update((name, maybe or f"'{node_key(node)}'") for name in unseen)


def _writes_out_of_range(judgement: Judgement, node: onnx.NodeProto) -> bool:
    """Whether a constant that does not survive the format may place this node's result outside its range too."""
    if node.op_type not in KEEPS_MAGNITUDE | {"Mul", "Div"}:
        return False
    misfits = {index: _misfit(judgement, node, index) for index in range(len(node.input))}
    # Dividing by a large constant brings values back into range.
    return any(
        found and not (node.op_type == "Div" and index == 1 and found[0] == "large") for index, found in misfits.items()
    )


def _keep_between(facts: GraphFacts, decisions: list[Decision], reason: str) -> None:
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

    _until_settled(decisions, stays, reason)


def _written_float32(facts: GraphFacts, decisions: list[Decision], name: str) -> bool:
    writer = facts.producer.get(name)
    return writer is None or decisions[writer].kind is not Kind.NARROW


def _until_settled(decisions: list[Decision], stays: Callable[[int], bool], reason: str) -> None:
    changed = True
    while changed:
        changed = False
        for index in reversed(range(len(decisions))):
            if stays(index):
                decisions[index] = Decision(Kind.WIDE, reason)
                changed = True


def _keep_idle_groups(facts: GraphFacts, decisions: list[Decision], reason: str) -> None:
    """Keep float32 every connected group of narrow nodes that holds no contraction: it would only pay for casts."""
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
            decisions[index] = Decision(Kind.WIDE, reason)
