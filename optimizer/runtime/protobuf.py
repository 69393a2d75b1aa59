"""Reads the fields of a protobuf message where they lie: what is not asked for, a gigabyte of weights, is passed over.

Source: Protocol Buffers, "Encoding".
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

Data = bytes | mmap.mmap
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def fields(data: Data, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number and wire type of each field of a message, its value or where it starts, and where it ends.

    Raises: ValueError or IndexError where this is no protobuf message.
    """
    at = start
    while at < end:
        key, at = _varint(data, at)
        wire = key & 7
        if wire == VARINT:
            value, at = _varint(data, at)
        elif wire == BYTES:
            length, value = _varint(data, at)
            at = value + length
        elif wire in (FIXED64, FIXED32):
            value, at = at, at + (8 if wire == FIXED64 else 4)
        else:
            raise ValueError(f"wire type {wire}")
        if at > end:
            raise ValueError("a field ends behind its message")
        yield key >> 3, wire, value, at


def _varint(data: Data, at: int) -> tuple[int, int]:
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
