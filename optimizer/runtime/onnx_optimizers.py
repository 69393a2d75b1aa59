"""Which of onnxruntime's optimizers stay away from a graph: they crash on it, or change what it computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optimizer.runtime.float8 import holds_float8
from optimizer.runtime.onnx_contents import Contents, read_contents

# It swaps a Transpose that moves the first axis with the Cast between it and a MatMul, and where nothing is fused then,
# does not say that it changed the graph: the new nodes are never resolved, and the next optimizer that looks at them,
# NchwcTransformer, reads through a null pointer and ends the process. Measured: onnxruntime 1.31.1, CPU; perm 102 and
# 120 of three axes, 1203 and 1230 of four; a Cast from any type.
_CRASHES_ON_CASTS = "MatmulTransposeFusion"
_CASTS = frozenset({"Cast", "CastLike"})
_FLOAT16 = 10  # TensorProto.DataType; onnxruntime casts it around every operator without a float16 kernel
# They take the zero of a QuantizeLinear for that of uint8, and drop a Relu before 8-bit floats.
_WRONG_FOR_FLOAT8 = ("ReluQuantRewrite", "ClipQuantRewrite")


def keep_arithmetic(options: Any, path: Path) -> list[str]:
    """Keep a session's optimisations to the arithmetic that the graph states; return the optimizers to leave out.

    Numeric: onnxruntime 1.31 fuses 4-bit weights into a kernel that rounds activations to int8 unless told otherwise,
    puts 8-bit floats into integer operators, which refuse them, and drops a Relu before them.
    """
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # 1: float32
    contents = read_contents(path)  # once: opening a session is timed
    without = [_CRASHES_ON_CASTS] if may_cast(contents) else []
    if holds_float8(contents):
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        without += _WRONG_FOR_FLOAT8
    return without


def may_cast(contents: Contents) -> bool:
    """Tell whether onnxruntime may come upon a Cast in this graph: one of its own, or one it puts around float16.

    Where the Cast will stand once Transposes were moved through Reshapes and Squeezes cannot be told beforehand.
    """
    return _FLOAT16 in contents.types or not _CASTS.isdisjoint(contents.operators)
