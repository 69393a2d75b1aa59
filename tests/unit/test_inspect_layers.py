"""inspect tells each layer's module and precision, from the receipt beside a graph or as an engine executes it."""

import json

import onnx
import pytest
from test_inspect import engine, graph, show

from optimizer.cli.layers import layer_lines
from optimizer.errors import UsageError
from optimizer.graph.inspect import inspect


def named(path, module):
    """Write the module on the Conv, as the export does."""
    model = onnx.load(path)
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    conv.metadata_props.add(key="optimizer.module", value=module)
    onnx.save(model, path)
    return path


def receipt(folder, **changes):
    row = {"node": "conv", "module": "stem.conv", "operator": "Conv", "macs": 768, "requested": "int8"}
    row |= {"delivered": "fp32", "reason": "keep: names it"} | changes
    (folder / "receipt.json").write_text(json.dumps({"schema_version": 1, "layers": [row]}))


def test_a_layer_is_shown_with_its_module_and_the_reason_of_its_receipt(tmp_path):
    path = named(graph(tmp_path / "model.onnx"), "stem.conv")
    assert inspect(path)["nodes"][0]["module"] == "stem.conv"
    own = inspect(path)["layers"]
    assert own == [
        {"node": "conv", "module": "stem.conv", "operator": "Conv", "macs": 12 * 64}
        | {"requested": "fp32", "delivered": "fp32", "reason": ""}
    ]
    receipt(tmp_path)
    lines = show(path).splitlines()
    assert lines[-3] == "layers that multiply   1, by receipt.json beside it"
    assert lines[-1] == "  stem.conv  conv  Conv      100.0%  fp32, not int8: keep: names it"


def test_a_receipt_of_another_graph_is_told_and_not_believed(tmp_path):
    path = graph(tmp_path / "model.onnx")
    receipt(tmp_path, node="another")
    document = inspect(path)
    assert [row["delivered"] for row in document["layers"]] == ["fp32"]
    assert document["layers_from"] == "the graph's types: receipt.json beside it is of another graph"


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 2}', '{"schema_version": 1, "layers": [{}]}'])
def test_a_damaged_receipt_is_refused(tmp_path, text):
    path = graph(tmp_path / "model.onnx")
    (tmp_path / "receipt.json").write_text(text)
    with pytest.raises(UsageError, match=r"receipt\.json: (cannot be read|is no precision receipt|lacks or misstates)"):
        inspect(path)


def test_layers_are_compared_by_module_whatever_their_nodes_are_called(tmp_path):
    first = named(graph(tmp_path / "a.onnx"), "stem.conv")
    second = named(graph(tmp_path / "b.onnx", quantized=True), "stem.conv")
    model = onnx.load(second)
    next(node for node in model.graph.node if node.op_type == "Conv").name = "renamed"
    onnx.save(model, second)
    assert "  stem.conv: Conv fp32 -> Conv int8" in show(first, second).splitlines()


def test_only_the_forty_widest_layers_are_shown():
    rows = [
        {"node": f"n{i}", "module": "", "operator": "Gemm", "macs": i + 1, "requested": "fp32"}
        | {"delivered": "fp32", "reason": ""}
        for i in range(50)
    ]
    lines = list(layer_lines(rows))
    assert len(lines) == 42
    assert lines[1].split() == ["-", "n49", "Gemm", "3.9%", "fp32"]
    assert lines[-1] == "  ... and 10 smaller ones (--json has all)"


def test_an_engine_in_a_run_is_joined_to_its_graph(tmp_path):
    half = {"kind": "convolution", "inputs": [{"tensor": "image", "type": "Half", "format": "Linear"}]}
    folder = engine(tmp_path / "e", layer=half, executed={"conv": "fp16"}, onnx_sha256="ab" * 32)
    assert inspect(folder)["nodes"] == []
    (tmp_path / "graphs").mkdir()
    named(graph(tmp_path / "graphs" / ("ab" * 8) / "model.onnx"), "stem.conv")
    assert [(n["module"], n["requested"], n["delivered"]) for n in inspect(folder)["nodes"]] == [
        ("stem.conv", "fp32", "fp16")
    ]
    line = show(folder).splitlines()[-1]
    assert line.startswith(
        "  stem.conv  conv  Conv      100.0%  fp16, not fp32: the engine computes it in fp16 although"
    )
