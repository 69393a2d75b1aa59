"""The interface of a narrow graph: float32 inputs and outputs become narrow as well."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from optimizer.errors import StageError
from optimizer.graph.facts import GraphFacts
from optimizer.graph.formats import NarrowFormat
from optimizer.graph.index import attribute
from optimizer.graph.magnitudes import Judgement, Measured
from optimizer.graph.typed import infer_types

FLOAT = onnx.TensorProto.FLOAT


def refuse_interface(facts: GraphFacts, narrow: NarrowFormat, measured: Measured | None) -> None:
    """Check that every float32 input and output of a float32 graph may be narrow.

    Raises: StageError for one that the format cannot hold on calibration data, or that a subgraph reads by name.
    """
    judgement = Judgement(facts, measured or {}, narrow)
    graph = facts.model.graph
    for kind, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            if facts.types.get(value.name) != FLOAT:
                continue
            fault = judgement.fault(value.name)
            if value.name in facts.initializers:
                fault = "is a constant, which nothing computes"
            if value.name in facts.captured:
                fault = "is read inside a subgraph, which stays float32"
            if fault:
                raise StageError(
                    f"{kind} '{value.name}' cannot be {narrow.name}: it {fault}",
                    where=f"{narrow.name}.io",
                    hint="Leave 'io' at fp32.",
                )


def narrow_interface(model: onnx.ModelProto, narrow: NarrowFormat) -> int:
    """Make the float32 inputs and outputs of a typed graph narrow, in place; return how many Casts fewer it has.

    A Cast at the edge disappears; where a float32 node reads an input or writes an output, one appears.
    """
    types = GraphFacts(infer_types(model)).types
    nodes = list(model.graph.node)
    before = len(nodes)
    public = {value.name for value in (*model.graph.input, *model.graph.output)}
    for value in model.graph.input:
        if value.type.tensor_type.elem_type == FLOAT:
            value.type.tensor_type.elem_type = narrow.element_type
            nodes = _narrow_input(nodes, value.name, narrow)
    for value in model.graph.output:
        if value.type.tensor_type.elem_type == FLOAT:
            value.type.tensor_type.elem_type = narrow.element_type
            nodes = _narrow_output(nodes, value.name, narrow, public, types)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]  # some names have another type now
    return before - len(nodes)


def _narrow_input(nodes: list[onnx.NodeProto], name: str, narrow: NarrowFormat) -> list[onnx.NodeProto]:
    casts = [node for node in nodes if _is_cast(node, narrow.element_type) and node.input[0] == name]
    others = [node for node in nodes if node not in casts]
    wide = _fresh(nodes, f"{name}_float32")
    read = any(name in node.input for node in others)
    _rename_inputs(others, {name: wide})
    _rename_inputs(others, {cast.output[0]: name for cast in casts})
    return [_cast(name, wide, FLOAT), *others] if read else others


def _narrow_output(
    nodes: list[onnx.NodeProto], name: str, narrow: NarrowFormat, public: set[str], types: dict[str, int]
) -> list[onnx.NodeProto]:
    writer = next(node for node in nodes if name in node.output)
    others = [node for node in nodes if node is not writer]
    wide = _fresh(nodes, f"{name}_float32")
    widens = _is_cast(writer, FLOAT) and types.get(writer.input[0]) in (FLOAT, narrow.element_type)
    if widens and writer.input[0] not in public:
        source = writer.input[0]
        read = any(name in node.input for node in others)
        _rename_inputs(others, {name: wide})
        _rename_inputs(others, {source: name})
        place = next(i for i, node in enumerate(others) if source in node.output)
        others[place].output[:] = [name if output == source else output for output in others[place].output]
        return [*others[: place + 1], *([_cast(name, wide, FLOAT)] if read else []), *others[place + 1 :]]
    if widens:  # of another input or output, which is narrow by now
        wide_readers = any(name in node.input for node in others)
        nodes[nodes.index(writer)] = onnx.helper.make_node("Identity", writer.input, [name], name=writer.name)
        _rename_inputs(others, {name: wide})
        return [*nodes, *([_cast(name, wide, FLOAT)] if wide_readers else [])]
    writer.output[:] = [wide if output == name else output for output in writer.output]
    _rename_inputs(nodes, {name: wide})
    return [*nodes, _cast(wide, name, narrow.element_type)]


def _is_cast(node: onnx.NodeProto, kind: int) -> bool:
    return bool(node.op_type == "Cast" and attribute(node, "to") == kind)


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return onnx.helper.make_node("Cast", [source], [target], name=f"Cast_{target}", to=kind)


def _rename_inputs(nodes: list[onnx.NodeProto], names: dict[str, str]) -> None:
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]


def _fresh(nodes: list[onnx.NodeProto], stem: str) -> str:
    taken = set(_names(nodes))
    number, candidate = 1, stem
    while candidate in taken:
        number += 1
        candidate = f"{stem}_{number}"
    return candidate


def _names(nodes: list[onnx.NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield from node.input
        yield from node.output
