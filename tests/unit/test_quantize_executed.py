"""The CPU dialect as onnxruntime's integer kernels execute it, not as its Q/DQ nodes read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.calibration.estimators import minmax
from optimizer.calibration.histogram import RunningHistogram
from optimizer.errors import StageError
from optimizer.graph import affine
from optimizer.graph.quantize import quantize
from optimizer.runtime.onnx import OnnxSession
from optimizer.runtime.session import Array, Feed, Session
from optimizer.stage import Stage
from optimizer.stages.engine import EngineRtx
from optimizer.stages.export import Export
from optimizer.stages.float16 import Float16
from optimizer.stages.quantize import Quantize
from optimizer.stages.simplify import Simplify
from optimizer.types import Artifact, TensorSpec
from optimizer.verify import verify

CHANNELS = 64
X = np.random.default_rng(0).uniform(0, 2, (8, CHANNELS, 4, 4)).astype(np.float32)


def dead_channel(path: Path, weight: float, bias: float, kind: str = "Conv") -> Path:
    """A 1x1 Conv, or a Gemm, whose second channel has next to no weights, as BatchNorm folding leaves dead channels."""
    rng = np.random.default_rng(1)
    weights = np.zeros((2, CHANNELS), np.float32)
    weights[0] = rng.normal(size=CHANNELS) * 0.1
    weights[1] = np.abs(rng.normal(size=CHANNELS)) * weight
    attributes = {"kernel_shape": [1, 1]} if kind == "Conv" else {"transB": 1}
    pixels = [4, 4] if kind == "Conv" else []
    weights = weights.reshape(*weights.shape, *(1 for _ in pixels))
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", "w", "b"], ["y"], "layer", **attributes)],
        "dead",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", CHANNELS, *pixels])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2, *pixels])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([0.1, bias], np.float32), "b")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def executed(folder: Path, weight: float, bias: float, kind: str = "Conv") -> tuple[np.ndarray, np.ndarray]:
    """The dead channel in float32, and as the quantized graph executes it."""
    source = dead_channel(folder / "fp32.onnx", weight, bias, kind)
    x = X if kind == "Conv" else X[..., 0, 0]
    with OnnxSession(source) as session:
        reference = session.infer({"x": x})["y"]
    ranges = {}
    for name, values in (("x", x), ("y", reference)):
        histogram = RunningHistogram()
        histogram.fold(values)
        ranges[name] = minmax(histogram)
    onnx.save(quantize(onnx.load(source), ranges, "cpu").model, folder / "int8.onnx")
    with OnnxSession(folder / "int8.onnx") as session:
        return reference[:, 1], session.infer({"x": x})["y"][:, 1]


def bias_alone(sums: np.ndarray, biases: np.ndarray, products: int) -> np.ndarray:
    """What the scales were widened by once: a bias that fits int32 by itself."""
    return biases / (2**31 - 1 - 256)


@pytest.mark.parametrize("kind", ["Conv", "Gemm"])
@pytest.mark.parametrize("bias", [0.5, -0.5])
@pytest.mark.parametrize("weight", [1e-5, 1e-6, 1e-7, 1e-8, 1e-9])
def test_a_bias_over_tiny_weights_does_not_wrap_the_accumulator(
    tmp_path: Path, weight: float, bias: float, kind: str
) -> None:
    reference, found = executed(tmp_path, weight, bias, kind)
    assert np.abs(found - reference).max() < 0.02


@pytest.mark.parametrize("kind", ["Conv", "Gemm"])
def test_a_bias_that_fills_int32_alone_wraps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The twin: without room for the products the channel changes its sign."""
    monkeypatch.setattr(affine, "_least_scales", bias_alone)
    reference, found = executed(tmp_path, 1e-8, 0.5, kind)
    assert np.abs(found - reference).max() > 0.5


def largest_sum(weight: np.ndarray, bias: np.ndarray, step: float) -> int:
    """The largest magnitude that any input can bring an accumulator to, of the integers as they are written."""
    scales = affine.weight_scales(weight, 0, bias, step)
    steps = (np.float64(step) * scales.astype(np.float64)).astype(np.float32)  # as optimizer.graph.qdq makes them
    integers = affine.to_int8(weight, scales, 0).astype(np.int64)
    return int((255 * np.abs(integers).sum(axis=1) + np.abs(affine.to_int32(bias, steps).astype(np.int64))).max())


@pytest.mark.parametrize("weights", [1, 64, 4096, 70_000, 300_000])
@pytest.mark.parametrize("bias", [0.0, 1e-6, 3.7, -1e4])
def test_no_input_can_wrap_an_accumulator(weights: int, bias: float) -> None:
    rng = np.random.default_rng(weights)
    for size in (1.0, 1e-5, 1e-9):
        rows = np.stack([np.full(weights, size), rng.normal(size=weights) * size]).astype(np.float32)
        assert largest_sum(rows, np.full(2, bias, np.float32), 0.0173) <= 2**31 - 1


def test_scales_whose_product_leaves_float32_are_widened() -> None:
    for bias in (0.0, 1e-30):
        assert largest_sum(np.full((1, 4), 1e-35, np.float32), np.array([bias], np.float32), 1e-9) <= 2**31 - 1


def test_room_for_the_bias_alone_lets_an_accumulator_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin, and 66,000 large weights suffice without any bias."""
    monkeypatch.setattr(affine, "_least_scales", bias_alone)
    assert largest_sum(np.full((1, 64), 1e-6, np.float32), np.array([3.7], np.float32), 0.0173) > 2**31
    assert largest_sum(np.ones((1, 70_000), np.float32), np.zeros(1, np.float32), 0.0173) > 2**31


def test_the_check_of_the_cpu_dialect_sees_a_wrapped_channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Executed with the integer kernels the channel flips its sign; as the Q/DQ nodes read it is right."""
    monkeypatch.setattr(affine, "_least_scales", bias_alone)
    executed(tmp_path, 1e-8, 0.5)
    (tmp_path / "int8.onnx").rename(tmp_path / "model.onnx")
    assert Quantize.tolerance is not None
    feeds = {1: {"x": X[:1]}, 3: {"x": X[:3]}}
    with OnnxSession(tmp_path / "fp32.onnx") as parent:
        for dialect in ("tensorrt", "cpu", "openvino"):
            child = Quantize(dialect=dialect).open_output(Artifact("onnx", tmp_path, ""))  # type: ignore[arg-type]
            assert not isinstance(child, str)
            if dialect != "cpu":
                assert verify(parent, child, feeds, Quantize.tolerance, what="stage 'quantize'")
            else:
                with pytest.raises(StageError, match=r"output 'y' at batch 1 is -0\.5"):
                    verify(parent, child, feeds, Quantize.tolerance, what="stage 'quantize'")


class Flips(Session):
    """A session that gets the first few of its integer answers wrong."""

    inputs = (TensorSpec("x", "float32", ("batch", 10, 16)),)
    outputs = (TensorSpec("label", "int64", ("batch", 16)),)

    def __init__(self, wrong: int) -> None:
        self.wrong = wrong

    def infer(self, feed: Feed) -> dict[str, Array]:
        answers = feed["x"].argmax(axis=1)
        answers.flat[: self.wrong] += 1
        return {"label": answers}

    def bind(self, feed: Feed) -> Callable[[], None]:
        raise AssertionError("verify only infers")


FEEDS = {b: {"x": np.random.default_rng(b).normal(size=(b, 10, 16)).astype(np.float32)} for b in (1, 4)}


@pytest.mark.parametrize("stage", [Float16, Quantize, EngineRtx])
def test_stages_that_change_precision_may_flip_a_few_integer_answers(stage: type[Stage]) -> None:
    assert stage.tolerance is not None
    assert verify(Flips(0), Flips(1), FEEDS, stage.tolerance, what="stage")
    with pytest.raises(StageError, match="label"):
        verify(Flips(0), Flips(9), FEEDS, stage.tolerance, what="stage")


@pytest.mark.parametrize("stage", [Export, Simplify])
def test_stages_that_keep_precision_may_flip_none(stage: type[Stage]) -> None:
    assert stage.tolerance is not None
    with pytest.raises(StageError, match="label"):
        verify(Flips(0), Flips(1), FEEDS, stage.tolerance, what="stage")
