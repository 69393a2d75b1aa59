"""What an engine's session promises beyond computing: CUDA graphs, profiles, streamed and stripped weights, times.

The fakes of tests/unit show the order of calls; only these show that TensorRT and the driver take it.
"""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.errors import StageError, UsageError
from optimizer.runtime.tensorrt import TensorRTSession, missing

pytestmark = pytest.mark.gpu
# Several layers, so that there is something to launch, to stream and to time.
WEIGHTS = [np.random.default_rng(seed).normal(size=(256, 256)).astype(np.float32) / 16 for seed in range(4)]
PACKAGES = ("tensorrt", "tensorrt_rtx")
TF32 = 0.01  # four products of 256 terms with 10 bits of mantissa, outputs near 1


@pytest.fixture(params=PACKAGES)
def package(request: pytest.FixtureRequest) -> Any:
    sentence = missing(request.param, "cuda:0")
    if sentence:
        pytest.skip(f"{request.param}: {sentence}")
    return request.param


def batch(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, 256)).astype(np.float32)


def reference(x: np.ndarray) -> np.ndarray:
    for weights in WEIGHTS:
        x = np.maximum(x @ weights, 0)
    return x


def model() -> Any:
    from onnx import TensorProto, helper, numpy_helper

    nodes, name = [], "x"
    for index in range(len(WEIGHTS)):
        nodes.append(helper.make_node("MatMul", [name, f"w{index}"], [f"m{index}"], name=f"product{index}"))
        name = "y" if index == len(WEIGHTS) - 1 else f"r{index}"
        nodes.append(helper.make_node("Relu", [f"m{index}"], [name], name=f"relu{index}"))
    made = helper.make_graph(
        nodes,
        "perceptron",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 256])],
        [numpy_helper.from_array(weights, f"w{index}") for index, weights in enumerate(WEIGHTS)],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def build(package: str, folder: Path, *, flags: tuple[str, ...] = (), rows: Any = ((1, 8, 32),)) -> Path:
    """Build an engine of the model with builder flags and one profile for each of `rows`; model.onnx lies beside it."""
    trt = importlib.import_module(package)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    typed = 0
    if "STRONGLY_TYPED" in trt.NetworkDefinitionCreationFlag.__members__ and trt.__version__.startswith("10."):
        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)  # weight streaming asks for it
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    content = model().SerializeToString()
    assert parser.parse(content), parser.get_error(0)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for flag in flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    for sizes in rows:
        profile = builder.create_optimization_profile()
        profile.set_shape("x", *((size, 256) for size in sizes))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        pytest.skip(f"{package} {trt.__version__} builds no engine for this GPU with {flags or 'its defaults'}")
    (folder / "engine.plan").write_bytes(bytes(plan))
    (folder / "model.onnx").write_bytes(content)
    return folder / "engine.plan"


def outputs_of(session: TensorRTSession, call: Any) -> np.ndarray:
    with session._cuda.current:
        return call.__self__.fetch()["y"]  # type: ignore[no-any-return]


def test_bound_call_computes_the_same_with_and_without_a_cuda_graph(package: Any, tmp_path: Path) -> None:
    plan = build(package, tmp_path)
    for graph in (True, False):
        with TensorRTSession(plan, package=package, cuda_graph=graph) as session:
            calls = [(rows, session.bind({"x": batch(rows)})) for rows in (1, 16)]
            for _ in range(5):
                for rows, call in calls:
                    call()
                    np.testing.assert_allclose(outputs_of(session, call), reference(batch(rows)), atol=TF32)
            wanted = {True: {"tensorrt": True, "tensorrt_rtx": None}[package], False: False}[graph]
            assert [capture.captured for capture in session.captures] == [wanted] * 2, session.captures
            np.testing.assert_allclose(session.infer({"x": batch(3)})["y"], reference(batch(3)), atol=TF32)


def test_replay_that_computes_wrong_would_be_seen() -> None:
    """The twin of the tolerance above."""
    assert np.abs(reference(batch(16)) - reference(batch(16)[::-1])).max() > TF32


def second_binding(plan: Path) -> tuple[float, list[int]]:
    """Return the seconds of binding a shape that another context has computed, and the cache's bytes around it."""
    sizes = []
    with TensorRTSession(plan, package="tensorrt_rtx", cuda_graph=False) as session:
        session.bind({"x": batch(16)})()
        for last in (False, True):
            with session._cuda.current:
                sizes.append(session._kernels.serialize().nbytes if session._kernels is not None else 0)
            if not last:
                begun = time.perf_counter()
                call = session.bind({"x": batch(16)})
                call()
                took = time.perf_counter() - begun
        np.testing.assert_allclose(outputs_of(session, call), reference(batch(16)), atol=TF32)
    return took, sizes


def test_rtx_compiles_the_kernels_of_a_shape_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second context adds nothing to the cache, and is ready sooner than one that has no cache to share."""
    sentence = missing("tensorrt_rtx", "cuda:0")
    if sentence:
        pytest.skip(f"tensorrt_rtx: {sentence}")
    plan = build("tensorrt_rtx", tmp_path)
    second_binding(plan)  # what the driver compiles or loads once a process
    shared = [second_binding(plan) for _ in range(3)]
    assert all(before == after > 0 for _, (before, after) in shared), shared
    monkeypatch.setattr(TensorRTSession, "_share_kernels", lambda *_: None)
    alone = [second_binding(plan) for _ in range(3)]
    assert min(took for took, _ in shared) < min(took for took, _ in alone), (shared, alone)


def test_every_profile_is_used_for_its_shapes(package: Any, tmp_path: Path) -> None:
    plan = build(package, tmp_path, rows=((1, 1, 4), (8, 16, 32)))
    with TensorRTSession(plan, package=package) as session:
        for rows in (1, 32, 4, 8, 2):
            np.testing.assert_allclose(session.infer({"x": batch(rows)})["y"], reference(batch(rows)), atol=TF32)
        call = session.bind({"x": batch(16)})
        call()
        np.testing.assert_allclose(outputs_of(session, call), reference(batch(16)), atol=TF32)
        with pytest.raises(UsageError, match="none of the engine's 2 profiles covers 'x'"):
            session.infer({"x": batch(6)})


def test_streamed_weights_compute_the_same(package: Any, tmp_path: Path) -> None:
    plan = build(package, tmp_path, flags=("WEIGHT_STREAMING",))
    for budget in (None, 0):
        with TensorRTSession(plan, package=package, weight_budget_bytes=budget) as session:
            if budget == 0:
                assert session.resident_weight_bytes == 0
            call = session.bind({"x": batch(8)})
            call()
            np.testing.assert_allclose(outputs_of(session, call), reference(batch(8)), atol=TF32)
            if session.resident_weight_bytes is not None:
                assert session.captures[0].captured is False


def test_stripped_plan_gets_its_weights_back(package: Any, tmp_path: Path) -> None:
    plan = build(package, tmp_path, flags=("STRIP_PLAN", "REFIT_IDENTICAL"))
    with TensorRTSession(plan, package=package) as session:
        np.testing.assert_allclose(session.infer({"x": batch(8)})["y"], reference(batch(8)), atol=TF32)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(StageError, match="built without its weights"):
        TensorRTSession(plan, package=package)


def test_trace_names_layers_with_their_times(package: Any, tmp_path: Path) -> None:
    plan = build(package, tmp_path)
    with TensorRTSession(plan, package=package) as session:
        events = session.trace({"x": batch(8)})
        assert events
        assert all(event["dur"] >= 0 and event["name"] for event in events)
        assert 0 < sum(event["dur"] for event in events) < 1e6
        np.testing.assert_allclose(session.infer({"x": batch(8)})["y"], reference(batch(8)), atol=TF32)


def test_memory_and_transfers_are_told(package: Any, tmp_path: Path) -> None:
    plan = build(package, tmp_path)
    with TensorRTSession(plan, package=package) as session:
        session.bind({"x": batch(32)})()
        assert session.device_memory_bytes > 0
        times = session.transfers({"x": batch(32)})
        assert times.in_bytes == 32 * 256 * 4
        for value in (times.in_pageable_ms, times.in_pinned_ms, times.out_pageable_ms, times.out_pinned_ms):
            assert 0 < value < 100


def test_torch_computes_while_and_after_a_graph_was_captured(package: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch finds no GPU")
    plan = build(package, tmp_path)
    x = torch.ones(4, device="cuda:0")
    with TensorRTSession(plan, package=package) as session:
        call = session.bind({"x": batch(8)})
        for _ in range(3):
            call()
            assert float((x * 2).sum()) == 8
    assert float((x * 3).sum()) == 12
