"""Does an ONNX graph hold 8-bit floats?"""

from __future__ import annotations

from optimizer.runtime.onnx_contents import Contents

# TensorProto.DataType: FLOAT8E4M3FN, FLOAT8E4M3FNUZ, FLOAT8E5M2, FLOAT8E5M2FNUZ.
_FLOAT8 = frozenset({17, 18, 19, 20})


def holds_float8(contents: Contents) -> bool:
    """Tell whether a tensor of the graph is an 8-bit float."""
    return not _FLOAT8.isdisjoint(contents.types)
