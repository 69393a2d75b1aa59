"""Builder options with the library and the GPU that are here: what each does to the engine, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.errors import StageError
from optimizer.runtime.tensorrt import missing
from optimizer.stage import StageContext
from optimizer.stages.engine import Engine, EngineRtx, EngineTensorRT
from optimizer.types import Artifact
from optimizer.verify import verify

pytestmark = pytest.mark.gpu
PROFILE = {"batch": (1, 4, 16)}


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def package(request: pytest.FixtureRequest) -> str:
    absent = missing(request.param, "cuda:0")
    if absent:
        pytest.skip(absent)
    return str(request.param)


def stage(package: str, **options: Any) -> Engine:
    if package == "tensorrt":
        return EngineTensorRT(profile=PROFILE, **options)
    import tensorrt_rtx

    from optimizer.graph.build_engine import capabilities
    from optimizer.runtime.cuda import Cuda

    gpu = Cuda(0)
    here = gpu.compute_capability
    gpu.close()
    if here not in capabilities(tensorrt_rtx):
        pytest.skip(f"tensorrt_rtx builds for no compute capability {here}")
    return EngineRtx(profile=PROFILE, compute_capabilities=(here,), **options)


def build(made: Engine, folder: Path) -> tuple[Artifact, Artifact, dict[str, Any]]:
    source, out = folder / "source", folder / "out"
    for path in (source, out):
        path.mkdir(parents=True)
    rng = np.random.default_rng(7)
    weights = {"c": rng.normal(size=(16, 3, 3, 3)) / 5, "f": rng.normal(size=(10, 16)) / 4}
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
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), source / "model.onnx"
    )
    artifact = Artifact("onnx", source, "0" * 64)
    context = StageContext(folder / "log", lambda _: None, lambda *_: None, lambda _: None)  # type: ignore[arg-type]
    made.run({"graph": artifact}, out, context)
    return artifact, Artifact("engine", out, ""), json.loads((out / "engine.json").read_text())


def compare(made: Engine, graph: Artifact, engine: Artifact) -> None:
    rng = np.random.default_rng(0)
    feeds = {b: {"image": rng.normal(size=(b, 3, 16, 16)).astype(np.float32)} for b in (1, 3, 16)}
    child = made.open_output(engine)
    assert not isinstance(child, str), child
    assert made.tolerance is not None
    with made.open_parent({"graph": graph}) as parent, child:
        verify(parent, child, feeds, made.tolerance, what="engine")


@pytest.mark.parametrize(
    "options",
    [
        {"profiles": ({"batch": (1, 1, 1)}, {"batch": (2, 4, 16)})},
        {"workspace": 1 << 28},
        {"tf32": False},
        {"weight_streaming": True},
        {"refit": True},
        {"strip_plan": True},
        {"strip_plan": True, "refit": True},
    ],
    ids="+".join,
)
def test_an_engine_with_the_option_computes_what_its_graph_says(
    package: str, options: dict[str, Any], tmp_path: Path
) -> None:
    made = stage(package, **options)
    graph, engine, receipt = build(made, tmp_path)
    assert receipt["options_given"].keys() == options.keys()
    compare(made, graph, engine)


@pytest.mark.parametrize(
    "options",
    [
        {"builder_optimization_level": 1},
        {"sparse_weights": True},
        {"hardware_compatibility_level": "ampere_plus"},
        {"version_compatible": True},
    ],
    ids="+".join,
)
def test_what_tensorrt_alone_honours(package: str, options: dict[str, Any], tmp_path: Path) -> None:
    made = stage(package, **options)
    if package == "tensorrt_rtx":
        with pytest.raises(StageError, match="tensorrt_rtx does not honour it"):
            build(made, tmp_path)
        return
    graph, engine, receipt = build(made, tmp_path)
    assert receipt["options"].items() >= options.items()
    compare(made, graph, engine)


def test_a_stripped_plan_is_smaller(package: str, tmp_path: Path) -> None:
    sizes = [
        build(stage(package, **options), tmp_path / str(index))[1].file.stat().st_size
        for index, options in enumerate(({}, {"strip_plan": True, "refit": True}))
    ]
    assert sizes[1] < sizes[0]


def test_a_timing_cache_is_made_then_locked_and_an_empty_one_is_a_miss(tmp_path: Path) -> None:
    absent = missing("tensorrt", "cuda:0")
    if absent:
        pytest.skip(absent)
    known = tmp_path / "known.cache"
    _, engine, receipt = build(stage("tensorrt", timing_cache={"path": str(known)}), tmp_path / "first")
    known.write_bytes((engine.path / "timing.cache").read_bytes())
    locked = {"timing_cache": {"path": str(known), "locked": True}}
    again = build(stage("tensorrt", **locked), tmp_path / "second")[2]
    assert again["timing_cache"]["began_with_sha256"] == receipt["timing_cache"]["file_sha256"]
    with pytest.raises(StageError, match="timing cache"):
        build(stage("tensorrt", builder_optimization_level=5, **locked), tmp_path / "third")
