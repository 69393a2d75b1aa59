"""The cast pass and the stage for bfloat16: what differs from float16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from float16_graphs import Arrays, Split, cnn, model, normal, run, sqnr_db
from onnx import TensorProto, numpy_helper

from optimizer.errors import MeasurementError, StageError
from optimizer.graph.bfloat16 import OPSET, convert_to_bfloat16
from optimizer.graph.narrow import CastReport
from optimizer.runners.onnxruntime import OnnxRuntimeRunner
from optimizer.runtime.onnx import OnnxSession
from optimizer.stage import StageContext
from optimizer.stages.bfloat16 import BFloat16
from optimizer.stages.float16 import Float16
from optimizer.types import Artifact

BFLOAT16 = TensorProto.BFLOAT16


def convert(folder: Path, source: onnx.ModelProto, keep: tuple[str, ...] = ()) -> tuple[onnx.ModelProto, CastReport]:
    onnx.save(source, folder / "source.onnx")
    report = convert_to_bfloat16(folder / "source.onnx", folder / "narrow.onnx", keep)
    return onnx.load(folder / "narrow.onnx"), report


def at_opset(source: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    source.opset_import[0].version = opset
    return source


def test_a_cnn_computes_in_bfloat16_between_two_casts(tmp_path: Path) -> None:
    result, report = convert(tmp_path, cnn())
    assert [n.op_type for n in result.graph.node] == ["Cast", "Conv", "Relu", "MaxPool", "Flatten", "Gemm", "Cast"]
    assert (report.narrow_nodes, report.kept, report.casts) == (5, {}, 2)
    assert {tensor.data_type for tensor in result.graph.initializer} == {BFLOAT16}
    x = normal(8, 3, 8, 8)
    with OnnxSession(tmp_path / "source.onnx", optimize=False) as session:
        assert sqnr_db(session.infer({"x": x})["y"], run(tmp_path / "narrow.onnx", x=x)) > 40


def test_weights_are_the_nearest_as_torch_rounds_them(tmp_path: Path) -> None:
    result, _ = convert(tmp_path, cnn())
    for before, after in zip(cnn().graph.initializer, result.graph.initializer, strict=True):
        nearest = torch.from_numpy(numpy_helper.to_array(before).copy()).to(torch.bfloat16).float().numpy()
        np.testing.assert_array_equal(numpy_helper.to_array(after).astype(np.float32), nearest)


@pytest.mark.parametrize("opset", [19, 20, 21])
def test_an_older_graph_is_declared_the_opset_that_has_bfloat16_convolutions(opset: int, tmp_path: Path) -> None:
    result, _ = convert(tmp_path, at_opset(cnn(), opset))
    assert result.opset_import[0].version == OPSET


def test_an_operator_that_means_something_else_by_then_is_refused(tmp_path: Path) -> None:
    text = """g (float[batch, 4, 6] x) => (float[batch, 4, 6] y) <float[2] s = {1.0, 1.0}> {
      a = Relu(x) y = GroupNormalization<num_groups = 2>(a, s, s) }"""
    source = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    with pytest.raises(
        StageError, match="the graph is of opset 20, and GroupNormalization mean something else"
    ) as caught:
        convert(tmp_path, source)
    assert caught.value.hint == "Export the model at opset 22."


PIXELS = "g (float[batch, 3, 8, 8] x) => (float[batch, 3, h, w] y) {"


@pytest.mark.parametrize(
    ("operator", "reason"),
    [
        ("HardSwish(a)", "TensorRT's ONNX parser refuses it in bfloat16"),
        ("Mish(a)", "TensorRT's ONNX parser refuses it in bfloat16"),
        ("ConvTranspose(a, k)", "TensorRT-RTX finds no kernel for it in bfloat16"),
        ("Exp(a)", "needs more digits of its argument than bfloat16 has"),
        ("InstanceNormalization(a, s, s)", "mean and variance are sums over many elements"),
        ("GlobalAveragePool(a)", "adds up many elements: bfloat16 accumulation loses digits"),
        ("AveragePool<kernel_shape = [3, 3]>(a)", "adds up many elements: bfloat16 accumulation loses digits"),
    ],
)
def test_what_bfloat16_does_not_serve_stays_float32(operator: str, reason: str, tmp_path: Path) -> None:
    text = f"{PIXELS} [conv] a = Conv(x, k) [it] b = {operator} [out] y = Conv(b, k) }}"
    constants: Arrays = {"k": normal(3, 3, 1, 1), "s": np.ones(3)}
    used = {name: value for name, value in constants.items() if name == "k" or "s, s" in operator}
    _, report = convert(tmp_path, model(text, **used))
    assert list(report.kept) == ["it"]
    assert report.kept["it"].startswith(reason)


@pytest.mark.parametrize("operator", ["Reciprocal(a)", "AveragePool<kernel_shape = [2, 2]>(a)", "Sigmoid(a)", "Erf(a)"])
def test_what_float16_could_not_reach_or_add_up_may_narrow(operator: str, tmp_path: Path) -> None:
    text = f"{PIXELS} [conv] a = Conv(x, k) [it] b = {operator} [out] y = Conv(b, k) }}"
    assert convert(tmp_path, model(text, k=normal(3, 3, 1, 1)))[1].kept == {}


def test_a_mask_beyond_its_range_stays_float32(tmp_path: Path) -> None:
    text = """g (float[batch, 4] x) => (float[batch, 4] y) {
      [in] a = MatMul(x, w) [mask] b = Add(a, m) [out] y = MatMul(b, w) }"""
    lowest = np.float32(np.finfo(np.float32).min)
    _, report = convert(tmp_path, model(text, w=np.eye(4), m=lowest))
    assert report.kept["mask"] == "its constant 'm' (3.40282e+38) lies beyond bfloat16's 3.38953e+38"
    assert convert(tmp_path, model(text, w=np.eye(4), m=np.float32(-1e38)))[1].kept == {}


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_a_graph_that_is_narrow_already_is_refused(name: str, tmp_path: Path) -> None:
    text = f"g ({name}[n] x) => ({name}[n] y) {{ y = Relu(x) }}"
    with pytest.raises(StageError, match=f"already holds 2 {name} tensors, the first is 'x'"):
        convert(tmp_path, model(text))


def test_tensorrt_builds_what_the_pass_writes(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    text = f"""{PIXELS} [one] a = Conv(x, k) b = HardSwish(a) c = Mish(b) d = ConvTranspose(c, k)
        e = MaxPool<kernel_shape = [2, 2]>(d) f = Sigmoid(e) g = Gelu(f) s = Softmax(g) y = Conv(s, k) }}"""
    logger = trt.Logger(trt.Logger.ERROR)
    for source in (cnn(), model(text, k=normal(3, 3, 1, 1))):
        convert(tmp_path, source)
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, logger)
        assert parser.parse_from_file(str(tmp_path / "narrow.onnx")), parser.get_error(0).desc()
        config = builder.create_builder_config()
        profile = builder.create_optimization_profile()
        profile.set_shape("x", (1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))
        config.add_optimization_profile(profile)
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        assert builder.build_serialized_network(network, config) is not None


def stage_run(folder: Path, stage: BFloat16 | Float16, source: onnx.ModelProto, split: Split | None) -> list[str]:
    notes: list[str] = []
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    onnx.save(source, folder / "in" / "model.onnx")
    sources = {"graph": Artifact("onnx", folder / "in", "0" * 64)}
    if split is not None:
        sources["samples"] = Artifact("data", folder / "in", "2" * 64)

    def samples(name: str) -> Split:
        assert split is not None
        assert name == "calibration"
        return split

    stage.run(sources, folder / "out", StageContext(folder / "log", notes.append, lambda *_: None, samples))
    return notes


def artifact(folder: Path) -> Artifact:
    return Artifact("onnx", folder / "out", "1" * 64)


def test_the_stage_says_what_decided_and_keeps_its_budget(tmp_path: Path) -> None:
    stage, x = BFloat16(), normal(9, 3, 8, 8)
    notes = stage_run(tmp_path, stage, cnn(), Split(x=x))
    assert notes == [
        "ranges of 6 tensors over 9 samples decide what stays float32",
        "5 of 5 floating-point nodes are bfloat16, 2 casts",
    ]
    session = stage.open_output(artifact(tmp_path))
    assert not isinstance(session, str)
    assert stage.tolerance is not None
    assert stage.tolerance.min_sqnr_db is not None
    with session, OnnxSession(tmp_path / "in" / "model.onnx", optimize=False) as before:
        expected, found = before.infer({"x": x})["y"], session.infer({"x": x})["y"]
    assert sqnr_db(expected, found) > stage.tolerance.min_sqnr_db
    assert not sqnr_db(expected, found * np.float32(0.8)) > stage.tolerance.min_sqnr_db  # the twin: 14 dB


@pytest.mark.parametrize("stage", [Float16(), BFloat16()])
def test_without_data_the_note_says_how_to_give_some(stage: Float16 | BFloat16, tmp_path: Path) -> None:
    first = stage_run(tmp_path, stage, cnn(), None)[0]
    assert "judged from the graph alone" in first
    assert "with data.calibration in the recipe, ranges on real samples decide" in first


def test_the_cpu_is_refused_in_a_sentence_before_it_fails(tmp_path: Path) -> None:
    stage_run(tmp_path, BFloat16(), cnn(), None)
    refusal = OnnxRuntimeRunner.refuses(artifact(tmp_path), "cpu")
    assert refusal == (
        "onnxruntime has no bfloat16 kernels on the CPU, and 5 nodes compute in it (Conv, Flatten, Gemm, ...); "
        "a GPU can: onnxruntime on CUDA, or a TensorRT engine for compute capability 8.0 or later"
    )
    with pytest.raises(MeasurementError), OnnxRuntimeRunner(artifact(tmp_path)):
        pass  # the twin: it is true
    assert OnnxRuntimeRunner.refuses(artifact(tmp_path), "cuda:0") is None


def test_float32_and_float16_graphs_are_not_refused(tmp_path: Path) -> None:
    stage_run(tmp_path, Float16(), cnn(), None)
    assert OnnxRuntimeRunner.refuses(artifact(tmp_path), "cpu") is None
    assert OnnxRuntimeRunner.refuses(Artifact("onnx", tmp_path / "in", "0" * 64), "cpu") is None
