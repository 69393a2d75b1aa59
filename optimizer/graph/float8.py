"""Write a float32 graph with FP8 Q/DQ pairs: E4M3 activations with a scale per tensor, weights with one per channel.

Numeric: E4M3 has 3 mantissa bits, 4 exponent bits of bias 7 and no infinity: up to 448, normal from 2^-6, steps of 2^-9
below. Values round half to even and saturate. Rounding leaves 31 dB of a tensor, whatever its scale, so that clipping
gains nothing: ResNet-20's logits keep 17.4 dB by MinMax, 17.5 by percentile 99.999, entropy or least squared error,
17.5 with ranges 1,024 times too wide, and 9.2 with ranges of half the width (512 CIFAR-10 pictures calibrate, 1,000
judge; int8 keeps 28.4). all-MiniLM-L6-v2, whose outliers spoil int8 (14 dB), keeps 23.2 dB.
Source: Micikevicius et al. 2022, arXiv:2209.05433; ONNX, "Float stored in 8 bits".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx

from optimizer.errors import StageError
from optimizer.graph.affine import Affine, Bounds, Float32, Float64
from optimizer.graph.keep import match
from optimizer.graph.modules import modules_of
from optimizer.graph.opset import raise_opset
from optimizer.graph.placement import Layers, Placement, check_ranges, place_tensorrt
from optimizer.graph.qdq import PairWriter
from optimizer.graph.quantizable import Candidate
from optimizer.graph.quantize import Quantized, summarize, typed_index
from optimizer.graph.sharing import Span
from optimizer.graph.weights import layers_of, refuse_quantized
from optimizer.runtime.session import Array

LARGEST = 448.0
MINIMUM_OPSET = 19
_DTYPE = ml_dtypes.float8_e4m3fn
_LEAST_EXPONENT = -6
_MANTISSA_BITS = 3
_TINY = float(np.finfo(np.float32).tiny)
_WHERE = "float8"


def round_e4m3(values: Float64) -> Float64:
    """Return the nearest E4M3 values, half to even; beyond 448 they saturate."""
    _, exponents = np.frexp(values)  # |value| in [2^(exponent - 1), 2^exponent)
    steps = np.exp2(np.maximum(exponents - 1, _LEAST_EXPONENT) - _MANTISSA_BITS)
    return np.asarray(np.clip(np.rint(values / steps) * steps, -LARGEST, LARGEST), dtype=np.float64)


def channel_scales(weight: Float32, axis: int) -> Float32:
    """Return one scale per index of `axis`, that maps its largest magnitude to 448; 1 where all are zero."""
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    scales = np.abs(weight.astype(np.float64)).max(axis=others) / LARGEST
    return np.asarray(np.where(scales < _TINY, 1.0, scales), dtype=np.float32)


def to_float8(weight: Float32, scales: Float32, axis: int) -> Array:
    """Return a weight in units of its scales, one per index of `axis`, as E4M3."""
    shape = tuple(-1 if i == axis % weight.ndim else 1 for i in range(weight.ndim))
    scaled = weight.astype(np.float64) / scales.astype(np.float64).reshape(shape)
    rounded: Array = round_e4m3(scaled).astype(_DTYPE)
    return rounded


def quantize_float8(
    model: onnx.ModelProto, ranges: Mapping[str, Bounds], keep: Sequence[str] = (), attention: bool = False
) -> Quantized:
    """Return a new model with FP8 pairs; `model` is changed in place and must not be used again.

    `keep` names operator types, nodes or PyTorch modules that stay in float32; `attention` multiplies queries by keys
    and probabilities by values in FP8.
    Numeric: TensorRT-RTX 1.7 computes ConvTranspose in float32 behind FP8 pairs, which would only lose digits there.
    Raises: StageError when the graph is quantized already, has nothing to quantize or an opset that cannot be raised to
    19, when `keep` matches nothing, or when a range is missing.
    """
    refuse_quantized(model, _WHERE, "fp8")
    kept = match(keep, model.graph.node, _WHERE, modules_of(model))
    raised = raise_opset(model, MINIMUM_OPSET, _WHERE, "8-bit floats")
    index = typed_index(model)
    layers = layers_of(index, kept, attention=attention)
    candidates = []
    for found in layers.candidates:
        if found.node.op_type == "ConvTranspose":
            layers.left[found.node.name or found.node.output[0]] = "TensorRT has no FP8 ConvTranspose"
        else:
            candidates.append(found)
    if not candidates and not layers.products:
        left = summarize(layers.left) or ["the graph has no Conv, Gemm or MatMul"]
        raise StageError(
            f"no layer is left to quantize: {'; '.join(left)}",
            where=_WHERE,
            hint="Remove the fp8 variant from the recipe, or shorten keep:.",
        )
    placement = place_tensorrt(index, Layers(candidates, layers.products), ranges)
    check_ranges(placement, ranges, _WHERE)
    affine = _parameters(placement, ranges)
    writer = _Float8Writer(index, placement, affine)
    for found in candidates:
        writer.store_weight(found)
    writer.rewrite(model)
    notes = [raised] if raised else []
    notes += [f"'{root}' was zero in every calibration sample: its scale is 1" for root in _flat(affine)]
    if attention and not layers.products:
        notes.append("attention: true has no effect: no Softmax stands between two products of activations")
    return Quantized(model, layers.left, tuple(notes), frozenset(kept), writer.parameters)


def _flat(affine: Mapping[str, Affine]) -> list[str]:
    return sorted(root for root, found in affine.items() if found.degenerate)


def _parameters(placement: Placement, ranges: Mapping[str, Bounds]) -> dict[str, Affine]:
    """Return the scale of every root: the largest magnitude of its tensors becomes 448."""
    found = {}
    for root in set(placement.roots.values()):
        bounds = Span.over([ranges[name] for name in placement.groups.get(root, [root])])
        scale = float(np.float32(bounds.magnitude / LARGEST))
        empty = scale < _TINY
        found[root] = Affine(1.0 if empty else scale, 0, _DTYPE, degenerate=empty)
    return found


class _Float8Writer(PairWriter):
    """Writes pairs whose zero point is an E4M3 zero, and weights as E4M3."""

    def store_weight(self, found: Candidate) -> None:
        """Let a candidate read its weight from E4M3; a shared weight is stored once."""
        key = (found.weight_name, found.axis, b"")
        if key not in self.weights:
            weight = np.asarray(self.index.constant(found.weight_name), dtype=np.float32)
            scales = channel_scales(weight, found.axis)
            stored = to_float8(weight, scales, found.axis)
            self.weights[key] = self._dequantize(found.weight_name, stored, scales, found.axis), scales
        self.replaced[found.node.output[0], found.weight] = self.weights[key][0]
