"""Engines on a real GPU: what the fakes of tests/unit cannot show. Skipped, with the reason, where there is none."""

from __future__ import annotations

import importlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.errors import UsageError
from optimizer.runtime import cuda
from optimizer.runtime.cuda import Cuda
from optimizer.runtime.tensorrt import TensorRTSession, missing

pytestmark = pytest.mark.gpu
WEIGHTS = np.random.default_rng(1).normal(size=(64, 32)).astype(np.float32)


@pytest.fixture
def gpu() -> Any:
    sentence = cuda.missing()
    if sentence:
        pytest.skip(sentence)
    opened = Cuda()
    with opened.current:
        yield opened
    opened.close()


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    package = request.param
    sentence = missing(package, "cuda:0")
    if sentence:
        pytest.skip(f"{package}: {sentence}")
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    trt = importlib.import_module(package)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString()), parser.get_error(0)
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("x", (1, 64), (8, 64), (32, 64))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        pytest.skip(f"{package} {trt.__version__} builds no engine for this GPU")
    (tmp_path / "engine.plan").write_bytes(bytes(plan))
    specs = {"inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 64]}]}
    (tmp_path / "engine.json").write_text(json.dumps(specs))
    return package, tmp_path / "engine.plan"


def reference(x: np.ndarray) -> np.ndarray:
    return np.maximum(x @ WEIGHTS, 0)


def batch(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, 64)).astype(np.float32)


def test_bytes_survive_the_way_to_the_gpu_and_back(gpu: Cuda) -> None:
    stream = gpu.create_stream()
    array = np.random.default_rng(0).normal(size=1 << 20).astype(np.float32)
    pointer = gpu.allocate(array.nbytes)
    gpu.to_device(pointer, array, stream)
    back = np.zeros_like(array)
    gpu.to_host(back, pointer, stream)
    gpu.synchronize(stream)
    np.testing.assert_array_equal(back, array)
    assert gpu.name
    major, minor = gpu.compute_capability.split(".")
    assert int(major) >= 5
    assert int(minor) >= 0


def test_engine_computes_at_every_batch_of_its_profile(engine: tuple[str, Path]) -> None:
    package, plan = engine
    with TensorRTSession(plan, package=package) as session:  # type: ignore[arg-type]
        assert session.inputs[0].shape == ("batch", 64)
        for rows in (1, 8, 3, 32, 1):
            x = batch(rows)
            found = session.infer({"x": x})["y"]
            # TF32 keeps 10 bits of each factor: 64 products of normal numbers are off by less than 0.05.
            np.testing.assert_allclose(found, reference(x), atol=0.05)
            assert np.abs(found - reference(x)[:, ::-1]).max() > 0.05
            np.testing.assert_array_equal(found, session.infer({"x": x})["y"])
        with pytest.raises(UsageError, match="the engine's profile allows"):
            session.infer({"x": batch(33)})


def test_bound_calls_interleave(engine: tuple[str, Path]) -> None:
    package, plan = engine
    with TensorRTSession(plan, package=package) as session:  # type: ignore[arg-type]
        calls = [session.bind({"x": batch(rows)}) for rows in (1, 16)]
        for _ in range(3):
            for call in calls:
                call()
        np.testing.assert_allclose(session.infer({"x": batch(2)})["y"], reference(batch(2)), atol=0.05)


def test_bound_call_runs_in_another_thread(engine: tuple[str, Path]) -> None:
    package, plan = engine
    with TensorRTSession(plan, package=package) as session:  # type: ignore[arg-type]
        call = session.bind({"x": batch(3)})
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(call).result() is None


def test_torch_computes_before_between_and_after(engine: tuple[str, Path]) -> None:
    """Both use the primary context; opening and closing ours must not take it or the current device from torch."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch finds no GPU")
    package, plan = engine
    assert cuda.missing() is None
    x = torch.ones(4, device="cuda:0")
    device = torch.cuda.current_device()
    for _ in range(2):
        with TensorRTSession(plan, package=package) as session:  # type: ignore[arg-type]
            found = session.infer({"x": batch(3)})["y"]
            assert float((x * 2).sum()) == 8
            np.testing.assert_array_equal(session.infer({"x": batch(3)})["y"], found)
        assert torch.cuda.current_device() == device
        assert float((x * 3).sum()) == 12


def test_engine_that_is_damaged_is_refused_with_its_words(engine: tuple[str, Path]) -> None:
    from optimizer.errors import StageError

    package, plan = engine
    plan.write_bytes(plan.read_bytes()[:100])
    with pytest.raises(StageError, match=f"{package} .* refuses the engine"):
        TensorRTSession(plan, package=package)  # type: ignore[arg-type]
