"""ONNX files on disk: the interface they declare, and saving with weights inside or beside."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from optimizer.errors import UsageError
from optimizer.graph.index import subgraphs
from optimizer.graph.interface import read_interface

__all__ = ["INLINE_LIMIT_BYTES", "copy_model", "external_files", "read_interface", "save_model", "save_with_outputs"]

# protobuf cannot serialise 2 GiB; graph and small tensors need room beside the weights.
INLINE_LIMIT_BYTES = 1_900_000_000


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Save as one file, or with `<name>.data` beside it when one file could not hold the weights."""
    if sum(tensor.ByteSize() for tensor in model.graph.initializer) <= INLINE_LIMIT_BYTES:
        onnx.save_model(model, path)
        return
    onnx.save_model(model, path, save_as_external_data=True, all_tensors_to_one_file=True, location=f"{path.name}.data")


def save_with_outputs(model: onnx.ModelProto, tensors: Iterable[str], path: Path, source: Path | None = None) -> None:
    """Save the model with float32 tensors of it as further outputs; `model` gets them too.

    `source` is the file that `model` was read from without the weights beside it. Where there are none, the file is
    copied and the outputs appended: protobuf joins messages that follow one another. Serialising the weights again
    would take six times as long.
    """
    present = {value.name for value in (*model.graph.output, *model.graph.input)}
    added = onnx.ModelProto()
    for name in tensors:
        if name not in present:
            added.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    model.graph.output.extend(added.graph.output)
    if source is not None and not any(tensor.external_data for tensor in _weights(model.graph)):
        shutil.copyfile(source, path)
        with path.open("ab") as file:
            file.write(added.SerializeToString())
        return
    if source is not None:
        onnx.load_external_data_for_model(model, str(source.parent))
    save_model(model, path)


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
