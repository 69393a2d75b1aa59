"""SmoothQuant keeps the function: what is absorbed, what needs a Mul, what is left alone, and what it is good for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from equalization_graphs import attention, block, constant, copy, differs_by, set_constant, texts
from quantization_graphs import Arrays, build

from optimizer.calibration import channels
from optimizer.calibration.channels import channel_maxima
from optimizer.errors import StageError
from optimizer.graph.equalize import Rewriting, bounded
from optimizer.graph.equalize_smooth import divisors, smooth, smoothed_activations

# Each of a handful of layers rounds its weights anew, to 2^-24 of themselves, and sums of 64 cancel a few bits.
ROUNDING = 4e-6
MLP_WEIGHTS = {"w1": (32, 8), "b1": (32,), "w2": (32, 4), "low": ()}


def mlp(between: str) -> onnx.ModelProto:
    return build(
        f"""g (float[batch, 8] x) => (float[batch, 4] y) {{
          h = Gemm <transB = 1> (x, w1, b1)
          a = {between}
          y = MatMul (a, w2)
        }}""",
        MLP_WEIGHTS,
    )


def maxima(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    channels = smoothed_activations(copy(model))
    return {name: np.exp(rng.normal(size=size) * 2) for name, size in channels.items()}


def smoothed(model: onnx.ModelProto, alpha: float = 0.5) -> tuple[onnx.ModelProto, list[str], list[str]]:
    """Return the smoothed copy, what was absorbed, and what was not."""
    result, given = copy(model), maxima(model)
    found = smooth(result, given, dict.fromkeys(given, alpha))
    onnx.checker.check_model(result, full_check=True)
    return result, sorted(found.absorbed), sorted(found.inserted)


def feed(model: onnx.ModelProto, seed: int = 3) -> dict[str, np.ndarray]:
    shape = [d.dim_value or 5 for d in model.graph.input[0].type.tensor_type.shape.dim]
    return {model.graph.input[0].name: np.random.default_rng(seed).normal(size=shape).astype(np.float32)}


def test_readers_of_one_normalisation_share_divisors_that_it_absorbs(tmp_path: Path) -> None:
    model = attention()
    result, absorbed, inserted = smoothed(model)
    assert (absorbed, inserted) == (["joined", "n"], [])
    assert [n.op_type for n in result.graph.node if n.op_type != "Constant"] == [
        n.op_type for n in model.graph.node if n.op_type != "Constant"
    ]
    shares = [constant(result, w) / constant(model, w) for w in ("wq", "wk")]
    np.testing.assert_allclose(shares[0], shares[1], rtol=1e-6)
    np.testing.assert_allclose(constant(result, "gamma") * shares[0][:, 0], constant(model, "gamma"), rtol=1e-6)
    assert differs_by(model, result, feed(model), tmp_path) < ROUNDING


def test_values_are_divided_through_heads_and_reshapes(tmp_path: Path) -> None:
    model = attention()
    result, _, _ = smoothed(model)
    out = constant(result, "wo")[:, 0] / constant(model, "wo")[:, 0]
    assert np.ptp(np.log(out)) > 1  # the divisors do differ
    np.testing.assert_allclose(constant(result, "bv") * out, constant(model, "bv"), rtol=1e-6)


def test_a_scale_that_is_wrong_by_a_thousandth_is_seen(tmp_path: Path) -> None:
    model = attention()
    result, _, _ = smoothed(model)
    set_constant(result, "wo", constant(result, "wo") * np.where(np.arange(16) == 3, 1.001, 1.0)[:, None])
    assert differs_by(model, result, feed(model), tmp_path) > 10 * ROUNDING


def test_an_activation_with_another_reader_is_divided_by_a_mul(tmp_path: Path) -> None:
    model = block(outlier=20.0)
    result, absorbed, inserted = smoothed(model)
    assert (absorbed, inserted) == ([], ["act", "n"])
    assert sum(n.op_type == "Mul" for n in result.graph.node) == 2
    assert next(n for n in result.graph.node if n.output[0] == "sum").input[1] == "n"  # the shortcut is as it was
    assert differs_by(model, result, feed(model), tmp_path) < ROUNDING


@pytest.mark.parametrize(
    "between", ["Relu (h)", "LeakyRelu <alpha = 0.1> (h)", "Identity (h)", "Mul (h, h_scale)", "Add (h, b1)", "Abs (h)"]
)
def test_positively_homogeneous_and_linear_operators_are_crossed(between: str, tmp_path: Path) -> None:
    model = mlp(between.replace("h_scale", "b1"))
    result, absorbed, inserted = smoothed(model)
    assert (absorbed, inserted) == (["a"], ["x"])  # nothing stands above an input
    assert differs_by(model, result, feed(model), tmp_path) < ROUNDING


@pytest.mark.parametrize(
    "between", ["Clip (h, low)", "Sigmoid (h)", "Tanh (h)", "HardSwish (h)", "Mul (h, h)", "Add (h, h)"]
)
def test_what_is_not_homogeneous_or_reads_twice_is_not_crossed(between: str, tmp_path: Path) -> None:
    model = mlp(between)
    result, absorbed, inserted = smoothed(model)
    assert (absorbed, inserted) == ([], ["a", "x"])
    assert differs_by(model, result, feed(model), tmp_path) < ROUNDING


def test_a_gated_product_is_divided_in_one_operand(tmp_path: Path) -> None:
    model = build(
        """g (float[batch, 8] x) => (float[batch, 4] y) {
          up = MatMul (x, w1)
          gate = MatMul (x, w3)
          open = Sigmoid (gate)
          a = Mul (open, up)
          y = MatMul (a, w2)
        }""",
        {"w1": (8, 32), "w3": (8, 32), "w2": (32, 4)},
    )
    result, absorbed, inserted = smoothed(model)
    assert (absorbed, inserted) == (["a"], ["x"])
    assert differs_by(model, result, feed(model), tmp_path) < ROUNDING


def test_values_are_divided_in_their_part_of_a_split(tmp_path: Path) -> None:
    model = build(
        """g (float[batch, 8] x) => (float[batch, 4] y, float[batch, 16] other) {
          whole = MatMul (x, w1)
          other, v = Split <num_outputs = 2> (whole)
          r = Relu (v)
          y = MatMul (r, w2)
        }""".replace("Split <num_outputs = 2>", "Split <num_outputs = 2, axis = 1>"),
        {"w1": (8, 32), "w2": (16, 4)},
    )
    result, absorbed, _ = smoothed(model)
    assert absorbed == ["r"]
    ratio = (constant(result, "w1") / constant(model, "w1"))[0] / (constant(result, "w1") / constant(model, "w1"))[0, 0]
    np.testing.assert_allclose(ratio[:16], 1.0, rtol=1e-6)
    assert differs_by(model, result, feed(model), tmp_path) < ROUNDING


def test_a_weight_that_others_read_is_not_scaled(tmp_path: Path) -> None:
    model = build(
        """g (float[batch, 8] x) => (float[batch, 8] y) {
          h = MatMul (x, w)
          a = Relu (h)
          z = MatMul (a, w)
          y = MatMul (z, w2)
        }""",
        {"w": (8, 8), "w2": (8, 8)},
    )
    assert list(smoothed_activations(copy(model))) == ["z"]
    result, absorbed, inserted = smoothed(model)
    assert (absorbed, inserted) == ([], ["z"])
    np.testing.assert_array_equal(constant(result, "w"), constant(model, "w"))
    assert differs_by(model, result, feed(model), tmp_path) < ROUNDING


def test_a_table_that_an_embedding_reads_too_is_not_scaled(tmp_path: Path) -> None:
    model = build(
        """g (int64[batch] ids, float[batch, 20] x) => (float[batch, 8] y) {
          e = Gather (table, ids)
          m = MatMul (x, table)
          y = Add (e, m)
        }""",
        {"table": (20, 8)},
    )
    assert smoothed_activations(copy(model)) == {}


def test_a_normalisations_constants_that_another_reads_are_copied(tmp_path: Path) -> None:
    model = build(
        """g (float[batch, 8] x) => (float[batch, 4] y, float[batch, 8] z) {
          n = LayerNormalization (x, gamma, beta)
          z = LayerNormalization (x, gamma, beta)
          y = MatMul (n, w)
        }""",
        {"gamma": (8,), "beta": (8,), "w": (8, 4)},
    )
    result, absorbed, _ = smoothed(model)
    assert absorbed == ["n"]
    np.testing.assert_array_equal(constant(result, "gamma"), constant(model, "gamma"))
    assert differs_by(model, result, feed(model), tmp_path) < ROUNDING


def test_alpha_one_levels_the_outliers_and_alpha_zero_the_weight(tmp_path: Path) -> None:
    model = mlp("Relu (h)")
    given = {"a": np.where(np.arange(32) % 8 == 3, 1.0 + np.arange(32), 0.25)}
    outliers = given["a"] > 1
    for alpha in (0.0, 1.0):
        result = copy(model)
        smooth(result, given, {"a": alpha})
        rewriting = Rewriting(result)
        weight = rewriting.magnitudes(next(r for r in rewriting.readers(("MatMul",)) if r.tensor == "a"))
        each = np.abs(constant(result, "w2")[:, 0] / constant(model, "w2")[:, 0])
        levelled = (given["a"] / each)[outliers] if alpha else weight
        assert np.ptp(np.log(levelled)) < 1e-5
        assert differs_by(model, result, feed(model), tmp_path) < ROUNDING


def test_a_quiet_channel_is_not_blown_up() -> None:
    """It may speak in other samples: beside ordinary channels it keeps its size, whatever alpha."""
    activation, weight = np.array([1e-3, 1.0, 1.0, 1.0, 50.0]), np.ones(5)
    for alpha in (0.5, 0.8, 1.0):
        each = divisors(activation, weight, alpha)
        np.testing.assert_allclose(each[:4], each[0])
        assert each[4] / each[0] == pytest.approx(50.0**alpha)


def test_dead_channels_keep_their_scale_and_divisors_stay_in_range() -> None:
    each = divisors(np.array([0.0, 4.0, 1e-30, 1e30]), np.array([1.0, 1.0, 1.0, 0.0]), 0.5)
    assert each[0] == each[3] == 1.0
    assert np.isfinite(each).all()
    assert each.max() / each.min() <= 2.0**40
    np.testing.assert_array_equal(bounded(np.zeros(3)), np.ones(3))


def test_channel_maxima_are_those_of_all_samples_of_any_length() -> None:
    model, samples = block(outlier=20.0), texts(21)
    channels = smoothed_activations(copy(model))
    found = channel_maxima(copy(model), {"x": 16} | channels, samples, lambda done, total: None)
    assert {name: len(values) for name, values in found.items()} == {"x": 16, "n": 16, "act": 64}
    expected = np.max([np.abs(a).max(axis=0) for a in samples.arrays], axis=0)
    np.testing.assert_array_equal(found["x"], expected)


def test_new_names_are_none_that_a_subgraph_has(tmp_path: Path) -> None:
    model = build(
        """g (float[batch, 8] x, bool c) => (float[batch, 8] y) {
          a = MatMul (x, w)
          y = If (c) <
            then_branch = t () => (float[batch, 8] o) { x_smoothed = Abs (a) o = Neg (x_smoothed) },
            else_branch = e () => (float[batch, 8] p) { p = Abs (a) }
          >
        }""",
        {"w": (8, 8)},
    )
    result, _, inserted = smoothed(model)
    assert inserted == ["x"]
    assert "x_smoothed_1" in {name for node in result.graph.node for name in node.output}
    given = {"x": np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32), "c": np.array(True)}
    assert differs_by(model, result, given, tmp_path) < ROUNDING


def test_unnamed_lengths_are_followed_only_where_shapes_are_known(tmp_path: Path) -> None:
    """Behind a Reshape to sizes that the graph computes from data, nothing is absorbed; a Mul does it."""
    model = build(
        """g (float[batch, 8] x, int64[2] sizes) => (float[rows, 4] y) {
          h = MatMul (x, w1)
          r = Reshape (h, sizes)
          y = MatMul (r, w2)
        }""",
        {"w1": (8, 16), "w2": (8, 4)},
    )
    result, absorbed, inserted = smoothed(model)
    assert (absorbed, inserted) == ([], ["r", "x"])
    given = {**feed(model), "sizes": np.array([10, 8])}
    assert differs_by(model, result, given, tmp_path) < ROUNDING


def test_channel_maxima_refuse_what_overflows_and_name_the_samples() -> None:
    model, samples = mlp("Exp (h)"), texts(5, width=8)
    samples.arrays = [np.full(8, 1000.0 * (-1) ** i, dtype=np.float32) for i in range(5)]
    with pytest.raises(StageError, match="activation 'a' becomes NaN or infinite on sample picture-0\n"):
        channel_maxima(copy(model), {"a": 32}, samples, lambda done, total: None)
    samples.arrays[0] = np.zeros(8, dtype=np.float32)
    with pytest.raises(StageError, match="on one of the samples picture-1 to picture-4\n"):
        channel_maxima(copy(model), {"a": 32}, samples, lambda done, total: None)


def batches_of(lengths: list[int], budget: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many sentences of these lengths go through the graph at once; a word of one takes 64 bytes."""
    rng = np.random.default_rng(0)
    samples = Arrays([rng.normal(size=(n, 16)).astype(np.float32) for n in lengths], name="x")
    monkeypatch.setattr(channels, "_BUDGET_BYTES", budget)
    done: list[int] = []
    channel_maxima(block(outlier=1.0), {"x": 16}, samples, lambda count, total: done.append(count))
    return list(np.diff([0, *done]))


def test_long_samples_go_through_the_graph_in_batches_that_fit_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [10] * 20 + [200] * 4
    assert batches_of(lengths, 64 * 400, monkeypatch) == [1, 15, 4, 1, 1, 2]
    assert batches_of(lengths, 64 << 20, monkeypatch) == [1, 15, 4, 1, 3]  # the twin: nothing but the count limits
    assert batches_of([200] * 3, 1, monkeypatch) == [1, 1, 1]


def test_a_graph_of_fixed_batch_is_filled_up() -> None:
    model = mlp("Relu (h)")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    samples = texts(6, width=8)
    samples.arrays = [array[0] for array in samples.arrays]
    found = channel_maxima(model, {"x": 8}, samples, lambda done, total: None)
    np.testing.assert_array_equal(found["x"], np.abs(samples.arrays).max(axis=0))


def test_maxima_are_the_same_before_axes_became_an_input() -> None:
    """Opset 17: ReduceMax takes its axes as an attribute."""
    model = mlp("Relu (h)")
    model.opset_import[0].version = 17
    samples = texts(6, width=8)
    samples.arrays = [array[0] for array in samples.arrays]
    found = channel_maxima(model, {"x": 8}, samples, lambda done, total: None)
    np.testing.assert_array_equal(found["x"], np.abs(samples.arrays).max(axis=0))
