"""onnxruntime's GPU providers for real. Skipped, with the reason, where there is no GPU or no such provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.runtime.onnx import OnnxSession
from optimizer.runtime.onnx_gpu import CudaGraphSession, TensorrtProviderSession, open_with_cuda_graphs
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


@pytest.mark.parametrize("captured", [True, False])
def test_bound_calls_write_their_outputs_with_and_without_a_cuda_graph(
    graph: Path, captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bindings: list[Any] = []
    bound = OnnxSession._binding
    monkeypatch.setattr(OnnxSession, "_binding", lambda self, feed: bindings.append(bound(self, feed)) or bindings[-1])
    opened = (
        open_with_cuda_graphs(graph, device="cuda:0", threads=1) if captured else OnnxSession(graph, device="cuda:0")
    )
    with opened as session:
        sizes = (1, 16)
        calls = [session.bind({"x": batch(rows)}) for rows in sizes]
        assert [capture.captured for capture in session.captures] == [captured] * 2, session.captures
        for _ in range(3):
            for rows, call, binding in zip(sizes, calls, bindings, strict=True):
                # What a replay does not write stays NaN.
                binding.get_outputs()[0].update_inplace(np.full((rows, 256), np.nan, np.float32))
                call()
                np.testing.assert_allclose(binding.copy_outputs_to_cpu()[0], reference(batch(rows)), atol=TF32)
        for rows in (1, 16, 5):
            np.testing.assert_allclose(session.infer({"x": batch(rows)})["y"], reference(batch(rows)), atol=TF32)


def test_a_session_that_replays_nothing_is_found_out(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of the captured half above: graph -1 is never captured, and onnxruntime does not complain."""
    numbered = CudaGraphSession._numbered
    monkeypatch.setattr(CudaGraphSession, "_numbered", lambda self, graph: numbered(self, -1))
    with CudaGraphSession(graph) as session:
        session.bind({"x": batch(8)})()
        assert [capture.captured for capture in session.captures] == [False]
        assert "computed anew" in session.captures[0].reason


def test_trace_and_transfers_on_cuda(graph: Path) -> None:
    with OnnxSession(graph, device="cuda:0") as session:
        events = session.trace({"x": batch(8)})
        assert events[0]["name"] == "inference"
        assert CUDA in {event.get("args", {}).get("provider") for event in events[1:]}
        times = session.transfers({"x": batch(8)})
        assert times is not None
        assert times.in_bytes == 8 * 256 * 4
