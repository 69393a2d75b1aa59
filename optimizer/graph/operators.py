"""What float16 means for each ONNX operator: which ports may narrow, which operators must not, and why."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

FLOAT = onnx.TensorProto.FLOAT
FLOAT16 = onnx.TensorProto.FLOAT16

FLOAT16_MAX = 65504.0
FLOAT16_FLUSHES_TO_ZERO = 2.0**-25  # round to nearest even: this and everything smaller becomes zero
# 64 float16 additions lose at most 64 * 2^-11 = 3 %, and overflow only where the mean magnitude passes 1023.
MAX_FLOAT16_TERMS = 64


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


# The result is one of the inputs, its negative, or an integer of no larger magnitude: what went in as float16 values
# comes out as float16 values.
EXACT = _set(
    """
    Abs Ceil Clip Compress Concat DepthToSpace Expand Flatten Floor Gather GatherElements GatherND GlobalMaxPool Hardmax
    Identity Max MaxPool MaxUnpool Min Neg OneHot Pad ReduceMax ReduceMin Relu Reshape ReverseSequence Round Sign Slice
    SpaceToDepth Split Squeeze ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where
    """
)

# Only these repay a Cast on each side: they read each value many times.
CONTRACTIONS = _set("Attention Conv ConvTranspose DeformConv Einsum GRU Gemm LSTM MatMul RNN")

# They take any type and answer the same question about it: no Cast is worth it.
INDIFFERENT = _set("Cast NonZero Shape Size")

# A value out of float16's range stays out of it behind these.
KEEPS_MAGNITUDE = _set(
    """
    Abs Add Clip Concat Expand Flatten Gather Identity Max Min Neg Pad Reciprocal ReduceMax ReduceMean ReduceMin
    ReduceSum Relu Reshape Slice Split Sqrt Squeeze Sub Sum Tile Transpose Unsqueeze Where
    """
)
# Their own result may lie out of it although every input lies within.
LEAVES_RANGE = _set("CumSum Exp Pow Reciprocal ReduceL1 ReduceL2 ReduceProd ReduceSum ReduceSumSquare")

_SUM = "adds up many elements: the sum may pass 65504 and float16 accumulation loses digits"
_NORMALIZATION = "mean and variance are sums over many elements; TensorRT 11 takes their precision from the tensor type"
_RANGE = "leaves float16's range for ordinary arguments"
_ARGUMENT = "needs more digits of its argument than float16 has"
_COORDINATES = "sampling coordinates need more digits than float16 has"
_PARSER = "TensorRT's ONNX parser refuses it in float16"  # tensorrt-rtx 1.7.1: ranks, or the types of a Select, differ
_RANDOM = "its element type is an attribute and its values are random"

# Operators that stay float32 whatever their shapes. Softmax, LogSoftmax, Gelu, Erf, Sigmoid and Tanh are not among
# them: their results are bounded, kernels subtract the maximum, and Casts inside attention would break its fusion.
# Source: the operators that PyTorch's CUDA autocast runs in float32, and the warning of TensorRT's ONNX parser about
# Reduce and Pow in FP16.
FLOAT32_OPERATORS: Mapping[str, str] = {
    name: reason
    for names, reason in (
        ("GroupNormalization InstanceNormalization LRN LayerNormalization LpNormalization", _NORMALIZATION),
        ("MeanVarianceNormalization RMSNormalization", _NORMALIZATION),
        ("CumProd CumSum DFT GlobalLpPool LpPool ReduceL2 ReduceLogSum ReduceLogSumExp", _SUM),
        ("ReduceProd ReduceSumSquare STFT", _SUM),
        ("Cosh Exp Pow Reciprocal Sinh Softplus Tan", _RANGE),
        ("Acos Acosh Asin Asinh Atanh Cos Log Mod Sin", _ARGUMENT),
        ("Celu", _PARSER),
        ("AffineGrid GridSample MaxRoiPool RoiAlign", _COORDINATES),
        ("Bernoulli EyeLike Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike", _RANDOM),
    )
    for name in names.split()
}

# Sums whose length decides.
_SIZED_SUMS = _set("AveragePool GlobalAveragePool ReduceL1 ReduceMean ReduceSum")

# Ports that stay float32 beside float16 ones.
_FLOAT32_INPUTS: Mapping[str, frozenset[int]] = {"Resize": frozenset({1, 2}), "Dropout": frozenset({1})}


def narrow_ports(node: onnx.NodeProto, types: Mapping[str, int], opset: int) -> tuple[frozenset[int], frozenset[int]]:
    """Return the inputs and outputs, by position, that are float32 and may be float16 by the operator's schema."""
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
    fixed = _FLOAT32_INPUTS.get(node.op_type, frozenset())

    def kind(formals: list[onnx.defs.OpSchema.FormalParameter], index: int) -> str:
        return str(formals[min(index, len(formals) - 1)].type_str)

    narrowed = {
        index: kind(schema.inputs, index)
        for index, name in enumerate(node.input)
        if types.get(name) == FLOAT and index not in fixed
    }
    inputs = frozenset(index for index, name in narrowed.items() if "tensor(float16)" in allowed.get(name, ()))
    variables = {narrowed[index] for index in inputs}
    # An output follows its inputs; one whose type comes from an attribute does not.
    outputs = frozenset(
        index
        for index, name in enumerate(node.output)
        if types.get(name) == FLOAT and kind(schema.outputs, index) in variables
    )
    return inputs, outputs


def float32_reason(
    node: onnx.NodeProto, shapes: Mapping[str, tuple[int | str | None, ...]], axes: list[int] | None
) -> str | None:
    """Return why this operator must stay float32, or None. `axes` are those of a reduction, None for all."""
    if node.op_type in FLOAT32_OPERATORS:
        return FLOAT32_OPERATORS[node.op_type]
    if node.op_type == "LSTM" and len(node.input) > 4 and node.input[4]:
        return f"{_PARSER} when sequence lengths are given"
    if node.op_type not in _SIZED_SUMS:
        return None
    terms = _terms(node, shapes.get(node.input[0]), axes)
    return None if terms is not None and terms <= MAX_FLOAT16_TERMS else _SUM


def _terms(node: onnx.NodeProto, shape: tuple[int | str | None, ...] | None, axes: list[int] | None) -> int | None:
    """Return how many elements one result adds up, or None when the shape does not say."""
    if node.op_type == "AveragePool":
        lengths: list[int | str | None] = list(
            next(attribute.ints for attribute in node.attribute if attribute.name == "kernel_shape")
        )
    elif shape is None:
        return None
    elif node.op_type == "GlobalAveragePool":
        lengths = list(shape[2:])
    else:
        lengths = list(shape) if axes is None else [shape[axis] for axis in axes]
    product = 1
    for length in lengths:
        if not isinstance(length, int):
            return None
        product *= length
    return product
