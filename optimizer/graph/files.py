"""ONNX files on disk: the interface they declare, and saving with weights inside or beside."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from optimizer.errors import UsageError
from optimizer.graph.interface import read_interface

__all__ = ["INLINE_LIMIT_BYTES", "copy_model", "external_files", "read_interface", "save_model"]

# protobuf cannot serialise 2 GiB; graph and small tensors need room beside the weights.
INLINE_LIMIT_BYTES = 1_900_000_000


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Save as one file, or with `<name>.data` beside it when one file could not hold the weights."""
    if sum(tensor.ByteSize() for tensor in model.graph.initializer) <= INLINE_LIMIT_BYTES:
        onnx.save_model(model, path)
        return
    onnx.save_model(model, path, save_as_external_data=True, all_tensors_to_one_file=True, location=f"{path.name}.data")


def external_files(path: Path) -> list[Path]:
    """Return the files beside an ONNX file that hold some of its weights.

    Raises: UsageError when the file is not ONNX.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise UsageError("is not an ONNX file", where=str(path)) from error
    locations = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    return sorted(path.parent / location for location in locations)


def copy_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that may be changed; serialising it instead would end at 2 GB."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied
