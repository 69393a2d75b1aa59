"""Affine quantization: scales, zero points and integers from ranges and weights.

Numeric: real = scale * (integer - zero_point); integers round half to even and saturate, and zero is exact.
Source: ONNX operators QuantizeLinear and DequantizeLinear; Jacob et al. 2018, arXiv:1712.05877, section 2.1;
Wu et al. 2020, arXiv:2004.09602, section 3 (symmetric: -127..127, so that negation stays in range).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from optimizer.types import Dialect

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
_TINY = float(np.finfo(np.float32).tiny)
_INT32_MAX = 2**31 - 1
# Scales are rounded to float32, theirs and the product's: 2^-23 of 2^31 steps, and as much again.
_FLOAT32_SLACK = 512


class Bounds(Protocol):
    """What a calibration table knows of a tensor."""

    @property
    def low(self) -> float:
        """Smallest value that asymmetric integers cover."""

    @property
    def high(self) -> float:
        """Largest value that asymmetric integers cover."""

    @property
    def magnitude(self) -> float:
        """Largest magnitude that symmetric integers cover."""


@dataclass(frozen=True, slots=True)
class Affine:
    """Scale and zero point of a whole tensor. `degenerate`: its range is zero, so the scale is 1 by convention."""

    scale: float
    zero_point: int
    dtype: type[np.generic]
    degenerate: bool = False

    def stored_as(self, dtype: type[np.generic]) -> Affine:
        """Return the same values as int8 or uint8: both hold 256 of them, 128 apart."""
        shift = 0 if dtype is self.dtype else 128 if dtype is np.uint8 else -128
        return replace(self, zero_point=self.zero_point + shift, dtype=dtype)


def symmetric(bounds: Bounds) -> Affine:
    """Return int8 with zero point 0, for [-magnitude, magnitude] on -127..127."""
    scale = float(np.float32(bounds.magnitude / 127.0))
    if scale < _TINY:
        return Affine(1.0, 0, np.int8, degenerate=True)
    return Affine(scale, 0, np.int8)


def asymmetric(bounds: Bounds) -> Affine:
    """Return uint8 for [low, high], widened to hold zero, on 0..255."""
    low, high = min(bounds.low, 0.0), max(bounds.high, 0.0)
    scale = float(np.float32((high - low) / 255.0))
    if scale < _TINY:
        return Affine(1.0, 0, np.uint8, degenerate=True)
    return Affine(scale, int(np.clip(np.rint(-low / scale), 0, 255)), np.uint8)


def signed_or_unsigned(bounds: Bounds) -> Affine:
    """Return uint8 with zero point 0 where nothing is negative (by half a step at most), else symmetric int8."""
    unsigned = asymmetric(bounds)
    return symmetric(bounds) if unsigned.zero_point else unsigned


# How a dialect holds an activation. OpenVINO's integer kernels take either sign, but no zero point without a price: it
# costs ResNet-18's first convolution half its time again (OpenVINO 2026.4, matrix tiles).
ACTIVATION: Mapping[Dialect, Callable[[Bounds], Affine]] = {
    "tensorrt": symmetric,
    "cpu": asymmetric,
    "openvino": signed_or_unsigned,
}


def weight_scales(weight: Float32, axis: int, bias: Float32 | None = None, input_scale: float = 1.0) -> Float32:
    """Return one symmetric scale per index of `axis`.

    With a `bias` that is to be int32 at scale `input_scale * weight scale`, scales are widened where bias and products
    together could leave int32, and chosen for the bias alone where a channel's weights are all zero.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    scales = np.abs(weight.astype(np.float64)).max(axis=others) / 127.0
    empty = scales < _TINY
    if bias is None:
        scales[empty] = 1.0
    else:
        magnitudes = np.broadcast_to(np.abs(bias.astype(np.float64)).reshape(-1), scales.shape)
        # 2**24 steps keep every bit of a float32 bias.
        scales[empty] = np.where(magnitudes[empty] > 0, magnitudes[empty] / (input_scale * 2**24), 1.0)
        sums = np.abs(weight.astype(np.float64)).sum(axis=others)
        scales = np.maximum(scales, _least_scales(sums, magnitudes / input_scale, weight.size // len(scales)))
        scales = np.maximum(scales, _TINY / input_scale)  # below it the bias's scale would lose bits, or be zero
    return np.asarray(np.maximum(scales, _TINY), dtype=np.float32)


def _least_scales(sums: Float64, biases: Float64, products: int) -> Float64:
    """Return the scales from which on no accumulator wraps, whatever the input; where one does, it flips its sign.

    An accumulator starts from the bias and adds, for each weight, the weight's integer times at most 255. In steps of
    scale s that is at most (biases + 255 * sums) / s, and rounding adds half a step of bias and half of each weight.
    `biases` is in units of the input's scale, `sums` is the sum of a channel's magnitudes, `products` their number.
    """
    rounding = 128 * products + _FLOAT32_SLACK
    # Weights by the ten million leave no room; a larger scale cannot help where every one may round up to a step.
    return np.asarray((biases + 255.0 * sums) / max(2**24, _INT32_MAX - rounding), dtype=np.float64)


def stack_scales(weight: Float32) -> Float32:
    """Return one symmetric scale per column of every matrix of a stack.

    Shapes: (..., rows, columns) to (..., 1, columns).
    """
    scales = np.abs(weight.astype(np.float64)).max(axis=-2, keepdims=True) / 127.0
    return np.asarray(np.where(scales < _TINY, 1.0, scales), dtype=np.float32)


def to_int8(weight: Float32, scales: Float32, axis: int | None) -> npt.NDArray[np.int8]:
    """Return symmetric integers, one scale per index of `axis`; without one the scales broadcast."""
    shape: tuple[int, ...] = scales.shape
    if axis is not None:
        shape = tuple(-1 if i == axis % weight.ndim else 1 for i in range(weight.ndim))
    steps = np.rint(weight.astype(np.float64) / scales.astype(np.float64).reshape(shape))
    return np.asarray(np.clip(steps, -127, 127), dtype=np.int8)


def to_int32(bias: Float32, scales: Float32) -> npt.NDArray[np.int32]:
    """Return a bias as integers of the accumulator: scale = input scale * weight scale, zero point 0."""
    steps = np.rint(bias.astype(np.float64) / scales.astype(np.float64))
    return np.asarray(np.clip(steps, -_INT32_MAX, _INT32_MAX), dtype=np.int32)
