"""Engines on the GPU that is here: built, opened, and compared with the graph they were built from."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.errors import StageError
from optimizer.runtime.tensorrt import missing
from optimizer.stage import StageContext
from optimizer.stages.engine import EngineRtx, EngineTensorRT
from optimizer.types import Artifact
from optimizer.verify import verify

pytestmark = pytest.mark.gpu
RNG = np.random.default_rng(0)
PROFILE = {"batch": (1, 4, 16)}


def network(scale=1.0):
    """Conv, Relu, global pooling and Gemm with fixed random weights."""
    rng = np.random.default_rng(7)
    weights = {"c": rng.normal(size=(16, 3, 3, 3)) / 5, "f": rng.normal(size=(10, 16)) * scale / 4}
    nodes = [
        helper.make_node("Conv", ["image", "c"], ["conv"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"], name="relu"),
        helper.make_node("GlobalAveragePool", ["relu"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "f"], ["logits"], name="fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    return model


def feeds():
    return {b: {"image": RNG.normal(size=(b, 3, 16, 16)).astype(np.float32)} for b in (1, 3, 4, 16)}


def stage_for(package):
    absent = missing(package, "cuda:0")
    if absent:
        pytest.skip(absent)
    if package == "tensorrt":
        return EngineTensorRT(profile=PROFILE)
    from optimizer.runtime.cuda import Cuda

    with_gpu = Cuda(0)
    capability = with_gpu.compute_capability
    with_gpu.close()
    import tensorrt_rtx

    from optimizer.graph.build_engine import capabilities

    if capability not in capabilities(tensorrt_rtx):
        pytest.skip(f"tensorrt_rtx builds for no compute capability {capability}")
    return EngineRtx(profile=PROFILE, compute_capabilities=(capability,))


def build(stage, model, folder):
    source, out = folder / "source", folder / "out"
    source.mkdir()
    out.mkdir()
    onnx.save(model, source / "model.onnx")
    artifact = Artifact("onnx", source, "0" * 64)
    stage.run({"graph": artifact}, out, StageContext(folder / "log", lambda _: None, lambda *_: None, lambda _: None))
    return artifact, Artifact("engine", out, "")


@pytest.mark.parametrize("package", ["tensorrt", "tensorrt_rtx"])
def test_engine_computes_what_its_graph_says(package, tmp_path):
    stage = stage_for(package)
    graph, engine = build(stage, network(), tmp_path)
    with stage.open_parent({"graph": graph}) as parent, stage.open_output(engine) as child:
        notes = verify(parent, child, feeds(), stage.tolerance, what="engine")
    assert "SQNR" in notes[0]
    receipt = json.loads((engine.path / "engine.json").read_text())
    assert any("conv" in layer["onnx_nodes"] for layer in receipt["layers"])


@pytest.mark.parametrize("package", ["tensorrt", "tensorrt_rtx"])
def test_engine_of_another_graph_fails_the_tolerance(package, tmp_path):
    stage = stage_for(package)
    _, engine = build(stage, network(scale=1.1), tmp_path)
    right = tmp_path / "right"
    right.mkdir()
    onnx.save(network(), right / "model.onnx")
    graph = Artifact("onnx", right, "0" * 64)
    with (
        stage.open_parent({"graph": graph}) as parent,
        stage.open_output(engine) as child,
        pytest.raises(StageError, match="output 'logits' at batch 1"),
    ):
        verify(parent, child, feeds(), stage.tolerance, what="engine")
