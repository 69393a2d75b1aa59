"""float_share: the layers that stay in float are those that gain the outputs most, within a share of the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from optimizer.calibration.probe import halves
from optimizer.calibration.spare import spare
from optimizer.calibration.table import CalibrationTable, MethodRange, TensorRange
from optimizer.data.samples import Sample
from optimizer.graph.quantize import quantize


def network() -> onnx.ModelProto:
    """A cheap layer (16 x 16, coarse: its input's range is 100 times too wide) before and behind two costly ones."""
    rng = np.random.default_rng(0)
    shapes = {"cheap": (16, 64), "wide": (64, 64), "wider": (64, 64), "last": (64, 4)}
    nodes, name = [], "x"
    for layer in shapes:
        nodes += [
            helper.make_node("MatMul", [name, f"{layer}_w"], [f"{layer}_m"], name=layer),
            helper.make_node("Relu", [f"{layer}_m"], [f"{layer}_r"], name=f"{layer}_relu"),
        ]
        name = f"{layer}_r"
    nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", 1, ["batch", 16])],
        [helper.make_tensor_value_info("y", 1, ["batch", 4])],
        [
            numpy_helper.from_array((rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32), f"{layer}_w")
            for layer, shape in shapes.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


MACS = {"cheap": 16 * 64, "wide": 64 * 64, "wider": 64 * 64, "last": 64 * 4}


def samples(count: int = 64) -> Any:
    rows = np.random.default_rng(1).normal(size=(count, 16)).astype(np.float32)
    return [Sample({"x": row}, None, str(i)) for i, row in enumerate(rows)]


def table(coarse: str) -> CalibrationTable:
    inputs = {"cheap": "x", "wide": "cheap_r", "wider": "wide_r", "last": "wider_r"}
    ranges = {}
    for layer, name in inputs.items():
        found = MethodRange(-4.0, 4.0, 100.0 if layer == coarse else 4.0)
        ranges[name] = TensorRange(-4.0, 4.0, 64, "minmax", {"minmax": found})
    ranges["rows"] = ranges[inputs["last"]]
    return CalibrationTable("minmax", 99.999, 64, ranges)


def spared(coarse: str, budget: float, network: Callable[[], onnx.ModelProto] = network) -> Any:
    made = table(coarse)
    return spare(
        network(),
        lambda layers: quantize(network(), made.tensors, "tensorrt", tuple(layers)),
        budget,
        halves(samples(), "float_share"),
        lambda *_: None,
    )


@pytest.mark.parametrize("coarse", ["cheap", "last"])
def test_the_layer_that_costs_the_outputs_most_is_spared(coarse: str) -> None:
    found = spared(coarse, 0.12)
    assert found.layers[0] == coarse
    assert found.share == pytest.approx(sum(MACS[n] for n in found.layers) / sum(MACS.values()))
    assert found.share <= 0.12
    assert found.after_db > found.before_db + 5
    assert coarse in found.sentence()


def test_a_layer_beyond_the_budget_stays_in_int8() -> None:
    found = spared("wide", 0.12)  # it alone has 42 % of the work
    assert "wide" not in found.layers
    assert found.share <= 0.12


def test_where_nothing_fits_nothing_is_spared() -> None:
    found = spared("wide", 0.01)
    assert (found.layers, found.share) == ((), 0.0)
    assert found.after_db == found.before_db
    assert found.sentence() == "float_share: no layer gains the outputs anything in float"


def uncounted() -> onnx.ModelProto:
    """`network`, whose layer `last` gets those rows alone that a condition takes: all, which no graph tells."""
    model = network()
    graph = model.graph
    nodes = list(graph.node)
    last = next(i for i, node in enumerate(nodes) if node.name == "last")
    made = [
        helper.make_node("ReduceMax", ["wider_r", "axis"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "low"], ["taken"]),
        helper.make_node("Compress", ["wider_r", "taken"], ["rows"], axis=0),
    ]
    nodes[last].input[0] = "rows"
    del graph.node[:]
    graph.node.extend([*nodes[:last], *made, *nodes[last:]])
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
    graph.initializer.append(numpy_helper.from_array(np.float32(-9), "low"))
    return model


def test_a_layer_that_cannot_be_counted_is_not_spared() -> None:
    """Its lower bound would fit in any budget; counted (above), the same layer is the first to be spared."""
    assert "last" not in spared("last", 0.12, uncounted).layers


def test_a_gain_within_chance_on_the_samples_that_judge_spares_no_layer() -> None:
    made = table("cheap")
    chosen, judging = halves(samples(), "float_share")

    def found(data: Any) -> Any:
        return spare(
            network(),
            lambda layers: quantize(network(), made.tensors, "tensorrt", tuple(layers)),
            0.12,
            data,
            lambda *_: None,
        )

    few = [judging[i] for i in range(5)]  # better in all five, which chance does in one of 32 cases
    assert found((chosen, few)).layers == ()
    assert found((chosen, judging)).layers != ()
