"""On a real GPU the inspector tells the layers that the builder logged. Skipped, with the reason, without one."""

import json

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from optimizer.graph.engine_inspector import read_plan
from optimizer.graph.engine_receipt import engine_receipt
from optimizer.graph.inspect import inspect
from tests.gpu.test_engine_on_gpu import build, network, stage_for

pytestmark = pytest.mark.gpu


def half():
    """The network in float16: a table without types could not be told from a right one of the float32 network."""
    model = network()
    for index, tensor in enumerate(model.graph.initializer):
        narrow = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        model.graph.initializer[index].CopyFrom(narrow)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


@pytest.mark.parametrize("package", ["tensorrt", "tensorrt_rtx"])
def test_the_inspector_tells_nodes_and_types(package, tmp_path):
    stage = stage_for(package)
    graph, engine = build(stage, half(), tmp_path)
    logged = json.loads((engine.path / "engine.json").read_text())
    rows = read_plan(engine.file, package)
    named = {name for row in rows for name in row["onnx_nodes"]}
    assert {"conv", "fc"} <= named
    receipt = engine_receipt(graph.file, rows)
    assert receipt.notes == ()  # each product was seen in a kernel of its own
    assert receipt.shares == logged["precision"] == {"fp16": 1.0}
    assert all(tensor["type"] != "unknown" for row in rows for tensor in row["outputs"])


@pytest.mark.parametrize("package", ["tensorrt", "tensorrt_rtx"])
def test_inspect_opens_the_plan(package, tmp_path):
    _, engine = build(stage_for(package), network(), tmp_path)
    document = inspect(engine.path)
    assert document["layers_from"] == "the plan"
    assert document["layers"]
