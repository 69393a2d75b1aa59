"""A float32 ONNX file in mixed float16."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from optimizer.graph.formats import FLOAT16
from optimizer.graph.magnitudes import Measured
from optimizer.graph.narrow import CastReport, Wish, narrow_model
from optimizer.graph.typed import read_model


def convert_to_float16(
    source: Path,
    destination: Path,
    keep: tuple[str, ...] = (),
    reasons: Mapping[str, str] | None = None,
    measured: Measured | None = None,
    io: Literal["fp32", "fp16"] = "fp32",
) -> CastReport:
    """Write the float16 form of a float32 ONNX file; its inputs and outputs stay float32, unless `io` is fp16.

    `keep` holds operator types, nodes and modules that stay float32; `reasons` maps node names to why they do;
    `measured` is what calibration data made of the tensors.
    Numeric: constants are rounded to nearest even, never clipped.
    Raises: StageError when the graph already holds 16-bit floats or Q/DQ, when a name in `keep` matches nothing, or
    when nothing became float16; with `io` also for an input or output that float16 cannot hold.
    """
    return narrow_model(read_model(source), destination, FLOAT16, Wish(keep, reasons or {}, measured, io == "fp16"))
