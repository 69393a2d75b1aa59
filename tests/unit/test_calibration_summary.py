"""What a report says of calibration and of layers comes from the files of a build, and again from those of its run."""

import json
from dataclasses import replace

import numpy as np
import pytest

from optimizer.calibration.doctor import document, drift
from optimizer.calibration.histogram import RunningHistogram
from optimizer.calibration.table import CalibrationTable, MethodRange, TensorRange
from optimizer.errors import StageError
from optimizer.graph.layers import read_rows
from optimizer.pipeline.calibration import Calibrated, of_run, of_steps, place, summaries
from optimizer.pipeline.layers import layer_table
from optimizer.pipeline.subject import Subject
from optimizer.types import Artifact


def tensor(largest, *, method="percentile", db=40.0, clipped=0.0, earlier=2.0):
    followed = MethodRange(0.0, largest, largest, clipped, db, (earlier,))
    other = MethodRange(0.0, largest, largest, clipped, db)
    return TensorRange(0.0, largest, 640, method, {"percentile": followed, "mse": other})


def table(**tensors):
    return CalibrationTable("percentile", 99.99, 256, tensors, (192,))


def histogram(*values):
    made = RunningHistogram()
    made.fold(np.array(values, np.float32))
    return made


@pytest.fixture
def made(tmp_path):
    """A calibrate step with its diagnosis: `a` is poor, `b` drifts, `c` is well."""
    found = table(a=tensor(2.0, db=12.0), b=tensor(2.0), c=tensor(2.0, db=38.0))
    folders = {name: tmp_path / name for name in ("table", "diagnosis")}
    for folder in folders.values():
        folder.mkdir()
    found.write(folders["table"] / "table.json")
    drifts = drift(found, {"a": histogram(0.0, 1.0), "b": histogram(0.0, 1.0, 1.0, 4.0), "c": histogram(1.0, 0.5)})
    (folders["diagnosis"] / "diagnosis.json").write_text(json.dumps(document(drifts, found, 64)))
    return {
        "calibration": Artifact("data", tmp_path, "0"),
        "int8/calibrate": Artifact("calibration", folders["table"], "1"),
        "int8/diagnose": Artifact("diagnosis", folders["diagnosis"], "2"),
    }


def test_the_summary_tells_findings_drift_and_the_worst_tensors_first(made):
    summary = summaries(of_steps(made))["int8"]
    assert (summary.method, summary.samples, summary.tensors, summary.picked) == (
        "percentile",
        256,
        3,
        {"percentile": 3},
    )
    assert summary.findings == ("a keep less than 20 dB in int8 by themselves",)
    assert summary.drift[0] == "64 evaluation samples: up to 0.25 of the values ('b') outside the calibrated extremes"
    assert summary.drift[1].startswith("b beyond the calibrated range on evaluation data, up to 2 times as far")
    assert [(row.tensor, row.outside, row.complaints) for row in summary.worst] == [
        ("a", 0.0, ("int8 alone leaves 12.0 dB",)),
        ("b", 0.25, ("25 % of the evaluation values outside",)),
        ("c", 0.0, ()),
    ]


def test_a_table_chosen_for_a_dialect_stands_for_the_one_it_was_chosen_from(made, tmp_path):
    folder = tmp_path / "chosen"
    folder.mkdir()
    found = CalibrationTable.read(tmp_path / "table" / "table.json").with_choice({"c": "mse"}, "auto")
    replace(found, spared=("conv1",)).write(folder / "table.json")
    calibrated = of_steps({**made, "int8@cpu/choose": Artifact("calibration", folder, "3")})
    assert calibrated == {"int8@cpu": Calibrated(folder / "table.json", tmp_path / "diagnosis" / "diagnosis.json")}
    summary = summaries(calibrated)["int8@cpu"]
    assert (summary.method, summary.picked) == ("auto", {"percentile": 2, "mse": 1})
    assert summary.spared == ("conv1",)
    assert [row.convergence for row in summary.worst] == [0.0, 0.0, 0.0]


def test_convergence_of_a_picked_method_is_that_of_the_one_that_was_followed(tmp_path):
    table(a=tensor(4.0, method="mse")).write(tmp_path / "table.json")
    (row,) = summaries({"int8": Calibrated(tmp_path / "table.json", None)})["int8"].worst
    assert (row.convergence, row.outside, row.method) == (0.5, None, "mse")


def test_a_run_keeps_its_calibrations_and_the_next_one_says_the_same(made, tmp_path):
    run, again = tmp_path / "run", tmp_path / "again"
    stale = run / "calibration" / "gone"
    stale.mkdir(parents=True)
    place(of_steps(made), run)
    assert not stale.exists()
    place(of_run(run), again)
    assert summaries(of_run(again)) == summaries(of_steps(made))
    assert (again / summaries(of_run(again))["int8"].table).is_file()


def test_without_int8_there_is_no_calibration(tmp_path):
    place({}, tmp_path)
    assert of_run(tmp_path) == {}
    assert not (tmp_path / "calibration").exists()


ROW = {"node": "conv", "module": "stem", "operator": "Conv", "macs": 10, "requested": "int8", "delivered": "int8"}


def receipt(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "receipt.json").write_text(json.dumps({"schema_version": 1, "layers": rows}))
    return Artifact("onnx", folder, "4")


def subject(artifact, graph):
    return Subject("int8@x", "int8", "int8", "onnxruntime", "cpu", artifact, graph, None)


def test_layers_come_widest_first_and_at_most_two_hundred(tmp_path):
    rows = [ROW | {"node": f"n{i}", "macs": i, "reason": ""} for i in range(300)]
    graph = receipt(tmp_path / "g", rows)
    found = layer_table(subject(graph, graph), {})
    assert found["layer_count"] == 300
    assert [row.macs for row in found["layers"]] == list(range(299, 99, -1))


def test_layers_of_an_engine_are_told_as_the_engine_executes_them(tmp_path):
    graph = receipt(tmp_path / "g", [ROW | {"reason": ""}])
    engine = tmp_path / "e"
    engine.mkdir()
    (engine / "engine.json").write_text(json.dumps({"executed": {"conv": "fp32"}}))
    (row,) = layer_table(subject(Artifact("engine", engine, "5"), graph), {})["layers"]
    assert (row.requested, row.delivered) == ("int8", "fp32")
    assert row.reason == "the engine computes it in fp32 although the graph says int8"


def test_a_graph_without_a_receipt_has_no_layers_to_tell(tmp_path):
    graph = Artifact("onnx", tmp_path, "6")
    assert layer_table(subject(graph, graph), {}) == {}
    assert layer_table(subject(graph, None), {}) == {}
    assert read_rows(tmp_path) is None


def test_what_the_runtime_widens_is_told_layer_by_layer(tmp_path):
    graph = receipt(tmp_path / "g", [ROW | {"reason": ""}])
    (row,) = layer_table(subject(graph, graph), {"fp32": 1.0})["layers"]
    assert row.delivered == "fp32"
    assert row.reason.endswith("computes it in fp32 although the graph says int8")
    (row,) = layer_table(subject(graph, graph), {"int8": 1.0})["layers"]
    assert (row.delivered, row.reason) == ("int8", "")


def test_a_damaged_receipt_is_refused(tmp_path):
    graph = receipt(tmp_path / "g", [ROW])
    with pytest.raises(StageError, match="lacks or misstates its layers"):
        layer_table(subject(graph, graph), {})
