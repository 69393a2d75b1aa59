"""Does an ONNX file hold 8-bit floats? Read from the file itself: a bundle runs without the package onnx."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from optimizer.runtime.protobuf import BYTES, VARINT, fields

# TensorProto.DataType: FLOAT8E4M3FN, FLOAT8E4M3FNUZ, FLOAT8E5M2, FLOAT8E5M2FNUZ.
_FLOAT8 = frozenset({17, 18, 19, 20})
# Field numbers from a model to the types of its constants: initializers, and the values of Constant nodes.
_GRAPH = 7
_INITIALIZERS = (5, 2)
_CONSTANTS = (1, 5, 5, 2)


def holds_float8(path: Path) -> bool:
    """Tell whether a constant of the main graph is an 8-bit float; False for what is no ONNX file.

    Source: onnx.proto of onnx/onnx; Protocol Buffers, "Encoding".
    """
    if path.stat().st_size == 0:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return any(kind in _FLOAT8 for way in (_INITIALIZERS, _CONSTANTS) for kind in _find(data, (_GRAPH, *way)))
        except (IndexError, ValueError):
            return False


def _find(data: mmap.mmap, way: tuple[int, ...]) -> Iterator[int]:
    """Yield the numbers at the end of a way of field numbers."""
    waiting = [(0, len(data), 0)]
    while waiting:
        start, end, depth = waiting.pop()
        for field, wire, value, behind in fields(data, start, end):
            if field != way[depth]:
                continue
            if depth + 1 < len(way) and wire == BYTES:
                waiting.append((value, behind, depth + 1))
            elif depth + 1 == len(way) and wire == VARINT:
                yield value
