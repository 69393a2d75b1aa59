"""The frozen data that flows through the pipeline. Standard library and numpy only: the runtime reads these too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

# The form of quantization that the kernels of a target take: TensorRT's, onnxruntime's on a CPU, OpenVINO's.
Dialect = Literal["tensorrt", "cpu", "openvino"]
Format = Literal["checkpoint", "code", "data", "onnx", "engine", "calibration", "diagnosis", "measurement"]

# The main file of an artifact's directory; external data and receipts lie beside it.
MAIN_FILE: Mapping[str, str] = {
    "onnx": "model.onnx",
    "engine": "engine.plan",
    "calibration": "table.json",
    "diagnosis": "diagnosis.json",
    "measurement": "measurement.json",
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output. A `str` in `shape` is a named dynamic axis, e.g. `"batch"`; `dtype` is numpy's name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> TensorSpec:
        """Read what `to_json` wrote."""
        return cls(str(document["name"]), str(document["dtype"]), tuple(document["shape"]))


@dataclass(frozen=True, slots=True)
class Artifact:
    """A stored stage output, or a source file. `path` is the file of a source, the directory of a stage's output."""

    format: Format
    path: Path
    digest: str
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    @property
    def file(self) -> Path:
        """The main file: what a parser opens."""
        return self.path / MAIN_FILE[self.format] if self.path.is_dir() else self.path


@dataclass(frozen=True, slots=True)
class StageRecord:
    """How an artifact came to be; written beside it in the store."""

    stage: str
    key: str
    key_document: Mapping[str, Any]  # what `key` is the sha256 of: a later plan tells from it why a key changed
    output_sha256: str
    seconds: float
    peak_rss_bytes: int
    notes: tuple[str, ...] = ()
    inputs: tuple[TensorSpec, ...] = field(default=())
    outputs: tuple[TensorSpec, ...] = field(default=())
