"""Cross-layer equalisation keeps the function and crosses nothing that is not positively homogeneous."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from equalization_graphs import constant, copy, differs_by, set_constant
from quantization_graphs import build, residual, small_cnn

from optimizer.graph.equalize_layers import equalize_layers

# Square roots and products in float32, some tens of rounds of them.
ROUNDING = 1e-5


def pair(between: str, kind: str = "Conv") -> onnx.ModelProto:
    return build(
        f"""g (float[batch, 4, 8, 8] x) => (float[batch, 6, height, width] y) {{
          h = {kind} <pads = [1, 1, 1, 1]> (x, w1, b1)
          a = {between}
          y = Conv (a, w2)
        }}""",
        {
            "w1": (8, 4, 3, 3) if kind == "Conv" else (4, 8, 3, 3),
            "b1": (8,),
            "w2": (6, 8, 1, 1),
            "slope": (8, 1, 1),
            "low": (),
        },
    )


def equalized(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[tuple[str, str], ...], float]:
    result = copy(model)
    found = equalize_layers(result)
    onnx.checker.check_model(result, full_check=True)
    return result, found.pairs, found.after


def pictures(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    value = model.graph.input[0]
    shape = [3, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:])]
    return {value.name: np.random.default_rng(1).normal(size=shape).astype(np.float32)}


@pytest.mark.parametrize(
    "between",
    [
        "Relu (h)",
        "LeakyRelu <alpha = 0.2> (h)",
        "PRelu (h, slope)",
        "MaxPool <kernel_shape = [2, 2]> (h)",
        "AveragePool <kernel_shape = [2, 2]> (h)",
    ],
)
def test_channels_of_a_pair_end_with_equal_ranges(between: str, tmp_path: Path) -> None:
    model = pair(between)
    result, pairs, after = equalized(model)
    assert pairs == (("node_h", "node_y"),)
    first = np.abs(constant(result, "w1")).max(axis=(1, 2, 3))
    second = np.abs(constant(result, "w2")).max(axis=(0, 2, 3))
    np.testing.assert_allclose(first / second, (first / second)[0], rtol=1e-4)
    assert after == pytest.approx(1.0, abs=1e-4)
    assert differs_by(model, result, pictures(model), tmp_path) < ROUNDING


def test_a_weight_that_missed_its_scale_is_seen(tmp_path: Path) -> None:
    model = pair("Relu (h)")
    result, _, _ = equalized(model)
    set_constant(result, "b1", constant(model, "b1"))
    assert differs_by(model, result, pictures(model), tmp_path) > 100 * ROUNDING


@pytest.mark.parametrize("between", ["Clip (h, low)", "Sigmoid (h)", "HardSwish (h)", "Elu (h)", "Softplus (h)"])
def test_what_bends_elsewhere_than_at_zero_is_not_crossed(between: str) -> None:
    model = pair(between)
    result, pairs, _ = equalized(model)
    assert pairs == ()
    np.testing.assert_array_equal(constant(result, "w1"), constant(model, "w1"))


def test_depthwise_and_transposed_convolutions_are_equalized(tmp_path: Path) -> None:
    model = build(
        """g (float[batch, 4, 8, 8] x) => (float[batch, 6, height, width] y) {
          h1 = Conv (x, w1, b1)
          r1 = Relu (h1)
          h2 = Conv <group = 8> (r1, w2, b2)
          r2 = Relu (h2)
          h3 = Conv <group = 2> (r2, w3)
          r3 = Relu (h3)
          h4 = ConvTranspose <group = 2> (r3, w4, b4)
          r4 = Relu (h4)
          h5 = ConvTranspose (r4, w5)
          r5 = Relu (h5)
          y = Conv (r5, w6)
        }""",
        {
            "w1": (8, 4, 3, 3), "b1": (8,), "w2": (16, 1, 3, 3), "b2": (16,), "w3": (10, 8, 1, 1),
            "w4": (10, 3, 2, 2), "b4": (6,), "w5": (6, 4, 2, 2), "w6": (6, 4, 1, 1),
        },
    )  # fmt: skip
    result, pairs, after = equalized(model)
    assert len(pairs) == 5
    assert after < 1.1
    assert differs_by(model, result, pictures(model), tmp_path) < ROUNDING


def test_a_residual_sum_and_what_it_reads_are_left_alone(tmp_path: Path) -> None:
    model = residual()
    result, pairs, _ = equalized(model)
    assert pairs == (("node_c1", "node_c2"),)
    assert differs_by(model, result, pictures(model), tmp_path) < ROUNDING


def test_the_first_convolution_of_a_small_network_feeds_the_second_through_its_pool(tmp_path: Path) -> None:
    model = small_cnn()
    result, pairs, _ = equalized(model)
    assert pairs == (("node_c1", "node_c2"),)
    assert differs_by(model, result, pictures(model), tmp_path) < ROUNDING


def test_a_weight_that_two_layers_share_is_not_scaled() -> None:
    model = build(
        """g (float[batch, 4, 8, 8] x) => (float[batch, 4, 8, 8] y) {
          h = Conv (x, w)
          a = Relu (h)
          y = Conv (a, w)
        }""",
        {"w": (4, 4, 1, 1)},
    )
    assert equalized(model)[1] == ()


def test_dead_channels_stay_dead_and_finite(tmp_path: Path) -> None:
    model = pair("Relu (h)")
    weight = constant(model, "w1")
    weight[2] = 0
    set_constant(model, "w1", weight)
    result, _, _ = equalized(model)
    assert np.isfinite(constant(result, "w2")).all()
    assert differs_by(model, result, pictures(model), tmp_path) < ROUNDING


@pytest.mark.parametrize(
    "between",
    [
        # A shuffle of channels, and one channel of the reader made of many of the producer's.
        """split = Constant <value = int64[5] {-1, 2, 4, 4, 4}> ()
          whole = Constant <value = int64[4] {-1, 8, 4, 4}> ()
          s = Reshape (h, split)
          t = Transpose <perm = [0, 2, 1, 3, 4]> (s)
          a = Reshape (t, whole)""",
        """whole = Constant <value = int64[4] {-1, 8, 4, 4}> ()
          flat = Flatten (h)
          g = Gemm (flat, w3)
          a = Reshape (g, whole)""",
    ],
)
def test_channels_that_a_reshape_moves_are_not_paired(between: str) -> None:
    model = build(
        f"""g (float[batch, 4, 4, 4] x) => (float[batch, 6, 4, 4] y) {{
          h = Conv (x, w1)
          {between}
          y = Conv (a, w2)
        }}""",
        {"w1": (8, 4, 1, 1), "w2": (6, 8, 1, 1), "w3": (128, 128)},
    )
    assert equalized(model)[1] == ()
