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


def dead_channel(path: Path, weight: float, bias: float) -> Path:
    """A 1x1 convolution whose second channel has next to no weights, as BatchNorm folding leaves dead channels."""
    rng = np.random.default_rng(1)
    weights = np.zeros((2, CHANNELS, 1, 1), np.float32)
    weights[0, :, 0, 0] = rng.normal(size=CHANNELS) * 0.1
    weights[1, :, 0, 0] = np.abs(rng.normal(size=CHANNELS)) * weight
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv", kernel_shape=[1, 1])],
        "dead",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", CHANNELS, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2, 4, 4])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([0.1, bias], np.float32), "b")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def executed(folder: Path, weight: float, bias: float) -> tuple[np.ndarray, np.ndarray]:
    """The dead channel in float32, and as the quantized graph executes it."""
    source = dead_channel(folder / "fp32.onnx", weight, bias)
    with OnnxSession(source) as session:
        reference = session.infer({"x": X})["y"]
    ranges = {}
    for name, values in (("x", X), ("y", reference)):
        histogram = RunningHistogram()
        histogram.fold(values)
        ranges[name] = minmax(histogram)
    onnx.save(quantize(onnx.load(source), ranges, "cpu").model, folder / "int8.onnx")
    with OnnxSession(folder / "int8.onnx") as session:
        return reference[:, 1], session.infer({"x": X})["y"][:, 1]


@pytest.mark.parametrize("bias", [0.5, -0.5])
@pytest.mark.parametrize("weight", [1e-5, 1e-6, 1e-7, 1e-8, 1e-9])
def test_a_bias_over_tiny_weights_does_not_wrap_the_accumulator(tmp_path: Path, weight: float, bias: float) -> None:
    reference, found = executed(tmp_path, weight, bias)
    assert np.abs(found - reference).max() < 0.02


def test_a_bias_that_fills_int32_alone_wraps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: without room for the products the channel changes its sign."""
    monkeypatch.setattr(affine, "_INT32_MAX", affine._INT32_MAX + 255 * 127 * CHANNELS - 256)
    reference, found = executed(tmp_path, 1e-8, 0.5)
    assert np.abs(found - reference).max() > 0.5


def test_the_cpu_dialect_is_checked_as_it_executes(tmp_path: Path) -> None:
    """Executed with its integer kernels the check sees a wrapped channel; as written it would not."""
    dead_channel(tmp_path / "model.onnx", 1e-3, 0.5)
    output = Artifact("onnx", tmp_path, "")
    with pytest.MonkeyPatch.context() as patched:
        asked: list[bool] = []

        class Recorder:
            def __init__(self, _: Path, *, optimize: bool) -> None:
                asked.append(optimize)

        patched.setattr("optimizer.runtime.onnx.OnnxSession", Recorder)
        Quantize(dialect="cpu").open_output(output)
        Quantize(dialect="tensorrt").open_output(output)
    assert asked == [True, False]


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
