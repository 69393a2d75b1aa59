"""The runners and the commands on a real GPU. Skipped, with the reason, where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.environment import device_fingerprint, gpu
from optimizer.runtime import cuda
from optimizer.runtime import onnx as onnxruntime_session

pytestmark = pytest.mark.gpu
WEIGHTS = np.random.default_rng(1).normal(size=(64, 32)).astype(np.float32)


def need(sentence: str | None) -> None:
    if sentence:
        pytest.skip(sentence)


def batch(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, 64)).astype(np.float32)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    made = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_onnxruntime_computes_on_the_gpu_it_was_asked_for(graph: Path) -> None:
    need(onnxruntime_session.missing("cuda:0"))
    with onnxruntime_session.OnnxSession(graph, device="cuda:0") as session:
        assert session.providers[0] == "CUDAExecutionProvider"
        for rows in (1, 7, 1):
            found = session.infer({"x": batch(rows)})["y"]
            # TF32 keeps 10 bits of each factor: 64 products of normal numbers are off by less than 0.05.
            np.testing.assert_allclose(found, np.maximum(batch(rows) @ WEIGHTS, 0), atol=0.05)
            assert np.abs(found - np.maximum(batch(rows) @ WEIGHTS[:, ::-1], 0)).max() > 0.05


def test_onnxruntime_bound_calls_interleave(graph: Path) -> None:
    need(onnxruntime_session.missing("cuda:0"))
    with onnxruntime_session.OnnxSession(graph, device="cuda:0") as session:
        calls = [session.bind({"x": batch(rows)}) for rows in (1, 16)]
        for _ in range(3):
            assert [call() for call in calls] == [None, None]


def test_nvml_describes_the_gpu_that_cuda_numbers_first() -> None:
    need(cuda.missing())
    described = gpu()
    if described is None:
        pytest.skip("nvidia-ml-py is not installed")
    if os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        pytest.skip("CUDA_DEVICE_ORDER is not PCI_BUS_ID, as `optimize` sets it: the two may number differently")
    first = cuda.Cuda(0)
    assert (described.name, described.compute_capability) == (first.name, first.compute_capability)
    first.close()
    assert described.name in (device_fingerprint("cuda:0") or "")


def optimize(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OPTIMIZE_HOME": str(home)}
    command = [sys.executable, "-m", "optimizer", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def recipe_for_this_gpu(folder: Path) -> Path:
    from tests.e2e.tiny import edit, write_tiny

    recipe = write_tiny(folder)
    tensorrt_rtx = pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx package")
    from optimizer.graph.build_engine import capabilities

    here = cuda.Cuda(0)
    capability = here.compute_capability
    here.close()
    if capability in capabilities(tensorrt_rtx):
        return edit(recipe, '["8.6"]', f'["{capability}"]')
    return edit(recipe, '  tensorrt_rtx: {compute_capabilities: ["8.6"]}\n', "")


def test_run_built_on_the_cpu_is_measured_on_the_gpu(tmp_path: Path) -> None:
    """What docs/gpu.md promises: build without a GPU, carry the run's folder, measure it here."""
    need(onnxruntime_session.missing("cuda:0"))
    recipe = recipe_for_this_gpu(tmp_path / "recipe")
    made = optimize(tmp_path / "home", "build", str(recipe))
    assert made.returncode == 0, made.stderr
    run = Path(made.stdout.splitlines()[-1]).parent
    measured = optimize(tmp_path / "other", "measure", str(run), "--device", "cuda:0", "--json")
    assert measured.returncode == 0, measured.stderr
    report: dict[str, Any] = json.loads(measured.stdout)
    assert report["environment"]["gpu"] is not None
    for candidate in report["candidates"]:
        assert (candidate["status"], candidate["device"]) == ("measured", "cuda:0"), candidate["reason"]
        assert candidate["accuracy"]["top1"]["value"] > 0.8
        assert set(candidate["latency_ms"]) == {"1", "4"}
    delivered = {c["name"]: c["precision"]["delivered"] for c in report["candidates"]}
    assert delivered["fp16@onnxruntime"].get("fp16", 0) > 0.9
    assert "int8" not in delivered["int8@onnxruntime"]


def test_engine_on_a_second_gpu_is_refused_with_the_way_out(tmp_path: Path) -> None:
    need(cuda.missing(1))
    pytest.importorskip("tensorrt", reason="needs the tensorrt package")
    from tests.e2e.tiny import edit, write_tiny

    recipe = edit(write_tiny(tmp_path / "recipe"), '  tensorrt_rtx: {compute_capabilities: ["8.6"]}', "  tensorrt: {}")
    refused = optimize(tmp_path / "home", "build", str(recipe), "--device", "cuda:1")
    assert refused.returncode == 2, refused.stderr
    assert "CUDA_VISIBLE_DEVICES=1" in refused.stderr
