"""Read what TensorRT's verbose build log says: the table of layers with the ONNX nodes behind them, and warnings."""

from __future__ import annotations

import re
from typing import Any

Line = tuple[str, str]  # severity, text

_ROW = re.compile(r"^\s*Name: (?P<name>.+?), LayerType: (?P<kind>[^,]+), Inputs: \[(?P<rest>.*)$")
_END_OF_INPUTS = re.compile(r"\], (?:Constants|Outputs): ")
_TENSOR = re.compile(
    r"\{ Name: (?P<tensor>[^,]+), Dimensions: \[(?P<shape>[-\d,]*)\].*?"
    r"Datatype: (?P<type>\w+), Format: (?P<format>.*?) \}"
)
_TACTIC = re.compile(r"TacticName: (?P<tactic>[^,]*)")
_ONNX = re.compile(r"\[ONNX Layer: (.*?)\]")
# Said by every build, and no one can act on it.
_ALWAYS_SAID = ("cudaError 35", "Using default optimization profile", "Local timing cache", "lazy loading")
_KEPT = 8


def table(lines: list[Line]) -> list[dict[str, Any]]:
    """Return the engine's layers: name, kind, kernel, tensors with shape, type and format, and the ONNX nodes in each.

    Needs a build with detailed profiling verbosity. Several compute capabilities print one table, that of the first.
    Shapes: -1 is a dynamic axis.
    """
    rows = []
    for line in "\n".join(text for _, text in lines).splitlines():
        found = _ROW.match(line)
        if found:
            rest = found["rest"]
            inputs = _END_OF_INPUTS.split(rest, maxsplit=1)[0]
            outputs = rest.partition("Outputs: [")[2].partition("TacticName: ")[0]
            kernel = _TACTIC.search(rest)
            rows.append(
                {
                    "name": found["name"],
                    "kind": found["kind"],
                    "tactic": kernel["tactic"] if kernel else "",
                    "inputs": _tensors(inputs),
                    "constants": _tensors(rest.partition("Constants: [")[2].partition("Outputs: [")[0]),
                    "outputs": _tensors(outputs),
                    "onnx_nodes": _ONNX.findall(line),
                }
            )
    return rows


def matters(lines: list[Line]) -> list[str]:
    """Return the warnings of a build that succeeded, each once."""
    said = (" ".join(text.split()) for severity, text in lines if severity in ("WARNING", "ERROR", "INTERNAL_ERROR"))
    kept = list(dict.fromkeys(text for text in said if not any(known in text for known in _ALWAYS_SAID)))
    more = [f"and {len(kept) - _KEPT} more warnings, in the log"] if len(kept) > _KEPT else []
    return [text[:300] for text in kept[:_KEPT]] + more


def _tensors(text: str) -> list[dict[str, Any]]:
    return [
        {
            "tensor": found["tensor"],
            "type": found["type"],
            "format": found["format"],
            "shape": [int(size) for size in found["shape"].split(",") if size],
        }
        for found in _TENSOR.finditer(text)
    ]
