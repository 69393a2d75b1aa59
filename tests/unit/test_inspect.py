"""inspect shows what is in a file and what differs between two, and refuses what it cannot read."""

import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from optimizer.cli.inspect import command
from optimizer.errors import UsageError
from optimizer.graph.difference import difference
from optimizer.graph.inspect import inspect


def graph(path, *, weight=1.0, quantized=False, relu=True, external=False):
    """A Conv, quantized or not, and a Relu."""
    weights = np.full((4, 3, 1, 1), weight, np.float32)
    tensors = [numpy_helper.from_array(weights, "w")]
    nodes, data, kernel = [], "image", "w"
    if quantized:
        values = {"s": np.float32(0.1), "z": np.int8(0), "w": np.ones((4, 3, 1, 1), np.int8)}
        tensors = [numpy_helper.from_array(np.asarray(v), n) for n, v in values.items()]
        nodes = [
            helper.make_node("QuantizeLinear", ["image", "s", "z"], ["q"], name="q"),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"], name="dq"),
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wdq"], name="wdq"),
        ]
        data, kernel = "dq", "wdq"
    nodes.append(helper.make_node("Conv", [data, kernel], ["y" if not relu else "c"], name="conv"))
    if relu:
        nodes.append(helper.make_node("Relu", ["c"], ["y"]))
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, 8, 8])],
        tensors,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    path.parent.mkdir(exist_ok=True)
    options = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0} if external else {}
    onnx.save(model, path, **options)
    return path


def engine(folder, **changes):
    folder.mkdir()
    layer = {
        "name": "conv_1",
        "kind": "correlation",
        "inputs": [{"tensor": "image", "type": "Float", "format": "Linear"}],
        "outputs": [{"tensor": "y", "type": "Float", "format": "Linear"}],
        "onnx_nodes": ["conv", "relu"],
    }
    receipt = {
        "schema_version": 1,
        "package": "tensorrt_rtx",
        "version": "1.7.1",
        "compute_capabilities": ["8.6", "8.9"],
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 3, 8, 8]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 4, 8, 8]}],
        "profile": {"batch": {"min": 1, "opt": 4, "max": 16}},
        "precision": {"fp32": 1.0},
        "layers": [layer | changes.pop("layer", {})],
    } | changes
    (folder / "engine.json").write_text(json.dumps(receipt))
    (folder / "engine.plan").write_bytes(b"x" * 1000)
    return folder


def tensor(largest, method):
    ranges = {"low": 0.0, "high": largest, "magnitude": largest, "clipped": 0.0, "sqnr_db": 40.0, "earlier": [2.0]}
    return {"min": 0.0, "max": largest, "values": 640, "method": method, "methods": {method: ranges}}


def table(path, **changes):
    largest = {"image": 2.0, "c": 4.0} | changes.pop("tensors", {})
    head = {"schema": 2, "method": "percentile", "percentile": 99.9, "samples": 256, "checkpoints": [192]} | changes
    document = head | {"tensors": {name: tensor(value, head["method"]) for name, value in largest.items()}}
    path.write_text(json.dumps(document))
    return path


def show(*arguments):
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_onnx_summary(tmp_path):
    document = inspect(graph(tmp_path / "model.onnx"))
    assert document["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["batch", 3, 8, 8]}]
    assert document["operators"] == {"Conv": 1, "Relu": 1}
    assert document["parameters"] == 12
    assert document["opset"] == {"ai.onnx": 20}
    assert document["precision"] == {"fp32": 1.0}
    assert document["bytes"] == (tmp_path / "model.onnx").stat().st_size


def test_conv_between_dequantize_nodes_counts_as_int8(tmp_path):
    document = inspect(graph(tmp_path / "model.onnx", quantized=True))
    assert {node["name"]: node["precision"] for node in document["nodes"]}["conv"] == "int8"


def test_external_data_counts_as_bytes(tmp_path):
    path = graph(tmp_path / "model.onnx", external=True)
    assert inspect(path)["bytes"] == path.stat().st_size + (tmp_path / "w.bin").stat().st_size


def test_onnx_screen(tmp_path):
    screen = show(graph(tmp_path / "model.onnx")).splitlines()
    assert screen[1:4] == [
        "input    image  float32[batch, 3, 8, 8]",
        "output   y  float32[batch, 4, 8, 8]",
        "opset    ai.onnx 20",
    ]
    assert screen[-4:] == [
        "precision of nodes   fp32 100.0%",
        "layers that multiply   1, by the graph's types",
        "  module  node  operator    work  precision",
        "  -       conv  Conv      100.0%  fp32",
    ]


def test_artifact_folder_stands_for_its_main_file(tmp_path):
    graph(tmp_path / "artifact/model.onnx")
    assert inspect(tmp_path / "artifact")["kind"] == "onnx"
    assert inspect(engine(tmp_path / "engine"))["kind"] == "engine"


def test_engine_is_read_from_its_receipt(tmp_path):
    folder = engine(tmp_path / "e")
    assert inspect(folder / "engine.plan") == inspect(folder / "engine.json")
    assert inspect(folder)["bytes"] == 1000
    screen = show(folder / "engine.plan")
    assert "built by tensorrt_rtx 1.7.1" in screen
    assert "profile  batch: min 1, opt 4, max 16" in screen
    assert "correlation      Float          conv, relu" in screen


def test_calibration_table_screen(tmp_path):
    screen = show(table(tmp_path / "table.json"))
    assert "method   percentile (99.9 %), 256 samples" in screen
    lines = screen.splitlines()
    assert "  ! c still move with the number of samples, by up to 50% over the last quarter" in screen
    assert lines[-2].split()[:8] == ["c", "percentile", "0", "4", "4", "0", "40.0", "50.0%"]
    assert lines[-1].split() == ["image", "percentile", "0", "2", "2", "0", "40.0", "0.0%"]


def test_a_table_names_the_module_of_each_tensor(tmp_path):
    path = table(tmp_path / "table.json")
    document = json.loads(path.read_text())
    long = ".".join(["encoder.layers"] * 3) + ".output.dense"
    document["tensors"]["c"]["module"] = long
    path.write_text(json.dumps(document))
    head, first, second = show(path).splitlines()[-3:]
    assert head.split()[:3] == ["tensor", "module", "method"]
    assert first.split()[:3] == ["c", "…" + long[-31:], "percentile"]
    assert second.split()[:3] == ["image", "-", "percentile"]  # an input belongs to none
    at = head.index("method")
    assert first.index("percentile") == second.index("percentile") == at


def test_a_table_without_modules_has_no_column_for_them(tmp_path):
    """The twin."""
    assert [line.split()[:2] for line in show(table(tmp_path / "t.json")).splitlines()[-3:]] == [
        ["tensor", "method"],
        ["c", "percentile"],
        ["image", "percentile"],
    ]


def test_the_worst_tensors_are_shown_and_json_has_all_with_the_findings(tmp_path):
    path = table(tmp_path / "table.json", tensors={f"t{i}": 2.0 for i in range(40)} | {"dead": 0.0})
    lines = show(path).splitlines()
    assert lines[-1] == "  ... and 23 more, with less to say (--json has all)"
    assert lines[-21].split()[0] == "dead"
    assert lines[-21].endswith("dead: zero throughout")
    document = json.loads(show(path, "--json"))
    assert len(document["tensors"]) == 43
    assert list(document["complaints"]) == ["dead", "c"]
    assert "dead are zero throughout" in document["findings"]


def test_layers_that_measurement_left_in_float_are_named(tmp_path):
    assert "left in float by measurement   conv1, fc" in show(table(tmp_path / "t.json", spared=["conv1", "fc"]))


def test_a_table_of_another_schema_is_refused(tmp_path):
    path = table(tmp_path / "table.json", schema=1)
    with pytest.raises(UsageError) as caught:
        show(path)
    assert str(caught.value) == (
        f"{path}: is schema 1; this version reads 2\n  Build it again: optimize build writes one per int8 variant."
    )


def test_a_damaged_table_is_refused(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"schema": 2, "method": "mse", "tensors": {"a": {}}}))
    with pytest.raises(UsageError, match="is no whole calibration table"):
        show(path)


def test_file_against_itself_differs_in_nothing(tmp_path):
    for path in (graph(tmp_path / "m.onnx"), engine(tmp_path / "e"), table(tmp_path / "table.json")):
        assert difference(inspect(path), inspect(path)) == {}
        assert show(path, path) == "nothing differs\n"


def test_difference_of_graphs_names_operators_weights_and_precision(tmp_path):
    plain = inspect(graph(tmp_path / "a.onnx"))
    other = difference(plain, inspect(graph(tmp_path / "b.onnx", weight=2.0, relu=False)))
    assert other["operators"] == {"only_first": ["Relu"]}
    assert list(other["initializers"]["changed"]) == ["w"]
    int8 = difference(plain, inspect(graph(tmp_path / "c.onnx", quantized=True)))
    assert int8["layers"] == {"changed": {"conv": ["Conv fp32", "Conv int8"]}}
    assert int8["nodes"] == {"only_second": ["q", "dq", "wdq"]}
    assert int8["operators"]["only_second"] == ["DequantizeLinear", "QuantizeLinear"]
    assert "  w: dtype fp32, shape [4, 3, 1, 1] -> dtype int8" in show(tmp_path / "a.onnx", tmp_path / "c.onnx")
    assert "w: other values (dtype fp32" in show(tmp_path / "a.onnx", tmp_path / "b.onnx")


def test_difference_of_tables_names_tensors(tmp_path):
    first = table(tmp_path / "a.json")
    second = table(tmp_path / "b.json", method="minmax", tensors={"c": 9.0, "d": 1.0})
    screen = show(first, second)
    assert "method: percentile -> minmax" in screen
    assert "  + d" in screen
    changed = [line for line in screen.splitlines() if "->" in line and "magnitude" in line]
    assert changed[0] == (
        "  c: method percentile, low 0, high 4, magnitude 4 -> method minmax, low 0, high 9, magnitude 9"
    )


def test_long_differences_are_cut_on_the_screen_and_whole_in_json(tmp_path):
    first = table(tmp_path / "a.json")
    second = table(tmp_path / "b.json", tensors={f"t{i}": 1.0 for i in range(40)})
    assert "... and 28 more (--json has all)" in show(first, second)
    assert len(json.loads(show(first, second, "--json"))["tensors"]["only_second"]) == 40


def test_files_of_two_kinds_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"is an ONNX graph and .* a calibration table") as caught:
        show(graph(tmp_path / "m.onnx"), table(tmp_path / "table.json"))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("model.onnx", b"not a graph", "cannot be read as ONNX"),
        ("model.onnx", b"", "cannot be read as ONNX: it names no opset"),
        ("table.json", b"{", "is no JSON"),
        ("table.json", b"[1]", "is neither an engine's receipt nor a calibration table"),
        ("engine.plan", b"plan", "there is none beside it"),
    ],
)
def test_unreadable_file_is_refused(tmp_path, name, content, text):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=text):
        inspect(tmp_path / name)


def test_missing_file_and_empty_folder_are_refused(tmp_path):
    with pytest.raises(UsageError, match="there is no such file"):
        inspect(tmp_path / "none.onnx")
    with pytest.raises(UsageError, match="holds nothing that can be inspected"):
        inspect(tmp_path)


def test_lost_external_data_is_refused(tmp_path):
    path = graph(tmp_path / "model.onnx", external=True)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(UsageError, match=r"cannot be read as ONNX: .*w\.bin"):
        inspect(path)


def test_three_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match="3 files were given"):
        show("a", "b", "c")


def diagnosis(path, **changes):
    health = {"clipped": 0.0, "calibrated_clipped": 0.0, "sqnr_db": 30.5, "calibrated_sqnr_db": None}
    tensors = {f"t{i}": health | {"outside": 0.0, "reach": 0.9, "drifted": False} for i in range(30)}
    worst = {"image": health | {"outside": 0.0026, "reach": 1.703, "drifted": True}}
    head = {"schema": 1, "method": "percentile", "calibration_samples": 256, "evaluation_samples": 200}
    path.write_text(json.dumps(head | {"findings": ["image drifts"], "tensors": worst | tensors} | changes))
    return path


def test_a_diagnosis_is_shown_with_its_findings_and_the_worst_tensors(tmp_path):
    lines = show(diagnosis(tmp_path / "diagnosis.json")).splitlines()
    assert lines[0].split()[1] == "diagnosis"
    assert lines[1:5] == [
        "method   percentile, 256 calibration samples",
        "against  200 evaluation samples",
        "tensors  31, 1 of them drifted",
        "  ! image drifts",
    ]
    assert lines[6].split() == ["image", "0.0026", "1.7", "0", "0", "30.5", "-", "drifted"]
    assert lines[-2] == "  ... and 11 more, with less to say (--json has all)"
    document = json.loads(show(diagnosis(tmp_path / "diagnosis.json"), "--json"))
    assert (document["kind"], len(document["tensors"])) == ("diagnosis", 31)


def test_two_diagnoses_are_compared_and_one_is_never_compared_with_a_table(tmp_path):
    first, second = diagnosis(tmp_path / "a.json"), diagnosis(tmp_path / "b.json", evaluation_samples=100)
    assert show(first, first) == "nothing differs\n"
    assert "evaluation_samples: 200 -> 100" in show(first, second)
    with pytest.raises(UsageError, match=r"a\.json is a diagnosis and .*table\.json is none"):
        show(first, table(tmp_path / "table.json"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": 9}, "is a diagnosis of schema 9; this version reads 1"),
        ({"tensors": {"a": {}}}, "is no whole diagn"),
    ],
)
def test_a_diagnosis_that_is_damaged_or_of_another_schema_is_refused(tmp_path, changes, said):
    path = diagnosis(tmp_path / "diagnosis.json", **changes)
    for files in ([path], [path, path]):
        with pytest.raises(UsageError, match=said):
            show(*files)
