"""Which activations are read while samples run through a graph: each distribution once, and none that nobody asks for.

Reading is what calibration costs beyond the forward pass: a copy of the tensor out of the layout that the engine
computes in, and a pass over its values.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx

from optimizer.graph.index import GraphIndex
from optimizer.graph.placement import Layers, measured_tensors
from optimizer.graph.quantize import activations, examine_all, typed_index
from optimizer.types import Dialect

# Their output holds the values of their input, each of them once.
_SAME_VALUES = frozenset({"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity"})


def tensors_to_calibrate(model: onnx.ModelProto, dialects: Collection[Dialect], *, integer_sums: bool) -> list[str]:
    """Return the activations whose ranges the dialects may ask for, sorted.

    TensorRT's and OpenVINO's ask for what layers read; the CPU's asks for what they write, too: onnxruntime has integer
    kernels for layers that read and write integers. Residual sums in int8 ask for more, of all: `integer_sums`.
    Raises: StageError as `quantize` does.
    """
    every = activations(model)
    if integer_sums:
        return every
    index = typed_index(model)
    candidates, products, left = examine_all(index, "tensorrt", {}, attention=True)
    return measured_tensors(index, Layers(candidates, products, (), left), dialects)


def stand_ins(model: onnx.ModelProto, tensors: Collection[str]) -> dict[str, str]:
    """Return, for each of the tensors, the one among them that is read in its place; most stand for themselves.

    A tensor that is only moved has the values of what it becomes. One that only a MaxPool reads is represented by what
    leaves the pool: rounding is monotonic, so pooling what was rounded is rounding what was pooled, and the values that
    the pool drops reach nothing. Both are smaller or equal, so the furthest downstream is read.
    """
    index = GraphIndex(model)
    asked = set(tensors)
    return {name: _furthest(index, name, asked) for name in tensors}


def _furthest(index: GraphIndex, name: str, asked: Collection[str]) -> str:
    furthest = at = name
    alone = True  # nothing but this path has read the values so far
    while True:
        alone = alone and index.sole_reader(at) is not None
        step = next(
            (node for node, position in index.readers.get(at, ()) if position == 0 and _carries(node, alone)), None
        )
        if step is None:
            return furthest
        at = step.output[0]
        if at in asked:
            furthest = at


def _carries(node: onnx.NodeProto, alone: bool) -> bool:
    if node.op_type in _SAME_VALUES:
        return True
    return node.op_type == "MaxPool" and alone and len([o for o in node.output if o]) == 1
