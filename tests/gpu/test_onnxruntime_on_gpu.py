"""onnxruntime's GPU providers for real. Skipped, with the reason, where there is no GPU or no such provider."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optimizer.runtime.onnx import OnnxSession
from optimizer.runtime.onnx_gpu import TensorrtProviderSession, open_with_cuda_graphs
from optimizer.runtime.onnx_providers import CUDA, TENSORRT, missing
from tests.gpu.test_engine_session_on_gpu import TF32, batch, model, reference

pytestmark = pytest.mark.gpu


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    sentence = missing("cuda:0")
    if sentence:
        pytest.skip(sentence)
    (tmp_path / "model.onnx").write_bytes(model().SerializeToString())
    return tmp_path / "model.onnx"


def tensorrt_session(graph: Path, **options: object) -> TensorrtProviderSession:
    from optimizer.errors import MissingToolError

    sentence = missing("cuda:0", TENSORRT)
    if sentence:
        pytest.skip(sentence)
    try:
        return TensorrtProviderSession(graph, **options)  # type: ignore[arg-type]
    except MissingToolError as error:
        pytest.skip(error.what)


def test_tensorrt_provider_takes_every_node_and_computes(graph: Path) -> None:
    with tensorrt_session(graph, profile={"x": ((1, 256), (8, 256), (32, 256))}) as session:
        assert session.providers[0] == TENSORRT
        assert session.leftovers is None, session.leftovers
        for rows in (1, 32, 7):
            np.testing.assert_allclose(session.infer({"x": batch(rows)})["y"], reference(batch(rows)), atol=TF32)
        session.bind({"x": batch(8)})()


def test_tensorrt_provider_builds_for_shapes_as_they_come(graph: Path) -> None:
    with tensorrt_session(graph) as session:
        for rows in (1, 16, 1):
            np.testing.assert_allclose(session.infer({"x": batch(rows)})["y"], reference(batch(rows)), atol=TF32)


def test_cuda_provider_takes_every_node(graph: Path) -> None:
    with OnnxSession(graph, device="cuda:0") as session:
        assert session.providers[0] == CUDA
        assert session.leftovers is None, session.leftovers


def test_cuda_graphs_of_several_bound_calls_interleave(graph: Path) -> None:
    with open_with_cuda_graphs(graph, device="cuda:0", threads=1) as session:
        calls = [session.bind({"x": batch(rows)}) for rows in (1, 16)]
        assert [capture.captured for capture in session.captures] == [True, True], session.captures
        for _ in range(3):
            for call in calls:
                call()
        for rows in (1, 16, 5):
            np.testing.assert_allclose(session.infer({"x": batch(rows)})["y"], reference(batch(rows)), atol=TF32)


def test_trace_and_transfers_on_cuda(graph: Path) -> None:
    with OnnxSession(graph, device="cuda:0") as session:
        events = session.trace({"x": batch(8)})
        assert events[0]["name"] == "inference"
        assert CUDA in {event.get("args", {}).get("provider") for event in events[1:]}
        times = session.transfers({"x": batch(8)})
        assert times is not None
        assert times.in_bytes == 8 * 256 * 4
