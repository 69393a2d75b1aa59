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

# The result is one of the inputs, its negative, or an integer of no larger magnitude: float16 in, the same float16 out.
EXACT = frozenset(
    "Abs Ceil Clip Compress Concat DepthToSpace Expand Flatten Floor Gather GatherElements GatherND GlobalMaxPool Hardmax "
    "Identity Max MaxPool MaxUnpool Min Neg OneHot Pad ReduceMax ReduceMin Relu Reshape ReverseSequence Round Sign Slice "
    "SpaceToDepth Split Squeeze ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where".split()
)

# Only these repay a Cast on each side: they read each value many times.
CONTRACTIONS = frozenset("Attention Conv ConvTranspose DeformConv Einsum GRU Gemm LSTM MatMul RNN".split())

# They take any type and answer the same question about it: no Cast is worth it.
INDIFFERENT = frozenset("Cast Shape Size NonZero".split())

# A value out of float16's range stays out of it behind these.
KEEPS_MAGNITUDE = frozenset(
    "Abs Add Clip Concat Expand Flatten Gather Identity Max Min Neg Pad Reciprocal ReduceMax ReduceMean ReduceMin ReduceSum "
    "Relu Reshape Slice Split Sqrt Squeeze Sub Sum Tile Transpose Unsqueeze Where".split()
)
# Their own result may lie out of it although every input lies within.
LEAVES_RANGE = frozenset("CumSum Exp Pow Reciprocal ReduceL1 ReduceL2 ReduceProd ReduceSum ReduceSumSquare".split())

_SUM = "adds up many elements: the sum may pass 65504 and float16 accumulation loses digits"
_NORMALIZATION = "mean and variance are sums over many elements; TensorRT 11 takes their precision from the tensor type"
_RANGE = "leaves float16's range for ordinary arguments"
_ARGUMENT = "needs more digits of its argument than float16 has"
_COORDINATES = "sampling coordinates need more digits than float16 has"
_RANDOM = "its element type is an attribute and its values are random"

# Operators that stay float32 whatever their shapes. Softmax, LogSoftmax, Gelu, Erf, Sigmoid and Tanh do not: their
# results are bounded and kernels subtract the maximum, and a Cast inside attention would break TensorRT's fusion.
# Source: PyTorch's CUDA autocast list of operators that run in float32; TensorRT's parser warning on FP16 Reduce and Pow.
FLOAT32_OPERATORS: Mapping[str, str] = {
    **dict.fromkeys(
        "LayerNormalization InstanceNormalization GroupNormalization RMSNormalization MeanVarianceNormalization "
        "LpNormalization LRN".split(),
        _NORMALIZATION,
    ),
    **dict.fromkeys(
        "CumSum CumProd ReduceL2 ReduceLogSum ReduceLogSumExp ReduceProd ReduceSumSquare LpPool GlobalLpPool DFT STFT".split(),
        _SUM,
    ),
    **dict.fromkeys("Cosh Exp Pow Reciprocal Sinh Softplus Tan".split(), _RANGE),
    **dict.fromkeys("Log Sin Cos Acos Asin Acosh Asinh Atanh Mod".split(), _ARGUMENT),
    **dict.fromkeys("GridSample AffineGrid RoiAlign MaxRoiPool".split(), _COORDINATES),
    **dict.fromkeys(
        "Bernoulli EyeLike Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split(), _RANDOM
    ),
}

# Sums whose length decides.
_SIZED_SUMS = frozenset("AveragePool GlobalAveragePool ReduceL1 ReduceMean ReduceSum".split())

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
