"""A float32 ONNX file in mixed bfloat16."""

from __future__ import annotations

from pathlib import Path

import onnx

from optimizer.errors import StageError
from optimizer.graph.formats import BFLOAT16
from optimizer.graph.magnitudes import Measured
from optimizer.graph.narrow import CastReport, Wish, narrow_model
from optimizer.graph.typed import read_model

# Source: the ONNX operator set: convolutions, pooling and recurrent layers take bfloat16 from here on.
OPSET = 22
_IR = 10  # the file format that opset 22 came with


def convert_to_bfloat16(
    source: Path, destination: Path, keep: tuple[str, ...] = (), measured: Measured | None = None
) -> CastReport:
    """Write the bfloat16 form of a float32 ONNX file at opset 22 or later; its inputs and outputs stay float32.

    Numeric: constants are rounded to nearest even, never clipped.
    Raises: StageError when the graph already holds 16-bit floats or Q/DQ, when it cannot be read as opset 22, when a
    name in `keep` matches nothing, or when nothing became bfloat16.
    """
    model = read_model(source)
    _raise_opset(model)
    return narrow_model(model, destination, BFLOAT16, Wish(keep, measured=measured))


def _raise_opset(model: onnx.ModelProto) -> None:
    """Declare the model opset 22 where every operator differs from that of its own opset in allowed types alone."""
    declared = next(item for item in model.opset_import if item.domain in ("", "ai.onnx"))
    if declared.version >= OPSET:
        return
    changed = sorted(
        {
            node.op_type
            for node in _all_nodes(model.graph)
            if node.domain in ("", "ai.onnx") and _form(node.op_type, declared.version) != _form(node.op_type, OPSET)
        }
    )
    if changed:
        raise StageError(
            f"the graph is of opset {declared.version}, and {', '.join(changed)} mean something else in opset {OPSET}, "
            "the first with bfloat16 convolutions",
            where=BFLOAT16.name,
            hint=f"Export the model at opset {OPSET}.",
        )
    declared.version = OPSET
    model.ir_version = max(model.ir_version, _IR)


def _all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    nodes = list(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                nodes += _all_nodes(inner)
    return nodes


def _form(operator: str, opset: int) -> tuple[object, ...]:
    """Return all of an operator's schema that is not a list of types."""
    schema = onnx.defs.get_schema(operator, opset)
    attributes = {
        name: (str(value.type), value.required, value.default_value.SerializeToString())
        for name, value in schema.attributes.items()
    }
    formals = tuple((str(f.name), str(f.option)) for f in (*schema.inputs, *schema.outputs))
    return attributes, formals, len(schema.inputs)
