"""Forms of the operators in `differentiable`'s tables that are not computed there, told from a node's attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx

from optimizer.graph.index import attribute

# torch's names of ONNX's types; half precision, strings and sub-bytes are not among them.
TYPES: Mapping[int, str] = {
    **{1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool"},
    **{11: "float64", 12: "uint32", 13: "uint64"},
}


def unsupported(node: onnx.NodeProto) -> str | None:
    """Return what of a known operator's node is not supported, as the end of a sentence; None where all is."""
    form = _FORMS.get(node.op_type)
    return None if form is None else form(node)


def one_sided(node: onnx.NodeProto) -> bool:
    """Tell whether padding differs between the sides."""
    pads = list(attribute(node, "pads", []))
    return pads[: len(pads) // 2] != pads[len(pads) // 2 :]


def _padding(node: onnx.NodeProto) -> str | None:
    resolved = attribute(node, "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    return None if resolved else "auto_pad is not resolved"


def _transposed(node: onnx.NodeProto) -> str | None:
    if one_sided(node) or attribute(node, "output_shape") is not None:
        return "its padding differs between the sides"
    return _padding(node)


def _max_pool(node: onnx.NodeProto) -> str | None:
    odd = len(node.output) > 1 or attribute(node, "ceil_mode", 0)
    return "indices and ceil_mode are not supported" if odd else _padding(node)


def _average_pool(node: onnx.NodeProto) -> str | None:
    odd = attribute(node, "ceil_mode", 0) or (one_sided(node) and not attribute(node, "count_include_pad", 0))
    return "ceil_mode and one-sided padding are not supported" if odd else _padding(node)


def _pad(node: onnx.NodeProto) -> str | None:
    if len(node.input) > 3 and node.input[3]:
        return "axes are not supported"
    mode = attribute(node, "mode", b"constant").decode()
    return None if mode == "constant" else f"mode {mode} is not supported"


def _layer_normalization(node: onnx.NodeProto) -> str | None:
    return "mean and deviation are not given out" if len(node.output) > 1 else None


def _batch_normalization(node: onnx.NodeProto) -> str | None:
    training = attribute(node, "training_mode", 0) or len([name for name in node.output if name]) > 1
    return "it is in training mode, where mean and variance are the batch's" if training else None


def _typed(node: onnx.NodeProto) -> str | None:
    kind = attribute(node, "to", attribute(node, "dtype", onnx.TensorProto.FLOAT))
    return None if kind in TYPES else f"type {onnx.TensorProto.DataType.Name(kind)} is not supported"


_FORMS: Mapping[str, Callable[[onnx.NodeProto], str | None]] = {
    "Conv": _padding,
    "ConvTranspose": _transposed,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "Pad": _pad,
    "LayerNormalization": _layer_normalization,
    "BatchNormalization": _batch_normalization,
    "Cast": _typed,
    "EyeLike": _typed,
}
