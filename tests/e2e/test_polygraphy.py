"""What a run stores stays usable with polygraphy: the commands that need no GPU, on the artifacts of a real run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import Build

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("polygraphy") is None, reason="polygraphy is not installed (pip install polygraphy)"
)
SHAPES = ("image:[1,1,8,8]", "image:[4,1,8,8]", "image:[8,1,8,8]")
# The golden outputs were computed by another session of onnxruntime: float32 sums in another order.
TOLERANCE = ("--atol", "1e-4", "--rtol", "1e-4")


def polygraphy(*arguments: object, rtx: bool = False) -> subprocess.CompletedProcess[str]:
    """Run polygraphy's own command line, for TensorRT-RTX where asked."""
    chosen = {"POLYGRAPHY_USE_TENSORRT_RTX": "1"} if rtx else {}
    start = "import sys; from polygraphy.tools._main import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", start, *map(str, arguments)],
        env={**os.environ, **chosen},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def graph_of(built: Build, engine: str) -> Path:
    """The ONNX file that an engine of the run was built from."""
    receipt = json.loads((built.run / "artifacts" / engine / "engine.json").read_text())
    return built.run / "artifacts" / "graphs" / receipt["onnx_sha256"][:16] / "model.onnx"


def as_json(arrays: dict[str, np.ndarray], path: Path, *, outputs: bool = False) -> Path:
    """Write arrays as polygraphy's JSON: a list of feeds, or the results of a runner."""
    from polygraphy.comparator import RunResults
    from polygraphy.json import save_json

    if outputs:
        results = RunResults()
        results.add([arrays], runner_name="golden")
        results.save(str(path))
    else:
        save_json([arrays], str(path), "inputs")
    return path


@pytest.fixture
def golden(built: Build, tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """The run's golden inputs as polygraphy's JSON, and the outputs of int8@onnxruntime."""
    folder = built.run / "golden"
    inputs = as_json(dict(np.load(folder / "inputs.npz")), tmp_path / "inputs.json")
    return inputs, dict(np.load(folder / "int8@onnxruntime.npz"))


@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8"])
def test_stored_graphs_are_inspected(built: Build, variant: str) -> None:
    for path in (
        built.run / "artifacts" / f"{variant}@onnxruntime" / "model.onnx",
        graph_of(built, f"{variant}@tensorrt_rtx"),
    ):
        done = polygraphy("inspect", "model", path)
        assert done.returncode == 0, done.stderr
        assert "{image [dtype=float32, shape=('batch', 1, 8, 8)]}" in done.stdout
        assert "{logits [dtype=float32, shape=('batch', 10)]}" in done.stdout


def test_golden_outputs_come_out_of_polygraphys_onnxruntime(built: Build, golden, tmp_path: Path) -> None:
    inputs, outputs = golden
    model = built.run / "artifacts" / "int8@onnxruntime" / "model.onnx"
    right = as_json(outputs, tmp_path / "right.json", outputs=True)
    done = polygraphy("run", model, "--onnxrt", "--load-inputs", inputs, "--load-outputs", right, *TOLERANCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED" in done.stdout


def test_other_outputs_fail_there(built: Build, golden, tmp_path: Path) -> None:
    inputs, outputs = golden
    model = built.run / "artifacts" / "int8@onnxruntime" / "model.onnx"
    wrong = as_json({n: a + 0.01 for n, a in outputs.items()}, tmp_path / "wrong.json", outputs=True)
    done = polygraphy("run", model, "--onnxrt", "--load-inputs", inputs, "--load-outputs", wrong, *TOLERANCE)
    assert done.returncode != 0
    assert "FAILED" in done.stdout + done.stderr


@pytest.mark.parametrize("variant", ["fp16", "int8"])
def test_engine_graphs_are_supported_and_built_by_polygraphy(built: Build, variant: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx package")
    graph = graph_of(built, f"{variant}@tensorrt_rtx")
    capability = polygraphy("inspect", "capability", graph, "-o", tmp_path / "parts", rtx=True)
    assert capability.returncode == 0, capability.stderr
    assert "Graph is fully supported by TensorRT" in capability.stdout
    least, usual, most = SHAPES
    profile = ("--trt-min-shapes", least, "--trt-opt-shapes", usual, "--trt-max-shapes", most)
    done = polygraphy("convert", graph, "--convert-to", "trt", "-o", tmp_path / "e.plan", *profile, rtx=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "e.plan").stat().st_size > 10_000


def test_a_graph_that_tensorrt_lacks_operators_for_is_not_called_supported(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the tensorrt-rtx package")
    import onnx
    from onnx import parser

    model = parser.parse_model('<ir_version: 10, opset_import: ["": 20]> g (float[2,2] x) => (float y) { y = Det (x) }')
    onnx.save(model, tmp_path / "det.onnx")
    done = polygraphy("inspect", "capability", tmp_path / "det.onnx", "-o", tmp_path / "parts", rtx=True)
    assert "fully supported" not in done.stdout
