from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_gpu
import numpy as np
import pytest

from optimizer.errors import MissingToolError, StageError, UsageError
from optimizer.runtime import cuda, tensorrt
from optimizer.runtime.layer_times import as_events, layer_profiler
from optimizer.runtime.tensorrt import TensorRTSession
from optimizer.types import TensorSpec

X = np.arange(6, dtype=np.float32).reshape(2, 3)
INPUT = {"name": "x", "dtype": "float32", "shape": ["batch", 3]}
OUTPUT = {"name": "double", "dtype": "float32", "shape": ["batch", 3]}


class Machine:
    """A machine whose driver and TensorRT are the fakes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **traits: Any) -> None:
        self.driver = fake_gpu.Driver()
        self.trt = fake_gpu.tensorrt(**traits)
        self.trt.driver = self.driver
        monkeypatch.setattr(cuda, "_load", lambda index: self.driver)
        monkeypatch.setattr(tensorrt, "_import", lambda package: self.trt)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda **traits: Machine(monkeypatch, **traits)


def test_session_computes_and_frees_everything(machine: Any, tmp_path: Path) -> None:
    here = machine()
    before = X.tobytes()
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt_rtx") as session:
        np.testing.assert_array_equal(session.infer({"x": X})["double"], X * 2)
        assert X.tobytes() == before
    session.close()
    assert (here.driver.memory, here.driver.handles, here.driver.retained) == ({}, set(), 0)
    with pytest.raises(RuntimeError, match="closed"):
        session.infer({"x": X})


def test_axes_have_the_names_of_the_receipt(machine: Any, tmp_path: Path) -> None:
    machine()
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt") as session:
        assert session.inputs == (TensorSpec("x", "float32", ("x_axis0", 3)),)
    plan = fake_gpu.plan(tmp_path, inputs=[INPUT], outputs=[OUTPUT])
    with TensorRTSession(plan, package="tensorrt") as session:
        assert session.inputs == (TensorSpec("x", "float32", ("batch", 3)),)
        assert session.outputs == (TensorSpec("double", "float32", ("batch", 3)),)


def test_receipt_of_another_engine_is_refused(machine: Any, tmp_path: Path) -> None:
    here = machine()
    plan = fake_gpu.plan(tmp_path, inputs=[INPUT | {"shape": ["batch", 7]}], outputs=[OUTPUT])
    with pytest.raises(StageError, match="they do not belong together"):
        TensorRTSession(plan, package="tensorrt")
    assert here.driver.retained == 0


def test_memory_grows_and_is_used_again(machine: Any, tmp_path: Path) -> None:
    here = machine()
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt") as session:
        for rows in (1, 4, 2, 4, 1):
            x = np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)
            np.testing.assert_array_equal(session.infer({"x": x})["double"], x * 2)
    assert here.driver.calls.count("cuMemAlloc_v2") == 4  # one and four rows, of two tensors


def test_bound_calls_keep_their_own_memory(machine: Any, tmp_path: Path) -> None:
    here = machine()
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt_rtx") as session:
        x = X.copy()
        one, two = session.bind({"x": x}), session.bind({"x": np.ones((4, 3), np.float32)})
        x[...] = 0
        session.infer({"x": X})
        here.driver.calls.clear()
        for call in (one, two, one):
            call()
        assert here.driver.calls == ["cuCtxPushCurrent_v2", "cuStreamSynchronize", "cuCtxPopCurrent_v2"] * 3
        with session._cuda.current:
            first = one.__self__.fetch()["double"]  # type: ignore[attr-defined]
        np.testing.assert_array_equal(first, X * 2)


def test_batch_that_does_not_fit_leaves_its_memory_to_the_next(machine: Any, tmp_path: Path) -> None:
    here = machine()
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt") as session:
        session.infer({"x": X})
        before = (dict(here.driver.memory), set(here.driver.handles), list(session.captures))
        here.driver.capacity = session_bytes(here) + X.nbytes * 2 + 8  # room for the input of four rows
        with pytest.raises(StageError, match="CUDA_ERROR_OUT_OF_MEMORY"):
            session.bind({"x": np.ones((4, 3), np.float32)})
        assert (here.driver.memory, here.driver.handles, session.captures) == before
        session.bind({"x": X[:1]})()  # beside four rows that stayed there would be no room for one
    assert (here.driver.memory, here.driver.handles, here.driver.retained) == ({}, set(), 0)


def session_bytes(here: Machine) -> int:
    return sum(len(block) for block in here.driver.memory.values())


def test_shape_tensors_live_in_host_memory(machine: Any, tmp_path: Path) -> None:
    machine(sizes=True)
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt_rtx") as session:
        assert session.infer({"x": X})["sizes"].tolist() == [2, 3]


def test_shape_outside_the_profile_is_a_usage_error(machine: Any, tmp_path: Path) -> None:
    machine()
    with (
        TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt") as session,
        pytest.raises(
            UsageError, match=r"input 'x' has shape \[5, 3\]; the engine's profile allows \[1, 3\] to \[4, 3\]"
        ),
    ):
        session.infer({"x": np.zeros((5, 3), np.float32)})


@pytest.mark.parametrize(
    ("traits", "message"),
    [
        ({"data_dependent": True}, "the shape of output 'double' depends on the data"),
        ({"fails": True}, "execution failed: Cask convolution execution failed"),
        ({"inconsistent": True}, "TensorRT cannot infer shapes: it logged no reason (shape inference failed)"),
        ({"dtype": "BF16"}, "tensor 'double' is BF16, which numpy cannot hold"),
        ({"linear": False}, "tensor 'double' is not in linear format"),
        ({"refuse": "magicTag == kEXPECTED_MAGIC_TAG failed"}, "tensorrt_rtx 99.1 refuses the engine: magicTag"),
    ],
)
def test_refusals_name_the_cause(machine: Any, tmp_path: Path, traits: dict[str, Any], message: str) -> None:
    here = machine(**traits)
    with pytest.raises(StageError) as caught, TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt_rtx") as s:
        s.infer({"x": X})
    assert message in str(caught.value)
    assert here.driver.retained == 0


def test_driver_that_is_too_old_is_a_missing_tool(machine: Any, tmp_path: Path) -> None:
    here = machine(old_driver=True)
    with pytest.raises(MissingToolError) as caught:
        TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt_rtx")
    assert "cannot start its runtime: CUDA initialization failure with error: 35" in caught.value.what
    assert caught.value.hint == "it needs a newer driver; this one serves CUDA 13.2"
    assert here.driver.retained == 0


def test_lost_gpu_keeps_its_error_through_closing(machine: Any, tmp_path: Path) -> None:
    here = machine()
    session = TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt")
    call = session.bind({"x": X})
    here.driver.lost = True
    with pytest.raises(StageError, match="CUDA_ERROR_ILLEGAL_ADDRESS"), session:
        call()


def test_session_leaves_the_current_gpu_as_it_was(machine: Any, tmp_path: Path) -> None:
    here = machine()
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt") as session:
        session.infer({"x": X})
        session.bind({"x": X})()
        assert here.driver.stack == [fake_gpu.TORCHS_CONTEXT]
    assert here.driver.stack == [fake_gpu.TORCHS_CONTEXT]


def test_engine_of_another_gpu_is_a_missing_device(machine: Any, tmp_path: Path) -> None:
    machine(refuse="no kernel image")
    with pytest.raises(MissingToolError) as caught:
        TensorRTSession(fake_gpu.plan(tmp_path, compute_capabilities=["8.6", "12.0"]), package="tensorrt_rtx")
    assert "was built for 8.6, 12.0; this GPU () has compute capability 8.9" in str(caught.value)
    assert "no kernel image" in str(caught.value)


def test_rtx_compiles_kernels_before_it_answers(machine: Any, tmp_path: Path) -> None:
    here = machine()
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt_rtx"):
        config = here.trt.engines[0].configs[0]
        assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt"):
        assert here.trt.engines[1].configs == [None]


def test_rtx_compiles_the_kernels_of_a_shape_once_for_all_contexts(machine: Any, tmp_path: Path) -> None:
    here = machine()
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt_rtx") as session:
        session.infer({"x": X})
        for _ in range(2):
            session.bind({"x": X})()
        session.trace({"x": X})
        session.bind({"x": np.ones((4, 3), np.float32)})()
    assert here.trt.engines[0].compiled == [(2, 3), (4, 3)]
    for _ in range(2):  # the next session begins with nothing
        with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt_rtx") as session:
            session.infer({"x": X})
    assert [engine.compiled for engine in here.trt.engines[1:]] == [[(2, 3)], [(2, 3)]]


def test_contexts_that_share_no_kernels_compile_their_own(
    machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin of the test above: what the stand-in would show without the cache."""
    here = machine()
    monkeypatch.setattr(TensorRTSession, "_share_kernels", lambda *_: None)
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt_rtx") as session:
        session.infer({"x": X})
        session.bind({"x": X})()
    assert here.trt.engines[0].compiled == [(2, 3), (2, 3)]


@pytest.mark.parametrize("caches", ["none", "refused"])
def test_a_cache_of_kernels_that_is_refused_is_an_error(machine: Any, tmp_path: Path, caches: str) -> None:
    here = machine(caches=caches)
    with pytest.raises(StageError, match="TensorRT-RTX refuses a cache of its kernels: it logged no reason"):
        TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt_rtx")
    assert (here.driver.memory, here.driver.handles, here.driver.retained) == ({}, set(), 0)


def test_cpu_and_a_missing_package_are_said_plainly(machine: Any, tmp_path: Path, monkeypatch: Any) -> None:
    machine()
    with pytest.raises(MissingToolError, match="executes on an NVIDIA GPU, not on the CPU") as caught:
        TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt_rtx", device="cpu")
    assert caught.value.hint == "pass --device cuda:0"
    assert tensorrt.missing("tensorrt_rtx", "cpu") == "needs the GPU: pass --device cuda:0"
    assert tensorrt.missing("tensorrt_rtx", "cuda:0") is None
    assert tensorrt.missing("tensorrt_rtx", "cuda:1") == "needs GPU 1; this machine has 1 GPU"

    def absent(package: str) -> None:
        raise MissingToolError(f"needs {package}, which cannot be imported")

    with monkeypatch.context() as patched:
        patched.setattr(tensorrt, "_import", absent)
        assert tensorrt.missing("tensorrt", "cuda:0") == "needs tensorrt, which cannot be imported"
    with pytest.raises(StageError, match="there is no such file"):
        TensorRTSession(tmp_path / "none.plan", package="tensorrt_rtx")


def bound(session: TensorRTSession, feed: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """Return the bound call and a function that reads its outputs."""
    call = session.bind(feed)
    execution = call.__self__  # type: ignore[attr-defined]

    def read() -> np.ndarray:
        with session._cuda.current:
            return execution.fetch()["double"]  # type: ignore[no-any-return]

    return call, read


def test_bound_call_launches_a_cuda_graph(machine: Any, tmp_path: Path) -> None:
    here = machine()
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt") as session:
        call, read = bound(session, {"x": X})
        assert [c.captured for c in session.captures] == [True]
        here.driver.calls.clear()
        call()
        assert here.driver.calls == [
            "cuCtxPushCurrent_v2",
            "cuGraphLaunch",
            "cuStreamSynchronize",
            "cuCtxPopCurrent_v2",
        ]
        np.testing.assert_array_equal(read(), X * 2)
        assert here.driver.graphs == {}
        assert len(here.driver.executables) == 1
    assert here.driver.executables == {}
    graphs_go_first = [c for c in here.driver.calls if c in ("cuGraphExecDestroy", "cuMemFree_v2")]
    assert graphs_go_first[0] == "cuGraphExecDestroy"


def test_cuda_graph_can_be_left_out(machine: Any, tmp_path: Path) -> None:
    here = machine()
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt", cuda_graph=False) as session:
        bound(session, {"x": X})[0]()
        assert (session.captures[0].captured, session.captures[0].reason) == (False, "not asked for")
    assert "cuStreamBeginCapture_v2" not in here.driver.calls


@pytest.mark.parametrize(
    ("traits", "reason"),
    [
        (
            {"capture": "refused"},
            "the runtime queues nothing while it is captured (a loop condition is read on the host)",
        ),
        ({"capture": "synchronizes"}, "cuStreamEndCapture: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"),
        ({"capture": "empty"}, "nothing was queued on the stream while it was captured"),
        ({"capture": "stale"}, "the replay of the captured graph gives other outputs"),
        ({"sizes": True}, "tensors in host memory ('sizes') are read when a call is queued, not when it runs"),
        ({"streamable": 1000}, "weights are streamed in while a call runs, which no graph can hold"),
    ],
)
def test_refused_capture_is_said_and_the_call_runs_without(
    machine: Any, tmp_path: Path, traits: dict[str, Any], reason: str
) -> None:
    here = machine(**traits)
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt") as session:
        call, read = bound(session, {"x": X})
        assert (session.captures[0].captured, session.captures[0].reason) == (False, reason)
        call()
        np.testing.assert_array_equal(read(), X * 2)
        assert here.driver.capturing == {}
        assert here.driver.graphs == {}
        assert here.driver.executables == {}


def test_rtx_captures_by_itself(machine: Any, tmp_path: Path) -> None:
    here = machine()
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt_rtx") as session:
        bound(session, {"x": X})[0]()
        assert session.captures[0].captured is None
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt_rtx", cuda_graph=False) as session:
        bound(session, {"x": X})[0]()
        assert session.captures[0].captured is False
    asked = [[config.cuda_graph_strategy for config in engine.configs] for engine in here.trt.engines]
    assert asked == [["disabled", "whole"], ["disabled", "disabled"]]
    assert "cuStreamBeginCapture_v2" not in here.driver.calls


def test_profile_that_covers_the_shapes_is_chosen(machine: Any, tmp_path: Path) -> None:
    here = machine(rows=[(1, 1, 4), (2, 16, 32)])
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt") as session:
        for rows in (1, 32, 4, 2, 8):  # 4 is allowed by both and as far from 1 as from 16; 2 is nearer to 1
            x = np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)
            np.testing.assert_array_equal(session.infer({"x": x})["double"], x * 2)
        assert here.trt.engines[0].profiles_set == [1, 0, 1]
        with pytest.raises(UsageError) as caught:
            session.infer({"x": np.zeros((40, 3), np.float32)})
    assert caught.value.what == (
        "none of the engine's 2 profiles covers 'x' [40, 3]; "
        "they allow 0: 'x' [1, 3] to [4, 3]; 1: 'x' [2, 3] to [32, 3]"
    )


def test_weight_budget_is_set_before_any_context(machine: Any, tmp_path: Path) -> None:
    here = machine(streamable=1000)
    for wanted, resident, budget in ((None, 250, 250), (400, 400, 400), (1000, None, 1000)):
        with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt", weight_budget_bytes=wanted) as session:
            assert session.resident_weight_bytes == resident
            assert here.trt.engines[-1].weight_streaming_budget_v2 == budget
    with pytest.raises(UsageError, match=r"a weight budget of 1,001 bytes \(allowed: 0 to 1,000\)"):
        TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt", weight_budget_bytes=1001)
    machine()
    with pytest.raises(UsageError, match="was built without weight streaming"):
        TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt", weight_budget_bytes=10)


def test_stripped_plan_gets_its_weights_from_the_graph_beside_it(machine: Any, tmp_path: Path) -> None:
    here = machine(stripped=True)
    plan = fake_gpu.plan(tmp_path)
    with pytest.raises(StageError, match=r"built without its weights, and there is no model\.onnx beside it"):
        TensorRTSession(plan, package="tensorrt")
    (tmp_path / "model.onnx").write_text("the graph")
    with TensorRTSession(plan, package="tensorrt") as session:
        np.testing.assert_array_equal(session.infer({"x": X})["double"], X * 2)
    for content, message in (
        ("other graph", "do not fit the engine: shape mismatch of 'w'"),
        ("part", "lacks 2 weights"),
    ):
        (tmp_path / "model.onnx").write_text(content)
        with pytest.raises(StageError, match=message):
            TensorRTSession(plan, package="tensorrt")
    assert here.driver.retained == 0


def test_receipt_says_whether_a_plan_is_stripped(machine: Any, tmp_path: Path) -> None:
    machine(stripped=True)
    with pytest.raises(StageError, match="built without its weights"):
        TensorRTSession(fake_gpu.plan(tmp_path, options={"strip_plan": True}), package="tensorrt")
    machine()
    with TensorRTSession(fake_gpu.plan(tmp_path, options={"strip_plan": False}), package="tensorrt"):
        pass


def test_trace_has_one_event_a_layer(machine: Any, tmp_path: Path) -> None:
    here = machine()
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt") as session:
        events = session.trace({"x": X})
        before = len(here.driver.handles)
        assert session.trace({"x": X}) == events
        assert len(here.driver.handles) == before  # its context is gone again
    assert [(e["name"], e["ph"], e["ts"], e["dur"]) for e in events] == [
        ("conv", "X", 0.0, 250.0),
        ("relu", "X", 250.0, 500.0),
    ]


def test_memory_and_transfers_are_told(machine: Any, tmp_path: Path) -> None:
    here = machine()
    with TensorRTSession(fake_gpu.plan(tmp_path), package="tensorrt") as session:
        assert session.device_memory_bytes == 0
        session.infer({"x": X})
        assert session.device_memory_bytes == 2 * X.nbytes
        assert session.context_memory_bytes == 4096
        times = session.transfers({"x": X})
        assert (times.in_bytes, times.out_bytes) == (X.nbytes, X.nbytes)
        assert min(times.in_pageable_ms, times.in_pinned_ms, times.out_pageable_ms, times.out_pinned_ms) > 0
        assert here.driver.pinned == {}
        assert session.device_memory_bytes == 2 * X.nbytes


@pytest.mark.parametrize(("options", "allowed"), [({"version_compatible": True}, True), ({}, False)])
def test_only_a_plan_that_says_so_may_run_the_lean_runtime_in_it(
    machine: Any, tmp_path: Path, options: dict[str, Any], allowed: bool
) -> None:
    """TensorRT refuses a version-compatible plan unless it is told to trust its code."""
    machine()
    with TensorRTSession(fake_gpu.plan(tmp_path, options=options), package="tensorrt") as session:
        assert getattr(session._runtime, "engine_host_code_allowed", False) is allowed


@pytest.mark.parametrize(("package", "registered"), [("tensorrt", [(None, "", 0)]), ("tensorrt_rtx", [])])
def test_the_plugins_of_tensorrt_are_there_before_a_plan_is_opened(
    machine: Any, tmp_path: Path, package: Any, registered: list[Any]
) -> None:
    here = machine()
    calls: list[Any] = []
    here.trt.init_libnvinfer_plugins = lambda *given: calls.append((*given, len(here.trt.engines)))
    with TensorRTSession(fake_gpu.plan(tmp_path), package=package):
        assert calls == registered


def test_real_bindings_have_every_name_that_the_fake_has() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx package")
    pairs = [
        (trt.ICudaEngine, fake_gpu.Engine),
        (trt.IExecutionContext, fake_gpu.Context),
        (trt.Runtime, fake_gpu.tensorrt().Runtime),
        (trt.Refitter, fake_gpu.Refitter),
        (trt.IRuntimeConfig, fake_gpu.RuntimeConfig),
        (trt.IRuntimeCache, fake_gpu.RuntimeCache),
        (trt.OnnxParserRefitter, fake_gpu.OnnxParserRefitter),
    ]
    own = {"driver", "logger"}
    for real, fake in pairs:
        for name in (name for name in vars(fake) if not name.startswith("_") and name not in own):
            assert hasattr(real, name), f"{real.__name__}.{name}"
    assert {m.name for m in fake_gpu.DataType} <= set(trt.DataType.__members__)
    assert set(fake_gpu.Mode.__members__) == set(trt.TensorIOMode.__members__)
    assert set(fake_gpu.Location.__members__) == set(trt.TensorLocation.__members__)
    assert hasattr(trt.DynamicShapesKernelSpecializationStrategy, "EAGER")
    assert hasattr(trt.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")
    assert hasattr(trt.IRuntimeConfig, "cuda_graph_strategy")
    assert {"DISABLED", "WHOLE_GRAPH_CAPTURE"} == set(trt.CudaGraphStrategy.__members__)
    assert hasattr(trt.EngineStat, "STRIPPED_WEIGHTS_SIZE")
    for name in ("profiler", "active_optimization_profile"):
        assert hasattr(trt.IExecutionContext, name)
    for name in ("streamable_weights_size", "weight_streaming_budget_v2", "device_memory_size_v2"):
        assert hasattr(trt.ICudaEngine, name)
    assert hasattr(trt.TensorFormat, "LINEAR")
    assert hasattr(trt.Runtime, "engine_host_code_allowed")
    assert trt.init_libnvinfer_plugins(None, "")


def test_real_bindings_take_our_profiler() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx package")
    times: list[tuple[str, float]] = []
    profiler = layer_profiler(trt, times)
    assert isinstance(profiler, trt.IProfiler)
    profiler.report_layer_time("conv", 0.5)
    assert as_events(times) == [{"name": "conv", "ph": "X", "ts": 0.0, "dur": 500.0, "args": {"layer": 0}}]


def test_real_runtime_refuses_junk_through_our_logger() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx package")
    errors: list[str] = []
    runtime = trt.Runtime(tensorrt._logger(trt, errors))
    assert runtime.deserialize_cuda_engine(b"junk" * 100) is None
    assert any("magicTag" in error for error in errors)
