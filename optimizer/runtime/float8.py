"""Does an ONNX file hold 8-bit floats?"""

from __future__ import annotations

from pathlib import Path

from optimizer.runtime.onnx_contents import read_contents

# TensorProto.DataType: FLOAT8E4M3FN, FLOAT8E4M3FNUZ, FLOAT8E5M2, FLOAT8E5M2FNUZ.
_FLOAT8 = frozenset({17, 18, 19, 20})


def holds_float8(path: Path) -> bool:
    """Tell whether a tensor of the graph is an 8-bit float; False for what is no ONNX file."""
    return not _FLOAT8.isdisjoint(read_contents(path).types)
