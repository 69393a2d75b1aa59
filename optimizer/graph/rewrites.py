"""What to write instead of an operator that TensorRT lacks; each entry is built and compared in the tests."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_MASK = "its output's size depends on the data: keep the size and mask (torch.where), select after the model"
_QDQ = "an operator of onnxruntime's CPU: begin with the float model, the variant int8 writes Q/DQ around its operators"
_BITS = "exists here for bool only: compare first (x != 0), or use %, // and * with powers of two"
_SEQUENCE = "lists of tensors are unknown here: return and read tensors (torch.split into named parts)"
_LOSS = "leave the loss out of forward(); return log_softmax"

# By operator. The words are PyTorch's where the model is written in it.
REWRITES: Mapping[str, str] = MappingProxyType(
    {
        "AffineGrid": "keep the base grid of a fixed size as a buffer and write base_grid @ theta.mT",
        "BitShift": "multiply, or divide integers, by a power of two",
        "BitwiseAnd": _BITS,
        "BitwiseNot": _BITS,
        "BitwiseOr": _BITS,
        "BitwiseXor": _BITS,
        "CenterCropPad": "slice and pad with constant sizes (x[..., a:b], torch.nn.functional.pad)",
        "Col2Im": "fold() is a transposed convolution with one-hot kernels: conv_transpose2d(x, eye.view(-1, 1, k, k))",
        "Compress": _MASK,
        "ConvInteger": _QDQ,
        "CumProd": "of positive values: exp(cumsum(log(x)))",
        "DFT": "of a fixed length: two matrix products with the cosines and the sines as buffers",
        "Det": "of 2x2 (3x3 alike): x[..., 0, 0] * x[..., 1, 1] - x[..., 0, 1] * x[..., 1, 0]",
        "DynamicQuantizeLinear": _QDQ,
        "MatMulInteger": _QDQ,
        "MaxUnpool": "zeros(N, C, H * W).scatter(2, indices within the plane, values).view(N, C, H, W)",
        "NegativeLogLikelihoodLoss": _LOSS,
        "NonZero": _MASK,
        "QLinearConv": _QDQ,
        "QLinearMatMul": _QDQ,
        "STFT": "of a fixed frame: a convolution (stride: the hop) with the windowed cosines and sines as kernels",
        "SequenceInsert": _SEQUENCE,
        "SoftmaxCrossEntropyLoss": _LOSS,
        "SplitToSequence": _SEQUENCE,
        "Unique": "sort, and mark where a value differs from the one before it; pick the marked ones after the model",
        "Upsample": "opset 13 writes it as Resize: onnx.version_converter.convert_version(model, 13), or export again",
    }
)
ONNXRUNTIME = (
    "onnxruntime made this operator when it saved its optimised graph: start from the file it read, or save with "
    "ORT_ENABLE_BASIC"
)
BFLOAT16 = {
    "HardSwish": "in bfloat16: x * (x / 6 + 0.5).clamp(0, 1), or `keep: [HardSwish]` in the bf16 variant",
    "ConvTranspose": "not in bfloat16: `keep: [ConvTranspose]` in the bf16 variant leaves it in float32",
}
TYPES = "cast to int32, int64 or float32 before it: TensorRT computes in no other integers"
_SAID_OF_TYPES = ("convertDtype(", "legalUINT8", "Unsupported data type")


def rewrite_for(operator: str, domain: str, reason: str) -> str | None:
    """Return what mends a refused node; `reason` is the library's text. None where nothing is known."""
    if domain.startswith("com.microsoft"):
        return ONNXRUNTIME
    if operator in BFLOAT16 and ("BF16" in reason or "bf16" in reason):
        return BFLOAT16[operator]
    if any(said in reason for said in _SAID_OF_TYPES):
        return TYPES
    return REWRITES.get(operator)
