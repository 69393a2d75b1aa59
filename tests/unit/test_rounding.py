"""The rounding emulator: what it rounds and what not. Operator by operator: test_rounding_operators.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import torch
from float16_graphs import emulate, half_model
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from optimizer.errors import StageError
from optimizer.graph.operators import EXACT
from optimizer.graph.rounding import emulate_rounding, narrow_formats
from optimizer.runtime.onnx import OnnxSession

Half = NDArray[np.float16]
RNG = np.random.default_rng


def steps(a: Half, b: Half) -> NDArray[np.int64]:
    """How many float16 numbers lie between two arrays."""

    def rank(x: Half) -> NDArray[np.int64]:
        bits = x.view(np.uint16).astype(np.int64)
        return np.where(bits & 0x8000, -(bits & 0x7FFF), bits)

    return np.abs(rank(a) - rank(b))


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Half:
    return (RNG(seed).normal(size=shape) * scale).astype(np.float16)


T = torch.from_numpy
F = torch.nn.functional
X4 = normal(2, 8, 12, 12)
X2 = normal(16, 64)
WIDE = normal(16, 64, scale=4.0)
NODE = helper.make_node

ARITHMETIC = ["Add", "Sub", "Mul", "Div", "Max", "Min", "Sqrt", "Neg", "Abs", "Floor", "Relu", "LeakyRelu", "Transpose"]


@pytest.mark.parametrize("operator", ARITHMETIC)
def test_elementary_operators_give_the_reference_evaluator_within_one_step(operator: str, tmp_path: Path) -> None:
    x, o = np.abs(X2), normal(16, 64, seed=9, scale=3.0)
    binary = operator in ("Add", "Sub", "Mul", "Div", "Max", "Min")
    node = NODE(operator, ["x", "o"] if binary else ["x"], ["y"])
    model = half_model(node, {"x": x}, {"o": o} if binary else {})
    expected = ReferenceEvaluator(model).run(None, {"x": x})[0]
    assert steps(emulate(model, tmp_path, {"x": x}), expected).max() <= 1


def test_a_sum_beyond_the_range_overflows_as_on_hardware(tmp_path: Path) -> None:
    ones = np.ones((600, 600), np.float16)
    model = half_model(NODE("ReduceSum", ["x"], ["y"], keepdims=0), {"x": ones}, {})
    assert np.isposinf(emulate(model, tmp_path, {"x": ones}))
    assert np.isposinf(T(ones).sum().numpy())


def test_onnxruntime_alone_does_not_overflow_inside_a_graph(tmp_path: Path) -> None:
    """The twin: why there is an emulator. The float16 sum of 360,000 stays finite and is even divided back."""
    ones = np.ones((600, 600), np.float16)
    nodes = [NODE("ReduceSum", ["x"], ["s"], keepdims=0), NODE("Div", ["s", "n"], ["y"])]
    model = half_model(nodes, {"x": ones}, {"n": np.float16(60000)})
    direct = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert direct.run(None, {"x": ones})[0] == 6.0
    assert np.isposinf(emulate(model, tmp_path, {"x": ones}))


def test_a_pair_of_casts_rounds_every_kind_of_number_and_is_not_folded(tmp_path: Path) -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = np.unique(halves[np.isfinite(halves)])
    middles = (finite[1:] + finite[:-1]) / 2  # ties
    near = np.nextafter(middles, np.float32(np.inf)), np.nextafter(middles, np.float32(-np.inf))
    edges = np.array([65504, 65519.996, 65520, 65536, -65520, 1e30, np.inf, -np.inf, np.nan, 1e-40], np.float32)
    x = np.concatenate([halves, middles, *near, edges])
    text = """<ir_version: 10, opset_import: ["" : 20]>
        g (float[n] x) => (float[n] y) { h = Cast<to: int = 10>(x)  y = Cast<to: int = 1>(h) }"""
    found = emulate(onnx.parser.parse_model(text), tmp_path, {"x": x})
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found, expected)
    assert np.isinf(found[x == 65520]).all()
    assert (found != x).mean() > 0.5  # the twin: without rounding this test would see x itself


def test_bfloat16_rounds_as_torch_does(tmp_path: Path) -> None:
    """Every bfloat16, every tie between two of them and its neighbours, subnormals, both ends of the range."""
    high = np.arange(65536, dtype=np.uint32) << 16
    bits = np.concatenate([high, high | 0x8000, high | 0x7FFF, high | 0x8001, RNG(0).integers(0, 2**32, 10000)])
    x = bits.astype(np.uint32).view(np.float32)
    text = """<ir_version: 10, opset_import: ["" : 20]>
        g (float[n] x) => (float[n] y) { h = Cast<to: int = 16>(x)  y = Cast<to: int = 1>(h) }"""
    found = emulate(onnx.parser.parse_model(text), tmp_path, {"x": x})
    np.testing.assert_array_equal(found, T(x).to(torch.bfloat16).float().numpy())
    assert (found != x).mean() > 0.5  # the twin: without rounding this test would see x itself
    cut = (bits.astype(np.uint32) & 0xFFFF0000).view(np.float32)
    assert (found != cut).mean() > 0.3  # nor is it cut off


def test_a_graph_of_both_formats_rounds_each_part_in_its_own(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
        g (float[n] x) => (float[n] y, float[n] z) { h = Cast<to: int = 10>(x)  b = Mul(h, h)
          c = Cast<to: int = 16>(b)  d = Add(c, c)  e = Mul(d, c)  y = Cast<to: int = 1>(e)
          z = Cast<to: int = 1>(b) }"""
    x = RNG(0).normal(size=1000).astype(np.float32) * 100
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    emulate_rounding(tmp_path / "m.onnx", tmp_path / "e.onnx")
    with OnnxSession(tmp_path / "e.onnx", optimize=False) as session:
        found = session.infer({"x": x})
    half = T(x).half() * T(x).half()
    narrow = half.to(torch.bfloat16)
    np.testing.assert_array_equal(found["z"], half.float().numpy())
    np.testing.assert_array_equal(found["y"], ((narrow + narrow) * narrow).float().numpy())
    assert (half.float().numpy() != narrow.float().numpy()).mean() > 0.5


EXACT_NODES = {
    "Clip": NODE("Clip", ["x", "low", "high"], ["y"]),
    "Concat": NODE("Concat", ["x", "x"], ["y"], axis=0),
    "DepthToSpace": NODE("DepthToSpace", ["x"], ["y"], blocksize=2),
    "Flatten": NODE("Flatten", ["x"], ["y"]),
    "Gather": NODE("Gather", ["x", "index"], ["y"]),
    "Max": NODE("Max", ["x", "low"], ["y"]),
    "MaxPool": NODE("MaxPool", ["x"], ["y"], kernel_shape=[3, 3]),
    "Min": NODE("Min", ["x", "low"], ["y"]),
    "Pad": NODE("Pad", ["x", "pads", "low"], ["y"]),
    "ReduceMax": NODE("ReduceMax", ["x", "axes"], ["y"]),
    "ReduceMin": NODE("ReduceMin", ["x", "axes"], ["y"]),
    "Reshape": NODE("Reshape", ["x", "shape"], ["y"]),
    "SpaceToDepth": NODE("SpaceToDepth", ["x"], ["y"], blocksize=2),
    "Slice": NODE("Slice", ["x", "axes", "index", "axes"], ["y"]),
    "ThresholdedRelu": NODE("ThresholdedRelu", ["x"], ["y"], alpha=0.3),
    "Tile": NODE("Tile", ["x", "pairs"], ["y"]),
    "Where": NODE("Where", ["mask", "x", "low"], ["y"]),
    **{name: NODE(name, ["x"], ["y"]) for name in ("Abs", "Ceil", "Floor", "GlobalMaxPool", "Hardmax", "Identity")},
    **{name: NODE(name, ["x"], ["y"]) for name in ("Neg", "Relu", "Round", "Sign", "Transpose", "Trilu")},
}
EXACT_CONSTANTS: dict[str, object] = {
    "low": np.float16(-0.7),
    "high": np.float16(0.3),
    "index": np.array([1]),
    "axes": np.array([0]),
    "pads": np.array([1, 0, 0, 0, 0, 0, 0, 1]),
    "pairs": np.array([2, 1, 1, 1]),
    "shape": np.array([4, -1]),
    "mask": np.arange(12) % 2 == 0,
}


@pytest.mark.parametrize("operator", EXACT_NODES)
def test_operators_that_are_not_rounded_write_float16_values(operator: str, tmp_path: Path) -> None:
    """A float32 output behind the operator shows what it wrote before any rounding at the graph's edge."""
    assert operator in EXACT
    node = onnx.NodeProto()
    node.CopyFrom(EXACT_NODES[operator])
    node.output[0] = "e"
    constants = {name: EXACT_CONSTANTS[name] for name in node.input if name in EXACT_CONSTANTS}
    widen = NODE("Cast", ["e"], ["y"], to=TensorProto.FLOAT)
    model = half_model([node, widen], {"x": X4}, constants, TensorProto.FLOAT)
    found = emulate(model, tmp_path, {"x": X4})
    assert found.dtype == np.float32
    assert sum(n.op_type == "Cast" for n in onnx.load(tmp_path / "emulated.onnx").graph.node) <= 1
    np.testing.assert_array_equal(found, found.astype(np.float16).astype(np.float32))


def test_an_operator_that_computes_would_fail_that_test(tmp_path: Path) -> None:
    with OnnxSession(_widened_sigmoid(tmp_path), optimize=False) as session:
        found = session.infer({"x": X4.astype(np.float32)})["y"]
    assert (found != found.astype(np.float16)).any()


def _widened_sigmoid(folder: Path) -> Path:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, X4.shape) for name in "xy"]
    graph = helper.make_graph([NODE("Sigmoid", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "s.onnx")
    return folder / "s.onnx"


def test_float32_parts_are_left_alone(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
        g (float[n] x) => (float[n] y) { a = Exp(x)  h = Cast<to: int = 10>(a)  b = Add(h, h)
          c = Cast<to: int = 1>(b)  d = Mul(c, c)  y = Mul(d, d) }"""
    x = RNG(0).normal(size=1000).astype(np.float32)
    found = emulate(onnx.parser.parse_model(text), tmp_path, {"x": x})
    rounded = (np.exp(x).astype(np.float16) * np.float16(2)).astype(np.float32)
    np.testing.assert_allclose(found, (rounded * rounded) ** 2, rtol=1e-6)
    operators = [node.op_type for node in onnx.load(tmp_path / "emulated.onnx").graph.node]
    assert operators == ["Exp", "Cast", "Cast", "Add", "Cast", "Cast", "Mul", "Mul"]


def test_casts_from_other_types_still_convert(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
        g (int64[n] x) => (float[n] y) { a = Cast<to: int = 10>(x)  b = Cast<to: int = 1>(a)
          c = Cast<to: int = 1>(x)  y = Sub(c, b) }"""
    found = emulate(onnx.parser.parse_model(text), tmp_path, {"x": np.array([2048, 2049, 2051])})
    np.testing.assert_array_equal(found, np.array([0, 1, -1], np.float32))


def test_attributes_and_constants_of_float16_are_widened(tmp_path: Path) -> None:
    tenth, fifth = (numpy_helper.from_array(np.array([value], np.float16)) for value in (0.1, 0.2))
    nodes = [
        NODE("ConstantOfShape", ["x"], ["f"], value=tenth),
        NODE("Constant", [], ["c"], value=fifth),
        NODE("Add", ["f", "c"], ["y"]),
    ]
    shape = np.array([2, 3])
    found = emulate(half_model(nodes, {"x": shape}, {}), tmp_path, {"x": shape})
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, np.full((2, 3), np.float16(0.1) + np.float16(0.2)))


def test_float16_inside_a_subgraph_is_refused(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
        g (bool c, float[n] x) => (float[n] y) { y = If(c) <
          then_branch = t () => (float[n] a) { h = Cast<to: int = 10>(x)  a = Cast<to: int = 1>(h) },
          else_branch = e () => (float[n] b) { b = Identity(x) }> }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    with pytest.raises(StageError, match=r"node 'y' \(If\) computes in float16 inside its subgraph"):
        emulate_rounding(tmp_path / "m.onnx", tmp_path / "e.onnx")


def test_the_narrow_formats_of_a_graph_are_found_wherever_they_stand() -> None:
    half = half_model(NODE("Relu", ["x"], ["y"]), {"x": X2}, {})
    assert narrow_formats(half) == ("float16",)
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float[n] x) => (float[n] y) { y = Relu(x) }"""
    assert narrow_formats(onnx.parser.parse_model(text)) == ()
    text = """<ir_version: 10, opset_import: ["" : 20]>
        g (float[n] x) => (float[n] y) { h = Cast<to: int = 16>(x)  y = Cast<to: int = 1>(h) }"""
    assert narrow_formats(onnx.parser.parse_model(text)) == ("bfloat16",)
