"""method: auto: what each tensor's range does to the outputs decides, not what it does to the tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from optimizer.calibration.choose import DEFAULT, _single, choose
from optimizer.calibration.probe import halves
from optimizer.calibration.table import CalibrationTable, MethodRange, TensorRange
from optimizer.data.samples import Sample
from optimizer.errors import StageError
from optimizer.graph.quantize import quantize

CHANNELS = 64
OUTLIER = 5


def network(*, integers_only: bool = False) -> onnx.ModelProto:
    """y = a A + b B. Both activations have one channel of large values; only A reads it, B multiplies it by zero."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, CHANNELS, 8)).astype(np.float32)
    b[OUTLIER] = 0
    nodes = [
        helper.make_node("MatMul", ["a", "A"], ["ya"], name="reads_it"),
        helper.make_node("MatMul", ["b", "B"], ["yb"], name="ignores_it"),
        helper.make_node("Add", ["ya", "yb"], ["y"], name="add"),
    ]
    output = helper.make_tensor_value_info("y", 1, ["batch", 8])
    if integers_only:
        nodes.append(helper.make_node("ArgMax", ["y"], ["best"], name="best", axis=1))
        output = helper.make_tensor_value_info("best", 7, ["batch", 1])
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info(n, 1, ["batch", CHANNELS]) for n in ("a", "b")],
        [output],
        [numpy_helper.from_array(a, "A"), numpy_helper.from_array(b, "B")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def samples(count: int = 64) -> Any:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(count, 2, CHANNELS)).astype(np.float32)
    values[:, :, OUTLIER] *= 30
    return [Sample({"a": row[0], "b": row[1]}, None, str(i)) for i, row in enumerate(values)]


def table() -> CalibrationTable:
    """As `calibrate` would write it: minmax covers the large channel, percentile (98 here) clips it."""
    wide, narrow = MethodRange(-90.0, 90.0, 90.0), MethodRange(-4.0, 4.0, 4.0)
    methods = {"minmax": wide, "percentile": narrow, "entropy": wide, "mse": wide}
    return CalibrationTable("auto", 98.0, 64, {n: TensorRange(-90.0, 90.0, 64, "minmax", methods) for n in ("a", "b")})


def chosen(dialect: Any, data: Any = None, **options: Any) -> Any:
    made = quantize(network(**options), table().tensors, dialect)
    return choose(
        made, network(**options), table(), dialect, halves(data or samples(), "method: auto"), lambda *_: None
    )


@pytest.mark.parametrize("dialect", ["tensorrt", "cpu", "openvino"])
def test_a_range_is_clipped_where_the_outputs_do_not_read_what_is_lost(dialect: Any) -> None:
    found = chosen(dialect)
    assert found.methods["b"] == "percentile"
    assert found.methods["a"] != "percentile"
    # Either one method for both tensors loses: it clips what is read, or gives the other tensor steps of 0.7.
    assert found.db > max(found.uniform_db.values()) + 1.5
    assert found.uniform_db["percentile"] < found.uniform_db["minmax"]


def test_the_sentence_names_counts_and_numbers() -> None:
    found = chosen("tensorrt")
    assert "percentile 1" in found.sentence()
    assert f"{found.db:.1f} dB on 32 other calibration samples" in found.sentence()
    assert set(found.uniform_db) == {"minmax", "percentile", "entropy", "mse"}


def test_a_few_samples_cannot_both_choose_and_judge() -> None:
    with pytest.raises(
        StageError, match="needs at least 12 samples, to choose by some and judge by others; there are 11"
    ):
        chosen("tensorrt", samples(11))


def test_a_graph_without_float_outputs_says_nothing_of_how_far_it_was() -> None:
    with pytest.raises(StageError, match="floating-point outputs"):
        chosen("tensorrt", integers_only=True)


def test_another_single_method_takes_the_place_of_the_default_only_where_it_is_surely_better() -> None:
    rng = np.random.default_rng(0)
    replaced = luckiest = 0
    for _ in range(100):
        shares = {method: rng.chisquare(2, 64) for method in ("minmax", DEFAULT, "entropy", "mse")}
        luckiest += min(shares, key=lambda method: float(shares[method].sum())) != DEFAULT
        replaced += any(_single(shares, start) != DEFAULT for start in shares)
    assert replaced <= 8  # three comparisons, each of 2.5 %
    assert luckiest > 60  # the twin: the best number
    better = {DEFAULT: rng.chisquare(2, 64), "mse": rng.chisquare(2, 64) / 4}
    assert _single(better, "mse") == "mse"
    assert _single(better, DEFAULT) == DEFAULT
