"""ONNX files on disk: the interface they declare, and saving with weights inside or beside."""

from __future__ import annotations

from pathlib import Path

import onnx

from optimizer.graph.interface import read_interface

__all__ = ["INLINE_LIMIT_BYTES", "read_interface", "save_model"]

# protobuf cannot serialise 2 GiB; graph and small tensors need room beside the weights.
INLINE_LIMIT_BYTES = 1_900_000_000


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Save as one file, or with `<name>.data` beside it when one file could not hold the weights."""
    if sum(tensor.ByteSize() for tensor in model.graph.initializer) <= INLINE_LIMIT_BYTES:
        onnx.save_model(model, path)
        return
    onnx.save_model(model, path, save_as_external_data=True, all_tensors_to_one_file=True, location=f"{path.name}.data")
