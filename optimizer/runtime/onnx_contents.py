"""Which operators and element types an ONNX file has, read from the file itself: a bundle runs without onnx.

Source: onnx.proto of onnx/onnx; Protocol Buffers, "Encoding".
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

from optimizer.runtime.protobuf import BYTES, VARINT, Data, fields

# Of each message the fields, by number, that hold another one worth reading. Weights are passed over.
_INSIDE = {
    ("model", 7): "graph",
    ("model", 25): "function",
    ("graph", 1): "node",
    ("graph", 5): "tensor",  # initializers
    ("graph", 11): "value",  # inputs, outputs, value_info
    ("graph", 12): "value",
    ("graph", 13): "value",
    ("function", 7): "node",
    ("node", 5): "attribute",
    ("attribute", 5): "tensor",
    ("attribute", 6): "graph",
    ("attribute", 11): "graph",
    ("value", 2): "type",
    ("type", 1): "tensor type",
}
_OPERATOR = ("node", 4)
_TYPES = {("tensor", 2), ("tensor type", 1)}


@dataclass(frozen=True, slots=True)
class Contents:
    """Operator types, and TensorProto.DataType numbers of constants and of tensors whose type is stated."""

    operators: frozenset[str]
    types: frozenset[int]


def read_contents(path: Path) -> Contents:
    """Read graph, subgraphs and functions; of what is no ONNX file, nothing."""
    if path.stat().st_size == 0:  # mmap refuses it
        return Contents(frozenset(), frozenset())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _walk(data)
        except (IndexError, ValueError):
            return Contents(frozenset(), frozenset())


def _walk(data: Data) -> Contents:
    operators: set[bytes] = set()
    types: set[int] = set()
    waiting = [("model", 0, len(data))]
    while waiting:
        message, start, end = waiting.pop()
        for field, wire, value, behind in fields(data, start, end):
            at = (message, field)
            if wire == BYTES and at in _INSIDE:
                waiting.append((_INSIDE[at], value, behind))
            elif wire == BYTES and at == _OPERATOR:
                operators.add(data[value:behind])
            elif wire == VARINT and at in _TYPES:
                types.add(value)
    return Contents(frozenset(name.decode() for name in operators), frozenset(types))
