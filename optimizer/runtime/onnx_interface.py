"""What an ONNX file declares as its inputs and outputs, read from the file itself: a deployment has no onnx package."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from optimizer.errors import StageError
from optimizer.runtime.protobuf import BYTES, VARINT, Data, fields
from optimizer.types import TensorSpec

# TensorProto.DataType and numpy's names; bfloat16 and the formats of 8 and 4 bits have no numpy type of their own.
_DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}
# Field numbers of onnx.proto3.
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 5, 11, 12
_TENSOR_NAME = 8

_Span = tuple[int, int]


def read_interface(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs that no initializer fills, and the outputs, in the graph's order.

    An axis without name or size is called after its tensor and position.
    Raises: StageError when the file is no ONNX model or a tensor has a type that numpy cannot hold.
    """
    try:
        with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _interface(data, str(path))
    except FileNotFoundError:
        raise StageError("there is no such file", where=str(path)) from None
    except (ValueError, IndexError, UnicodeDecodeError) as error:  # ValueError: mmap of an empty file, too
        raise StageError("is no ONNX model", where=str(path)) from error


def _interface(data: Data, where: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    graph = _last(data, (0, len(data)), _MODEL_GRAPH)
    if graph is None:
        raise ValueError("no graph")
    filled = {_text(data, tensor, _TENSOR_NAME) for tensor in _every(data, graph, _GRAPH_INITIALIZER)}
    inputs = [span for span in _every(data, graph, _GRAPH_INPUT) if _name(data, span) not in filled]
    outputs = _every(data, graph, _GRAPH_OUTPUT)
    return (
        tuple(_spec(data, span, f"{where}: input") for span in inputs),
        tuple(_spec(data, span, f"{where}: output") for span in outputs),
    )


def _spec(data: Data, span: _Span, where: str) -> TensorSpec:
    """Read a ValueInfoProto: name = 1, type = 2 > tensor_type = 1 > elem_type = 1, shape = 2 > dim = 1."""
    name = _name(data, span)
    kind = _last(data, span, 2)
    tensor = None if kind is None else _last(data, kind, 1)
    if tensor is None:
        raise StageError("is no tensor", where=f"{where} '{name}'", hint="Give the model tensors alone.")
    number = _number(data, tensor, 1) or 0
    dtype = _DTYPES.get(number)
    if dtype is None:
        raise StageError(
            f"has ONNX's tensor type {number}, which numpy cannot hold",
            where=f"{where} '{name}'",
            hint=f"allowed: {', '.join(_DTYPES.values())}; cast it in the model",
        )
    shape = _last(data, tensor, 2)
    dims = () if shape is None else tuple(_every(data, shape, 1))
    axes = (_axis(data, dim, f"{name}_axis{i}") for i, dim in enumerate(dims))
    return TensorSpec(name, dtype, tuple(axes))


def _axis(data: Data, dim: _Span, unnamed: str) -> int | str:
    """Read a Dimension: dim_value = 1 or dim_param = 2."""
    size = _number(data, dim, 1)
    return size if size is not None else _text(data, dim, 2) or unnamed


def _name(data: Data, span: _Span) -> str:
    return _text(data, span, 1)


def _text(data: Data, span: _Span, field: int) -> str:
    found = _last(data, span, field)
    return "" if found is None else data[found[0] : found[1]].decode()


def _last(data: Data, span: _Span, field: int) -> _Span | None:
    """Return where the last message or string of that field number lies, as protobuf has it."""
    found = None
    for number, wire, start, end in fields(data, *span):
        if number == field and wire == BYTES:
            found = (start, end)
    return found


def _every(data: Data, span: _Span, field: int) -> Iterator[_Span]:
    for number, wire, start, end in fields(data, *span):
        if number == field and wire == BYTES:
            yield start, end


def _number(data: Data, span: _Span, field: int) -> int | None:
    return next((value for number, wire, value, _ in fields(data, *span) if (number, wire) == (field, VARINT)), None)
