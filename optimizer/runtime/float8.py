"""Does an ONNX file hold 8-bit floats? Read from the file itself: a bundle runs without the package onnx."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

# TensorProto.DataType: FLOAT8E4M3FN, FLOAT8E4M3FNUZ, FLOAT8E5M2, FLOAT8E5M2FNUZ.
_FLOAT8 = frozenset({17, 18, 19, 20})
# Field numbers from a model to the types of its constants: initializers, and the values of Constant nodes.
_GRAPH = 7
_INITIALIZERS = (5, 2)
_CONSTANTS = (1, 5, 5, 2)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


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
        for field, wire, value, behind in _fields(data, start, end):
            if field != way[depth]:
                continue
            if depth + 1 < len(way) and wire == _BYTES:
                waiting.append((value, behind, depth + 1))
            elif depth + 1 == len(way) and wire == _VARINT:
                yield value


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number and wire type of each field of a message, its value or where it starts, and where it ends."""
    at = start
    while at < end:
        key, at = _varint(data, at)
        wire = key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
        elif wire == _BYTES:
            length, value = _varint(data, at)
            at = value + length
        elif wire in (_FIXED64, _FIXED32):
            value, at = at, at + (8 if wire == _FIXED64 else 4)
        else:
            raise ValueError(f"wire type {wire}")
        yield key >> 3, wire, value, at


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("no varint")
