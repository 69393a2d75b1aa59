from __future__ import annotations

import pytest
from quantization_graphs import Arrays, build, pictures, residual

from optimizer.calibration.collect import collect
from optimizer.calibration.estimators import Estimate, minmax
from optimizer.calibration.reading import stand_ins, tensors_to_calibrate
from optimizer.errors import StageError
from optimizer.graph.quantize import activations, quantize

HEAD = "g (float[batch, 3, 8, 8] image) => ({out}) {{ r = Relu (image) "
POOL = "m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r) y = Conv (m, w0) }"
WEIGHTS = {"w0": (2, 3, 1, 1)}
BOTH = ("cpu", "tensorrt")


def graph(body: str, out: str = "float[batch, 2, a, b] y"):  # type: ignore[no-untyped-def]
    return build(HEAD.format(out=out) + body, WEIGHTS)


def test_what_only_a_pool_reads_is_read_behind_it() -> None:
    assert stand_ins(graph(POOL), ["image", "r", "m"]) == {"image": "image", "r": "m", "m": "m"}


def test_what_another_node_reads_before_the_pool_is_read_there() -> None:
    model = graph("m = MaxPool <kernel_shape = [1, 1]> (r) s = Add (m, r) y = Conv (s, w0) }")
    assert stand_ins(model, ["r", "m"]) == {"r": "r", "m": "m"}


def test_what_the_graph_gives_out_before_the_pool_is_read_there() -> None:
    model = graph(POOL, "float[batch, 2, a, b] y, float[batch, 3, 8, 8] r")
    assert stand_ins(model, ["r", "m"])["r"] == "r"


def test_values_that_are_only_moved_are_read_once_whoever_else_reads_them() -> None:
    model = graph("t = Transpose <perm = [0, 1, 3, 2]> (r) s = Add (t, r) y = Conv (s, w0) }")
    assert stand_ins(model, ["r", "t"]) == {"r": "t", "t": "t"}


def test_a_pool_behind_a_move_stands_only_for_what_nothing_else_reads() -> None:
    body = "t = Transpose <perm = [0, 1, 3, 2]> (r) m = MaxPool <kernel_shape = [2, 2]> (t) y = Conv ({0}, w0) {1}}}"
    alone = graph(body.format("m", ""))
    assert stand_ins(alone, ["r", "t", "m"]) == {"r": "m", "t": "m", "m": "m"}
    beside = graph(body.format("m", "z = Neg (r) "), "float[batch, 2, a, b] y, float[batch, 3, 8, 8] z")
    assert stand_ins(beside, ["r", "t", "m"]) == {"r": "t", "t": "m", "m": "m"}


def test_a_tensor_nobody_asked_for_stands_for_none() -> None:
    assert stand_ins(graph(POOL), ["r"]) == {"r": "r"}


def test_a_stand_in_shares_its_histogram() -> None:
    found = collect(graph(POOL), ["r", "m", "image"], Arrays(pictures(6)), lambda done, total: None).histograms
    assert found["r"] is found["m"]
    assert found["m"].total == 6 * 3 * 16
    assert found["image"].total == 6 * 3 * 64


def test_what_only_int8_sums_ask_for_is_left_out_without_them() -> None:
    every = tensors_to_calibrate(residual(), BOTH, integer_sums=True)
    assert every == activations(residual())
    lean = tensors_to_calibrate(residual(), BOTH, integer_sums=False)
    assert set(lean) < set(every)
    ranges = {name: minmax_of(name) for name in lean}
    with pytest.raises(StageError, match=f"no range for {sorted(set(every) - set(lean))[0]}"):
        quantize(residual(), ranges, "cpu", residuals="int8")


def minmax_of(name: str) -> Estimate:
    del name
    return Estimate(-1.0, 1.0, 1.0)


@pytest.mark.parametrize("dialect", ["tensorrt", "cpu", "openvino"])
def test_plain_quantization_finds_all_its_ranges_among_the_fewer(dialect: str) -> None:
    model = residual()
    names = tensors_to_calibrate(residual(), BOTH, integer_sums=False)
    samples = Arrays(pictures(6, 16))
    found = collect(model, names, samples, lambda done, total: None).histograms
    made = quantize(residual(), {n: minmax(h) for n, h in found.items()}, dialect)  # type: ignore[arg-type]
    assert any(n.op_type == "QuantizeLinear" for n in made.model.graph.node)


def test_openvino_reads_little_more_than_tensorrt() -> None:
    """Only what stands before a pool or a reshape: what convolutions write for a sum is not read."""
    tensorrt, openvino, cpu = (
        set(tensors_to_calibrate(residual(), (dialect,), integer_sums=False))
        for dialect in ("tensorrt", "openvino", "cpu")
    )
    assert tensorrt <= openvino
    assert openvino < cpu
    ranges = {name: minmax_of(name) for name in openvino}
    assert "QuantizeLinear" in {n.op_type for n in quantize(residual(), ranges, "openvino").model.graph.node}


def test_each_dialect_reads_no_more_than_it_asks_for() -> None:
    lean = tensors_to_calibrate(residual(), ("tensorrt",), integer_sums=False)
    assert set(lean) < set(tensors_to_calibrate(residual(), ("cpu",), integer_sums=False))
    ranges = {name: minmax_of(name) for name in lean}
    assert "QuantizeLinear" in {node.op_type for node in quantize(residual(), ranges, "tensorrt").model.graph.node}
    with pytest.raises(StageError, match="no range for"):
        quantize(residual(), ranges, "cpu")
