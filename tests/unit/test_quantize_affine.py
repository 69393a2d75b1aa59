from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.calibration.estimators import Estimate
from optimizer.graph.affine import Affine, asymmetric, symmetric, to_int8, to_int32, weight_scales

bounds = st.floats(-1e6, 1e6, width=32)


def round_trip(values: np.ndarray, affine: Affine) -> np.ndarray:
    """QuantizeLinear and DequantizeLinear of the ONNX specification, in float64."""
    info = np.iinfo(affine.dtype)
    steps = np.clip(np.rint(values / affine.scale) + affine.zero_point, info.min, info.max)
    return (steps - affine.zero_point) * affine.scale


@settings(deadline=None)
@given(bounds, bounds)
def test_zero_is_exact_and_the_range_is_covered_within_half_a_step(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    estimate = Estimate(low, high, max(abs(low), abs(high)))
    for affine in (symmetric(estimate), asymmetric(estimate)):
        assert round_trip(np.zeros(1), affine)[0] == 0.0
        if affine.degenerate:
            continue
        inside = np.linspace(min(low, 0.0), max(high, 0.0), 50)
        # Rounding costs half a step; rounding the zero point shifts the ends by up to half a step more.
        steps = 1.0 if affine.dtype is np.uint8 else 0.5
        assert np.abs(round_trip(inside, affine) - inside).max() <= affine.scale * (steps + 1e-4)


def test_half_a_step_is_a_tolerance_that_a_wrong_zero_point_does_not_meet() -> None:
    right = asymmetric(Estimate(-1.0, 3.0, 3.0))
    wrong = Affine(right.scale, right.zero_point + 30, right.dtype)
    inside = np.linspace(-1.0, 3.0, 50)
    assert np.abs(round_trip(inside, wrong) - inside).max() > 10 * right.scale


def test_symmetric_int8_has_zero_point_0_and_asymmetric_starts_relu_at_0() -> None:
    assert symmetric(Estimate(-1.0, 12.7, 12.7)) == Affine(float(np.float32(0.1)), 0, np.int8)
    assert asymmetric(Estimate(0.0, 2.55, 2.55)).zero_point == 0
    assert asymmetric(Estimate(1.0, 2.55, 2.55)).zero_point == 0  # widened to hold zero
    assert asymmetric(Estimate(-2.0, -1.0, 2.0)).zero_point == 255


@pytest.mark.parametrize("estimate", [Estimate(0.0, 0.0, 0.0), Estimate(-1e-44, 1e-44, 1e-44)])
def test_a_range_of_zero_gets_scale_one(estimate: Estimate) -> None:
    for affine in (symmetric(estimate), asymmetric(estimate)):
        assert (affine.scale, affine.zero_point, affine.degenerate) == (1.0, 0, True)


def test_rounding_is_half_to_even_and_saturates() -> None:
    weight = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, 127.0, -127.0]], dtype=np.float32)
    assert to_int8(weight, np.ones(1, np.float32), 0).tolist() == [[0, 2, 2, 0, -2, 127, -127]]
    assert to_int8(weight * 2, np.ones(1, np.float32), 0)[0, 5:].tolist() == [127, -127]


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_are_scaled_along_the_axis(axis: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 6, 3, 3)).astype(np.float32)
    scales = weight_scales(weight, axis)
    expected = np.abs(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)).max(axis=1) / 127
    np.testing.assert_allclose(scales, expected, rtol=1e-6)
    shape = [1, 1, 1, 1]
    shape[axis] = -1
    restored = to_int8(weight, scales, axis) * scales.reshape(shape)
    assert (np.abs(restored - weight) <= scales.reshape(shape) * 0.5001).all()


def test_a_channel_without_weights_keeps_its_bias() -> None:
    weight = np.array([[0.0, 0.0], [1.0, -2.0]], dtype=np.float32)
    bias = np.array([0.31, 0.1], dtype=np.float32)
    scales = weight_scales(weight, 0, bias, 0.02)
    steps = np.float32(0.02) * scales
    restored = to_int32(bias, steps) * steps.astype(np.float64)
    assert restored[0] == pytest.approx(0.31, abs=1e-6)
    assert restored[1] == pytest.approx(0.1, abs=float(steps[1]))
    plain = np.float32(0.02) * weight_scales(weight, 0)  # scale 1: steps of 0.02 for the bias
    assert abs(to_int32(bias, plain)[0] * plain[0] - 0.31) > 5e-3


def test_tiny_weights_under_a_large_bias_do_not_overflow_int32() -> None:
    weight = np.full((1, 4), 1e-12, dtype=np.float32)
    bias = np.array([5.0], dtype=np.float32)
    steps = np.float32(0.01) * weight_scales(weight, 0, bias, 0.01)
    assert to_int32(bias, steps)[0] * float(steps[0]) == pytest.approx(5.0, rel=1e-5)
    overflowing = np.float32(0.01) * weight_scales(weight, 0)
    assert to_int32(bias, overflowing)[0] * float(overflowing[0]) < 0.1
