"""Graphs as nobody writes them on purpose, quantized in every dialect and held against numpy and torch in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from quantization_graphs import build, infer, ranges_of, sqnr_db

from optimizer.errors import StageError
from optimizer.graph import qdq, quantizable
from optimizer.graph.files import copy_model
from optimizer.graph.quantizable import Dialect
from optimizer.graph.quantize import Quantized, quantize

Arrays = Mapping[str, NDArray[np.float64]]
Function = Callable[[Arrays], list[NDArray[np.float64]]]
LEAST_DB = 30.0  # of 8 bits in one or two layers
DIALECTS: tuple[Dialect, ...] = ("tensorrt", "cpu", "openvino")


def normal(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def conv(a: Arrays, x: str, w: str, bias: str | None = None, **options: int) -> NDArray[np.float64]:
    """Compute a convolution in float64; `transposed` is one of its options."""
    dims = a[w].ndim - 2
    name = f"conv{'_transpose' if options.pop('transposed', 0) else ''}{dims}d"
    tensors = [torch.from_numpy(a[x]), torch.from_numpy(a[w]), None if bias is None else torch.from_numpy(a[bias])]
    found: NDArray[np.float64] = getattr(torch.nn.functional, name)(*tensors, **options).numpy()
    return found


def made(
    text: str, weights: Mapping[str, tuple[int, ...]], feed: Mapping[str, NDArray[np.generic]], folder: Path, **how: str
) -> tuple[Quantized, list[NDArray[np.generic]], list[NDArray[np.generic]]]:
    """Quantize; return that, its outputs as written, and those of onnxruntime's integer kernels."""
    import onnxruntime as ort

    model = build(text, weights)
    result = quantize(copy_model(model), ranges_of(model, feed, folder), **how)  # type: ignore[arg-type]
    onnx.checker.check_model(result.model, full_check=True)
    session = ort.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
    return result, infer(result.model, feed, folder), list(session.run(None, dict(feed)))


def wide(text: str, weights: Mapping[str, tuple[int, ...]], feed: Mapping[str, NDArray[np.generic]]) -> Arrays:
    """Return all constants and inputs in float64."""
    constants = {t.name: numpy_helper.to_array(t) for t in build(text, weights).graph.initializer}
    return {name: np.asarray(array, np.float64) for name, array in {**constants, **feed}.items()}


# Name: graph, weights, feed, what it computes, and in which dialects it can be quantized.
CASES: dict[str, tuple[str, dict[str, tuple[int, ...]], dict[str, NDArray[np.float32]], Function, tuple[Dialect, ...]]]
CASES = {
    "one weight scaled along two axes": (
        """g (float[batch, 8] x) => (float[batch, 8] y, float[batch, 8] z) {
          y = Gemm <transB = 1> (x, w, b)
          z = MatMul (x, w)
        }""",
        {"w": (8, 8), "b": (8,)},
        {"x": normal(32, 8)},
        lambda a: [a["x"] @ a["w"].T + a["b"], a["x"] @ a["w"]],
        DIALECTS,
    ),
    "one weight and one bias at two input scales": (
        """g (float[batch, 8] x) => (float[batch, 8] y, float[batch, 8] z) {
          y = Gemm <transB = 1> (x, w, b)
          h = Mul (y, y)
          z = Gemm <transB = 1> (h, w, b)
        }""",
        {"w": (8, 8), "b": (8,)},
        {"x": normal(32, 8)},
        lambda a: [
            y := a["x"] @ a["w"].T + a["b"],
            (y * y) @ a["w"].T + a["b"],
        ],
        DIALECTS,
    ),
    "a weight that other operators read as well": (
        """g (float[batch, 8] x) => (float[batch, 8] y, float[8, 8] o) {
          a = MatMul (x, w)
          y = Add (a, s)
          o = Mul (w, w)
        }""",
        {"w": (8, 8), "s": (8,)},
        {"x": normal(32, 8)},
        lambda a: [a["x"] @ a["w"] + a["s"], a["w"] ** 2],
        DIALECTS,
    ),
    "a constant on the left stays in float": (
        "g (float[8, 12] x) => (float[6, 12] y) { a = MatMul (x, v) y = MatMul (w, a) }",
        {"w": (6, 8), "v": (12, 12)},
        {"x": normal(8, 12)},
        lambda a: [a["w"] @ (a["x"] @ a["v"])],
        DIALECTS,
    ),
    "the batch is the second axis": (
        "g (float[4, batch, 5] x) => (float[4, batch, 6] y) { y = MatMul (x, w) }",
        {"w": (5, 6)},
        {"x": normal(4, 3, 5)},
        lambda a: [a["x"] @ a["w"]],
        DIALECTS,
    ),
    "the batch is the last axis": (
        "g (float[8, batch] x) => (float[batch, 6] y) { y = Gemm <transA = 1, alpha = -0.5> (x, w, b) }",
        {"w": (8, 6), "b": (1, 6)},
        {"x": normal(8, 7)},
        lambda a: [-0.5 * (a["x"].T @ a["w"]) + a["b"]],
        DIALECTS,
    ),
    "a bias that broadcasts along rows": (
        "g (float[6, 8] x) => (float[6, 6] y) { y = Gemm <beta = 3.0, transB = 1> (x, w, b) }",
        {"w": (6, 8), "b": (6, 1)},
        {"x": normal(6, 8)},
        lambda a: [a["x"] @ a["w"].T + 3 * a["b"]],
        ("tensorrt",),
    ),
    "a stack of matrices broadcasts the input": (
        "g (float[4, 5] x) => (float[3, 4, 6] y) { y = MatMul (x, w) }",
        {"w": (3, 5, 6)},
        {"x": normal(4, 5)},
        lambda a: [a["x"] @ a["w"]],
        DIALECTS,
    ),
    "groups, no bias but an empty name": (
        'g (float[batch, 4, 6, 6] x) => (float[batch, 8, 4, 4] y) { y = Conv <group = 2> (x, w, "") }',
        {"w": (8, 2, 3, 3)},
        {"x": normal(4, 4, 6, 6)},
        lambda a: [conv(a, "x", "w", groups=2)],
        DIALECTS,
    ),
    "one channel a group, three dimensions": (
        "g (float[batch, 4, 5, 5, 5] x) => (float[batch, 8, 3, 3, 3] y) { y = Conv <group = 4> (x, w, b) }",
        {"w": (8, 1, 3, 3, 3), "b": (8,)},
        {"x": normal(2, 4, 5, 5, 5)},
        lambda a: [conv(a, "x", "w", "b", groups=4)],
        DIALECTS,
    ),
    "groups of a transposed convolution": (
        """g (float[batch, 4, 6, 6] x) => (float[batch, 6, a, c] y) {
          y = ConvTranspose <group = 2, strides = [2, 2]> (x, w, b)
        }""",
        {"w": (4, 3, 3, 3), "b": (6,)},
        {"x": normal(4, 4, 6, 6)},
        lambda a: [conv(a, "x", "w", "b", transposed=1, groups=2, stride=2)],
        ("tensorrt",),
    ),
    "an output that is quantized for two layers behind it": (
        """g (float[batch, 4, 6, 6] x) => (float[batch, 4, 6, 6] r, float[batch, 4, 4, 4] y, float[batch, 5] z) {
          a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
          r = Relu (a)
          y = Conv (r, v)
          f = Flatten (r)
          z = Gemm (f, u)
        }""",
        {"w": (4, 4, 3, 3), "b": (4,), "v": (4, 4, 3, 3), "u": (144, 5)},
        {"x": normal(8, 4, 6, 6)},
        lambda a: [
            r := np.maximum(conv(a, "x", "w", "b", padding=1), 0),
            conv({**a, "r": r}, "r", "v"),
            r.reshape(8, -1) @ a["u"],
        ],
        DIALECTS,
    ),
    "an input that is an output": (
        "g (float[batch, 8] x) => (float[batch, 8] o, float[batch, 6] y) { o = Identity (x) y = Gemm (x, w) }",
        {"w": (8, 6)},
        {"x": normal(9, 8)},
        lambda a: [a["x"], a["x"] @ a["w"]],
        DIALECTS,
    ),
    "the Relu that one reader alone has": (
        """g (float[batch, 4, 6, 6] x) => (float[batch, 4, 6, 6] y) {
          a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
          r = Relu (a)
          s = Sub (a, r)
          y = Conv <pads = [1, 1, 1, 1]> (s, v)
        }""",
        {"w": (4, 4, 3, 3), "b": (4,), "v": (4, 4, 3, 3)},
        {"x": normal(8, 4, 6, 6)},
        lambda a: [conv({**a, "s": np.minimum(conv(a, "x", "w", "b", padding=1), 0)}, "s", "v", padding=1)],
        DIALECTS,
    ),
    "a sum that broadcasts": (
        """g (float[batch, 4, 6, 6] x) => (float[batch, 4, 6, 6] y) {
          a = Conv <pads = [1, 1, 1, 1]> (x, w)
          m = GlobalAveragePool (x)
          s = Add (a, m)
          y = Conv <pads = [1, 1, 1, 1]> (s, v)
        }""",
        {"w": (4, 4, 3, 3), "v": (4, 4, 3, 3)},
        {"x": normal(8, 4, 6, 6)},
        lambda a: [
            conv(
                {**a, "s": conv(a, "x", "w", padding=1) + a["x"].mean((2, 3), keepdims=True)}, "s", "v", padding=1
            )
        ],
        DIALECTS,
    ),
    "a sum of a tensor with itself": (
        """g (float[batch, 4, 6, 6] x) => (float[batch, 4, 6, 6] y) {
          a = Conv <pads = [1, 1, 1, 1]> (x, w)
          y = Add (a, a)
        }""",
        {"w": (4, 4, 3, 3)},
        {"x": normal(8, 4, 6, 6)},
        lambda a: [2 * conv(a, "x", "w", padding=1)],
        DIALECTS,
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:divide by zero")  # where nothing was rounded
@pytest.mark.parametrize("residuals", ["float", "int8"])
@pytest.mark.parametrize(("case", "dialect"), [(name, dialect) for name, case in CASES.items() for dialect in case[4]])
def test_odd_graphs_compute_what_float64_does(case: str, dialect: Dialect, residuals: str, tmp_path: Path) -> None:
    text, weights, feed, compute, _ = CASES[case]
    expected = compute(wide(text, weights, feed))
    _, written, executed = made(text, weights, feed, tmp_path, dialect=dialect, residuals=residuals)
    for outputs in (written, executed):
        assert len(outputs) == len(expected)
        for wanted, found in zip(expected, outputs, strict=True):
            assert sqnr_db(wanted, found) > LEAST_DB


def test_a_weight_read_along_the_other_axis_is_seen(tmp_path: Path) -> None:
    """The twin: the scales of one reader's channels for the other's."""
    text, weights, feed, compute, _ = CASES["one weight scaled along two axes"]
    made_, *_ = made(text, weights, feed, tmp_path, dialect="tensorrt")
    axes = [
        a for n in made_.model.graph.node if n.op_type == "DequantizeLinear" for a in n.attribute if a.name == "axis"
    ]
    assert sorted(a.i for a in axes) == [0, 1]
    for axis in axes:
        axis.i = 1 - axis.i
    for wanted, found in zip(compute(wide(text, weights, feed)), infer(made_.model, feed, tmp_path), strict=True):
        assert sqnr_db(wanted, found) < 15


def test_what_cannot_be_quantized_says_why() -> None:
    for case, reason in (
        ("a bias that broadcasts along rows", "not one value per output channel"),
        ("groups of a transposed convolution", "no integer ConvTranspose"),
    ):
        with pytest.raises(StageError, match=reason):
            quantize(build(*CASES[case][:2]), {}, "cpu")


# The branches have tensors with the names that pairs would get.
BRANCHES = """g (float[batch, 8] x, bool c) => (float[batch, 8] y) {
  a = MatMul (x, w)
  y = If (c) <
    then_branch = t () => (float[batch, 8] o) { x_quantized = Abs (a) x_scale = Neg (x_quantized) o = Abs (x_scale) },
    else_branch = e () => (float[batch, 8] p) { w_int8 = Neg (a) p = Abs (w_int8) }
  >
}"""


@pytest.mark.parametrize("dialect", DIALECTS)
def test_new_names_are_none_that_a_subgraph_has(dialect: Dialect, tmp_path: Path) -> None:
    feed = {"x": normal(9, 8), "c": np.array(True)}
    result, written, _ = made(BRANCHES, {"w": (8, 8)}, feed, tmp_path, dialect=dialect)
    a = wide(BRANCHES, {"w": (8, 8)}, feed)
    assert sqnr_db(np.abs(a["x"] @ a["w"]), written[0]) > LEAST_DB
    assert "x_quantized_1" in {name for node in result.model.graph.node for name in node.output}


def test_a_name_that_a_subgraph_has_would_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin."""
    monkeypatch.setattr(qdq, "inner_names", lambda graph: ())
    feed = {"x": normal(9, 8), "c": np.array(True)}
    with pytest.raises(Exception, match=r"x_quantized|x_scale"):
        made(BRANCHES, {"w": (8, 8)}, feed, tmp_path, dialect="tensorrt")


# Its rank is known to the caller alone: a vector takes part in another product than a matrix.
UNKNOWN = "g (float[n] x, int64[rank] sizes) => (float y) { h = Reshape (x, sizes) y = MatMul (h, w) }"
VECTOR = {"x": normal(5), "sizes": np.array([5])}


def unknown_rank() -> onnx.ModelProto:
    model = build(UNKNOWN.replace("float y", "float[a, b] y"), {"w": (3, 5, 6)})
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None))
    return model


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_stack_whose_input_may_be_a_vector_stays_in_float(dialect: Dialect) -> None:
    with pytest.raises(StageError, match="whether its input is a vector is not known"):
        quantize(unknown_rank(), {}, dialect)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_columns_scaled_as_a_matrixs_would_be_wrong_for_a_vector(
    dialect: Dialect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin."""

    def examined(index: object, node: onnx.NodeProto, *_: object, **__: object) -> quantizable.Candidate:
        return quantizable.Candidate(node, 0, 1, 2, None)

    monkeypatch.setattr("optimizer.graph.quantize.examine", examined)
    model = unknown_rank()
    reference = infer(model, VECTOR, tmp_path)[0]
    ranges = ranges_of(copy_model(model), VECTOR, tmp_path)
    found = infer(quantize(model, ranges, dialect).model, VECTOR, tmp_path)[0]
    assert found.shape != reference.shape
