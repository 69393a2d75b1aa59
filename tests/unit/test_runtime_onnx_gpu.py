"""onnxruntime's GPU sessions, against the real onnxruntime on the CPU under the names of its GPU providers."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_gpu
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.errors import MissingToolError, StageError, UsageError
from optimizer.runners.onnxruntime import OnnxRuntimeCudaGraphRunner, OnnxRuntimeTensorRTRunner
from optimizer.runtime import cuda
from optimizer.runtime import onnx as onnx_session
from optimizer.runtime.onnx import OnnxSession
from optimizer.runtime.onnx_gpu import CudaGraphSession, TensorrtProviderSession, _inverted, open_with_cuda_graphs
from optimizer.runtime.onnx_providers import CPU, CUDA, TENSORRT, left_over, missing, placement, profile_options
from optimizer.runtime.onnx_trace import last_run
from optimizer.types import Artifact

WEIGHTS = np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32)
X = np.random.default_rng(2).normal(size=(3, 8)).astype(np.float32)
PROFILE = {"x": ((1, 8), (4, 8), (16, 8))}


class Binding:
    """An IOBinding whose device names mean the CPU."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.bind_ortvalue_input = real.bind_ortvalue_input
        self.bind_ortvalue_output = real.bind_ortvalue_output
        self.get_outputs = real.get_outputs
        self.copy_outputs_to_cpu = real.copy_outputs_to_cpu

    def bind_output(self, name: str, device: str, index: int) -> None:
        self.real.bind_output(name)

    def synchronize_outputs(self) -> None:
        self.real.synchronize_outputs()


class Gpu:
    """The onnxruntime module with GPU providers that compute on the CPU; `started`: those that load.

    `capture`: a graph is replayed into the outputs it was captured with ("works"), is never made ("never"), or its
    replay writes nothing ("stale").
    """

    def __init__(
        self, *, started: tuple[str, ...] = (TENSORRT, CUDA, CPU), refuses: str = "", capture: str = "works"
    ) -> None:
        self.started, self.refuses, self.capture = started, refuses, capture
        self.captured: dict[str, Binding] = {}
        self.asked: list[list[Any]] = []
        self.graphs: list[str] = []
        self.OrtValue = SimpleNamespace(
            ortvalue_from_numpy=lambda array, device, index: onnxruntime.OrtValue.ortvalue_from_numpy(array),
            ortvalue_from_shape_and_type=lambda shape, dtype, device, index: (
                onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype)
            ),
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)

    def preload_dlls(self) -> None:
        sys.stdout.write("what it prints is nobody's business")

    def get_available_providers(self) -> list[str]:
        return [TENSORRT, CUDA, CPU]

    def InferenceSession(self, path: str, *, sess_options: Any, providers: list[Any], **other: Any) -> Any:  # noqa: N802
        self.asked.append(providers)
        if self.refuses and "enable_cuda_graph" in str(providers):
            raise RuntimeError(self.refuses)
        real = onnxruntime.InferenceSession(path, sess_options=sess_options, providers=[CPU], **other)
        names = [provider if isinstance(provider, str) else provider[0] for provider in providers]

        def run_with_iobinding(binding: Binding, options: Any = None) -> None:
            graph = "-1" if options is None else options.get_run_config_entry("gpu_graph_id")
            if options is not None:
                self.graphs.append(graph)
            if graph in self.captured and self.capture == "stale":
                return
            if graph != "-1" and self.capture != "never":
                binding = self.captured.setdefault(graph, binding)
            real.run_with_iobinding(binding.real, options)

        return SimpleNamespace(
            run=real.run,
            get_inputs=real.get_inputs,
            get_outputs=real.get_outputs,
            end_profiling=real.end_profiling,
            get_provider_graph_assignment_info=real.get_provider_graph_assignment_info,
            get_providers=lambda: [name for name in names if name in self.started],
            io_binding=lambda: Binding(real.io_binding()),
            run_with_iobinding=run_with_iobinding,
        )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(**traits: Any) -> Gpu:
        made = Gpu(**traits)
        monkeypatch.setattr(onnx_session, "import_onnxruntime", lambda: made)
        return made

    return make


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="mm"),
        helper.make_node("Softmax", ["m"], ["y"], name="sm"),
    ]
    return save(tmp_path, nodes, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])])


def save(folder: Path, nodes: list[Any], outputs: list[Any]) -> Path:
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])]
    made = helper.make_graph(nodes, "g", given, outputs, [numpy_helper.from_array(WEIGHTS, "w")])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "m.onnx")
    return folder / "m.onnx"


def expected(x: np.ndarray) -> np.ndarray:
    scores = np.exp(x @ WEIGHTS)
    return scores / scores.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


def test_tensorrt_provider_stands_before_cuda_and_keeps_the_graphs_precision(gpu: Any, graph: Path) -> None:
    ort = gpu()
    with TensorrtProviderSession(graph, profile=PROFILE) as session:
        np.testing.assert_allclose(session.infer({"x": X})["y"], expected(X), rtol=1e-5)
        session.bind({"x": X})()
    (name, options), (second, _), third = ort.asked[0]
    assert (name, second, third) == (TENSORRT, CUDA, CPU)
    assert {k: options[k] for k in options if not k.startswith("trt_profile")} == {
        "device_id": "0",
        "trt_engine_cache_enable": "False",
        "trt_timing_cache_enable": "False",
        "trt_fp16_enable": "False",
        "trt_int8_enable": "False",
    }
    assert options["trt_profile_max_shapes"] == "x:16x8"


def test_provider_that_did_not_load_is_an_error(gpu: Any, graph: Path) -> None:
    gpu(started=(CUDA, CPU))
    with pytest.raises(MissingToolError) as caught:
        TensorrtProviderSession(graph)
    assert f"could not start {TENSORRT} (it started {CUDA}, {CPU})" in caught.value.what
    assert "TensorRT 10, CUDA and cuDNN" in (caught.value.hint or "")


def test_nodes_that_run_elsewhere_are_counted_and_named(gpu: Any, graph: Path) -> None:
    gpu()
    with TensorrtProviderSession(graph) as session:  # the stand-in puts all of them on the CPU
        assert session.leftovers == f"2 of 2 nodes run on {CPU} (MatMul, Softmax)"
    with OnnxSession(graph) as session:
        assert session.leftovers is None
    assert left_over({TENSORRT: ["Conv"] * 9}, TENSORRT) is None
    many = {TENSORRT: ["Conv"], CUDA: ["NonZero", "A", "B", "C", "D"], CPU: ["Shape"]}
    assert left_over(many, TENSORRT) == (
        f"5 of 7 nodes run on {CUDA} (A, B, C, D, ...); 1 of 7 nodes run on {CPU} (Shape)"
    )
    assert "does not tell" in (left_over(placement(object()), TENSORRT) or "")


def test_profile_has_the_providers_own_spelling() -> None:
    assert profile_options({"a": ((1, 3), (2, 3), (4, 3)), "b": ((1,), (2,), (4,))}) == {
        "trt_profile_min_shapes": "a:1x3,b:1",
        "trt_profile_opt_shapes": "a:2x3,b:2",
        "trt_profile_max_shapes": "a:4x3,b:4",
    }
    assert profile_options({}) == {}


def test_each_bound_call_has_a_cuda_graph_of_its_own(gpu: Any, graph: Path) -> None:
    ort = gpu()
    with CudaGraphSession(graph) as session:
        np.testing.assert_allclose(session.infer({"x": X})["y"], expected(X), rtol=1e-5)
        calls = [session.bind({"x": X[:rows]}) for rows in (1, 3)]
        # One that allocates, one that captures, one that replays; one into other outputs and one into its own.
        assert ort.graphs == ["1"] * 5 + ["2"] * 5
        calls[0]()
        assert ort.graphs[-1] == "1"
        assert [capture.captured for capture in session.captures] == [True, True]
        for rows, number in ((1, "1"), (3, "2")):
            found = ort.captured[number].copy_outputs_to_cpu()[0]
            np.testing.assert_allclose(found, expected(X[:rows]), rtol=1e-5)
    assert ort.asked[0][0][1] == {"device_id": "0", "enable_cuda_graph": "1"}


@pytest.mark.parametrize(
    ("capture", "reason"),
    [
        ("never", "onnxruntime computed anew where it would have replayed a graph"),
        ("stale", "the replay of onnxruntime's graph gives other outputs"),
    ],
)
def test_a_graph_that_is_not_replayed_right_is_found_out(gpu: Any, graph: Path, capture: str, reason: str) -> None:
    """onnxruntime complains of neither."""
    ort = gpu(capture=capture)
    with CudaGraphSession(graph) as session:
        call = session.bind({"x": X})
        assert [(c.captured, c.reason) for c in session.captures] == [(False, reason)]
        call()
        assert ort.graphs[-1] == "-1"


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_an_inverted_array_differs_in_every_element(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, dtype)
    turned = _inverted(array)
    assert (turned.dtype, turned.shape) == (array.dtype, array.shape)
    assert all(a != b for a, b in zip(array.tobytes(), turned.tobytes(), strict=True))


def test_output_of_unknown_size_is_not_captured(gpu: Any, tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("NonZero", ["m"], ["y"])]
    path = save(tmp_path, nodes, [helper.make_tensor_value_info("y", TensorProto.INT64, [2, "found"])])
    ort = gpu()
    with CudaGraphSession(path) as session:
        session.bind({"x": X})()
        assert session.captures[0].captured is False
        assert "known only after" in session.captures[0].reason
    assert ort.graphs == ["-1"]


def test_model_that_cannot_be_captured_runs_without_and_says_why(gpu: Any, graph: Path) -> None:
    gpu(refuses="This session cannot use the graph capture feature as requested: a node is on the CPU")
    with open_with_cuda_graphs(graph, device="cuda:0", threads=1) as session:
        session.bind({"x": X})()
        assert session.captures[0].captured is False
        assert "a node is on the CPU" in session.captures[0].reason
    gpu(refuses="out of memory")
    with pytest.raises(StageError, match="out of memory"):
        open_with_cuda_graphs(graph, device="cuda:0", threads=1)


def test_plain_session_on_a_gpu_says_that_no_graph_was_asked_for(gpu: Any, graph: Path) -> None:
    gpu()
    with OnnxSession(graph, device="cuda:0") as session:
        session.bind({"x": X})()
        assert [(c.captured, c.reason) for c in session.captures] == [(False, "not asked for")]


def test_transfers_are_timed_by_themselves(gpu: Any, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu()
    driver = fake_gpu.Driver()
    monkeypatch.setattr(cuda, "_load", lambda index: driver)
    with OnnxSession(graph, device="cuda:0") as session:
        times = session.transfers({"x": X})
    assert times is not None
    assert (times.in_bytes, times.out_bytes) == (X.nbytes, 3 * 4 * 4)
    assert (driver.memory, driver.pinned, driver.handles, driver.retained) == ({}, {}, set(), 0)
    with OnnxSession(graph) as session:
        assert session.transfers({"x": X}) is None


def test_trace_names_every_operator_of_one_inference(graph: Path) -> None:
    """onnxruntime's own profiler, on the CPU."""
    with OnnxSession(graph, optimize=False) as session:
        events = session.trace({"x": X})
    assert [event["name"] for event in events] == ["inference", "mm", "sm"]
    assert all(event["ph"] == "X" for event in events)
    assert [event["args"] for event in events[1:]] == [
        {"operator": "MatMul", "provider": CPU},
        {"operator": "Softmax", "provider": CPU},
    ]
    whole = events[0]["dur"]
    assert 0 <= events[1]["ts"] <= events[2]["ts"] <= whole
    assert sum(event["dur"] for event in events[1:]) <= whole


def test_profile_without_a_run_has_no_events() -> None:
    assert last_run([{"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 5, "ph": "X"}]) == []


def test_runners_say_what_is_missing(graph: Path) -> None:
    assert missing("cpu", TENSORRT) == f"{TENSORRT} executes on an NVIDIA GPU: pass --device cuda:0"
    assert OnnxRuntimeTensorRTRunner.missing("cpu") == missing("cpu", TENSORRT)
    if TENSORRT not in onnxruntime.get_available_providers():
        sentence = OnnxRuntimeTensorRTRunner.missing("cuda:0") or ""
        assert f"has no {TENSORRT}" in sentence
        assert "install onnxruntime-gpu" in sentence
    with pytest.raises(MissingToolError, match="executes on an NVIDIA GPU"):
        TensorrtProviderSession(graph, device="cpu")
    with pytest.raises(UsageError, match="the CPU has no CUDA graphs"):
        CudaGraphSession(graph, device="cpu")


def test_cuda_graph_runner_on_the_cpu_is_the_plain_one(graph: Path) -> None:
    with OnnxRuntimeCudaGraphRunner(Artifact("onnx", graph, "0" * 64)) as runner:
        np.testing.assert_allclose(runner.infer({"x": X})["y"], expected(X), rtol=1e-5)
