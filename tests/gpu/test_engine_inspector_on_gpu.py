"""On a real GPU the inspector tells the layers that the builder logged. Skipped, with the reason, without one."""

import json

import pytest

from optimizer.graph.engine_inspector import read_plan
from optimizer.graph.engine_receipt import engine_receipt
from optimizer.graph.inspect import inspect
from tests.gpu.test_engine_on_gpu import build, network, stage_for

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("package", ["tensorrt", "tensorrt_rtx"])
def test_the_inspector_tells_what_the_builder_logged(package, tmp_path):
    stage = stage_for(package)
    graph, engine = build(stage, network(), tmp_path)
    logged = json.loads((engine.path / "engine.json").read_text())
    rows = read_plan(engine.file, package)
    named = {name for row in rows for name in row["onnx_nodes"]}
    assert {"conv", "fc"} <= named
    assert engine_receipt(graph.file, rows).shares == logged["precision"]
    assert all(tensor["type"] != "unknown" for row in rows for tensor in row["outputs"])


@pytest.mark.parametrize("package", ["tensorrt", "tensorrt_rtx"])
def test_inspect_opens_the_plan(package, tmp_path):
    _, engine = build(stage_for(package), network(), tmp_path)
    document = inspect(engine.path)
    assert document["layers_from"] == "the plan"
    assert document["layers"]
