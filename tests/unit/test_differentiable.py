"""Graphs interpreted in torch: every operator against onnxruntime, the gradient of rounding against its definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from index_cases import INDEX_CASES
from onnx import helper, numpy_helper

from optimizer.errors import StageError
from optimizer.graph.differentiable import TorchGraph, fake_quantize
from optimizer.graph.differentiable_operators import OPERATORS
from optimizer.graph.modules import MODULE
from optimizer.runtime.onnx import OnnxSession

RNG = np.random.default_rng(0)


def floats(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def positive(*shape: int) -> Any:
    return np.abs(floats(*shape)) + 0.5


def ints(*values: int) -> Any:
    return np.array(values, dtype=np.int64)


IMAGE = floats(2, 4, 6, 6)
# operator -> the activation, its constants (None: left out), and attributes; several cases where one is not enough
CASES: dict[str, list[tuple[Any, list[Any], dict[str, Any]]]] = {
    "Conv": [
        (IMAGE, [floats(6, 4, 3, 3), floats(6)], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        (IMAGE, [floats(4, 2, 3, 3)], {"group": 2, "dilations": [2, 2]}),
        (IMAGE, [floats(6, 4, 3, 3)], {"pads": [0, 0, 1, 1], "strides": [2, 2]}),
        (floats(2, 4, 9), [floats(6, 4, 3)], {}),
    ],
    "ConvTranspose": [
        (IMAGE, [floats(4, 3, 2, 2), floats(3)], {"strides": [2, 2]}),
        (
            IMAGE,
            [floats(4, 3, 3, 3)],
            {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1], "group": 2},
        ),
    ],
    "Gemm": [
        (floats(3, 4), [floats(5, 4), floats(5)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
        (floats(4, 3), [floats(4, 5)], {"transA": 1}),
    ],
    "MatMul": [(floats(2, 3, 4), [floats(4, 5)], {})],
    "MaxPool": [
        (IMAGE, [], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        (IMAGE, [], {"kernel_shape": [3, 3], "pads": [1, 1, 0, 0]}),
    ],
    "AveragePool": [
        (IMAGE, [], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        (IMAGE, [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
        (IMAGE, [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ],
    "GlobalAveragePool": [(IMAGE, [], {})],
    "ReduceMean": [(IMAGE, [ints(2, 3)], {"keepdims": 0}), (IMAGE, [], {}), (IMAGE, [], {"noop_with_empty_axes": 1})],
    "ReduceSum": [(IMAGE, [ints(-1)], {})],
    "ReduceMax": [(IMAGE, [ints(1, 2)], {})],
    "Reshape": [(IMAGE, [ints(0, -1)], {}), (IMAGE, [ints(2, 12, 12)], {})],
    "Slice": [
        (IMAGE, [ints(1), ints(100), ints(-1), ints(2)], {}),
        (IMAGE, [ints(-3, 0), ints(-1, 2), ints(2, 3)], {}),
        (IMAGE, [ints(-1), ints(-100), ints(3), ints(-1)], {}),
        (IMAGE, [ints(5), ints(1), ints(3), ints(-2)], {}),
    ],
    "Pad": [(IMAGE, [ints(0, 1, 2, 0, 0, 0, 1, 3), np.array(1.5, np.float32)], {})],
    "Gather": [(IMAGE, [ints(0, -1, 1)], {"axis": 1}), (IMAGE, [np.array(2, dtype=np.int64)], {"axis": -1})],
    "Cast": [(IMAGE * 3, [], {"to": 6}), (IMAGE, [], {"to": 11})],
    "LayerNormalization": [
        (floats(2, 3, 8), [floats(8), floats(8)], {"epsilon": 1e-3}),
        (floats(2, 3, 8), [floats(3, 8)], {"axis": 1}),
    ],
    "BatchNormalization": [
        (IMAGE, [floats(4), floats(4), floats(4), positive(4)], {"epsilon": 1e-2}),
        (floats(2, 4, 9), [floats(4), floats(4), floats(4), positive(4)], {}),
        (floats(5, 4), [floats(4), floats(4), floats(4), positive(4)], {}),
    ],
    "Clip": [
        (IMAGE, [np.array(-0.5, np.float32), np.array(0.5, np.float32)], {}),
        (IMAGE, [None, np.array(0.1, np.float32)], {}),
    ],
    "Squeeze": [(floats(2, 1, 3, 1), [ints(1)], {}), (floats(2, 1, 3, 1), [], {})],
    "Unsqueeze": [(floats(2, 3), [ints(0, -1)], {})],
    "Shape": [(IMAGE, [], {}), (IMAGE, [], {"start": 1, "end": -1})],
    "Concat": [(IMAGE, [floats(2, 3, 6, 6)], {"axis": 1})],
    "Flatten": [(IMAGE, [], {}), (IMAGE, [], {"axis": -1})],
    "Transpose": [(IMAGE, [], {"perm": [0, 2, 3, 1]}), (floats(2, 3), [], {})],
    "Expand": [(floats(2, 1), [ints(3, 1, 4)], {})],
    "Gelu": [(IMAGE, [], {}), (IMAGE, [], {"approximate": "tanh"})],
    "HardSigmoid": [(IMAGE, [], {}), (IMAGE, [], {"alpha": 1 / 6})],
    "HardSwish": [(IMAGE, [], {})],
    "Softmax": [(IMAGE, [], {}), (IMAGE, [], {"axis": 1})],
    "LeakyRelu": [(IMAGE, [], {"alpha": 0.2})],
    "Div": [(IMAGE, [positive(4, 1, 1)], {}), (np.array([-7, 7], np.int64), [ints(2)], {})],
    "Pow": [(positive(2, 3), [np.array(2.5, np.float32)], {})],
    "Where": [(np.array([[True], [False]]), [floats(2, 3), floats(3)], {})],
    "And": [(np.array([True, False]), [np.array([True, True])], {})],
    "Not": [(np.array([True, False]), [], {})],
    "ConstantOfShape": [(ints(2, 3), [], {"value": numpy_helper.from_array(np.array([7], np.int64))})],
}
CASES |= {name: [(IMAGE, [floats(4, 1, 1)], {})] for name in ("Add", "Sub", "Mul")}
CASES |= {
    name: [(IMAGE.round(1), [floats(2, 4, 6, 6).round(1)], {})]
    for name in ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")
}
CASES |= {
    name: [(positive(2, 3) if name in ("Log", "Sqrt", "Reciprocal") else floats(2, 3), [], {})]
    for name in (
        *("Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Log", "Sqrt", "Neg", "Abs", "Reciprocal", "Sin", "Cos"),
        "Identity",
    )
}
CASES["Split"] = [(IMAGE, [ints(1, 3)], {"axis": 1}), (IMAGE, [], {"axis": 2, "num_outputs": 2})]
# Most of these have several cases, and some of the operators above have integers and booleans among theirs.
CASES = {name: [*CASES.get(name, []), *INDEX_CASES.get(name, [])] for name in sorted({*CASES, *INDEX_CASES})}
FLAT = [(name, number) for name, cases in sorted(CASES.items()) for number in range(len(cases))]


def one_node(name: str, activation: Any, constants: list[Any], attributes: dict[str, Any]) -> onnx.ModelProto:
    names = ["x", *("" if value is None else f"c{i}" for i, value in enumerate(constants))]
    outputs = ["y", "z"] if name in ("Split", "TopK") else ["y"]
    graph = helper.make_graph(
        [helper.make_node(name, names, outputs, **attributes)],
        "one",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(activation.dtype), activation.shape)],
        [onnx.ValueInfoProto(name=output) for output in outputs],
        [numpy_helper.from_array(value, f"c{i}") for i, value in enumerate(constants) if value is not None],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


def test_every_operator_has_a_case() -> None:
    assert set(CASES) == set(OPERATORS)


@pytest.mark.parametrize(("name", "number"), FLAT)
def test_operator_computes_what_onnxruntime_computes(name: str, number: int, tmp_path: Path) -> None:
    activation, constants, attributes = CASES[name][number]
    model = one_node(name, activation, constants, attributes)
    onnx.save(model, tmp_path / "model.onnx")
    with OnnxSession(tmp_path / "model.onnx", optimize=False) as session:
        expected = session.infer({"x": activation})
    found = TorchGraph(model).run({"x": activation})
    assert set(found) == set(expected)
    for output, value in expected.items():
        assert found[output].numpy().dtype == value.dtype
        # float32 sums of at most 36 products, in another order.
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if value.dtype.kind == "f" else {"rtol": 0, "atol": 0}
        np.testing.assert_allclose(found[output].numpy(), value, **tolerance)


def test_nodes_without_a_gradient_are_named_with_their_modules_and_the_way_on() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Det", ["x"], ["d"], name="node_det"),
            helper.make_node("Foo", ["d"], ["y"], domain="com.example"),
        ],
        "odd",
        [helper.make_tensor_value_info("x", 1, [2, 2])],
        [helper.make_tensor_value_info("y", 1, [])],
    )
    graph.node[0].metadata_props.add(key=MODULE, value="head.volume")
    with pytest.raises(StageError) as caught:
        TorchGraph(helper.make_model(graph))
    said = str(caught.value)
    assert "no gradient is known through Det 'node_det' of module 'head.volume', com.example:Foo 'y'" in said
    assert "Leave rounding: learned out" in said
    assert "float_share: 0.05" in said


def test_many_nodes_without_a_gradient_are_counted() -> None:
    nodes = [helper.make_node("Det", ["x"], [f"d{i}"]) for i in range(9)]
    x = helper.make_tensor_value_info("x", 1, [2, 2])
    with pytest.raises(StageError, match=r"Det 'd5' and 3 more"):
        TorchGraph(helper.make_model(helper.make_graph(nodes, "odd", [x], [onnx.ValueInfoProto(name="d0")])))


def test_batch_normalization_is_that_of_inference_with_its_gradient() -> None:
    import torch

    scale, bias, mean, variance = floats(4), floats(4), floats(4), positive(4)
    model = one_node("BatchNormalization", IMAGE, [scale, bias, mean, variance], {"epsilon": 1e-2})
    graph = TorchGraph(model)
    learned = torch.tensor(scale, requires_grad=True)
    found = graph.run({"x": IMAGE}, {"c0": learned})["y"]
    found.sum().backward()

    def wide(value: Any) -> Any:
        return value.astype(np.float64).reshape(1, 4, 1, 1)

    steps = (IMAGE.astype(np.float64) - wide(mean)) / np.sqrt(wide(variance) + 1e-2)
    np.testing.assert_allclose(found.detach().numpy(), steps * wide(scale) + wide(bias), rtol=1e-5, atol=1e-6)
    assert learned.grad is not None
    np.testing.assert_allclose(learned.grad.numpy(), steps.sum((0, 2, 3)), rtol=1e-4, atol=1e-4)
    # A mean and variance of the batch's own are another function.
    own = (IMAGE - IMAGE.mean((0, 2, 3), keepdims=True)) / np.sqrt(IMAGE.var((0, 2, 3), keepdims=True) + 1e-2)
    assert not np.allclose(found.detach().numpy(), own * wide(scale) + wide(bias), atol=1e-2)


def test_batch_normalization_in_training_mode_is_refused() -> None:
    tensors = [floats(4), floats(4), floats(4), positive(4)]
    model = one_node("BatchNormalization", IMAGE, tensors, {"training_mode": 1})
    with pytest.raises(StageError, match=r"through BatchNormalization 'y': it is in training mode"):
        TorchGraph(model).run({"x": IMAGE})


@pytest.mark.parametrize("zero_point", [np.int8(0), np.uint8(37)])
def test_fake_quantize_rounds_as_onnxruntime_and_passes_gradients_inside_the_range(
    zero_point: Any, tmp_path: Path
) -> None:
    import torch

    x = np.linspace(-40, 40, 161, dtype=np.float32)  # halves of a step are among them
    scale = np.float32(0.25)
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        "pair",
        [helper.make_tensor_value_info("x", 1, x.shape)],
        [helper.make_tensor_value_info("y", 1, x.shape)],
        [numpy_helper.from_array(np.asarray(scale), "s"), numpy_helper.from_array(np.asarray(zero_point), "z")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    with OnnxSession(tmp_path / "model.onnx", optimize=False) as session:
        expected = session.infer({"x": x})["y"]
    np.testing.assert_array_equal(TorchGraph(model).run({"x": x})["y"].numpy(), expected)

    values, step = torch.tensor(x, requires_grad=True), torch.tensor(scale, requires_grad=True)
    fake_quantize(values, step, torch.tensor(zero_point)).sum().backward()
    low, high = (-128, 127) if zero_point.dtype == np.int8 else (-37, 218)
    inside = (x / scale >= low) & (x / scale <= high)
    assert values.grad is not None
    assert step.grad is not None
    np.testing.assert_array_equal(values.grad.numpy(), inside.astype(np.float32))
    bounded = np.clip(np.rint(x / scale), low, high)
    assert float(step.grad) == pytest.approx(float(np.where(inside, bounded - x / scale, bounded).sum()), rel=1e-5)
