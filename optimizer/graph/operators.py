"""What a narrow format means for each ONNX operator: which ports may narrow, which operators must not, and why."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from optimizer.graph.formats import BFLOAT16, FLOAT16, NarrowFormat

FLOAT = onnx.TensorProto.FLOAT


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


# The result is one of the inputs, its negative, or an integer of no larger magnitude: what went in as numbers of a
# narrow format comes out as such.
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

_NORMALIZATION = "mean and variance are sums over many elements; TensorRT 11 takes their precision from the tensor type"
_COORDINATES = "sampling coordinates need more digits than {format} has"
_PARSER = "TensorRT's ONNX parser refuses it in {format}"
_SUM = {
    FLOAT16: "adds up many elements: the sum may pass 65504 and float16 accumulation loses digits",
    BFLOAT16: "adds up many elements: bfloat16 accumulation loses digits",
}
RANGE = "leaves float16's range for ordinary arguments"
_ARGUMENT = "needs more digits of its argument than {format} has"
_RANDOM = "its element type is an attribute and its values are random"

_ALWAYS = (
    ("GroupNormalization InstanceNormalization LRN LayerNormalization LpNormalization", _NORMALIZATION),
    ("MeanVarianceNormalization RMSNormalization", _NORMALIZATION),
    ("Acos Acosh Asin Asinh Atanh Cos Log Mod Sin", _ARGUMENT),
    ("AffineGrid GridSample MaxRoiPool RoiAlign", _COORDINATES),
    ("Bernoulli EyeLike Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike", _RANDOM),
)
_LONG_SUMS = (
    "CumProd CumSum DFT GlobalLpPool LpPool ReduceL2 ReduceLogSum ReduceLogSumExp ReduceProd ReduceSumSquare STFT"
)


def _reasons(narrow: NarrowFormat, *further: tuple[str, str]) -> Mapping[str, str]:
    return {
        name: reason.format(format=narrow.name)
        for names, reason in (*_ALWAYS, (_LONG_SUMS, _SUM[narrow]), *further)
        for name in names.split()
    }


# Operators that stay float32 whatever their shapes. Softmax, LogSoftmax, Gelu, Erf, Sigmoid and Tanh are not among
# them: their results are bounded, kernels subtract the maximum, and Casts inside attention would break its fusion.
# In float16 an exponential leaves the range; in bfloat16 it stays within, and multiplies the error of an argument that
# has 8 bits. Source: the operators that PyTorch's CUDA autocast runs in float32, the warning of TensorRT's ONNX parser
# about Reduce and Pow in FP16, and tensorrt-rtx 1.7.1 itself (ranks, or the types of a Select, differ).
FLOAT32_OPERATORS: Mapping[NarrowFormat, Mapping[str, str]] = {
    FLOAT16: _reasons(FLOAT16, ("Cosh Exp Pow Reciprocal Sinh Softplus Tan", RANGE), ("Celu", _PARSER)),
    BFLOAT16: _reasons(
        BFLOAT16,
        ("Cosh Exp Pow Sinh Softplus Tan", _ARGUMENT),
        ("Celu HardSwish Mish", _PARSER),
        ("ConvTranspose", "TensorRT-RTX finds no kernel for it in {format}"),
    ),
}

# Sums whose length decides.
SIZED_SUMS = _set("AveragePool GlobalAveragePool ReduceL1 ReduceMean ReduceSum")

# Ports that stay float32 beside narrow ones.
_FLOAT32_INPUTS: Mapping[str, frozenset[int]] = {"Resize": frozenset({1, 2}), "Dropout": frozenset({1})}


def narrow_ports(
    node: onnx.NodeProto, types: Mapping[str, int], opset: int, narrow: NarrowFormat
) -> tuple[frozenset[int], frozenset[int]]:
    """Return the inputs and outputs, by position, that are float32 and may be narrow by the operator's schema."""
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
    inputs = frozenset(index for index, name in narrowed.items() if narrow.tensor_type in allowed.get(name, ()))
    variables = {narrowed[index] for index in inputs}
    # An output follows its inputs; one whose type comes from an attribute does not.
    outputs = frozenset(
        index
        for index, name in enumerate(node.output)
        if types.get(name) == FLOAT and kind(schema.outputs, index) in variables
    )
    return inputs, outputs


def float32_reason(
    node: onnx.NodeProto,
    shapes: Mapping[str, tuple[int | str | None, ...]],
    axes: list[int] | None,
    narrow: NarrowFormat,
) -> str | None:
    """Return why this operator must stay float32, or None. `axes` are those of a reduction, None for all."""
    reasons = FLOAT32_OPERATORS[narrow]
    if node.op_type in reasons:
        return reasons[node.op_type]
    if node.op_type == "LSTM" and len(node.input) > 4 and node.input[4]:
        return f"{_PARSER.format(format=narrow.name)} when sequence lengths are given"
    if node.op_type not in SIZED_SUMS:
        return None
    length = terms(node, shapes.get(node.input[0]), axes)
    return None if length is not None and length <= narrow.most_terms else _SUM[narrow]


def terms(node: onnx.NodeProto, shape: tuple[int | str | None, ...] | None, axes: list[int] | None) -> int | None:
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
