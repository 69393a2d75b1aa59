"""The inputs and outputs that an ONNX graph declares."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx

from optimizer.errors import StageError
from optimizer.types import TensorSpec

Interface = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]


def interface(model: onnx.ModelProto) -> Interface:
    """Return inputs and outputs in order; weights listed as inputs are none. An axis without a name gets one.

    Raises: StageError for a tensor without type or rank.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    return _specs(inputs), _specs(model.graph.output)


def read_interface(path: Path) -> Interface:
    """Return the interface of a file, without reading its external data."""
    return interface(onnx.load(path, load_external_data=False))


def _specs(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    return tuple(_spec(value) for value in values)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    if not tensor.elem_type or not tensor.HasField("shape"):
        raise StageError(f"tensor '{value.name}' has no {'rank' if tensor.elem_type else 'tensor type'}")
    axes = (_axis(value.name, position, axis) for position, axis in enumerate(tensor.shape.dim))
    return TensorSpec(value.name, _dtype(tensor.elem_type), tuple(axes))


def _axis(name: str, position: int, axis: onnx.TensorShapeProto.Dimension) -> int | str:
    if axis.HasField("dim_value"):
        return int(axis.dim_value)
    return str(axis.dim_param) or f"{name}_axis{position}"


def _dtype(elem_type: int) -> str:
    """Return numpy's name of the type, or ONNX's in lower case where numpy has none."""
    name: str = onnx.TensorProto.DataType.Name(elem_type).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)
