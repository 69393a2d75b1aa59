"""OpenVINO's dialect: no zero points, no pair that its kernels do not need, and what OpenVINO makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from quantization_graphs import Arrays, build, images, infer, pictures, ranges_of, residual, small_cnn, sqnr_db
from test_quantize_odd import CASES, LEAST_DB, wide

from optimizer.errors import StageError
from optimizer.graph import affine, placement
from optimizer.graph.affine import Affine, asymmetric, signed_or_unsigned, symmetric
from optimizer.graph.index import GraphIndex
from optimizer.graph.quantize import quantize
from optimizer.pipeline.receipt import check_delivered
from optimizer.pipeline.subject import Subject
from optimizer.types import Artifact

pytest.importorskip("openvino", reason="openvino is not installed")


class Range:
    def __init__(self, low: float, high: float) -> None:
        self.low, self.high, self.magnitude = low, high, max(-low, high)


def written(kind: str, folder: Path, **options: str) -> onnx.ModelProto:
    """Quantize a small network, its ranges from 32 pictures."""
    model, feed = (small_cnn, {"image": np.stack(pictures(32, 8))}) if kind == "cnn" else (residual, images())
    return quantize(model(), ranges_of(model(), feed, folder), "openvino", **options).model  # type: ignore[arg-type]


def executed(model: onnx.ModelProto, feed: dict[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    from optimizer.runtime.openvino import OpenVinoSession

    onnx.save(model, folder / "int8.onnx")
    with OpenVinoSession(folder / "int8.onnx") as session:
        return session.infer(feed)


def test_integers_are_unsigned_where_nothing_is_negative_else_signed_and_symmetric() -> None:
    assert signed_or_unsigned(Range(0.0, 5.1)) == Affine(float(np.float32(0.02)), 0, np.uint8)
    assert signed_or_unsigned(Range(-2.54, 1.0)) == Affine(float(np.float32(0.02)), 0, np.int8)
    assert signed_or_unsigned(Range(-0.009, 5.1)).dtype is np.uint8  # less than half a step below zero: rounds to it
    assert signed_or_unsigned(Range(-0.011, 5.1)).dtype is np.int8
    assert signed_or_unsigned(Range(0.0, 0.0)).degenerate


@pytest.mark.parametrize("made", [symmetric, asymmetric, signed_or_unsigned])
@pytest.mark.parametrize("bounds", [(-2.0, 1.0), (0.0, 3.0), (-0.5, 4.0)])
def test_either_type_holds_the_same_256_values(made: object, bounds: tuple[float, float]) -> None:
    found: Affine = made(Range(*bounds))  # type: ignore[operator]
    x = np.linspace(-9, 9, 4001)

    def values(a: Affine) -> np.ndarray:
        least = -128 if a.dtype is np.int8 else 0
        steps = np.clip(np.rint(x / a.scale) + a.zero_point, least, least + 255)
        return np.asarray((steps - a.zero_point) * a.scale)

    for dtype in (np.int8, np.uint8):
        stored = found.stored_as(dtype)
        assert stored.dtype is dtype
        np.testing.assert_array_equal(values(stored), values(found))
    other = found.stored_as(np.int8 if found.dtype is np.uint8 else np.uint8)
    off = Affine(other.scale, other.zero_point + 1, other.dtype)  # the twin
    assert not np.array_equal(values(off), values(found))


@pytest.mark.parametrize("kind", ["cnn", "residual"])
@pytest.mark.parametrize("residuals", ["float", "int8"])
def test_no_activation_has_a_zero_point_and_biases_stay_float(kind: str, residuals: str, tmp_path: Path) -> None:
    made = written(kind, tmp_path, residuals=residuals)
    onnx.checker.check_model(made, full_check=True)
    index = GraphIndex(made)
    points = [index.constant(n.input[2]) for n in made.graph.node if n.op_type == "QuantizeLinear"]
    assert {p.dtype for p in points} == {np.dtype(np.int8), np.dtype(np.uint8)}
    assert not any(p.any() for p in points)
    biases = [n.input[2] for n in made.graph.node if n.op_type in {"Conv", "Gemm"} and len(n.input) > 2]
    assert biases
    assert {index.constant(name).dtype for name in biases} == {np.dtype(np.float32)}


def test_a_pool_works_on_integers_and_nothing_is_rounded_behind_a_layer(tmp_path: Path) -> None:
    made = written("cnn", tmp_path)
    pairs = {n.input[0]: list(n.input[1:]) for n in made.graph.node if n.op_type == "QuantizeLinear"}
    assert pairs["p1"] == pairs["r1"]
    assert pairs["flat"] == pairs["p2"] == pairs["r2"]
    cpu = quantize(residual(), ranges_of(residual(), images(), tmp_path), "cpu").model
    count = [sum(n.op_type == "QuantizeLinear" for n in m.graph.node) for m in (written("residual", tmp_path), cpu)]
    assert count[0] < count[1]


@pytest.mark.parametrize("kind", ["cnn", "residual"])
@pytest.mark.parametrize("residuals", ["float", "int8"])
def test_openvino_computes_it_in_integers_and_as_it_is_written(kind: str, residuals: str, tmp_path: Path) -> None:
    from optimizer.graph.openvino_receipt import openvino_receipt

    made = written(kind, tmp_path, residuals=residuals)
    feed = {"image": np.stack(pictures(32, 8))} if kind == "cnn" else images()
    found = next(iter(executed(made, feed, tmp_path).values()))
    assert openvino_receipt(tmp_path / "int8.onnx").shares == {"int8": 1.0}
    reference = infer(small_cnn() if kind == "cnn" else residual(), feed, tmp_path)[0]
    assert sqnr_db(infer(made, feed, tmp_path)[0], found) > 40.0
    assert sqnr_db(reference, found) > 25.0


@pytest.mark.filterwarnings("ignore:divide by zero")  # where nothing was rounded
@pytest.mark.parametrize("residuals", ["float", "int8"])
@pytest.mark.parametrize("case", [name for name, case in CASES.items() if "tensorrt" in case[4]])
def test_odd_graphs_compute_in_openvino_what_float64_does(case: str, residuals: str, tmp_path: Path) -> None:
    text, weights, feed, compute, _ = CASES[case]
    ranges = ranges_of(build(text, weights), feed, tmp_path)
    made = quantize(build(text, weights), ranges, "openvino", residuals=residuals).model  # type: ignore[arg-type]
    onnx.checker.check_model(made, full_check=True)
    found = executed(made, {k: np.asarray(v) for k, v in feed.items()}, tmp_path)
    for wanted, name in zip(compute(wide(text, weights, feed)), (o.name for o in made.graph.output), strict=True):
        assert sqnr_db(wanted, found[name]) > LEAST_DB


def test_clipped_negatives_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: unsigned integers for a tensor with negative values."""
    monkeypatch.setitem(affine.ACTIVATION, "openvino", lambda bounds: asymmetric(Range(0.0, bounds.high)))  # type: ignore[arg-type]
    made = written("residual", tmp_path)
    found = next(iter(executed(made, images(), tmp_path).values()))
    assert sqnr_db(infer(residual(), images(), tmp_path)[0], found) < 15.0


# OpenVINO 2026.4 would multiply c by its scale twice.
TWICE = {
    "with itself": "y = Add (c, c)",
    "with what is computed from it": "h = Tanh (c)  y = Sub (c, h)",
    "with its mean": "h = GlobalAveragePool (c)  y = Sub (c, h)",
    "a multiple of it": "m = Mul (c, vec)  y = Mul (m, m)",
    "moved": "m = Reshape (c, shape)  n = Neg (m)  y = Add (n, n)",
}
SINGLE = "g (float[batch, 4, 8, 8] x) => (float[batch, e, f, g] y) <{constants}> {{ c = {layer} {body} }}"
CONSTANTS = (
    "float[1, 4, 1, 1] vec = {1.0, 2.0, 3.0, -1.0}, int64[4] shape = {0, 4, 8, 8}, float[4] zero = {0.0, 0.0, 0.0, 0.0}"
)


@pytest.mark.parametrize("bias", ["", ", zero"])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("meets", TWICE)
def test_a_convolution_without_bias_that_is_read_twice_is_right_in_openvino(
    kind: str, meets: str, bias: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO drops a bias of zeros."""
    layer = f"{kind} <pads = [1, 1, 1, 1]> (x, w{bias})"
    text = SINGLE.format(constants=CONSTANTS, layer=layer, body=TWICE[meets])
    feed = {"x": np.random.default_rng(0).normal(size=(8, 4, 8, 8)).astype(np.float32)}

    def found() -> float:
        ranges = ranges_of(build(text, {"w": (4, 4, 3, 3)}), feed, tmp_path)
        made = quantize(build(text, {"w": (4, 4, 3, 3)}), ranges, "openvino").model
        reference = infer(build(text, {"w": (4, 4, 3, 3)}), feed, tmp_path)[0]
        return sqnr_db(reference, executed(made, feed, tmp_path)["y"])

    assert found() > LEAST_DB
    monkeypatch.setattr(placement, "_scaled_twice", lambda *_: "")  # the twin
    assert found() < 25.0


def test_the_sign_may_change_with_the_method_that_is_tried(tmp_path: Path) -> None:
    """What percentile finds without negatives is uint8, what MinMax finds is int8: one session tries both."""
    from optimizer.calibration.choose import choose
    from optimizer.calibration.probe import halves
    from optimizer.calibration.table import CalibrationTable, MethodRange, TensorRange

    feed = {"image": np.stack(pictures(32, 8))}
    ranges = ranges_of(small_cnn(), feed, tmp_path)
    tensors = {}
    for name, found in ranges.items():
        wide_ = MethodRange(found.low - 0.05 * found.high, found.high, found.magnitude)
        narrow = MethodRange(max(found.low, 0.0), found.high, found.magnitude)
        methods = {"minmax": wide_, "percentile": narrow, "entropy": wide_, "mse": wide_}
        tensors[name] = TensorRange(found.low, found.high, 64, "minmax", methods)
    table = CalibrationTable("auto", 98.0, 64, tensors)
    made = quantize(small_cnn(), table.tensors, "openvino")
    types = {
        numpy_helper.to_array(t).dtype.name
        for t in made.model.graph.initializer
        if t.name in {names[1] for names in made.parameters.values()}
    }
    assert types == {"int8"}
    data = Arrays(pictures(64, 8))
    picked = choose(made, small_cnn(), table, "openvino", halves(data, "method: auto"), lambda *_: None)
    assert picked.methods["r1"] == "percentile"  # one bit more where nothing is negative
    again = quantize(small_cnn(), table.with_choice(picked.methods, "auto").tensors, "openvino").model
    signs = {n.input[0]: n.input[2] for n in again.graph.node if n.op_type == "QuantizeLinear"}
    index = GraphIndex(again)
    assert index.constant(signs["image"]).dtype == np.int8
    assert index.constant(signs["r1"]).dtype == np.uint8


def candidate(runtime: str, precision: str = "int8") -> Subject:
    artifact = Artifact("onnx", Path("nowhere"), "")
    return Subject(f"{precision}@{runtime}", precision, precision, runtime, "cpu", artifact, artifact, None)


def test_int8_that_openvino_does_not_compute_is_refused_as_the_recipe_says() -> None:
    with pytest.raises(StageError, match=r"OpenVINO computes 40\.0% .* at_least asks for 50\.0%") as refused:
        check_delivered(candidate("openvino"), {"int8": 0.4, "fp32": 0.6}, "the model that OpenVINO compiled", 0.5)
    assert refused.value.exit_code == 4
    assert "int8@openvino" in refused.value.render()
    check_delivered(candidate("openvino"), {"int8": 0.4, "fp32": 0.6}, "", 0.4)
    check_delivered(candidate("openvino", "fp32"), {"fp32": 1.0}, "", 0.5)
    with pytest.raises(StageError, match=r"computes 0\.0%"):
        check_delivered(candidate("openvino"), {"fp32": 1.0}, "", 0.01)
