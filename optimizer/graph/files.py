"""ONNX files on disk: the interface they declare, and saving with weights inside or beside."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message
from onnx.external_data_helper import uses_external_data

from optimizer.errors import StageError, UsageError
from optimizer.graph.index import subgraphs
from optimizer.graph.interface import read_interface
from optimizer.runtime.session import Array

__all__ = [
    "INLINE_LIMIT_BYTES",
    "copy_model",
    "external_files",
    "load_without_weights",
    "read_interface",
    "save_model",
    "save_with_outputs",
]

# protobuf cannot serialise 2 GiB; graph and small tensors need room beside the weights.
INLINE_LIMIT_BYTES = 1_900_000_000
# Weights below stay in the file: onnxruntime folds some of them, and none takes long.
_SMALL_BYTES = 1024


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Save as one file, or with `<name>.data` beside it when one file could not hold the weights."""
    if sum(tensor.ByteSize() for tensor in model.graph.initializer) <= INLINE_LIMIT_BYTES:
        onnx.save_model(model, path)
        return
    onnx.save_model(model, path, save_as_external_data=True, all_tensors_to_one_file=True, location=f"{path.name}.data")


def load_without_weights(path: Path) -> onnx.ModelProto:
    """Load a model whose weights beside it stay there: `save_with_outputs` finds them, other readers do not."""
    model = onnx.load(path, load_external_data=False)
    for tensor in _weights(model.graph):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(path.parent.absolute() / entry.value)
    return model


def save_with_outputs(model: onnx.ModelProto, tensors: Iterable[str], path: Path) -> dict[str, Array]:
    """Save the model with float32 tensors of it as further outputs, and return its weights, which the file lacks.

    `OnnxSession` takes them from memory: to write them and read them again costs as much as many a sample. Those that
    lie beside a model of `load_without_weights` are mapped. Small ones and what is no plain float stand in the file.
    Raises: StageError for weights that do not lie where the model says.
    """
    light = onnx.ModelProto()
    _copy_fields(model, light, but="graph")
    _copy_fields(model.graph, light.graph, but="initializer")
    present = {value.name for value in (*model.graph.output, *model.graph.input)}
    for name in tensors:
        if name not in present:
            light.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    weights: dict[str, Array] = {}
    read = set(_read_names(model.graph)) - present  # before IR 4, weights are inputs, which could be fed
    for tensor in model.graph.initializer:
        weight = _weight(tensor) if tensor.name in read else None  # onnxruntime knows no other any more
        if weight is None:
            light.graph.initializer.append(tensor)
        else:
            weights[tensor.name] = weight
    for tensor in _weights(light.graph):
        _embed(tensor)
    for name, weight in weights.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(weight.dtype)
        absent = light.graph.initializer.add(name=name, data_type=kind, dims=weight.shape)
        absent.data_location = onnx.TensorProto.EXTERNAL
        absent.external_data.add(key="location", value="memory")
    onnx.save_model(light, path)
    return weights


def _read_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield what the nodes of a graph and of the bodies of its If, Loop and Scan read."""
    for node in graph.node:
        yield from node.input
        for body in subgraphs(node):
            yield from _read_names(body)


def _copy_fields(source: Message, target: Message, *, but: str) -> None:
    """Copy all fields of a message but one."""
    for field, value in source.ListFields():
        if field.name == but:
            continue
        if isinstance(value, str | int):
            setattr(target, field.name, value)
        else:
            getattr(target, field.name).MergeFrom(value)


def _weight(tensor: onnx.TensorProto) -> Array | None:
    """Return a weight that a session can be given: large, floating point of numpy's own, and stored as raw bytes."""
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    # From integers onnxruntime infers shapes while it loads, of any number of axes or parts.
    if dtype.kind != "f" or dtype.isbuiltin != 1 or math.prod(tensor.dims) * dtype.itemsize < _SMALL_BYTES:
        return None
    weight: Array
    if uses_external_data(tensor):
        location, start, _ = _place(tensor)
        try:
            weight = np.memmap(location, dtype, "r", start, tuple(tensor.dims))
        except (OSError, ValueError) as error:
            raise StageError(f"weight '{tensor.name}' cannot be read: {error}", where=str(location)) from error
    elif tensor.HasField("raw_data"):
        weight = np.frombuffer(tensor.raw_data, dtype).reshape(tuple(tensor.dims))
    else:
        return None
    return weight if weight.flags.aligned else weight.copy()


def _embed(tensor: onnx.TensorProto) -> None:
    """Take the bytes of a tensor out of the file that they lie in."""
    if not uses_external_data(tensor):
        return
    location, start, length = _place(tensor)
    try:
        with location.open("rb") as file:
            file.seek(start)
            tensor.raw_data = file.read(length)
    except OSError as error:
        raise StageError(f"weight '{tensor.name}' cannot be read: {error}", where=str(location)) from error
    if len(tensor.raw_data) < length:
        raise StageError(f"ends in the middle of weight '{tensor.name}'", where=str(location))
    tensor.ClearField("external_data")
    tensor.data_location = onnx.TensorProto.DEFAULT


def _place(tensor: onnx.TensorProto) -> tuple[Path, int, int]:
    """Return the file that holds a tensor, where in it, and how many bytes (-1: up to its end)."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    return Path(place["location"]), int(place.get("offset", 0)), int(place.get("length", -1))


def external_files(path: Path) -> list[Path]:
    """Return the files beside an ONNX file that hold some of its weights.

    Raises: UsageError when the file is not ONNX.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise UsageError("is not an ONNX file", where=str(path)) from error
    locations = {
        entry.value for tensor in _weights(model.graph) for entry in tensor.external_data if entry.key == "location"
    }
    return sorted(path.parent / location for location in locations)


def _weights(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the initializers of a graph and of the bodies of its If, Loop and Scan."""
    yield from graph.initializer
    for node in graph.node:
        for body in subgraphs(node):
            yield from _weights(body)


def copy_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that may be changed; serialising it instead would end at 2 GB."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied
