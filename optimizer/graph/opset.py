"""Declare a later opset for a graph, where no operator in it means anything else there."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from optimizer.errors import StageError
from optimizer.graph.index import subgraphs

# The first IR versions with the types that the opsets from 19 and 21 on take: 8-bit floats, 4-bit integers.
_IR_VERSIONS = {19: 9, 21: 10}
_SHOWN = 5


def raise_opset(model: onnx.ModelProto, least: int, where: str, needed_for: str) -> str:
    """Let the model declare opset `least` if it declares an earlier one; return the sentence that says so, or "".

    Numeric: nothing changes. An operator whose inputs, outputs or attributes differ between the two opsets may mean
    something else there (GridSample's modes, GroupNormalization's scale), so that it is refused; one that only takes
    more types does not. onnx.version_converter would convert more, and drop the nodes' metadata: their modules.
    Raises: StageError naming those operators, or the domain where the model has no standard opset.
    """
    standard = next((o for o in model.opset_import if o.domain in {"", "ai.onnx"}), None)
    given = 0 if standard is None else int(standard.version)
    if given >= least:
        return ""
    if standard is None:
        raise StageError("the graph declares no opset of ONNX's own operators", where=where, hint=_export(least))
    changed = sorted({n.op_type for n in _nodes(model.graph) if _differs(n.op_type, given, least)})
    changed += sorted({f"the function {f.name}" for f in model.functions})
    if changed:
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise StageError(
            f"the graph is opset {given}; {needed_for} need {least} or later, where "
            f"{', '.join(changed[:_SHOWN])}{more} may mean something else",
            where=where,
            hint=_export(least),
        )
    standard.version = least
    model.ir_version = max(model.ir_version, *(ir for opset, ir in _IR_VERSIONS.items() if opset <= least), 0)
    return f"the graph declares opset {least} instead of {given}: none of its operators differs there"


def _export(least: int) -> str:
    return f"Export the model again at opset {least} or later."


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the standard operators of a graph and of the bodies in it."""
    for node in graph.node:
        if node.domain in {"", "ai.onnx"}:
            yield node
        for body in subgraphs(node):
            yield from _nodes(body)


def _differs(operator: str, one: int, other: int) -> bool:
    try:
        schemas = [onnx.defs.get_schema(operator, version, "") for version in (one, other)]
    except onnx.defs.SchemaError:
        return True  # unknown at one of the two
    if schemas[0].since_version == schemas[1].since_version:
        return False
    return schemas[1].deprecated or _signature(schemas[0]) != _signature(schemas[1])


def _signature(schema: onnx.defs.OpSchema) -> tuple[object, ...]:
    """Return everything of an operator but the types it takes."""
    inputs, outputs = ([(value.name, value.option) for value in side] for side in (schema.inputs, schema.outputs))
    attributes = {
        name: (a.type, a.required, a.default_value.SerializeToString()) for name, a in schema.attributes.items()
    }
    return inputs, outputs, sorted(attributes.items())
